package flag

import (
	"fmt"
	"testing"
)

const benchFlags = `
flags:
  audience: {variants: {"on": true, "off": false}, defaultVariant: "off", tollgate: {audience: {tiers: [premium, enterprise]}, rollout: {percentage: 75}}}
  fractional: {variants: {a: x, b: y}, defaultVariant: a, targeting: {fractional: [[a, 50], [b, 50]]}}
  fractional-cat: {variants: {a: x, b: y}, defaultVariant: a, targeting: {fractional: [{cat: [{var: $flagd.flagKey}, {var: email}]}, [a, 50], [b, 50]]}}
  rollout: {variants: {"on": true, "off": false}, defaultVariant: "off", tollgate: {rollout: {percentage: 50}}}
  rule: {variants: {a: x, b: y}, defaultVariant: b, targeting: {if: [{and: [{in: [{var: tier}, [premium, enterprise]]}, {ends_with: [{var: email}, "@example.com"]}]}, a, null]}}
  roles: {variants: {a: x, b: y}, defaultVariant: b, targeting: {if: [{in: [ops, {var: roles}]}, a, b]}}
  split: {variants: {a: x, b: y, c: z}, defaultVariant: c, tollgate: {rollout: {percentage: 80, variants: [{variant: a, weight: 1}, {variant: b, weight: 1}]}}}
  users: {variants: {"on": true, "off": false}, defaultVariant: "off", tollgate: {users: [{variant: "on", keys: [ann, bob]}], rollout: {percentage: 1}}}
  version: {variants: {a: x, b: y}, defaultVariant: b, targeting: {if: [{sem_ver: [{var: version}, ">=", "1.2.0"]}, a, b]}}
`

func benchSubject() *Subject {
	return &Subject{
		Key: "6f1c2e9a-5717-4562-b3fc-2c963f66afa6", Tier: "premium", Roles: []string{"dev", "ops"},
		Claims: map[string]any{"email": "ann@example.com", "version": "1.3.0"},
	}
}

// Evaluating does not allocate, whatever decides the flag, unless a rule makes
// lists or texts of its own.
func TestEvaluateDoesNotAllocate(t *testing.T) {
	const more = `
  fractional-number: {variants: {a: x, b: y}, defaultVariant: a, targeting: {fractional: [{cat: [{var: tenant}, "/", {var: trial}]}, [a, 50], [b, 50]]}}
  nested: {variants: {a: x, b: y}, defaultVariant: a, targeting: {if: [{some: [{var: devices}, {"==": [{var: os}, ios]}]}, {fractional: [[a, 1], [{if: [true, b]}, 1]]}, null]}}
`
	set, s := mustCompile(t, benchFlags+more[1:]), benchSubject()
	s.Claims["tenant"], s.Claims["trial"] = 4711.5, true
	s.Claims["devices"] = []any{map[string]any{"os": "linux"}, map[string]any{"os": "ios"}}
	for _, key := range set.Keys() {
		if n := testing.AllocsPerRun(100, func() { set.Evaluate(key, s, testTime) }); n != 0 {
			t.Errorf("%s: %v allocations", key, n)
		}
	}
	buf := make([]byte, 0, 1024)
	only := []string{"audience", "rollout"}
	if n := testing.AllocsPerRun(100, func() { buf = set.AppendHeader(buf[:0], s, nil, testTime) }); n != 0 {
		t.Errorf("header: %v allocations", n)
	}
	if n := testing.AllocsPerRun(100, func() { buf = set.AppendHeader(buf[:0], s, only, testTime) }); n != 0 {
		t.Errorf("header of some flags: %v allocations", n)
	}
	if n := testing.AllocsPerRun(100, func() {
		for key, value := range set.Each(s, nil, testTime) {
			buf = append(append(buf[:0], key...), value...)
		}
	}); n != 0 {
		t.Errorf("each: %v allocations", n)
	}
}

func BenchmarkEvaluate(b *testing.B) {
	set, s := mustCompile(b, benchFlags), benchSubject()
	for _, key := range set.Keys() {
		b.Run(key, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				set.Evaluate(key, s, testTime)
			}
		})
	}
}

// BenchmarkHeader packs a request's header; the time is for all flags.
func BenchmarkHeader(b *testing.B) {
	s := benchSubject()
	shipped, err := LoadFile("../../config/flags.yaml")
	if err != nil {
		b.Fatal(err)
	}
	many := &Definitions{Flags: map[string]Definition{}}
	for i := range 300 {
		def := shipped.Flags["fraud-detection-v3"]
		def.Key = fmt.Sprintf("flag-%d", i)
		def.Extension.Salt = def.Key
		many.Flags[def.Key] = def
	}
	for name, defs := range map[string]*Definitions{"shipped": shipped, "300": many} {
		set, err := Compile(defs)
		if err != nil {
			b.Fatal(err)
		}
		buf := make([]byte, 0, MaxHeaderBytes)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				buf = set.AppendHeader(buf[:0], s, nil, testTime)
			}
		})
	}
}
