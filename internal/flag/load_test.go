package flag

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tollgate-proxy/tollgate/internal/config"
)

// mustParse reads a document that is expected to be good.
func mustParse(t testing.TB, text string) *Definitions {
	t.Helper()
	defs, err := Parse("test.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return defs
}

func mustCompile(t testing.TB, text string) *Set {
	t.Helper()
	set, err := Compile(mustParse(t, text))
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func TestShippedFlags(t *testing.T) {
	defs, err := LoadFile("../../config/flags.yaml")
	if err != nil {
		t.Fatal(err)
	}
	type want struct {
		percentage Percentage
		tiers      string
	}
	paying := "premium,enterprise"
	wants := map[string]want{
		"ml-v2":                    {50 * Percent, ""},
		"fraud-detection-v3":       {75 * Percent, paying},
		"nlp-batch-processing":     {100 * Percent, ""},
		"advanced-analytics":       {25 * Percent, "enterprise"},
		"blockchain-mev-detection": {30 * Percent, paying},
		"rate-limiting-v2":         {60 * Percent, ""},
		"gdpr-strict-mode":         {100 * Percent, ""},
		"distributed-tracing":      {40 * Percent, "enterprise"},
	}
	got := map[string]want{}
	for key, def := range defs.Flags {
		x := def.Extension
		got[key] = want{x.Rollout.Percentage, strings.Join(x.Audience.Tiers, ",")}
		if x.Salt != key || x.Hash != HashTollgate1 {
			t.Errorf("%s: salt %q and hash %q are not explicit", key, x.Salt, x.Hash)
		}
	}
	if diff := cmp.Diff(wants, got, cmp.AllowUnexported(want{})); diff != "" {
		t.Error(diff)
	}
}

// A stored definition reads back as what was written, in YAML and JSON alike.
func TestDefinitionRoundTrip(t *testing.T) {
	const text = `
$schema: https://flagd.dev/schema/v0/flags.json
metadata: {team: core, by: bob}
$evaluators:
  paying: {in: [{var: tier}, [premium, enterprise]]}
flags:
  base:
    state: ENABLED
    variants: {"on": true, "off": false}
    defaultVariant: off
  checkout:
    state: DISABLED
    variants: {blue: "#00f", green: "#0f0"}
    defaultVariant: green
    metadata: {ticket: 12, urgent: true, by: ann}
    targeting: {if: [{$ref: paying}, blue, null]}
    tollgate:
      description: colour
      owner: shop
      expires: 2027-06-30
      header: false
      killed: false
      force: blue
      on: blue
      off: green
      salt: pepper
      hash: flagd-2
      flagdHash: flagd-1
      flagdKey: Checkout.Colour
      schedule: {from: 2026-01-01, until: 2027-01-01T12:00:00Z}
      prerequisites: [{flag: base, variants: ["on"]}]
      users: [{variant: blue, keys: [ann, bob]}]
      audience: {tiers: [premium], roles: [tester], claims: [{name: org.id, values: ["7"]}]}
      layer: {name: shop, from: 0, until: 12.5}
      holdout: {name: all, percentage: 0.001}
      rollout:
        progressive: {from: 2026-01-01, until: 2026-02-01, start: 1, end: 50}
        variants: [{variant: blue, weight: 2}, {variant: green, weight: 1}]
        bucketBy: org.id
`
	defs := mustParse(t, text)
	for key, def := range defs.Flags {
		data, err := json.Marshal(def)
		if err != nil {
			t.Fatal(err)
		}
		back, err := ParseFlag("stored", key, data)
		if err != nil {
			t.Fatalf("%s: %v\n%s", key, err, data)
		}
		if diff := cmp.Diff(def, back); diff != "" {
			t.Errorf("%s: %s", key, diff)
		}
	}
	// The document's metadata is every flag's, whose own comes first.
	for key, want := range map[string]map[string]any{
		"base": {"team": "core", "by": "bob"}, "checkout": {"team": "core", "by": "ann", "ticket": 12.0, "urgent": true},
	} {
		if diff := cmp.Diff(want, defs.Flags[key].Metadata); diff != "" {
			t.Errorf("%s: metadata %s", key, diff)
		}
	}
	if got := string(defs.Flags["checkout"].Targeting); got != `{"if":[{"in":[{"var":"tier"},["premium","enterprise"]]},"blue",null]}` {
		t.Errorf("targeting %s", got)
	}
}

// JSON that is not YAML: tabs, escaped slashes, surrogate pairs.
func TestJSONIsReadAsJSON(t *testing.T) {
	defs := mustParse(t, "{\n\t\"flags\": {\n\t\t\"smile\": {\"variants\": {\"a\": \"\\ud83d\\ude00\\/\"}, \"defaultVariant\": \"a\"}\n\t}\n}")
	if got := defs.Flags["smile"].Variants["a"]; got != "😀/" {
		t.Errorf("got %q", got)
	}
}

// Each file in testdata/faults has one fault; its first line says where and
// what is allowed.
func TestFaults(t *testing.T) {
	files, err := filepath.Glob("testdata/faults/*")
	if err != nil || len(files) < 40 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			first, _, _ := strings.Cut(string(data), "\n")
			want := strings.TrimPrefix(first, "# ")
			_, err = LoadFile(file)
			var faults config.Faults
			if !errors.As(err, &faults) || len(faults) != 1 {
				t.Fatalf("got %v, want one fault", err)
			}
			got := faults[0]
			if got.File != file || got.Line == 0 && got.Key != "" {
				t.Errorf("fault without file or line: %+v", got)
			}
			if text := got.Key + ": " + got.Allowed; !strings.Contains(text, want) {
				t.Errorf("got  %s\nwant %s", text, want)
			}
		})
	}
}

func TestAllFaultsAtOnce(t *testing.T) {
	_, err := Parse("flags.yaml", []byte("flags:\n  A:\n    state: maybe\n  b:\n    variants: {x: 1, y: two}\n    defaultVariant: z\n    colour: red\n"))
	var faults config.Faults
	if !errors.As(err, &faults) || len(faults) != 5 {
		t.Fatalf("got %v", err)
	}
	want := []config.Fault{
		{File: "flags.yaml", Line: 3, Key: "flags.A", Value: "A"},
		{File: "flags.yaml", Line: 3, Key: "flags.A.state", Value: "maybe", Allowed: "one of ENABLED, DISABLED"},
		{File: "flags.yaml", Line: 5, Key: "flags.b.variants.y", Value: "two", Allowed: "a number, as the other variants"},
		{File: "flags.yaml", Line: 6, Key: "flags.b.defaultVariant", Value: "z", Allowed: "one of the flag's variants [x y]"},
		{File: "flags.yaml", Line: 7, Key: "flags.b.colour", Allowed: "one of defaultVariant, metadata, state, targeting, tollgate, variants"},
	}
	want[0].Allowed = "a key of " + allowedKey
	if diff := cmp.Diff(config.Faults(want), faults); diff != "" {
		t.Error(diff)
	}
}

func TestUnreadableFiles(t *testing.T) {
	if _, err := LoadFile(filepath.Join(t.TempDir(), "none.yaml")); err == nil {
		t.Error("a missing file was read")
	}
	big := filepath.Join(t.TempDir(), "big.yaml")
	if err := os.WriteFile(big, make([]byte, MaxDocumentBytes+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadFile(big); err == nil {
		t.Error("a gigantic file was read")
	}
	if _, err := ParseFlag("body", "a", make([]byte, MaxFlagBytes+1)); err == nil {
		t.Error("a gigantic flag was read")
	}
	for _, text := range []string{"", "[", "{", `{"flags":{}} {}`, "a: &x 1\nb: *x", strings.Repeat("[", 100) + strings.Repeat("]", 100),
		strings.Repeat(`{"a":`, 100) + "1" + strings.Repeat("}", 100), `{"flags":`, `{"flags" 1}`} {
		if _, err := Parse("t", []byte(text)); err == nil {
			t.Errorf("%q was read", text)
		}
	}
}

func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/faults/*")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range append(files, "../../config/flags.yaml") {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		defs, err := Parse("fuzz", data)
		if err != nil {
			return
		}
		set, err := Compile(defs)
		if err != nil {
			t.Fatalf("parsed but did not compile: %v", err)
		}
		for key, def := range defs.Flags {
			stored, err := json.Marshal(def)
			if err != nil {
				t.Fatal(err)
			}
			back, err := ParseFlag("stored", key, stored)
			if err != nil {
				t.Fatalf("%s does not read back: %v\n%s", key, err, stored)
			}
			if diff := cmp.Diff(def, back); diff != "" {
				t.Fatal(diff)
			}
		}
		header := set.AppendHeader(nil, &Subject{Key: "u", Tier: "premium", Roles: []string{"a"}}, nil, testTime)
		if len(header) > MaxHeaderBytes || strings.ContainsAny(string(header), "\r\n\x00 ") {
			t.Fatalf("header %q", header)
		}
	})
}
