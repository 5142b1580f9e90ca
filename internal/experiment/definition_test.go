package experiment

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"gonum.org/v1/gonum/stat/distuv"
)

func valid() *Definition {
	return &Definition{
		Key: "checkout", Version: 1, Traffic: 1, MinimumUsers: 100,
		Variants:   []Variant{{"control", 1}, {"blue", 1}},
		Primary:    Metric{Name: "conversion", Kind: Rate},
		Guardrails: []Metric{{Name: "latency", Kind: Mean, LowerIsBetter: true}},
	}
}

func TestValidate(t *testing.T) {
	if err := valid().Validate(); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for want, spoil := range map[string]func(d *Definition){
		"key":                      func(d *Definition) { d.Key = "A b" },
		"key \"\"":                 func(d *Definition) { d.Key = "" },
		"2 to 16 variants":         func(d *Definition) { d.Variants = d.Variants[:1] },
		"is not unique":            func(d *Definition) { d.Variants[1].Name = "control" },
		"weight of \"blue\" is 0":  func(d *Definition) { d.Variants[1].Weight = 0 },
		"weights add up":           func(d *Definition) { d.Variants[1].Weight = 1<<32 - 1 },
		"traffic":                  func(d *Definition) { d.Traffic = 1.1 },
		"layer":                    func(d *Definition) { d.Layer = &Layer{"l", 0.5, 0.5} },
		"before it starts":         func(d *Definition) { d.Start, d.Stop = now, now },
		"minimum_users":            func(d *Definition) { d.MinimumUsers = 1 },
		"maximum_users":            func(d *Definition) { d.MaximumUsers = 199 },
		"maximum_users 10000001":   func(d *Definition) { d.MaximumUsers = maxUsers + 1 },
		"state":                    func(d *Definition) { d.State = Scheduled },
		"alpha":                    func(d *Definition) { d.Alpha = 0.5 },
		"unique name":              func(d *Definition) { d.Guardrails[0].Name = "conversion" },
		"kind":                     func(d *Definition) { d.Primary.Kind = "median" },
		"guardrails are more than": func(d *Definition) { d.Guardrails = make([]Metric, maxMetrics) },
	} {
		d := valid()
		spoil(d)
		if err := d.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", want, err)
		}
	}
}

// What was asked for is one thing, what time makes of it another.
func TestStateAt(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		asked  State
		offset time.Duration
		want   State
	}{
		{Started, -1, Scheduled}, {"", -1, Scheduled}, {Started, 0, Started}, {"", time.Hour - 1, Started}, {Started, time.Hour, Stopped},
		{Draft, -1, Draft}, {Draft, 2 * time.Hour, Draft}, {Stopped, -1, Stopped}, {Stopped, 0, Stopped},
	} {
		d := Definition{State: tt.asked, Start: start, Stop: start.Add(time.Hour), MeasureBefore: true}
		now := start.Add(tt.offset)
		if got := d.StateAt(now); got != tt.want || d.Running(now) != (got == Started) || d.MeasuresBefore(now) != (got == Draft || got == Scheduled) {
			t.Errorf("%s after %s: got %s, running %v, before %v", tt.asked, tt.offset, got, d.Running(now), d.MeasuresBefore(now))
		}
	}
	if got := (&Definition{}).StateAt(start); got != Started {
		t.Errorf("an experiment without bounds is %s", got)
	}
}

// assignments deals n users.
func assignments(d *Definition, n int) []int {
	out := make([]int, n)
	for i := range out {
		v, in := d.Assign(fmt.Sprintf("user-%d", i))
		if out[i] = v; !in {
			out[i] = -1
		}
	}
	return out
}

func TestAssignmentFollowsWeights(t *testing.T) {
	d := valid()
	d.Variants = []Variant{{"control", 2}, {"blue", 1}, {"green", 1}}
	counts := make([]int64, 3)
	for _, v := range assignments(d, 40000) {
		if v < 0 {
			t.Fatal("somebody is left out of full traffic")
		}
		counts[v]++
	}
	if p := SampleRatio(counts, []uint32{2, 1, 1}); p < 0.001 {
		t.Errorf("%v: p = %v", counts, p)
	}
	if _, in := d.Assign(""); in {
		t.Error("nobody takes part")
	}
}

// Raising the traffic adds users and moves none.
func TestTrafficIsMonotone(t *testing.T) {
	d := valid()
	d.Traffic = 0.1
	few := assignments(d, 20000)
	d.Traffic = 0.5
	many := assignments(d, 20000)
	in := 0
	for i, v := range few {
		if v >= 0 {
			in++
			if many[i] != v {
				t.Fatalf("user %d moved from %d to %d", i, v, many[i])
			}
		}
	}
	if in < 1800 || in > 2200 {
		t.Errorf("%d of 20000 take part, not about 2000", in)
	}
}

// Two experiments, and two versions of one, are dealt independently.
func TestExperimentsAreIndependent(t *testing.T) {
	a := valid()
	for name, b := range map[string]*Definition{"another": {Key: "other"}, "next version": {Key: "checkout", Version: 2}} {
		b.Variants, b.Traffic = a.Variants, 1
		first, second := assignments(a, 40000), assignments(b, 40000)
		table := make([]int64, 4)
		for i := range first {
			table[2*first[i]+second[i]]++
		}
		if p := SampleRatio(table, []uint32{1, 1, 1, 1}); p < 0.001 {
			t.Errorf("%s: %v, p = %v", name, table, p)
		}
	}
}

func TestLayersExclude(t *testing.T) {
	a, b := valid(), valid()
	b.Key = "search"
	a.Layer, b.Layer = &Layer{"shop", 0, 0.4}, &Layer{"shop", 0.4, 1}
	first, second := assignments(a, 20000), assignments(b, 20000)
	for i := range first {
		if (first[i] >= 0) == (second[i] >= 0) {
			t.Fatalf("user %d is in %d and %d", i, first[i], second[i])
		}
	}
}

// The chi-square distribution is gonum's; a published quantile says that it is
// used the right way round.
func TestChiSquareQuantile(t *testing.T) {
	if got := (distuv.ChiSquared{K: 1}).Survival(3.841458820694124); got < 0.04999 || got > 0.05001 {
		t.Errorf("got %v", got)
	}
}
