package config

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

type shared struct {
	Log logSection `yaml:"log"`
}

type logSection struct {
	Level string `yaml:"level" doc:"Least level."`
}

func (s logSection) Validate(r *Report) {
	if s.Level == "shout" {
		r.Fault("level", s.Level, "debug, info, warn or error")
	}
}

type route struct {
	Path    string        `yaml:"path" doc:"Path."`
	Timeout time.Duration `yaml:"timeout" doc:"Deadline."`
	File    Path          `yaml:"file" doc:"File."`
}

func (x *route) Validate(r *Report) {
	r.File("file", x.File)
	if !strings.HasPrefix(x.Path, "/") {
		r.Fault("path", x.Path, "a path that begins with /")
	}
}

type sample struct {
	shared  `yaml:",inline"`
	Listen  string         `yaml:"listen" doc:"Address."`
	Redis   redisSection   `yaml:"redis"`
	Routes  []route        `yaml:"routes" doc:"Routes."`
	Names   []string       `yaml:"names" doc:"Names."`
	Ratio   float64        `yaml:"ratio" doc:"Ratio."`
	On      bool           `yaml:"on" doc:"Switch."`
	Small   int8           `yaml:"small" doc:"Small."`
	Count   uint16         `yaml:"count" doc:"Count."`
	Body    Bytes          `yaml:"body" doc:"Size."`
	File    Path           `yaml:"file" doc:"File."`
	Free    any            `yaml:"free" doc:"Anything."`
	Opt     *route         `yaml:"opt" doc:"Optional."`
	Weights map[string]int `yaml:"weights" doc:"Weights."`
}

type redisSection struct {
	URL      Secret        `yaml:"url" doc:"Where."`
	PoolSize int           `yaml:"pool_size" doc:"Connections."`
	Timeout  time.Duration `yaml:"timeout" doc:"Deadline."`
}

func (s redisSection) Validate(r *Report) {
	if s.URL.Reveal() == "redis://user:hunter2@" {
		r.Fault("url", s.URL, "a redis:// URL with a host")
	}
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sample.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLayers(t *testing.T) {
	path := write(t, `
listen: 127.0.0.1:1
log: {level: info}
redis:
  url: redis://file
  timeout: 20ms
routes:
- {path: /a, timeout: 1s}
- path: /b
names: [x, y]
ratio: 1
on: true
small: -3
count: 0x10
body: 64KiB
file: rules.yaml
free: {a: [1, b]}
opt: {path: /o}
weights: {Blue: 2}
`)
	got, err := Load(path, []string{"TOLLGATE_REDIS_URL=redis://env", "TOLLGATE_NAMES=p, q", "TOLLGATE_LOG_LEVEL=debug", "HOME=/x",
		"TOLLGATE_API_TOKEN=reserved", "TOLLGATE_WEIGHTS={Red: 1}"},
		sample{Redis: redisSection{PoolSize: 7}, Routes: []route{{Path: "/default"}}})
	if err != nil {
		t.Fatal(err)
	}
	want := sample{
		shared: shared{logSection{"debug"}}, Listen: "127.0.0.1:1",
		Redis:  redisSection{NewSecret("redis://env"), 7, 20 * time.Millisecond},
		Routes: []route{{Path: "/a", Timeout: time.Second}, {Path: "/b"}}, Names: []string{"p", "q"}, Ratio: 1, On: true, Small: -3, Count: 16,
		Body: 64 << 10, File: Path(filepath.Join(filepath.Dir(path), "rules.yaml")), Free: map[string]any{"a": []any{1, "b"}},
		Opt: &route{Path: "/o"}, Weights: map[string]int{"Red": 1},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(sample{}, Secret{})); diff != "" {
		t.Error(diff)
	}
}

func TestEnvironmentLists(t *testing.T) {
	got, err := Load(write(t, ""), []string{`TOLLGATE_ROUTES=[{"path": "/json", "timeout": "2s"}]`, "TOLLGATE_NAMES=", "TOLLGATE_FILE=rel.yaml",
		"TOLLGATE_LISTEN=12"}, sample{Names: []string{"default"}})
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Routes) != 1 || got.Routes[0].Path != "/json" || len(got.Names) != 0 || got.File != "rel.yaml" || got.Listen != "12" {
		t.Errorf("got %+v", got)
	}
}

// One fault a case; each must be reported alone, with the line it stands on.
func TestFaults(t *testing.T) {
	const file = "sample.yaml"
	cases := []struct{ name, yaml, env, want string }{
		{"unknown key", "listen: a\nlisten_adress: b", "", `sample.yaml:2: listen_adress: unknown key; allowed here: body, count, file, free, listen, log, names, on, opt, ratio, redis, routes, small, weights`},
		{"unknown nested key", "redis:\n  ur: b", "", `sample.yaml:2: redis.ur: unknown key; allowed here: pool_size, timeout, url`},
		{"unknown key in a list", "routes:\n- path: /a\n- path: /b\n  x: 1", "", `sample.yaml:4: routes[1].x: unknown key; allowed here: file, path, timeout`},
		{"repeated key", "listen: a\nlisten: b", "", `sample.yaml:2: listen: the key stands twice`},
		{"bare duration", "redis: {timeout: 5}", "", `sample.yaml:1: redis.timeout: "5": a duration with its unit`},
		{"bare zero", "redis: {timeout: 0}", "", `sample.yaml:1: redis.timeout: "0": a duration with its unit`},
		{"bad duration", "redis: {timeout: 5 parsecs}", "", `sample.yaml:1: redis.timeout: "5 parsecs": a duration with its unit`},
		{"number for text", "listen: 5", "", `sample.yaml:1: listen: "5": text; quote it`},
		{"text for number", "redis: {pool_size: many}", "", `sample.yaml:1: redis.pool_size: "many": a whole number`},
		{"float for int", "small: 1.5", "", `sample.yaml:1: small: "1.5": a whole number of at most 8 bits`},
		{"overflow", "small: 128", "", `sample.yaml:1: small: "128": a whole number of at most 8 bits`},
		{"negative", "count: -1", "", `sample.yaml:1: count: "-1": a whole number from 0`},
		{"not a number", "ratio: .nan", "", `sample.yaml:1: ratio: ".nan": a finite number`},
		{"yes for bool", "on: yes", "", `sample.yaml:1: on: "yes": true or false`},
		{"scalar for list", "names: a", "", `sample.yaml:1: names: "a": a list`},
		{"scalar for mapping", "weights: a", "", `sample.yaml:1: weights: "a": a mapping`},
		{"repeated map key", "weights: {a: 1, a: 2}", "", `sample.yaml:1: weights.a: the key stands twice`},
		{"list for scalar", "listen: [a]", "", `sample.yaml:1: listen: a single value`},
		{"scalar for section", "redis: 5", "", `sample.yaml:1: redis: "5": a mapping of keys to values`},
		{"list at the top", "- a", "", `sample.yaml:1: a mapping of keys to values`},
		{"bad size", "body: 5 potatoes", "", `sample.yaml:1: body: "5 potatoes": a size such as`},
		{"negative size", "body: -1", "", `sample.yaml:1: body: "-1": a size such as`},
		{"huge size", "body: 99999999TiB", "", `sample.yaml:1: body: "99999999TiB": a size such as`},
		{"list for text value", "body: [1]", "", `sample.yaml:1: body: a size such as`},
		{"syntax", "a: [", "", `sample.yaml:1: not valid YAML: `},
		{"two documents", "listen: a\n---\nlisten: b", "", `sample.yaml:2: a file holds one YAML document`},
		{"validation", "log: {level: shout}", "", `sample.yaml:1: log.level: "shout": debug, info, warn or error`},
		{"validation in a list", "routes:\n- path: /a\n- path: b", "", `sample.yaml:3: routes[1].path: "b": a path that begins with /`},
		{"validation behind a pointer", "opt:\n  path: b", "", `sample.yaml:2: opt.path: "b": a path that begins with /`},
		{"missing file", "routes: [{path: /a, file: /no/such}]", "", `sample.yaml:1: routes[0].file: "/no/such": the path of a file that can be read: no such file`},
		{"secret", "redis: {url: 'redis://user:hunter2@'}", "", `sample.yaml:1: redis.url: "[redacted]": a redis:// URL with a host`},
		{"secret of the wrong kind", "redis: {url: [hunter2]}", "", `sample.yaml:1: redis.url: a text`},
		{"unknown variable", "", "TOLLGATE_REDIS_ULR=hunter2", `environment TOLLGATE_REDIS_ULR: redis_ulr: no such key; the nearest variable is TOLLGATE_REDIS_URL`},
		{"bad variable", "", "TOLLGATE_REDIS_TIMEOUT=5", `environment TOLLGATE_REDIS_TIMEOUT: redis.timeout: "5": a duration with its unit`},
		{"bad list in a variable", "", "TOLLGATE_ROUTES=[", `environment TOLLGATE_ROUTES: routes: not valid YAML`},
		{"bad element in a variable", "", "TOLLGATE_ROUTES=[{path: b}]", `environment TOLLGATE_ROUTES: routes[0].path: "b": a path that begins with /`},
		{"secret in a variable", "", "TOLLGATE_REDIS_URL=redis://user:hunter2@", `environment TOLLGATE_REDIS_URL: redis.url: "[redacted]": a redis:// URL with a host`},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			path := write(t, c.yaml)
			defaults := sample{Listen: "default"}
			var environ []string
			if c.env != "" {
				environ = []string{c.env}
			}
			got, err := Load(path, environ, defaults)
			var faults Faults
			if !errors.As(err, &faults) || len(faults) != 1 {
				t.Fatalf("got %v, want one fault", err)
			}
			text := strings.ReplaceAll(faults.Error(), path, file)
			if !strings.HasPrefix(text, c.want) {
				t.Errorf("got  %s\nwant %s", text, c.want)
			}
			if strings.Contains(text, "hunter2") {
				t.Errorf("the fault shows a secret: %s", text)
			}
			if diff := cmp.Diff(defaults, got, cmp.AllowUnexported(sample{}, Secret{})); diff != "" {
				t.Errorf("a faulty file changed something: %s", diff)
			}
		})
	}
}

func TestAllFaultsAtOnceInOrder(t *testing.T) {
	_, err := Load(write(t, "small: x\nredis: {timeout: 5}\nnope: 1\n"), []string{"TOLLGATE_COUNT=x"}, sample{})
	var faults Faults
	if !errors.As(err, &faults) || len(faults) != 4 {
		t.Fatalf("got %v, want four faults", err)
	}
	for i, line := range []int{1, 2, 3, 0} {
		if faults[i].Line != line {
			t.Errorf("fault %d is on line %d, want %d: %s", i, faults[i].Line, line, faults[i])
		}
	}
}

func TestUnreadable(t *testing.T) {
	_, err := Load(filepath.Join(t.TempDir(), "none.yaml"), nil, sample{})
	if err == nil || !strings.Contains(err.Error(), "none.yaml: the file cannot be read: no such file") {
		t.Errorf("got %v", err)
	}
	big := write(t, strings.Repeat("# filler\n", MaxFileSize/9+2))
	if _, err := LoadFile(big, sample{}); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("got %v", err)
	}
}

func TestAliases(t *testing.T) {
	got, err := Decode("x.yaml", []byte("opt: &o {path: /o}\nroutes: [*o, *o]\n"), sample{})
	if err != nil || len(got.Routes) != 2 || got.Routes[1].Path != "/o" {
		t.Errorf("got %+v, %v", got, err)
	}
	// Ten levels of ten aliases each would be 10^10 values.
	type tree struct {
		A    []any  `yaml:"a" doc:"x"`
		Kids []tree `yaml:"kids" doc:"x"`
	}
	var b strings.Builder
	b.WriteString("a:\n- &b0 [x]\n")
	for i := 1; i <= 12; i++ {
		fmt.Fprintf(&b, "- &b%d [%s]\n", i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*b%d,", i-1), 10), ","))
	}
	if _, err := Decode("bomb.yaml", []byte(b.String()), tree{}); err == nil {
		t.Error("an alias bomb was decoded")
	}
	if _, err := Decode("loop.yaml", []byte("kids: &k [{kids: *k}]\n"), tree{}); err == nil || !strings.Contains(err.Error(), "contains itself") {
		t.Errorf("an endless alias: %.200v", err)
	}
}

func TestEmptyFileGivesDefaults(t *testing.T) {
	got, err := Load(write(t, "# nothing\n"), nil, sample{Listen: "d"})
	if err != nil || got.Listen != "d" {
		t.Errorf("got %+v, %v", got, err)
	}
	got, err = Load(write(t, "redis:\nroutes:\nopt:\n"), nil, sample{Redis: redisSection{PoolSize: 3}})
	if err != nil || got.Redis.PoolSize != 3 {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestSecretsStayHidden(t *testing.T) {
	s := NewSecret("hunter2")
	var b strings.Builder
	slog.New(slog.NewTextHandler(&b, nil)).Info("x", "secret", s)
	text, _ := s.MarshalText()
	all := fmt.Sprintf("%v %+v %#v %s %s", s, struct{ S Secret }{s}, s, text, b.String())
	if strings.Contains(all, "hunter2") {
		t.Errorf("shown: %s", all)
	}
	if s.Reveal() != "hunter2" || s.IsZero() || !(Secret{}).IsZero() || (Secret{}).String() != "" {
		t.Error("the secret itself is not kept")
	}
}

func TestBytesRoundTrip(t *testing.T) {
	for _, text := range []string{"0B", "1B", "1023B", "1KiB", "1536B", "64KiB", "3MiB", "2GiB", "1TiB"} {
		var b Bytes
		if err := b.UnmarshalText([]byte(text)); err != nil || b.String() != text {
			t.Errorf("%s became %s, %v", text, b, err)
		}
	}
}

func TestReference(t *testing.T) {
	var b strings.Builder
	err := WriteReference(&b, "sample", sample{Listen: "127.0.0.1:1", Redis: redisSection{Timeout: 5 * time.Minute, URL: NewSecret("hunter2")},
		Routes: []route{{}}, Names: []string{"a"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"# sample\n",
		"| `listen` | text | `127.0.0.1:1` | `TOLLGATE_LISTEN` | restart | Address. |",
		"| `redis.timeout` | duration | `5m` | `TOLLGATE_REDIS_TIMEOUT` | restart | Deadline. |",
		"| `redis.url` | secret | `[redacted]` | `TOLLGATE_REDIS_URL` | restart | Where. |",
		"| `routes` | list of section | 1 entries |",
		"| `on` | boolean | `false` |",
		"## `routes[]`",
		"| `timeout` | duration | Deadline. |",
		"| `weights` | mapping to whole number |",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("missing %q in:\n%s", want, b.String())
		}
	}
	if missing := Undocumented[sample](); len(missing) > 0 {
		t.Errorf("without a doc tag: %v", missing)
	}
	type bare struct {
		Routes []struct {
			Path string `yaml:"path"`
		} `yaml:"routes" doc:"x"`
	}
	if missing := Undocumented[bare](); len(missing) != 1 || missing[0] != "routes[].path" {
		t.Errorf("got %v", missing)
	}
}

// A change of a key takes a restart unless the key, or a section above it, says
// otherwise; the page and the comparison agree.
func TestNeedRestart(t *testing.T) {
	type limits struct {
		Rate int      `yaml:"rate" doc:"-"`
		Keys []string `yaml:"keys" doc:"-"`
	}
	type root struct {
		Listen string `yaml:"listen" doc:"-"`
		URL    Secret `yaml:"url" doc:"-"`
		Level  string `yaml:"level" doc:"-" reload:"true"`
		Hot    limits `yaml:"hot" reload:"true"`
		Cold   limits `yaml:"cold"`
	}
	before := root{Cold: limits{Keys: []string{"a"}}}
	after := root{
		Listen: "x", URL: NewSecret("hunter2"), Level: "debug",
		Hot: limits{1, []string{"b"}}, Cold: limits{2, []string{"b"}},
	}
	if got := NeedRestart(before, before); got != nil {
		t.Errorf("nothing has changed: %v", got)
	}
	want := []string{"listen", "url", "cold.rate", "cold.keys"}
	if got := NeedRestart(before, after); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	var page strings.Builder
	if err := WriteReference(&page, "root", before); err != nil {
		t.Fatal(err)
	}
	for _, f := range newSchema(reflect.TypeFor[root]()) {
		change := "reload"
		if slices.Contains(want, f.key) {
			change = "restart"
		}
		if !strings.Contains(page.String(), "`"+f.env+"` | "+change+" |") {
			t.Errorf("%s is not shown to take a %s:\n%s", f.key, change, page.String())
		}
	}
}

func TestConventionsAreChecked(t *testing.T) {
	type noTag struct{ A int }
	type upper struct {
		A int `yaml:"Upper"`
	}
	type clash struct {
		A struct {
			B int `yaml:"b"`
		} `yaml:"a"`
		AB int `yaml:"a_b"`
	}
	type inlinesValidator struct {
		logSection `yaml:",inline"`
	}
	for name, f := range map[string]func(){
		"no tag":    func() { Undocumented[noTag]() },
		"upper":     func() { Undocumented[upper]() },
		"clash":     func() { Undocumented[clash]() },
		"validator": func() { Undocumented[inlinesValidator]() },
		"scalar":    func() { Undocumented[int]() },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			f()
		})
	}
}

func FuzzDecode(f *testing.F) {
	f.Add("listen: a\nroutes: [{path: /a, timeout: 1s}]\n")
	f.Add("a: &x [*x]")
	f.Add("redis: {timeout: 5}")
	f.Add("? [a]\n: b")
	f.Fuzz(func(t *testing.T, text string) {
		if _, err := Decode("fuzz.yaml", []byte(text), sample{}); err != nil && err.Error() == "" {
			t.Error("an error without a text")
		}
	})
}
