package resilience_test

import (
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/resilience"
)

func TestClosedOpensAtTheRate(t *testing.T) {
	const ok, bad, gone = resilience.Success, resilience.Failure, resilience.Ignored
	type run struct {
		n int
		o resilience.Outcome
	}
	for _, tc := range []struct {
		name string
		runs []run
		want resilience.State
	}{
		{"no calls", nil, resilience.Closed},
		{"too few to count", []run{{19, bad}}, resilience.Closed},
		{"enough", []run{{20, bad}}, resilience.Open},
		{"exactly half", []run{{10, ok}, {10, bad}}, resilience.Open},
		{"below half", []run{{11, ok}, {9, bad}}, resilience.Closed},
		{"the success that makes the number", []run{{19, bad}, {1, ok}}, resilience.Open},
		{"clients that gave up count for nothing", []run{{1000, gone}, {19, bad}}, resilience.Closed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFixture(t, nil)
			for _, r := range tc.runs {
				f.calls(r.n, r.o)
			}
			f.want(tc.want)
		})
	}
}

func TestCallsInFlightDoNotDilute(t *testing.T) {
	f := newFixture(t, nil)
	for range 1000 {
		f.acquire()
	}
	f.calls(20, resilience.Failure)
	f.want(resilience.Open)
}

func TestTheWindowSlides(t *testing.T) {
	f := newFixture(t, nil)
	f.calls(10, resilience.Failure)
	f.Advance(11 * time.Second) // past the window, all at once
	f.calls(10, resilience.Failure)
	f.want(resilience.Closed)
	f.Advance(6 * time.Second)
	f.calls(9, resilience.Failure)
	f.want(resilience.Closed)
	f.Advance(5 * time.Second) // the ten of before have left, nine are left
	f.calls(10, resilience.Failure)
	f.want(resilience.Closed)
	f.calls(1, resilience.Failure)
	f.want(resilience.Open)
}

func TestAClockThatStepsBackIsHarmless(t *testing.T) {
	f := newFixture(t, nil)
	f.calls(10, resilience.Failure)
	f.Advance(-time.Hour)
	f.calls(10, resilience.Failure)
	f.want(resilience.Open)
}

func TestSlowCallsOpen(t *testing.T) {
	slow := func(f *fixture, n int) {
		for range n {
			f.acquire().Done(resilience.Success, 101*time.Millisecond)
		}
	}
	on := func(c *resilience.BreakerConfig) { c.SlowCall = 100 * time.Millisecond }
	f := newFixture(t, on)
	slow(f, 20)
	f.want(resilience.Open)
	if got := f.transitions[0].Cause; got != "slow_calls" {
		t.Fatalf("cause %q", got)
	}
	f.Advance(time.Minute)
	slow(f, 1)
	f.want(resilience.Open)

	off := newFixture(t, nil)
	slow(off, 40)
	off.want(resilience.Closed)
}

func TestHealthNeverOpensAClosedBreaker(t *testing.T) {
	f := newFixture(t, nil)
	for range 100 {
		f.b.Health(false)
	}
	f.want(resilience.Closed)
}
