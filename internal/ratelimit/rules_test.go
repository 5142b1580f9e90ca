package ratelimit

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const shipped = "../../config/limits/tollgate.yaml"

func mustLoad(t testing.TB, paths ...string) *Rules {
	t.Helper()
	rules, err := LoadRules(paths...)
	if err != nil {
		t.Fatal(err)
	}
	return rules
}

func mustParse(t testing.TB, text string) *Rules {
	t.Helper()
	rules, err := ParseRules("rules.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return rules
}

// TestShippedTable holds the shipped file to the contract's table.
func TestShippedTable(t *testing.T) {
	d := mustLoad(t, shipped).domains["tollgate"]
	want := map[string][2]uint32{
		"anonymous": {5, 60}, "free": {10, 100}, "premium": {50, 1000}, "enterprise": {500, 10_000}, "admin": {5000, 100_000},
	}
	for name, rates := range want {
		rule := d.tiers[name]
		if rule == nil || len(rule.Limits) != 2 {
			t.Fatalf("tier %s: %+v", name, rule)
		}
		if m, h := rule.Limits[0], rule.Limits[1]; m.Tokens != rates[0] || m.Unit != Minute || h.Tokens != rates[1] || h.Unit != Hour {
			t.Errorf("tier %s: %d a %s and %d a %s", name, m.Tokens, m.Unit, h.Tokens, h.Unit)
		}
	}
	if len(d.tiers) != len(want) || d.defaultTier != d.tiers["anonymous"] {
		t.Errorf("%d tiers, default %s", len(d.tiers), d.defaultTier.Name)
	}
	for endpoint, cost := range map[string]uint64{"ml": 5, "blockchain": 10, "fraud": 2, "nlp": 1, "": 1} {
		if got := d.cost(nil, []Entry{{"endpoint", endpoint}}); got != cost {
			t.Errorf("endpoint %q costs %d, want %d", endpoint, got, cost)
		}
	}
	if s := d.system; len(s) != 1 || s[0].Tokens != 10_000 || s[0].Unit != Second {
		t.Errorf("system: %+v", s)
	}
}

// TestBustedFiles reads files with one fault each. The first line of a file
// says what must be told, after "# want: ".
func TestBustedFiles(t *testing.T) {
	files, err := filepath.Glob("testdata/busted_*.yaml")
	if err != nil || len(files) < 15 {
		t.Fatalf("only %d files: %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			first, _, _ := strings.Cut(string(data), "\n")
			want, ok := strings.CutPrefix(first, "# want: ")
			if !ok {
				t.Fatal("the file does not say what is wanted")
			}
			if _, err = LoadRules(file); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v\nwant %s", err, want)
			}
		})
	}
}

func TestSeveralFaultsAtOnce(t *testing.T) {
	_, err := ParseRules("f.yaml", []byte("domain: d\nsystem: [{unit: eon, requests_per_unit: 1}]\ndescriptors:\n- {rate_limit: {unit: fortnight}}\n- {key: k, limits: [{unit: second, algorithm: luck}]}\n"))
	if err == nil || strings.Count(err.Error(), "\n") != 3 {
		t.Errorf("want four faults, one a line; got %v", err)
	}
}

func TestLoadRulesFolder(t *testing.T) {
	dir := t.TempDir()
	if _, err := LoadRules(dir); err == nil {
		t.Error("an empty folder was taken")
	}
	if _, err := LoadRules(); err == nil {
		t.Error("no file was taken")
	}
	if _, err := LoadRules(filepath.Join(dir, "absent.yaml")); err == nil {
		t.Error("an absent file was taken")
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("a.yaml", "domain: one\ndescriptors: [{key: a, rate_limit: {unit: second, requests_per_unit: 1}}]")
	write("b.yml", "domain: one\ndescriptors: [{key: b, rate_limit: {unit: second, requests_per_unit: 1}}]")
	write("c.yaml", "domain: two")
	write("ignored.txt", "domain: [")
	rules := mustLoad(t, dir)
	if diff := cmp.Diff([]string{"one", "two"}, rules.Domains()); diff != "" {
		t.Error(diff)
	}
	if len(rules.Files()) != 3 || len(rules.domains["one"].root.exact) != 2 {
		t.Errorf("files %v, rules %v", rules.Files(), rules.domains["one"].root.exact)
	}
	for _, twice := range []string{
		"descriptors: [{key: a, rate_limit: {unit: day, requests_per_unit: 1}}]",
		"tiers: &t {entry: e, subjects: [s], default: x, table: [{name: x, unlimited: true}]}",
		"costs: {entry: e}",
		"system: [{unit: second, requests_per_unit: 1}]",
	} {
		write("d.yaml", "domain: one\n"+twice)
		write("e.yaml", "domain: one\n"+twice)
		if _, err := LoadRules(dir); err == nil || !strings.Contains(err.Error(), "two files") {
			t.Errorf("%s twice: %v", twice, err)
		}
	}
}

func TestNewLimit(t *testing.T) {
	for _, c := range []struct {
		tokens             uint32
		unit               Unit
		multiple, burst    uint32
		algorithm          Algorithm
		interval, capacity int64
	}{
		{10, Minute, 0, 0, TokenBucket, 6e6, 60e6},
		{10, Minute, 2, 30, TokenBucket, 12e6, 360e6},
		{7, Second, 1, 0, TokenBucket, 142858, 1000006},
		{1_000_000, Second, 1, 0, TokenBucket, 1, 1e6},
		{4_000_000, Second, 1, 0, TokenBucket, 1, 4e6},
		{0, Hour, 1, 0, TokenBucket, 3600e6, 0},
		{7, Second, 1, 0, FixedWindow, 142857, 999999},
		{10, Second, 1, 0, SlidingWindow, 99999, 999990},
		{1, Year, 1, 0, TokenBucket, 365 * 24 * 3600e6, 365 * 24 * 3600e6},
	} {
		l, err := NewLimit("", c.tokens, c.unit, c.multiple, c.burst, c.algorithm)
		if err != nil || l.interval != c.interval || l.capacity != c.capacity {
			t.Errorf("%+v: interval %d, capacity %d, %v", c, l.interval, l.capacity, err)
		}
	}
	for _, c := range []struct {
		tokens          uint32
		unit            Unit
		multiple, burst uint32
		algorithm       Algorithm
	}{
		{1, UnknownUnit, 1, 0, TokenBucket},
		{1_000_001, Second, 1, 0, FixedWindow},
		{1, Year, 40, 0, TokenBucket},
		{1, Year, 1, 40, TokenBucket},
		{10, Second, 1, 20, FixedWindow},
		{1_000_000, Second, 1, 0, SlidingWindow},
		{10, Second, 1, 20, SlidingWindow},
	} {
		if l, err := NewLimit("", c.tokens, c.unit, c.multiple, c.burst, c.algorithm); err == nil {
			t.Errorf("%+v was taken: %+v", c, l)
		}
	}
	if l, _ := NewLimit("", 5, Minute, 15, 0, TokenBucket); l.Name != "15-minutes" || l.Window() != 15*time.Minute {
		t.Errorf("%s, %s", l.Name, l.Window())
	}
	if Unit(99).String() != "unknown" || Unit(99).Window() != 0 || FixedWindow.String() != "fixed_window" || Algorithm(9).String() != "unknown" {
		t.Error("names")
	}
}

// TestMatch walks a tree in envoyproxy/ratelimit's grammar.
func TestMatch(t *testing.T) {
	d := mustLoad(t, "testdata/envoyproxy.yaml").domains["edge"]
	for _, c := range []struct {
		entries []Entry
		want    string
		shared  bool
	}{
		{[]Entry{{"database", "users"}}, "database_users", false},
		{[]Entry{{"database", "default"}}, "database_default", false},
		{[]Entry{{"database", "other"}}, "", false},
		{[]Entry{{"message_type", "marketing"}}, "", false},
		{[]Entry{{"message_type", "marketing"}, {"to_number", "2061111111"}}, "message_type_marketing.to_number_2061111111", false},
		{[]Entry{{"message_type", "marketing"}, {"to_number", "7"}}, "message_type_marketing.to_number", false},
		{[]Entry{{"to_number", "7"}}, "to_number", false},
		{[]Entry{{"to_number", "7"}, {"more", "x"}}, "", false},
		{[]Entry{{"path", "/api/v1"}}, "path_/api/*", false},
		{[]Entry{{"path", "/files/a"}}, "path_/files/*", true},
		{[]Entry{{"code", "10"}}, "code_10", false},
		{[]Entry{{"middle", "/api/x/v1/y/end"}}, "middle_/api*v1*end", false},
		{[]Entry{{"middle", "/apiv1end"}}, "middle_/api*v1*end", false},
		{[]Entry{{"middle", "/apiv1en"}}, "", false},
		{[]Entry{{"middle", "/api/end"}}, "", false},
		{[]Entry{{"middle", "x/apiv1end"}}, "", false},
		{[]Entry{{"unknown", ""}}, "", false},
	} {
		m := d.match(c.entries)
		got := ""
		if m.rule != nil {
			got = m.rule.Name
		}
		if got != c.want {
			t.Errorf("%v met %q, want %q", c.entries, got, c.want)
		}
		if shared := m.rule != nil && m.entries[0] != c.entries[0]; shared != c.shared {
			t.Errorf("%v: shared %v", c.entries, shared)
		}
	}
}

// TestKeysDoNotCollide draws pairs of subjects from crafted values.
func TestKeysDoNotCollide(t *testing.T) {
	parts := []string{"", "a", "b", "a_b", "a=b", "~a=b", ";a", "}:system", "}", "{", "%7D", "%", ":60", "#", strings.Repeat("x", 200), strings.Repeat("x", 201), "\r\n", "é"}
	seen := map[string]string{}
	note := func(key, what string) {
		t.Helper()
		if other, ok := seen[key]; ok {
			t.Fatalf("%s and %s share the key %s", what, other, key)
		}
		seen[key] = what
		if tag := hashTag(key); strings.ContainsAny(tag, "{}\r\n ") || !strings.HasPrefix(key, keyPrefix+tag+"}") || len(key) > 600 {
			t.Fatalf("key %q", key)
		}
	}
	for _, domain := range parts[1:14] {
		note(systemKey(domain), "system of "+domain)
		for _, k := range parts {
			for _, v := range parts {
				for _, kind := range []byte{kindTier, kindDescriptor} {
					note(string(appendSubjectKey(nil, domain, kind, []Entry{{k, v}})), strings.Join([]string{domain, string(kind), k, v}, " | "))
					note(string(appendSubjectKey(nil, domain, kind, []Entry{{k, v}, {"z", ""}})), strings.Join([]string{domain, string(kind), k, v, "z"}, " | "))
				}
			}
		}
	}
}

func FuzzParseRules(f *testing.F) {
	for _, file := range []string{shipped, "testdata/envoyproxy.yaml"} {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		rules, err := ParseRules("fuzz.yaml", data)
		if err != nil {
			return
		}
		for _, name := range rules.Domains() {
			rules.domains[name].match([]Entry{{"tier", "free"}, {"user", "u"}})
		}
	})
}

func TestExplain(t *testing.T) {
	rules, peer := mustLoad(t, shipped), mustLoad(t, "testdata/envoyproxy.yaml")
	for _, c := range []struct {
		rules   *Rules
		domain  string
		entries []Entry
		want    string
	}{
		{rules, "tollgate", []Entry{{"tier", "free"}, {"user", "u"}, {"endpoint", "ml"}}, `rule tier.free: "minute";q=10;w=60, "hour";q=100;w=3600, cost 5`},
		{rules, "tollgate", []Entry{{"generic_key", "floor"}}, `no rule: held by the system's limits alone, "system-second";q=10000;w=1`},
		{rules, "other", nil, "no rule: the domain is unknown, every request passes"},
		{peer, "edge", []Entry{{"x", "y"}}, "no rule: every request passes"},
		{peer, "edge", []Entry{{"database", "default"}}, "rule database_default: unlimited"},
		{peer, "edge", []Entry{{"quota", "q"}}, `rule quota: "hour";q=1;w=3600, cost 1, only watched`},
	} {
		if got := c.rules.Explain(c.domain, c.entries); got != c.want {
			t.Errorf("%v: got %s", c.entries, got)
		}
	}
}
