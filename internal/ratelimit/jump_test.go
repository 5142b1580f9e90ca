package ratelimit

import (
	"fmt"
	"testing"
	"time"
)

// TestClockJumps sets the store's clock forward and back by hours, under a
// limiter whose own goes on, with leases and denials in its memory: forward
// grants one full bucket more at most, and back denies for no longer than an
// empty bucket does.
func TestClockJumps(t *testing.T) {
	for _, jump := range []time.Duration{24 * time.Hour, time.Minute, -time.Minute, -24 * time.Hour} {
		t.Run(fmt.Sprint(jump), func(t *testing.T) {
			store := newClock()
			l := newLab(t, mustParse(t, `domain: tollgate
tiers: {entry: tier, subjects: [user], default: a, table: [{name: a, limits: [{unit: minute, requests_per_unit: 600, path: leased}]}]}`),
				func(o *Options) { o.Store, o.LeaseLife, o.Denials = NewMemory(100, store.Now), time.Second, 100 })
			advance := func(d time.Duration) { l.clock.Advance(d); store.Advance(d) }
			drain := func() (granted int) {
				for l.decide(request(of("a", "u", "x"))).Allowed {
					granted++
				}
				return granted
			}
			if n := drain(); n != 600 {
				t.Fatalf("granted %d", n)
			}
			advance(30 * time.Second)
			for range 20 { // a lease is held when the clock jumps
				l.decide(request(of("a", "u", "x")))
			}
			store.Advance(jump)
			// A denial, or a lease, of before is known for a second at most.
			first := drain()
			advance(2 * time.Second)
			second := drain()
			if n := first + second; n > 600+20+20 {
				t.Errorf("granted %d at once", n)
			}
			advance(time.Minute)
			if n := drain(); n != 600 {
				t.Errorf("granted %d of 600 a minute later", n)
			}
		})
	}
}
