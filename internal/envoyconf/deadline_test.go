package envoyconf

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Every deadline of the calls to authz and ratelimit changes, and nothing else.
func TestRenderDecisionTimeout(t *testing.T) {
	lines := func(o Options) []string {
		b, err := Render(shipped(t), o)
		if err != nil {
			t.Fatal(err)
		}
		text, err := YAML(b)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Split(string(text), "\n")
	}
	before, after := lines(Options{}), lines(Options{DecisionTimeout: 9 * time.Second})
	var changed []string
	for i, line := range before {
		if i < len(after) && line != after[i] {
			changed = append(changed, strings.TrimSpace(line)+" to "+strings.TrimSpace(after[i]))
		}
	}
	slices.Sort(changed)
	want := []string{
		"connect_timeout: 0.100s to connect_timeout: 9s", "connect_timeout: 0.250s to connect_timeout: 9s",
		"max_interval: 0.100s to max_interval: 9s", "max_interval: 0.200s to max_interval: 9s",
		"timeout: 0.200s to timeout: 9s", "timeout: 0.500s to timeout: 9s",
	}
	if diff := cmp.Diff(want, changed); diff != "" || len(before) != len(after) {
		t.Errorf("%d lines of %d changed (-want +got):\n%s", len(after), len(before), diff)
	}
	// What is not there needs none.
	for _, o := range []Options{{OneCall: true}, {Quotas: true}} {
		o.DecisionTimeout = time.Second
		lines(o)
	}
}
