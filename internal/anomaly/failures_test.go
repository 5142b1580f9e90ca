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
