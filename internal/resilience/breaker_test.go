package resilience_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/tollgate-proxy/tollgate/internal/clocktest"
	"github.com/tollgate-proxy/tollgate/internal/resilience"
)

func newClock() *clocktest.Clock { return clocktest.New(time.Unix(1_800_000_000, 0)) }

var config = resilience.BreakerConfig{
	FailureRate: 0.5, SlowRate: 0.5, MinimumCalls: 20, Window: 10 * time.Second,
	Reset: time.Minute, Probes: 3, ProbeTimeout: 30 * time.Second,
}

type fixture struct {
	*testing.T
	*clocktest.Clock
	b           *resilience.Breaker
	transitions []resilience.Transition
}

func newFixture(t *testing.T, change func(*resilience.BreakerConfig)) *fixture {
	f := &fixture{T: t, Clock: newClock()}
	c := config
	if change != nil {
		change(&c)
	}
	f.b = resilience.NewBreaker(c, f.Now, func(tr resilience.Transition) { f.transitions = append(f.transitions, tr) })
	return f
}

func (f *fixture) acquire() resilience.Permit {
	f.Helper()
	p, err := f.b.Acquire()
	if err != nil {
		f.Fatalf("Acquire: %v", err)
	}
	return p
}

func (f *fixture) calls(n int, o resilience.Outcome) {
	f.Helper()
	for range n {
		f.acquire().Done(o, 0)
	}
}

func (f *fixture) want(s resilience.State) {
	f.Helper()
	if got, _ := f.b.State(); got != s {
		f.Fatalf("state %v, want %v", got, s)
	}
}

func (f *fixture) refused(wait time.Duration) {
	f.Helper()
	_, err := f.b.Acquire()
	var oe *resilience.OpenError
	if !errors.As(err, &oe) || oe.RetryAfter != wait {
		f.Fatalf("Acquire: %v, want refusal for %v", err, wait)
	}
}

// opened returns a fixture whose breaker has just opened by failures.
func opened(t *testing.T) *fixture {
	f := newFixture(t, nil)
	f.calls(20, resilience.Failure)
	f.want(resilience.Open)
	return f
}

// halfOpened returns a fixture whose breaker has waited out its reset time.
func halfOpened(t *testing.T) *fixture {
	f := opened(t)
	f.Advance(time.Minute)
	f.want(resilience.HalfOpen)
	return f
}

func TestATransitionIsToldOnceWithItsCause(t *testing.T) {
	f := halfOpened(t)
	f.calls(3, resilience.Success)
	want := []resilience.Transition{
		{From: resilience.Closed, To: resilience.Open, Cause: "failures"},
		{From: resilience.Open, To: resilience.HalfOpen, Cause: "reset_elapsed"},
		{From: resilience.HalfOpen, To: resilience.Closed, Cause: "probes_passed"},
	}
	if d := cmp.Diff(want, f.transitions); d != "" {
		t.Fatal(d)
	}
}

func TestAResultOfAnOlderGenerationIsVoid(t *testing.T) {
	f := newFixture(t, nil)
	late := make([]resilience.Permit, 20)
	for i := range late {
		late[i] = f.acquire()
	}
	f.calls(20, resilience.Failure)
	f.Advance(time.Minute)
	f.want(resilience.HalfOpen)
	for _, p := range late {
		p.Done(resilience.Failure, 0)
	}
	f.want(resilience.HalfOpen)
	f.calls(3, resilience.Success)
	f.want(resilience.Closed)
	for _, p := range late {
		p.Done(resilience.Failure, 0)
	}
	f.want(resilience.Closed)
}

func TestTripAndReset(t *testing.T) {
	f := newFixture(t, nil)
	f.b.Trip()
	f.refused(time.Minute)
	f.Advance(10 * time.Second)
	f.b.Trip()
	f.refused(time.Minute)
	f.b.Reset()
	f.want(resilience.Closed)
	f.b.Reset()
	f.calls(1, resilience.Success)
	want := []string{"tripped", "reset"}
	var got []string
	for _, tr := range f.transitions {
		got = append(got, tr.Cause)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Fatal(d)
	}
}

func TestTheZeroPermitIsHarmless(*testing.T) {
	resilience.Permit{}.Done(resilience.Failure, 0)
}

func TestNames(t *testing.T) {
	got := []string{resilience.Closed.String(), resilience.HalfOpen.String(), resilience.Open.String(), resilience.State(9).String(),
		(&resilience.OpenError{State: resilience.Open, RetryAfter: time.Second}).Error()}
	want := []string{"closed", "half_open", "open", "state(9)", "circuit open, retry after 1s"}
	if d := cmp.Diff(want, got); d != "" {
		t.Fatal(d)
	}
}

// Whatever happens, half-open has at most Probes calls out, open has none
// admitted, and enough quiet time always leads to a state that admits a call.
func TestBreakerProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := newClock()
		cfg := config
		cfg.MinimumCalls = rapid.IntRange(1, 5).Draw(t, "minimum")
		cfg.Probes = rapid.IntRange(1, 4).Draw(t, "probes")
		b := resilience.NewBreaker(cfg, c.Now, nil)
		var out []resilience.Permit
		probes := 0 // admitted since half-open began and not timed out: bounded by Probes within ProbeTimeout
		t.Repeat(map[string]func(*rapid.T){
			"acquire": func(t *rapid.T) {
				before, _ := b.State()
				p, err := b.Acquire()
				switch before {
				case resilience.Closed:
					if err != nil {
						t.Fatalf("closed refused: %v", err)
					}
				case resilience.Open:
					if err == nil {
						t.Fatal("open admitted")
					}
				case resilience.HalfOpen:
					if err == nil {
						if probes++; probes > cfg.Probes {
							t.Fatalf("%d probes at once", probes)
						}
					}
				}
				if err == nil {
					out = append(out, p)
				}
			},
			"done": func(t *rapid.T) {
				if len(out) == 0 {
					return
				}
				i := rapid.IntRange(0, len(out)-1).Draw(t, "which")
				out[i].Done(resilience.Outcome(rapid.IntRange(0, 2).Draw(t, "outcome")), 0)
				out = append(out[:i], out[i+1:]...)
				probes = 0 // a place may be free again: start counting anew
			},
			"health": func(t *rapid.T) { b.Health(rapid.Bool().Draw(t, "ok")); probes = 0 },
			"advance": func(t *rapid.T) {
				c.Advance(time.Duration(rapid.IntRange(0, 70).Draw(t, "s")) * time.Second)
				probes = 0
			},
			"": func(t *rapid.T) {
				if s, wait := b.State(); (s == resilience.Closed) != (wait == 0) {
					t.Fatalf("%v with wait %v", s, wait)
				}
			},
		})
		c.Advance(cfg.Reset + cfg.ProbeTimeout)
		if _, err := b.Acquire(); err != nil {
			t.Fatalf("after quiet: %v", err)
		}
	})
}
