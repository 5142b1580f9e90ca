package flag

import (
	"encoding/json"
	"errors"
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
