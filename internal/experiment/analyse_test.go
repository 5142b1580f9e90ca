package experiment

import (
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"
)

// measured makes a variant's data: rate of converted users, mean latency.
func measured(t *testing.T, r *rand.Rand, users int, rate, mean float64) VariantData {
	t.Helper()
	var conversion, speed Moments
	sketch := sketchOf(t)
	for range users {
		converted := 0.0
		if r.Float64() < rate {
			converted = 1
		}
		conversion.Add(converted)
		v := mean * latency(r)
		speed.Add(v)
		if err := sketch.Add(v); err != nil {
			t.Fatal(err)
		}
	}
	return VariantData{Users: int64(users), Metrics: map[string]MetricData{
		"conversion": {Users: conversion},
		"latency":    {Users: speed, Observations: sketch},
	}}
}

func TestVerdicts(t *testing.T) {
	r := rand.New(rand.NewPCG(13, 14))
	control := measured(t, r, 4000, 0.10, 0.2)
	for name, tt := range map[string]struct {
		other   VariantData
		status  Status
		verdict string
	}{
		"better":           {measured(t, r, 4000, 0.15, 0.2), Decided, "blue better on conversion"},
		"worse":            {measured(t, r, 4000, 0.06, 0.2), Decided, "blue worse on conversion"},
		"same":             {measured(t, r, 4000, 0.10, 0.2), Undecided, "keep running: no difference on conversion so far"},
		"too few":          {measured(t, r, 50, 0.90, 0.2), Broken, "broken assignment"},
		"better and slow":  {measured(t, r, 4000, 0.15, 0.3), Harmful, "guardrail breached: blue worse on latency; blue better on conversion"},
		"faster, the same": {measured(t, r, 4000, 0.10, 0.1), Undecided, "keep running"},
		"missing users":    {measured(t, r, 3000, 0.15, 0.2), Broken, "broken assignment: users did not fall"},
	} {
		report, err := Analyse(valid(), []VariantData{control, tt.other})
		if err != nil {
			t.Fatal(err)
		}
		if report.Status != tt.status || !strings.HasPrefix(report.Verdict, tt.verdict) {
			t.Errorf("%s: got %s, %q", name, report.Status, report.Verdict)
		}
	}
	few := valid()
	few.MinimumUsers = 100000
	report, err := Analyse(few, []VariantData{control, measured(t, r, 4000, 0.5, 0.2)})
	if err != nil || report.Verdict != "keep running: each variant needs 100000 users" {
		t.Errorf("got %+v, %v", report, err)
	}
}

func TestReport(t *testing.T) {
	r := rand.New(rand.NewPCG(15, 16))
	d := valid()
	d.Alpha = 0.01
	report, err := Analyse(d, []VariantData{measured(t, r, 2000, 0.1, 0.2), {Users: 2000}})
	if err != nil {
		t.Fatal(err)
	}
	control := report.Variants[0].Metrics[1]
	if control.Against != nil || control.Users != 2000 || !(control.Median < control.Mean && control.Mean < control.P95 && control.P95 < control.P99) {
		t.Errorf("got %+v", control)
	}
	// A variant of which nothing was measured says nothing, in JSON too.
	nothing := report.Variants[1].Metrics[0]
	if nothing.Against == nil || nothing.Against.Sequential.Low != nil || nothing.Against.AdjustedP != 1 || nothing.Against.Better {
		t.Errorf("got %+v", nothing)
	}
	if _, err := json.Marshal(report); err != nil {
		t.Error(err)
	}
	if _, err := Analyse(d, nil); err == nil {
		t.Error("data of no variants was analysed")
	}
}

// Where users are known from before, the comparison takes that out.
func TestReportAdjustsForBefore(t *testing.T) {
	r := rand.New(rand.NewPCG(17, 18))
	d := valid()
	d.Primary, d.Guardrails = Metric{Name: "speed", Kind: Mean}, nil
	var data [2]VariantData
	for side := range data {
		var p Pair
		for range 2000 {
			habit := 10 * r.NormFloat64()
			p.Add(habit+r.NormFloat64()+0.2*float64(side), habit)
		}
		data[side] = VariantData{Users: 2000, Metrics: map[string]MetricData{"speed": {Users: p.Value, Known: p}}}
	}
	report, err := Analyse(d, data[:])
	if err != nil || report.Verdict != "blue better on speed" || !report.Variants[1].Metrics[0].Against.Adjusted {
		t.Errorf("got %+v, %v", report, err)
	}
}

// Several metrics: the more are looked at, the more each must show.
func TestReportCorrectsForSeveralMetrics(t *testing.T) {
	findings := []*Against{{Sequential: Finding{P: 0.02}}, {Sequential: Finding{P: 0.04}}, {Sequential: Finding{P: 0.9}}}
	correct(findings)
	for i, want := range []float64{0.06, 0.08, 0.9} {
		if !near(findings[i].AdjustedP, want, 1e-12) {
			t.Errorf("%d: got %v, want %v", i, findings[i].AdjustedP, want)
		}
	}
}

// Gaps in the access log are told of, and loudly where they favour a variant. A
// few requests that are on their way are no gap.
func TestWarnings(t *testing.T) {
	for name, tt := range map[string]struct {
		dealt, seen [2]int64
		want        []string
	}{
		"none":             {[2]int64{}, [2]int64{}, nil},
		"complete":         {[2]int64{5000, 5000}, [2]int64{4990, 5003}, nil},
		"few":              {[2]int64{40, 50}, [2]int64{10, 50}, nil},
		"lost alike":       {[2]int64{5000, 5000}, [2]int64{4800, 4790}, []string{"4.1 % of the requests"}},
		"lost from one":    {[2]int64{5000, 5000}, [2]int64{5000, 4900}, []string{"(2.0 %) than from another (0.0 %)"}},
		"lost and unalike": {[2]int64{5000, 5000}, [2]int64{5000, 2500}, []string{"25.0 % of", "may be biased"}},
	} {
		data := make([]VariantData, 2)
		for i := range data {
			data[i].Dealt, data[i].Seen = tt.dealt[i], tt.seen[i]
		}
		got := warnings(valid(), data)
		if len(got) != len(tt.want) {
			t.Errorf("%s: got %q", name, got)
			continue
		}
		for i, want := range tt.want {
			if !strings.Contains(got[i], want) {
				t.Errorf("%s: got %q, want %q", name, got[i], want)
			}
		}
	}
}

// A rate's planned interval is Newcombe's, also where nobody was converted.
func TestReportOfRates(t *testing.T) {
	d := valid()
	d.Guardrails = nil
	rate := func(hits, n int) VariantData {
		var m Moments
		for i := range n {
			m.Add(one(i < hits))
		}
		return VariantData{Users: int64(n), Metrics: map[string]MetricData{"conversion": {Users: m}}}
	}
	for _, tt := range [][4]int{{48, 80, 56, 70}, {0, 100, 0, 100}, {0, 50, 50, 50}} {
		report, err := Analyse(d, []VariantData{rate(tt[0], tt[1]), rate(tt[2], tt[3])})
		if err != nil {
			t.Fatal(err)
		}
		low, high := RateDifference(int64(tt[0]), int64(tt[1]), int64(tt[2]), int64(tt[3]), 0.05)
		if got := report.Variants[1].Metrics[0].Against.Planned; got.Low == nil || *got.Low != low || *got.High != high || low < -1 || high > 1 {
			t.Errorf("%v: got %+v, want %v to %v", tt, got, low, high)
		}
	}
}
