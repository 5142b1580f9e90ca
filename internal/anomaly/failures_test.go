package anomaly

import (
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// Counting failures never tells more than there were, and tells them all where they are of one window's half.
func TestFailures(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		f := newFailures(FailuresConfig{Window: time.Minute, Tracked: 1000})
		address, now := netip.MustParseAddr(berlin), start
		var times []time.Time
		for range rapid.IntRange(0, 50).Draw(rt, "n") {
			now = now.Add(time.Duration(rapid.IntRange(0, 20).Draw(rt, "seconds")) * time.Second)
			f.note(address, now)
			times = append(times, now)
		}
		most, least := 0, 0
		for _, at := range times {
			if now.Sub(at) < 2*time.Minute {
				most++
			}
			if !at.Before(now.Truncate(time.Minute)) {
				least++
			}
		}
		if n := f.count(address, now); n < least || n > most {
			rt.Fatalf("%d, want %d to %d", n, least, most)
		}
		if f.count(address, now.Add(3*time.Minute)) != 0 {
			rt.Fatal("never forgotten")
		}
	})
}

func TestEndpoint(t *testing.T) {
	for in, want := range map[string][2]string{
		"192.0.2.77":        {"192.0.2.77", "192.0.2.0/24"},
		"::ffff:192.0.2.77": {"192.0.2.77", "192.0.2.0/24"},
		"2001:db8:1:2:3::4": {"2001:db8:1:2::", "2001:db8:1::/48"},
		"fe80::1%eth0":      {"fe80::", "fe80::/48"},
	} {
		a := netip.MustParseAddr(in)
		if got := [2]string{endpoint(a).String(), neighbourhood(a)}; got != want {
			t.Errorf("%s: %v", in, got)
		}
	}
	if neighbourhood(netip.Addr{}) != "" {
		t.Error("no address has a neighbourhood")
	}
}

// A clock that was wrong for a moment makes nobody suspicious, and no newcomers one,
// until it is right again.
func TestClockSetBack(t *testing.T) {
	const wrong = 365 * day
	address := netip.MustParseAddr(berlin)
	f := newFailures(FailuresConfig{Window: time.Minute, Tracked: 1000})
	var n newcomers
	token := [16]byte{1}
	for range newcomersAMinute {
		f.note(address, start.Add(wrong))
		n.admit(token, start.Add(wrong))
	}
	if got := f.count(address, start); got != 0 {
		t.Errorf("%d failures are known beforehand", got)
	}
	if f.sweep(start); f.len() != 0 {
		t.Error("failures that are yet to come are kept")
	}
	if !n.admit(token, start) {
		t.Error("newcomers of another year count")
	}
	// Requests that overtake one another at a minute's end are no such clock.
	for range newcomersAMinute - 1 {
		n.admit(token, start)
	}
	if n.admit(token, start.Add(-time.Second)) || n.admit(token, start) {
		t.Error("a second back, and the count begins again")
	}
	f.note(address, start)
	if got := f.count(address, start.Add(-time.Second)); got != 1 {
		t.Errorf("a second back: %d failures, want 1", got)
	}
}
