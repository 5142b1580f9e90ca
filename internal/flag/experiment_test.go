package flag

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// halves deals users by their first byte: a to m take part, even bytes get the
// second variant.
func halves(user, tier string, now int64) (int, bool) {
	if user[0] > 'm' || tier == "free" || now == 0 {
		return 0, false
	}
	return int(user[0] & 1), true
}

func laidOver(t *testing.T, source string, experiments ...Experiment) (*Set, error) {
	t.Helper()
	for i := range experiments {
		x := &experiments[i]
		for _, v := range x.Variants {
			x.Marks = append(x.Marks, x.Name+":1="+v)
		}
	}
	defs, err := Parse("flags.yaml", []byte(source))
	if err != nil {
		t.Fatal(err)
	}
	set, err := Compile(defs)
	if err != nil {
		t.Fatal(err)
	}
	return set.With(experiments)
}

const experimentFlags = `
flags:
  colour: {variants: {blue: "#00f", green: "#0f0"}, defaultVariant: green, tollgate: {users: [{variant: green, keys: [anna]}], audience: {tiers: [enterprise]}, rollout: {percentage: 100, variant: blue}}}
  dark: {variants: {"on": true, "off": false}, defaultVariant: "off"}
  killed: {variants: {"on": true, "off": false}, defaultVariant: "off", tollgate: {killed: true}}
  later: {variants: {"on": true, "off": false}, defaultVariant: "off", tollgate: {schedule: {from: 2030-01-01T00:00:00Z}}}
  gone: {state: DISABLED, variants: {"on": true, "off": false}, defaultVariant: "off"}
  after: {variants: {"on": true, "off": false}, defaultVariant: "off", tollgate: {prerequisites: [{flag: dark, variants: ["on"]}], rollout: {percentage: 100}}}
  secret: {variants: {"on": true, "off": false}, defaultVariant: "off", tollgate: {header: false}}
`

func TestExperiments(t *testing.T) {
	var all []Experiment
	told := map[string]int{}
	for _, key := range []string{"dark", "killed", "later", "gone"} {
		all = append(all, Experiment{Name: key, Flag: key, Variants: []string{"off", "on"}, Assign: halves})
	}
	all = append(all,
		Experiment{Name: "colour", Flag: "colour", Variants: []string{"green", "blue"}, Assign: halves},
		Experiment{Name: "new", Flag: "new", Variants: []string{"control", "bold"}, Assign: halves, Dealt: func(arm int) { told[fmt.Sprint("new ", arm)]++ }})
	set, err := laidOver(t, experimentFlags, all...)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	for name, tt := range map[string]struct {
		subject Subject
		want    string
		dealt   string
	}{
		"control":         {Subject{Key: "bob", Tier: "premium"}, "after=off,colour=green,dark=off,killed=off,later=off,new=control", "colour:1=green,dark:1=off,new:1=control"},
		"treatment":       {Subject{Key: "carl", Tier: "premium"}, "after=on,colour=blue,dark=on,killed=off,later=off,new=bold", "colour:1=blue,dark:1=on,new:1=bold"},
		"a single user":   {Subject{Key: "anna"}, "after=on,colour=green,dark=on,killed=off,later=off,new=bold", "dark:1=on,new:1=bold"},
		"not in it":       {Subject{Key: "zoe"}, "after=off,colour=green,dark=off,killed=off,later=off", ""},
		"another tier":    {Subject{Key: "carl", Tier: "free"}, "after=off,colour=green,dark=off,killed=off,later=off", ""},
		"anonymous":       {Subject{Key: "carl", Anonymous: true}, "after=off,colour=green,dark=off,killed=off,later=off", ""},
		"without an name": {Subject{}, "after=off,colour=green,dark=off,killed=off,later=off", ""},
	} {
		got := string(set.AppendHeader(nil, &tt.subject, nil, now))
		if got != tt.want {
			t.Errorf("%s: got %s, want %s", name, got, tt.want)
		}
		if got := string(set.AppendAssignments(nil, &tt.subject, nil, now)); got != tt.dealt {
			t.Errorf("%s: dealt %q, want %q", name, got, tt.dealt)
		}
	}
	// A route that does not ask for a flag takes no part in its experiment, and
	// each assignment is told of once.
	told = map[string]int{}
	carl := Subject{Key: "carl", Tier: "premium"}
	if got := string(set.AppendAssignments([]byte("x "), &carl, []string{"new", "killed", "none"}, now)); got != "x new:1=bold" {
		t.Errorf("got %q", got)
	}
	if diff := cmp.Diff(map[string]int{"new 1": 1}, told); diff != "" {
		t.Error(diff)
	}
	if r := set.Evaluate("new", &Subject{Key: "carl"}, now); r.Value != "bold" || r.Reason != ReasonSplit {
		t.Errorf("got %+v", r)
	}
}

func TestExperimentsThatDoNotFit(t *testing.T) {
	set, err := laidOver(t, experimentFlags,
		Experiment{Name: "a", Flag: "secret", Variants: []string{"on", "off"}, Assign: halves},
		Experiment{Name: "b", Flag: "after", Variants: []string{"on", "off"}, Assign: halves},
		Experiment{Name: "c", Flag: "colour", Variants: []string{"red"}, Assign: halves},
		Experiment{Name: "d", Flag: "dark", Variants: []string{"on", "off"}, Assign: halves},
		Experiment{Name: "e", Flag: "dark", Variants: []string{"on", "off"}, Assign: halves},
		Experiment{Name: "f", Flag: "No key\r\n", Variants: []string{"on", "off"}, Assign: halves},
		Experiment{Name: "g", Flag: "colour", Variants: []string{"blue", "blue"}, Assign: halves})
	if err == nil {
		t.Fatal("all fit")
	}
	for _, want := range []string{"experiment a: ", "experiment b: ", "experiment c: ", "experiment e: ", "experiment f: ", "experiment g: "} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in %v", want, err)
		}
	}
	if got := string(set.AppendAssignments(nil, &Subject{Key: "carl"}, nil, time.Unix(1, 0))); !strings.Contains(got, "d:1=off") {
		t.Errorf("what fits does not run: %q", got)
	}
	set, _ = laidOver(t, experimentFlags)
	if _, err := set.With([]Experiment{{Name: "m", Flag: "dark", Variants: []string{"on", "off"}, Assign: halves}}); err == nil {
		t.Error("variants without marks fit")
	}
}

func TestExperimentsChangeTheDigest(t *testing.T) {
	plain, _ := laidOver(t, experimentFlags)
	one, _ := laidOver(t, experimentFlags, Experiment{Name: "1", Flag: "dark", Variants: []string{"on", "off"}, Assign: halves})
	two, _ := laidOver(t, experimentFlags, Experiment{Name: "2", Flag: "dark", Variants: []string{"on", "off"}, Assign: halves})
	if plain.Digest() == one.Digest() || one.Digest() == two.Digest() {
		t.Error("sets that decide differently have one digest")
	}
}

func TestExperimentsDoNotAllocate(t *testing.T) {
	set, err := laidOver(t, experimentFlags, Experiment{Name: "new", Flag: "new", Variants: []string{"control", "bold"}, Assign: halves})
	if err != nil {
		t.Fatal(err)
	}
	buf, subject, now := make([]byte, 0, 512), Subject{Key: "carl"}, time.Unix(1, 0)
	if n := testing.AllocsPerRun(100, func() {
		buf = set.AppendHeader(buf[:0], &subject, nil, now)
		buf = set.AppendAssignments(buf, &subject, nil, now)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
