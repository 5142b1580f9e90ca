package flag

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

func TestPatch(t *testing.T) {
	const boolean = `{"variants":{"on":true,"off":false},"defaultVariant":"off","tollgate":{"audience":{"tiers":["premium"],"roles":["a"],"claims":[{"name":"org","values":["x"]}]},"rollout":{"percentage":50}}}`
	const plain = `{"variants":{"on":true,"off":false},"defaultVariant":"off"}`
	const text = `{"variants":{"a":"x","b":"y"},"defaultVariant":"b"}`
	const disabled = `{"state":"DISABLED","variants":{"on":true,"off":false},"defaultVariant":"off","tollgate":{"killed":true,"force":"on"}}`
	const moving = `{"variants":{"on":true,"off":false},"defaultVariant":"off","tollgate":{"rollout":{"progressive":{"from":"2026-01-01","until":"2026-02-01","end":30}}}}`
	const none = `{"variants":{"a":"x"}}`
	const rule = `{"variants":{"a":"x"},"defaultVariant":"a","targeting":{"if":[true,"a"]}}`
	half := Percentage(12500)
	tests := []struct {
		flag  string
		patch Patch
		want  string // the summary after, empty for a refusal
	}{
		{boolean, Patch{State: "on"}, "on for everyone"},
		{boolean, Patch{State: "off"}, "off for everyone (killed)"},
		{boolean, Patch{State: "auto"}, "50% of tiers premium and roles a and org x"},
		{boolean, Patch{Rollout: &half}, "12.5% of tiers premium and roles a and org x"},
		{boolean, Patch{State: "on", Rollout: &half}, "12.5% of tiers premium and roles a and org x"},
		{boolean, Patch{Variant: "off"}, "off for everyone"},
		{boolean, Patch{Variant: "blue"}, ""},
		{boolean, Patch{}, ""},
		{boolean, Patch{State: "maybe"}, ""},
		{boolean, Patch{State: "off", Variant: "on"}, ""},
		{boolean, Patch{State: "auto", Rollout: &half}, ""},
		{plain, Patch{Rollout: &half}, "12.5%"},
		{plain, Patch{State: "auto"}, "off for everyone"},
		{text, Patch{State: "on"}, ""},
		{text, Patch{Rollout: &half}, ""},
		{text, Patch{Rollout: &half, Variant: "a"}, "12.5%"},
		{text, Patch{State: "on", Variant: "a"}, "a for everyone"},
		{disabled, Patch{State: "auto"}, "off for everyone"},
		{moving, Patch{State: "auto"}, "0% to 30%"},
		{moving, Patch{Rollout: &half}, "12.5%"},
		{none, Patch{State: "auto"}, "the caller's default"},
		{rule, Patch{State: "auto"}, "targeting"},
	}
	for _, tt := range tests {
		def, err := ParseFlag("test", "a", []byte(tt.flag))
		if err != nil {
			t.Fatal(err)
		}
		before, _ := json.Marshal(def)
		changed := def
		err = changed.Apply(tt.patch)
		switch {
		case tt.want == "":
			if !errors.Is(err, ErrPatch) {
				t.Errorf("%+v: got %v", tt.patch, err)
			}
		case err != nil || changed.Summary() != tt.want:
			t.Errorf("%+v: got %q, %v, want %q", tt.patch, changed.Summary(), err, tt.want)
		default:
			data, _ := json.Marshal(changed)
			if _, err := ParseFlag("test", "a", data); err != nil {
				t.Errorf("%+v: does not read back: %v", tt.patch, err)
			}
		}
		if after, _ := json.Marshal(def); string(after) != string(before) {
			t.Errorf("%+v changed the original", tt.patch)
		}
	}
	d := Definition{State: Disabled}
	if d.Summary() != "disabled" {
		t.Error(d.Summary())
	}
}

// Targets change the lists that they name and nothing else, in a copy.
func TestPatchTargets(t *testing.T) {
	const flag = `{"state":"ENABLED","variants":{"off":false,"on":true},"defaultVariant":"off","metadata":{"team":"shop"},"tollgate":{"killed":true,` +
		`"salt":"a","hash":"tollgate-1","users":[{"variant":"on","keys":["ann","bob"]},{"variant":"off","keys":["cyd"]}],"audience":{"tiers":["premium"],"roles":["dev"]},"rollout":{"percentage":50}}}`
	half := Percentage(12500)
	users := func(variant string, add, remove []string) Targets {
		return Targets{Users: UserEdits{Edits{add, remove}, variant}}
	}
	for _, tt := range []struct {
		name     string
		patch    Patch
		from, to string // of the definition's JSON; "" to is a refusal that says from
	}{
		{"add a user", Patch{Targets: users("", []string{"dan", "ann"}, nil)}, `["ann","bob"]`, `["bob","dan","ann"]`},
		{"a user moves", Patch{Targets: users("off", []string{"ann"}, nil)}, `["ann","bob"]},{"variant":"off","keys":["cyd"]`, `["bob"]},{"variant":"off","keys":["cyd","ann"]`},
		{"the last user goes", Patch{Targets: users("", nil, []string{"cyd"})}, `,{"variant":"off","keys":["cyd"]}`, ``},
		{"add and remove", Patch{Targets: Targets{Tiers: Edits{Add: []string{"enterprise"}}, Roles: Edits{[]string{"ops"}, []string{"dev"}}}}, `"tiers":["premium"],"roles":["dev"]`, `"tiers":["premium","enterprise"],"roles":["ops"]`},
		{"the last tier", Patch{Targets: Targets{Tiers: Edits{Remove: []string{"premium"}}, Everyone: true}}, `"tiers":["premium"],`, ``},
		{"with a roll-out", Patch{Rollout: &half, Targets: Targets{Tiers: Edits{Add: []string{"free"}}}}, ``, ``},
	} {
		def, err := ParseFlag("test", "a", []byte(flag))
		if err != nil {
			t.Fatal(err)
		}
		changed := def
		if err := changed.Apply(tt.patch); err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		want := strings.Replace(flag, tt.from, tt.to, 1)
		if tt.patch.Rollout != nil {
			want = strings.NewReplacer(`"killed":true,`, ``, `"percentage":50`, `"percentage":12.5`, `"premium"`, `"premium","free"`).Replace(flag)
		}
		if got, _ := json.Marshal(changed); string(got) != want {
			t.Errorf("%s: got\n%s, want\n%s", tt.name, got, want)
		}
		if got, _ := json.Marshal(def); string(got) != flag {
			t.Errorf("%s: the original is now\n%s", tt.name, got)
		}
	}
	for want, targets := range map[string]Targets{
		`no variant has user "eve"`:          users("", nil, []string{"eve"}),
		`users cannot get variant "blue"`:    users("blue", []string{"eve"}, nil),
		`the audience has no tier "free"`:    {Tiers: Edits{Remove: []string{"free"}}},
		`without its last role`:              {Roles: Edits{Remove: []string{"dev"}}},
		`names neither state, variant`:       {Everyone: true},
		`the audience has no role "premium"`: {Roles: Edits{Remove: []string{"premium"}}},
	} {
		def, err := ParseFlag("test", "a", []byte(flag))
		if err != nil {
			t.Fatal(err)
		}
		if err := def.Apply(Patch{Targets: targets}); !errors.Is(err, ErrPatch) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}
