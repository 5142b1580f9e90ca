package rlqs

import (
	"math"
	"slices"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/ratelimit"
)

// unknown is the demand of a sharer that has not been seen for long enough.
const unknown = -1

// headroom is how much more than its demand a sharer is given before anybody
// gets more than that, so that unsteady traffic is not cut.
const headroom = 1.1

// share returns the part of rate, in tokens a second, for a sharer that wants
// mine beside others: nobody gets more than it wants before everybody has that,
// or an equal part; what nobody wants is divided equally. The parts of all
// sharers, each computed from the same demands, add up to rate.
func share(rate, mine float64, others []float64) float64 {
	n := float64(len(others) + 1)
	want := func(demand float64) float64 {
		if demand < 0 { // unknown
			return rate / n
		}
		return demand * headroom
	}
	wants := make([]float64, 0, len(others)+1)
	for _, d := range others {
		wants = append(wants, want(d))
	}
	wants = append(wants, want(mine))
	slices.Sort(wants)
	left := rate
	for i, w := range wants {
		level := left / float64(len(wants)-i)
		if w > level {
			return min(want(mine), level) // nobody after this one gets more
		}
		left -= w
	}
	return want(mine) + left/n
}

// assignment is what an Envoy is told of one bucket: a bucket of requests that
// starts full and is filled evenly, fill requests in each interval.
type assignment struct {
	// burst is at least 1 where fill is.
	burst, fill uint32
	// interval is in whole seconds: Envoy reads nothing else.
	interval uint32
}

// rate is in requests a second.
func (a assignment) rate() float64 {
	if a.fill == 0 {
		return 0
	}
	return float64(a.fill) / float64(a.interval)
}

// precision is the number of fills from which rounding one off costs little.
const precision = 50

// longest is the longest interval, in seconds: 30 days.
const longest = 30 * 86400

// assign returns the assignment of at most that many requests a second and at
// once. Rates below one in 30 days are none.
func assign(rate, burst float64) assignment {
	if rate*longest < 1 {
		return assignment{}
	}
	a := assignment{burst: uint32(min(max(burst, 1), math.MaxUint32))}
	for _, interval := range []uint32{1, 2, 5, 10, 20, 60, 300, 3600, 86400, longest} {
		a.interval = interval
		a.fill = uint32(min(rate*float64(interval)+1e-9, math.MaxUint32))
		if a.fill >= precision {
			break
		}
	}
	return a
}

// horizon is over how long a bucket of a longer window may be spent.
const horizon = 2 * time.Minute

// brief is the length of windows that are spent and refilled between two reports
// of those who share them, so that what is left when one reports says little.
const brief = 10 * time.Second

// worth is what the buckets allow, to all sharers together, who want so many
// tokens a second: tokens a second for the time to come, and tokens at once. The
// shortest window sets the rate and the others hold it down when they run low.
func worth(states []ratelimit.State, demand float64) (rate, burst float64) {
	rate, burst = math.Inf(1), math.Inf(1)
	shortest := time.Duration(math.MaxInt64)
	for i := range states {
		shortest = min(shortest, states[i].Limit.Window())
	}
	for i := range states {
		s := &states[i]
		r, left := float64(s.Limit.Tokens)/s.Limit.Window().Seconds(), float64(s.Remaining)
		if s.Limit.Window() < brief {
			left = min(left, float64(s.Limit.Burst)*max(1-demand/r, 0))
		}
		if s.Limit.Window() > shortest {
			r += left / horizon.Seconds()
		}
		rate, burst = min(rate, r), min(burst, left)
	}
	return rate, burst
}

// tolerance is the relative change of a rate that is not worth telling: Envoy
// starts a changed bucket full.
const tolerance = 0.03

// keeps says whether the old assignment serves as well as the new one.
func keeps(old, next assignment) bool {
	if (old.fill == 0) != (next.fill == 0) {
		return false
	}
	if math.Abs(old.rate()-next.rate()) > tolerance*old.rate() {
		return false
	}
	return next.burst <= 2*old.burst && old.burst <= 2*next.burst
}

// distinct returns an assignment of the same rate that Envoy takes for another
// than the old one: it does not look at the interval.
func distinct(old, next assignment) assignment {
	if old.burst == next.burst && old.fill == next.fill && old.interval != next.interval {
		next.fill, next.interval = 2*next.fill, 2*next.interval
	}
	return next
}
