package ratelimit

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

const slidingRules = "domain: tollgate\n" +
	"tiers: {entry: tier, subjects: [user], default: free, table: [{name: free, limits: [{unit: minute, requests_per_unit: 60, algorithm: sliding_window}]}]}\n"

// TestSlidingWindow counts across the end of a window: what was taken before
// it fades as the window slides over it.
func TestSlidingWindow(t *testing.T) {
	l := newLab(t, mustParse(t, slidingRules)) // It begins at the beginning of a minute.
	ask := func(hits uint64) *Decision { return l.decide(request(of("free", "u", "x").with(hits))) }
	l.clock.Advance(30 * time.Second)
	if dec := ask(60); !dec.Allowed || dec.Statuses[0].Remaining != 0 || dec.Statuses[0].Reset != 90*time.Second {
		t.Fatalf("all of it: %+v", dec)
	}
	dec := ask(1)
	if dec.Allowed || dec.Statuses[0].Reset < 31*time.Second || dec.Statuses[0].Reset > 31*time.Second+2*time.Microsecond {
		t.Fatalf("one more: %+v; one of 60 fades within the first second of the next window", dec)
	}
	l.clock.Advance(45 * time.Second) // A quarter of the next window.
	for i := range 16 {
		// 45 of the 60 count still.
		if dec := ask(1); dec.Allowed != (i < 15) {
			t.Fatalf("request %d in the next window: %+v", i+1, dec)
		}
	}
	l.clock.Advance(time.Minute) // 15 of the window before, three quarters of which count.
	if dec := ask(0); dec.Statuses[0].Remaining != 48 {
		t.Errorf("%+v", dec)
	}
	l.clock.Advance(time.Minute)
	if dec := ask(60); !dec.Allowed {
		t.Errorf("two windows later: %+v", dec)
	}
}

func TestSlidingWindowReset(t *testing.T) {
	l := newLab(t, mustParse(t, slidingRules), func(o *Options) { o.Denials = 100 })
	l.decide(request(of("free", "u", "x").with(60)))
	l.clock.Advance(time.Minute)
	if dec := l.decide(request(of("free", "u", "x").with(1))); dec.Allowed {
		t.Fatalf("%+v", dec)
	}
	if err := l.Reset(t.Context(), "tollgate", of("free", "u", "x").Entries); err != nil {
		t.Fatal(err)
	}
	if dec := l.decide(request(of("free", "u", "x").with(60))); !dec.Allowed {
		t.Errorf("%+v", dec)
	}
}

// TestSlidingDenialsEndExactly holds every answer with a memory of denials
// equal to one without.
func TestSlidingDenialsEndExactly(t *testing.T) {
	with := newLab(t, mustParse(t, slidingRules), func(o *Options) { o.Denials = 100 })
	without := newLab(t, mustParse(t, slidingRules))
	remembered := 0
	for i := range 3000 {
		req := request(of("free", "u", "x").with(uint64(i * 7 % 11)))
		a, b := with.decide(req), without.decide(req)
		if a.Path == PathDenied {
			remembered++
		}
		if a.Allowed != b.Allowed || a.Statuses[0].Reset != b.Statuses[0].Reset || a.Statuses[0].Remaining != b.Statuses[0].Remaining {
			t.Fatalf("request %d: %+v with a memory, %+v without", i, a, b)
		}
		step := []time.Duration{time.Microsecond, 10 * time.Millisecond, 400 * time.Millisecond, 6 * time.Second}[i%4]
		with.clock.Advance(step)
		without.clock.Advance(step)
	}
	if remembered < 100 {
		t.Errorf("only %d denials came from memory", remembered)
	}
}

// TestWaitIsExact holds for every algorithm: a demand that is denied passes
// when the wait that it was told is over, and not a microsecond before; what
// is taken only fades; a bucket is full when it was told to be; and no window
// grants more than its limit.
func TestWaitIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		algorithm := rapid.SampledFrom([]Algorithm{TokenBucket, FixedWindow, SlidingWindow}).Draw(t, "algorithm")
		unit := rapid.SampledFrom([]Unit{Second, Minute, Hour, Year}).Draw(t, "unit")
		limit, err := NewLimit("", rapid.Uint32Range(1, 1000).Draw(t, "tokens"), unit, 1, 0, algorithm)
		if err != nil {
			t.Fatal(err)
		}
		now, granted, window := int64(1_800_000_000e6), int64(0), int64(0)
		c := Charge{Period: limit.period, Capacity: limit.capacity}
		at := func(now int64, need, cost int64) (Charge, bool) {
			d := &Demand{Charges: []Charge{c}}
			d.Charges[0].Need, d.Charges[0].Cost = need, cost
			Decide(now, d)
			return d.Charges[0], d.Allowed
		}
		for range rapid.IntRange(1, 12).Draw(t, "requests") {
			now += rapid.Int64Range(0, limit.Window().Microseconds()).Draw(t, "pause")
			need := limit.worth(rapid.Uint64Range(1, uint64(limit.Burst)).Draw(t, "hits"))
			after, allowed := at(now, need, need)
			if !allowed {
				wait := after.wait(now)
				if _, early := at(now+wait-1, need, need); early {
					t.Fatalf("allowed before the %d us told", wait)
				}
				if after, allowed = at(now+wait, need, need); !allowed {
					t.Fatalf("denied after the %d us told", wait)
				}
				now += wait
			}
			if algorithm != TokenBucket {
				if this := now / after.window(); this != window {
					window, granted = this, 0
				}
				if granted += need; granted > limit.capacity {
					t.Fatalf("granted %d in a window of %d", granted, limit.capacity)
				}
			}
			c = after
			end, later := c.ends(now), c
			later.present(end)
			if later.used(end) != 0 {
				t.Fatalf("not full when it was told to be: %+v", later)
			}
			later, last := c, c.used(now)
			for _, past := range []int64{1, 2, 3, 4, 5, 6, 7, 8} {
				then := now + past*limit.Window().Microseconds()/4
				later.present(then)
				if used := later.used(then); used > last {
					t.Fatalf("used rises from %d to %d by itself", last, used)
				} else {
					last = used
				}
			}
		}
	})
}
