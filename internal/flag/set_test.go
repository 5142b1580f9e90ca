package flag

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// testTime is the time of evaluations whose time does not matter.
var testTime = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

const decisions = `
flags:
  plain: {variants: {"on": true, "off": false}, defaultVariant: "off"}
  disabled: {state: DISABLED, defaultVariant: "true"}
  nodefault: {variants: {small: 1, big: 2}}
  killed: {variants: {"on": true, "off": false}, defaultVariant: "on", tollgate: {killed: true, rollout: {percentage: 100}}}
  killed-forced: {variants: {"on": true, "off": false}, defaultVariant: "on", tollgate: {killed: true, force: "on"}}
  killed-text: {variants: {a: x, b: y}, defaultVariant: b, tollgate: {killed: true, off: a}}
  forced: {variants: {"on": true, "off": false}, defaultVariant: "off", tollgate: {force: "on", audience: {tiers: [none]}, rollout: {percentage: 0}}}
  soon: {variants: {"on": true, "off": false}, defaultVariant: "on", tollgate: {schedule: {from: 2026-03-05}}}
  over: {variants: {"on": true, "off": false}, defaultVariant: "on", tollgate: {schedule: {until: 2026-03-04T05:06:07Z}}}
  during: {variants: {"on": true, "off": false}, defaultVariant: "on", tollgate: {schedule: {from: 2026-03-04T05:06:07Z, until: 2026-03-04T05:06:08Z}}}
  needs-on: {variants: {"on": true, "off": false}, defaultVariant: "on", tollgate: {prerequisites: [{flag: forced, variants: ["on"]}]}}
  needs-off: {variants: {"on": true, "off": false}, defaultVariant: "on", tollgate: {prerequisites: [{flag: forced, variants: ["off"]}]}}
  needs-both: {variants: {"on": true, "off": false}, defaultVariant: "on", tollgate: {prerequisites: [{flag: needs-on, variants: ["on"]}, {flag: needs-off, variants: ["on", "off"]}]}}
  needs-disabled: {variants: {"on": true, "off": false}, defaultVariant: "on", tollgate: {prerequisites: [{flag: disabled, variants: ["true", "false"]}]}}
  users: {variants: {"on": true, "off": false}, defaultVariant: "off", tollgate: {users: [{variant: "on", keys: [ann]}], audience: {tiers: [none]}, rollout: {percentage: 100}}}
  tiers: {variants: {"on": true, "off": false}, defaultVariant: "off", tollgate: {audience: {tiers: [premium]}, rollout: {percentage: 100}}}
  roles: {variants: {"on": true, "off": false}, defaultVariant: "off", tollgate: {audience: {tiers: [premium], roles: [x, tester]}, rollout: {percentage: 100}}}
  claims: {variants: {"on": true, "off": false}, defaultVariant: "off", tollgate: {audience: {claims: [{name: org.id, values: ["7"]}, {name: groups, values: [b]}, {name: beta, values: ["true"]}]}, rollout: {percentage: 100}}}
  dotted: {variants: {"on": true, "off": false}, defaultVariant: "off", tollgate: {audience: {claims: [{name: "https://x.y/z", values: [v]}]}, rollout: {percentage: 100}}}
  everyone: {variants: {"on": true, "off": false}, defaultVariant: "off", tollgate: {rollout: {percentage: 100}}}
  nobody: {variants: {"on": true, "off": false}, defaultVariant: "off", tollgate: {rollout: {percentage: 0}}}
  half: {variants: {"on": true, "off": false}, defaultVariant: "off", tollgate: {salt: half, rollout: {percentage: 50}}}
  by-org: {variants: {"on": true, "off": false}, defaultVariant: "off", tollgate: {rollout: {percentage: 99.999, bucketBy: org.name}}}
  by-none: {variants: {"on": true, "off": false}, defaultVariant: "off", tollgate: {rollout: {percentage: 99.999, bucketBy: nothing}}}
  split: {variants: {a: x, b: y, c: z}, defaultVariant: c, tollgate: {rollout: {percentage: 100, variants: [{variant: a, weight: 1}, {variant: b, weight: 0}]}}}
  named: {variants: {a: x, b: y}, defaultVariant: b, tollgate: {on: a, rollout: {percentage: 100}}}
  rising: {variants: {"on": true, "off": false}, defaultVariant: "off", tollgate: {rollout: {progressive: {from: 2026-03-03, until: 2026-03-04}}}}
  falling: {variants: {"on": true, "off": false}, defaultVariant: "off", tollgate: {rollout: {progressive: {from: 2026-03-03, until: 2026-03-04, start: 100, end: 0}}}}
  later: {variants: {"on": true, "off": false}, defaultVariant: "off", tollgate: {rollout: {progressive: {from: 2026-03-05, until: 2026-03-06, start: 0, end: 100}}}}
  held-out: {variants: {"on": true, "off": false}, defaultVariant: "off", tollgate: {holdout: {name: all, percentage: 100}, rollout: {percentage: 100}}}
  layer-all: {variants: {"on": true, "off": false}, defaultVariant: "off", tollgate: {layer: {name: l, from: 0, until: 100}, rollout: {percentage: 100}}}
  rule: {variants: {a: x, b: y}, defaultVariant: b, targeting: {if: [{"==": [{var: tier}, premium]}, a, null]}}
  rule-then-rollout: {variants: {a: x, b: y}, defaultVariant: b, targeting: {if: [{"==": [{var: tier}, none]}, b, null]}, tollgate: {rollout: {percentage: 100, variant: a}}}
  rule-wrong: {variants: {a: x, b: y}, defaultVariant: b, targeting: {cat: [{var: tier}, "!"]}}
  rule-number: {variants: {"1": x, b: y}, defaultVariant: b, targeting: {"+": [0, 1]}}
  rule-bool: {defaultVariant: "false", targeting: {"==": [1, 1]}}
  rule-list: {defaultVariant: "false", targeting: {merge: [1, 2]}}
  hidden: {defaultVariant: "true", tollgate: {header: false}}
`

func TestDecide(t *testing.T) {
	set := mustCompile(t, decisions)
	subject := &Subject{
		Key: "ann", Tier: "premium", Roles: []string{"viewer", "tester"},
		Claims: map[string]any{
			"org":           map[string]any{"id": 7.0, "name": "acme"},
			"groups":        []any{"a", "b"},
			"beta":          true,
			"https://x.y/z": "v",
			"tier":          "none", // not heard
		},
	}
	nobody := &Subject{}
	tests := []struct {
		flag    string
		subject *Subject
		want    string // variant reason error
	}{
		{"absent", subject, " ERROR FLAG_NOT_FOUND"},
		{"plain", subject, "off STATIC "},
		{"disabled", subject, " DISABLED "},
		{"nodefault", subject, " STATIC "},
		{"killed", subject, "off DISABLED "},
		{"killed-forced", subject, "off DISABLED "},
		{"killed-text", subject, "a DISABLED "},
		{"forced", subject, "on STATIC "},
		{"soon", subject, "off DEFAULT "},
		{"over", subject, "off DEFAULT "},
		{"during", subject, "on DEFAULT "},
		{"needs-on", subject, "on DEFAULT "},
		{"needs-off", subject, "off DEFAULT "},
		{"needs-both", subject, "on DEFAULT "},
		{"needs-disabled", subject, "off DEFAULT "},
		{"users", subject, "on TARGETING_MATCH "},
		{"users", &Subject{Key: "bob"}, "off DEFAULT "},
		{"users", nobody, "off DEFAULT "},
		{"tiers", subject, "on TARGETING_MATCH "},
		{"tiers", nobody, "off DEFAULT "},
		{"roles", subject, "on TARGETING_MATCH "},
		{"roles", &Subject{Key: "ann", Tier: "premium"}, "off DEFAULT "},
		{"claims", subject, "on TARGETING_MATCH "},
		{"claims", &Subject{Claims: map[string]any{"org": 7.0}}, "off DEFAULT "},
		{"claims", &Subject{Claims: map[string]any{"org": map[string]any{"id": "7"}, "groups": []any{"c"}}}, "off DEFAULT "},
		{"dotted", subject, "on TARGETING_MATCH "},
		{"everyone", nobody, "on STATIC "},
		{"nobody", nobody, "off DEFAULT "},
		{"half", nobody, " ERROR TARGETING_KEY_MISSING"},
		{"by-org", subject, "on SPLIT "},
		{"by-none", subject, "off DEFAULT "},
		{"split", subject, "a SPLIT "},
		{"split", nobody, " ERROR TARGETING_KEY_MISSING"},
		{"named", subject, "a STATIC "},
		{"rising", subject, "on TARGETING_MATCH "},
		{"falling", subject, "off DEFAULT "},
		{"later", subject, "off DEFAULT "},
		{"held-out", subject, "off SPLIT "},
		{"held-out", nobody, " ERROR TARGETING_KEY_MISSING"},
		{"layer-all", subject, "on STATIC "},
		{"rule", subject, "a TARGETING_MATCH "},
		{"rule", nobody, "b DEFAULT "},
		{"rule-then-rollout", subject, "a STATIC "},
		{"rule-wrong", subject, " ERROR PARSE_ERROR"},
		{"rule-number", subject, "1 TARGETING_MATCH "},
		{"rule-bool", subject, "true TARGETING_MATCH "},
		{"rule-list", subject, " ERROR PARSE_ERROR"},
	}
	for _, tt := range tests {
		r := set.Evaluate(tt.flag, tt.subject, testTime)
		if got := fmt.Sprintf("%s %s %s", r.Variant, r.Reason, r.ErrorCode); got != tt.want {
			t.Errorf("%s for %q: got %q, want %q", tt.flag, tt.subject.Key, got, tt.want)
		}
		if (r.Variant == "") != (r.Value == nil) {
			t.Errorf("%s: variant %q with value %v", tt.flag, r.Variant, r.Value)
		}
	}
	if r := set.Evaluate("killed-text", subject, testTime); r.Value != "x" {
		t.Errorf("value %v", r.Value)
	}
}

func TestHeader(t *testing.T) {
	set := mustCompile(t, decisions)
	s := &Subject{Key: "ann", Tier: "premium"}
	all := string(set.AppendHeader([]byte("x: "), s, nil, testTime))
	for _, part := range []string{"x: by-none=off,", ",plain=off,", ",rule=a,", ",rule-bool=on,", ",split=a,"} {
		if !strings.Contains(all, part) {
			t.Errorf("%q is not in %s", part, all)
		}
	}
	for _, part := range []string{"hidden", ",disabled=", "nodefault", "rule-wrong", " ,", ",,"} {
		if strings.Contains(all, part) {
			t.Errorf("%q is in %s", part, all)
		}
	}
	tests := []struct {
		only []string
		want string
	}{
		{[]string{}, ""},
		{[]string{"everyone", "forced", "unknown"}, "everyone=on,forced=on"},
		{[]string{"forced", "everyone", "forced"}, "everyone=on,forced=on"},
		{[]string{"forced", "forced"}, "forced=on"},
		{[]string{"disabled", "hidden", "rule"}, "rule=a"},
	}
	for _, tt := range tests {
		if got := string(set.AppendHeader(nil, s, tt.only, testTime)); got != tt.want {
			t.Errorf("only %v: got %q, want %q", tt.only, got, tt.want)
		}
	}
	// One header per flag says the same.
	for _, only := range [][]string{nil, {"forced", "everyone"}} {
		var parts []string
		for key, value := range set.Each(s, only, testTime) {
			parts = append(parts, key+"="+value)
		}
		if diff := cmp.Diff(string(set.AppendHeader(nil, s, only, testTime)), strings.Join(parts, ",")); diff != "" {
			t.Error(diff)
		}
	}
	for key := range set.Each(s, nil, testTime) {
		if key != "by-none" {
			t.Errorf("first flag %s", key)
		}
		break
	}
}

func TestSetDescribesItself(t *testing.T) {
	set := mustCompile(t, `{"flags": {"b": {"defaultVariant": "true", "metadata": {"x": 1}}, "a": {"defaultVariant": "true"}}}`)
	if diff := cmp.Diff([]string{"a", "b"}, set.Keys()); diff != "" {
		t.Error(diff)
	}
	if set.Metadata("b")["x"] != 1.0 || set.Metadata("a") != nil || set.Metadata("c") != nil {
		t.Error("metadata")
	}
	other := mustCompile(t, `{"flags": {"b": {"defaultVariant": "true", "metadata": {"x": 2}}, "a": {"defaultVariant": "true"}}}`)
	if set.Digest() == other.Digest() || set.Version() != 0 {
		t.Error("digests of different sets are equal")
	}
}

func TestLayersExclude(t *testing.T) {
	set := mustCompile(t, `
flags:
  a: {variants: {"on": true, "off": false}, defaultVariant: "off", tollgate: {layer: {name: shop, from: 0, until: 30}, rollout: {percentage: 100}}}
  b: {variants: {"on": true, "off": false}, defaultVariant: "off", tollgate: {layer: {name: shop, from: 30, until: 80}, rollout: {percentage: 100}}}
`)
	counts := map[string]int{}
	for i := range 10000 {
		counts[string(set.AppendHeader(nil, &Subject{Key: fmt.Sprint(i)}, nil, testTime))]++
	}
	if counts["a=on,b=on"] != 0 {
		t.Errorf("%d users are in both flags of a layer", counts["a=on,b=on"])
	}
	for pair, share := range map[string]int{"a=on,b=off": 3000, "a=off,b=on": 5000, "a=off,b=off": 2000} {
		if got := counts[pair]; got < share-250 || got > share+250 {
			t.Errorf("%s: %d, want about %d", pair, got, share)
		}
	}
}

func TestProgressiveIsLinear(t *testing.T) {
	r := rollout{progressive: true, percentage: 10 * Percent, end: 20 * Percent, from: 1000, until: 2000}
	for now, want := range map[int64]Percentage{0: 10000, 1000: 10000, 1001: 10010, 1500: 15000, 1999: 19990, 2000: 20000, 1 << 40: 20000} {
		if got := r.at(now); got != want {
			t.Errorf("at %d: got %s, want %s", now, got, want)
		}
	}
}
