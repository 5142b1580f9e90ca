package resilience_test

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tollgate-proxy/tollgate/internal/resilience"
)

func TestBackoffDoublesToItsBound(t *testing.T) {
	b := resilience.Backoff{Base: 100 * time.Millisecond, Max: 5 * time.Second}
	for _, tc := range []struct {
		retry int
		u     float64
		want  time.Duration
	}{
		{1, 0, 0}, {1, 0.5, 50 * time.Millisecond}, {2, 0.5, 100 * time.Millisecond}, {3, 0.5, 200 * time.Millisecond},
		{7, 0.5, 2500 * time.Millisecond}, {1000, 0.5, 2500 * time.Millisecond},
	} {
		if got := b.Delay(tc.retry, tc.u); got != tc.want {
			t.Errorf("Delay(%d, %v) = %v, want %v", tc.retry, tc.u, got, tc.want)
		}
	}
}

func TestParseRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, tc := range []struct {
		in   string
		want time.Duration
		ok   bool
	}{
		{"", 0, false}, {"0", 0, true}, {" 120 ", 2 * time.Minute, true}, {"-1", 0, false}, {"1.5", 0, false}, {"soon", 0, false},
		{"99999999999999999999", 0, false}, {"2147483647", 2147483647 * time.Second, true},
		{"Fri, 02 Jan 2026 03:04:35 GMT", 30 * time.Second, true}, {"Fri, 02 Jan 2026 03:04:00 GMT", 0, true},
		{"Friday, 02-Jan-26 03:04:35 GMT", 30 * time.Second, true}, {"Fri Jan  2 03:04:35 2026", 30 * time.Second, true},
	} {
		if got, ok := resilience.ParseRetryAfter(tc.in, now); got != tc.want || ok != tc.ok {
			t.Errorf("ParseRetryAfter(%q) = %v, %v, want %v, %v", tc.in, got, ok, tc.want, tc.ok)
		}
	}
}

func FuzzParseRetryAfter(f *testing.F) {
	for _, s := range []string{"", "7", "-1", "Fri, 02 Jan 2026 03:04:35 GMT"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if d, _ := resilience.ParseRetryAfter(s, time.Unix(0, 0)); d < 0 {
			t.Fatalf("%q: %v", s, d)
		}
	})
}

func TestBudget(t *testing.T) {
	c := newClock()
	b := resilience.NewBudget(resilience.BudgetConfig{Ratio: 0.2, PerSecond: 10}, c.Now)
	take := func(want int) {
		t.Helper()
		got := 0
		for b.Withdraw() {
			got++
		}
		if got != want {
			t.Fatalf("%d retries, want %d", got, want)
		}
	}
	take(10)
	c.Advance(500 * time.Millisecond)
	take(5)
	for range 50 {
		b.Deposit()
	}
	if got := b.Left(); got < 9.99 || got > 10.01 {
		t.Fatalf("left %v", got)
	}
	c.Advance(time.Hour)
	take(20)
}

// The bound that the documentation promises, over any history.
func TestBudgetProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := newClock()
		b := resilience.NewBudget(resilience.BudgetConfig{Ratio: 0.2, PerSecond: 10}, c.Now)
		start := c.Now()
		var calls, retries int
		t.Repeat(map[string]func(*rapid.T){
			"calls": func(t *rapid.T) { n := rapid.IntRange(1, 300).Draw(t, "n"); calls += n; repeat(n, b.Deposit) },
			"retries": func(t *rapid.T) {
				for range rapid.IntRange(1, 50).Draw(t, "n") {
					if b.Withdraw() {
						retries++
					}
				}
			},
			"advance": func(t *rapid.T) { c.Advance(time.Duration(rapid.IntRange(0, 5000).Draw(t, "ms")) * time.Millisecond) },
			"": func(t *rapid.T) {
				if bound := 0.2*float64(calls) + 10*c.Now().Sub(start).Seconds() + 10.001; float64(retries) > bound {
					t.Fatalf("%d retries, bound %v", retries, bound)
				}
			},
		})
	})
}

func repeat(n int, f func()) {
	for range n {
		f()
	}
}
