package rlqs

import (
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/tollgate-proxy/tollgate/internal/ratelimit"
)

func TestShare(t *testing.T) {
	for name, c := range map[string]struct {
		rate, mine float64
		others     []float64
		want       float64
	}{
		"alone":                {100, 7, nil, 100},
		"new and alone":        {100, unknown, nil, 100},
		"both new":             {100, unknown, []float64{unknown}, 50},
		"little beside much":   {100, 10, []float64{500}, 11},
		"much beside little":   {100, 500, []float64{10}, 89},
		"both want too much":   {100, 500, []float64{200}, 50},
		"nobody wants much":    {100, 10, []float64{20}, 11 + 33.5},
		"idle beside the rest": {100, 0, []float64{300, 300}, 0},
	} {
		if got := share(c.rate, c.mine, c.others); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("%s: %g, want %g", name, got, c.want)
		}
	}
}

// All parts together are the rate, nobody who wants more gets less, and nobody
// is short while another has more than it wants.
func TestSharesAddUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rate := rapid.Float64Range(0.001, 1e6).Draw(t, "rate")
		demands := rapid.SliceOfN(rapid.OneOf(rapid.Just(float64(unknown)), rapid.Float64Range(0, 1e6)), 1, 20).Draw(t, "demands")
		parts := make([]float64, len(demands))
		sum, short := 0.0, false
		for i, d := range demands {
			others := append(append([]float64(nil), demands[:i]...), demands[i+1:]...)
			parts[i] = share(rate, d, others)
			sum += parts[i]
			short = short || d >= 0 && parts[i] < d*headroom*(1-1e-9)
		}
		if math.Abs(sum-rate) > 1e-6*rate {
			t.Fatalf("parts %v of %g add up to %g", parts, rate, sum)
		}
		for i, d := range demands {
			if d >= 0 && short && parts[i] > d*headroom*(1+1e-9)+1e-9 {
				t.Errorf("sharer %d has %g and wants %g while another is short: %v of %v", i, parts[i], d, parts, demands)
			}
		}
	})
}

// An assignment never says more than the rate, hardly less, and whole seconds.
func TestAssign(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rate := math.Exp(rapid.Float64Range(math.Log(1e-3), math.Log(1e7)).Draw(t, "log of rate"))
		a := assign(rate, rapid.Float64Range(-1, 1e12).Draw(t, "burst"))
		if got := a.rate(); got > rate*(1+1e-6) || rate > 0.02 && got < rate*0.97 || a.burst < 1 || a.fill < 1 || a.interval < 1 {
			t.Errorf("%g a second became %+v, %g", rate, a, got)
		}
	})
	if a := assign(1e-7, 5); a != (assignment{}) {
		t.Errorf("next to nothing became %+v", a)
	}
	if a := assign(100, 7.9); a != (assignment{burst: 7, fill: 100, interval: 1}) {
		t.Errorf("%+v", a)
	}
}

func TestKeeps(t *testing.T) {
	old := assignment{burst: 10, fill: 100, interval: 1}
	for _, c := range []struct {
		next assignment
		want bool
	}{
		{old, true},
		{assignment{burst: 20, fill: 102, interval: 1}, true},
		{assignment{burst: 10, fill: 104, interval: 1}, false},
		{assignment{burst: 21, fill: 100, interval: 1}, false},
		{assignment{burst: 4, fill: 100, interval: 1}, false},
		{assignment{}, false},
	} {
		if got := keeps(old, c.next); got != c.want {
			t.Errorf("%+v: %t", c.next, got)
		}
	}
	if !keeps(assignment{}, assignment{}) {
		t.Error("nothing is not nothing")
	}
}

// Envoy compares burst and fill only.
func TestDistinct(t *testing.T) {
	old := assignment{burst: 10, fill: 60, interval: 1}
	if got, want := distinct(old, assignment{burst: 10, fill: 60, interval: 2}), (assignment{burst: 10, fill: 120, interval: 4}); got != want {
		t.Errorf("%+v", got)
	}
	if got := distinct(old, old); got != old {
		t.Errorf("%+v", got)
	}
}

func TestWorth(t *testing.T) {
	limit := func(tokens uint32, unit ratelimit.Unit) ratelimit.Limit {
		l, err := ratelimit.NewLimit("", tokens, unit, 1, 0, ratelimit.TokenBucket)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	second, minute, hour := limit(40, ratelimit.Second), limit(60, ratelimit.Minute), limit(360, ratelimit.Hour)
	for _, c := range []struct {
		states []ratelimit.State
		demand float64
		want   [2]float64
	}{
		// Of what is refilled between reports, what the sharers together leave.
		{[]ratelimit.State{{Limit: second, Remaining: 40}}, 10, [2]float64{40, 30}},
		{[]ratelimit.State{{Limit: second, Remaining: 20}}, 10, [2]float64{40, 20}},
		{[]ratelimit.State{{Limit: second, Remaining: 24}}, 60, [2]float64{40, 0}},
		{[]ratelimit.State{{Limit: minute, Remaining: 40}}, 0.5, [2]float64{1, 40}},
		{[]ratelimit.State{{Limit: minute, Remaining: 40}, {Limit: hour, Remaining: 300}}, 0.5, [2]float64{1, 40}},
		{[]ratelimit.State{{Limit: minute, Remaining: 40}, {Limit: hour, Remaining: 12}}, 0.5, [2]float64{0.1 + 12/horizon.Seconds(), 12}},
		{[]ratelimit.State{{Limit: minute, Remaining: 40}, {Limit: hour}}, 0.5, [2]float64{0.1, 0}},
	} {
		rate, burst := worth(c.states, c.demand)
		if d := cmp.Diff(c.want, [2]float64{rate, burst}); d != "" {
			t.Errorf("%+v: %s", c.states, d)
		}
	}
	if horizon < time.Minute {
		t.Error("a bucket of an hour may be spent within a report")
	}
}
