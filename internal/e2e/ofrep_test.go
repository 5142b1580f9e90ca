package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tollgate-proxy/tollgate/internal/flag"
)

// testOFREP asks for flags through the OpenFeature SDK for Python and its OFREP
// provider, in every type, and for what is not there. The SDK for Go is asked in
// internal/account.
func testOFREP(t *testing.T, s *system) {
	const reason = "end-to-end test"
	definitions := []flag.Definition{
		{Key: "e2e-bool", Variants: map[string]any{"on": true, "off": false}, DefaultVariant: "off", Targeting: json.RawMessage(`{"if": [{"==": [{"var": "tier"}, "premium"]}, "on", null]}`)},
		{Key: "e2e-string", Variants: map[string]any{"blue": "#00f", "red": "#f00"}, DefaultVariant: "blue"},
		{Key: "e2e-integer", Variants: map[string]any{"few": 2.0, "many": 9.0}, DefaultVariant: "many"},
		{Key: "e2e-float", Variants: map[string]any{"half": 0.5, "whole": 2.0}, DefaultVariant: "whole"},
		{Key: "e2e-object", Variants: map[string]any{"a": map[string]any{"x": []any{1.0, "y"}}}, DefaultVariant: "a"},
		{Key: "e2e-split", Variants: map[string]any{"on": true, "off": false}, DefaultVariant: "off", Targeting: json.RawMessage(`{"fractional": [["on", 1], ["off", 1]]}`)},
	}
	for _, d := range definitions {
		d.State = flag.Enabled
		if err := s.api.PutFlag(t.Context(), d, reason); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.api.DeleteFlag(context.WithoutCancel(t.Context()), d.Key, reason); err != nil {
				t.Error(err)
			}
		})
	}
	ask := func(calls string) (answers [][]any, err error) {
		command := exec.CommandContext(t.Context(), filepath.Join(root, ".venv", "ofrep", "bin", "python"), filepath.Join("testdata", "ofrep.py"), s.Operator().URL, calls)
		command.Env = append(os.Environ(), "TOKEN="+s.Operator().Token)
		out, err := command.Output()
		var failed *exec.ExitError
		if errors.As(err, &failed) {
			t.Fatalf("%v\n%s", err, failed.Stderr)
		}
		for line := range strings.Lines(string(out)) {
			var answer []any
			err = errors.Join(err, json.Unmarshal([]byte(line), &answer))
			answers = append(answers, answer)
		}
		return answers, err
	}
	want := [][]any{
		{"e2e-bool", true, "on", "TARGETING_MATCH", nil},
		{"e2e-bool", false, "off", "DEFAULT", nil},
		{"e2e-string", "#00f", "blue", "STATIC", nil},
		{"e2e-integer", 9.0, "many", "STATIC", nil},
		{"e2e-float", 2.0, "whole", "STATIC", nil},
		{"e2e-object", map[string]any{"x": []any{1.0, "y"}}, "a", "STATIC", nil},
		{"e2e-none", "mine", nil, "ERROR", "FLAG_NOT_FOUND"},
		{"e2e-string", false, nil, "ERROR", "TYPE_MISMATCH"},
	}
	await(t, "the flags to arrive", func() error {
		got, err := ask(`[["boolean", "e2e-bool", false, {"targetingKey": "ada", "tier": "premium"}], ["boolean", "e2e-bool", true, {"targetingKey": "ada", "tier": "free"}],
			["string", "e2e-string", "", {}], ["integer", "e2e-integer", 0, {}], ["float", "e2e-float", 0.5, {}], ["object", "e2e-object", {}, {}],
			["string", "e2e-none", "mine", {}], ["boolean", "e2e-string", false, {}]]`)
		if diff := cmp.Diff(want, got); err == nil && diff != "" {
			err = errors.New(diff)
		}
		return err
	})
	// The same user gets the same side, and both sides exist.
	calls := []string{}
	for user := range strings.FieldsSeq("ada bob cyd dan eve fay gus hal ida jo") {
		calls = append(calls, `["boolean", "e2e-split", false, {"targetingKey": "`+user+`"}]`)
	}
	first, err := ask("[" + strings.Join(calls, ",") + "]")
	if err != nil {
		t.Fatal(err)
	}
	second, err := ask("[" + strings.Join(calls, ",") + "]")
	if diff := cmp.Diff(first, second); err != nil || diff != "" {
		t.Error(err, diff)
	}
	sides := map[any]int{}
	for _, answer := range first {
		sides[answer[1]]++
	}
	if len(sides) != 2 {
		t.Errorf("got %v", first)
	}
}
