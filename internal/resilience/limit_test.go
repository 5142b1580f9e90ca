package resilience_test

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tollgate-proxy/tollgate/internal/resilience"
)

var limits = resilience.LimitConfig{Initial: 20, Min: 5, Max: 200, Tolerance: 2}

// load fills the limit and empties it again, each call taking as long as an
// upstream with the given capacity would need, n times.
func load(l *resilience.Limit, rounds, capacity int, base time.Duration) int {
	for range rounds {
		out := 0
		for l.Acquire() {
			out++
		}
		took := base * time.Duration(max(1, (out+capacity-1)/capacity))
		for range out {
			l.Release(took, resilience.Success)
		}
	}
	n, _ := l.Now()
	return n
}

func TestLimitRisesWhileLatencyHolds(t *testing.T) {
	if got := load(resilience.NewLimit(limits), 200, 1000, 10*time.Millisecond); got != limits.Max {
		t.Fatalf("limit %d, want %d", got, limits.Max)
	}
}

func TestLimitFallsWhenLatencyGrows(t *testing.T) {
	l := resilience.NewLimit(limits)
	high := load(l, 5, 1000, 10*time.Millisecond)
	for range 30 {
		if l.Acquire() {
			l.Release(time.Second, resilience.Success)
		}
	}
	if low, _ := l.Now(); low >= high {
		t.Fatalf("limit %d after %d", low, high)
	}
}

func TestLimitFallsOnFailuresToItsMinimum(t *testing.T) {
	l := resilience.NewLimit(limits)
	for range 1000 {
		if !l.Acquire() {
			t.Fatal("refused while idle")
		}
		l.Release(time.Millisecond, resilience.Failure)
	}
	if got, in := l.Now(); got != limits.Min || in != 0 {
		t.Fatalf("limit %d, in flight %d", got, in)
	}
}

func TestAnIdleLimitStays(t *testing.T) {
	l := resilience.NewLimit(limits)
	for range 1000 {
		l.Acquire()
		l.Release(time.Millisecond, resilience.Success)
		l.Acquire()
		l.Release(time.Hour, resilience.Ignored)
	}
	if got, _ := l.Now(); got != limits.Initial {
		t.Fatalf("limit %d", got)
	}
}

func TestLimitForgetsSlowDays(t *testing.T) {
	l := resilience.NewLimit(limits)
	load(l, 50, 1000, time.Second)
	if got := load(l, 100, 1000, 10*time.Millisecond); got != limits.Max {
		t.Fatalf("limit %d", got)
	}
}

func TestLimitProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := resilience.NewLimit(limits)
		out := 0
		t.Repeat(map[string]func(*rapid.T){
			"acquire": func(*rapid.T) {
				if l.Acquire() {
					out++
				}
			},
			"release": func(t *rapid.T) {
				if out == 0 {
					return
				}
				out--
				l.Release(time.Duration(rapid.Int64Range(0, int64(time.Minute)).Draw(t, "took")), resilience.Outcome(rapid.IntRange(0, 2).Draw(t, "o")))
			},
			"": func(t *rapid.T) {
				limit, in := l.Now()
				if limit < limits.Min || limit > limits.Max || in != out || in > limits.Max {
					t.Fatalf("limit %d, in flight %d, want %d", limit, in, out)
				}
			},
		})
	})
}
