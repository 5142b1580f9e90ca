package ratelimit

import (
	"context"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// exactnessRules are rules in which the same buckets have several sizes: by tier,
// by what the request carries, and by the file in force.
func exactnessRules(t testing.TB, scale int) *Rules {
	t.Helper()
	return mustParse(t, fmt.Sprintf(`
domain: tollgate
tiers:
  entry: tier
  subjects: [user]
  default: free
  table:
  - {name: free, limits: [{unit: minute, requests_per_unit: %[1]d}, {unit: second, requests_per_unit: 3}]}
  - {name: large, limits: [{unit: minute, requests_per_unit: %[2]d, burst: %[3]d}, {unit: second, requests_per_unit: 5}]}
  - {name: fixed, limits: [{unit: second, requests_per_unit: 3, algorithm: fixed_window}, {unit: minute, requests_per_unit: %[1]d, algorithm: fixed_window}]}
  - {name: sliding, limits: [{unit: second, unit_multiplier: 2, requests_per_unit: 4, algorithm: sliding_window}]}
  - {name: leased, limits: [{unit: minute, requests_per_unit: %[4]d, path: leased}]}
descriptors:
- {key: address, rate_limit: {unit: second, requests_per_unit: 4}}
- {key: watched, shadow_mode: true, rate_limit: {unit: second, requests_per_unit: 2}}
`, 10*scale, 20*scale, 30*scale, 300*scale))
}

// twins are two limiters that are told the same, each with a store and a clock of
// its own.
type twins [2]*lab

func newTwins(t testing.TB, rules *Rules, change ...func(*Options)) (w twins) {
	for i := range w {
		w[i] = newLab(t, rules, append([]func(*Options){func(o *Options) {
			o.Overrides, o.Timeout = NewOverrides(nil, 0, o.Now, nil), time.Minute
			if i == 0 {
				o.Denials = 1000
			}
		}}, change...)...)
	}
	return w
}

func (w twins) override(user, tier string) {
	for _, l := range w {
		l.overrides.current.Store(newCopy("", map[overridden]TierOverride{
			{"tollgate", Entry{"user", user}}: {Tier: tier, Until: l.clock.Now().Add(time.Hour)},
		}))
	}
}

// TestMemoryIsExact holds every answer of a limiter with a memory, with leases and
// confirmations behind the requests, equal to that of one without a memory: over
// requests for one or several things at different costs, questions, refunds, tiers
// that change, rules that are loaded again, resets, what others take, and time.
func TestMemoryIsExact(t *testing.T) {
	rules := [2]*Rules{exactnessRules(t, 1), exactnessRules(t, 2)}
	tiers := []string{"free", "large", "fixed", "sliding", "leased"}
	var remembered int
	rapid.Check(t, func(rt *rapid.T) {
		lease := time.Duration(rapid.SampledFrom([]int{0, 500}).Draw(rt, "lease")) * time.Millisecond
		several := rapid.Bool().Draw(rt, "several")
		w := newTwins(t, rules[0], func(o *Options) { o.LeaseLife = lease })
		var others twins
		for i := range others {
			others[i] = newLab(t, rules[0], func(o *Options) { o.Store, o.Now, o.Timeout = w[i].store, w[i].clock.Now, time.Minute })
		}
		pick := func(label string, of ...string) string { return rapid.SampledFrom(of).Draw(rt, label) }
		descriptor := func() Descriptor {
			entry := Entry{pick("key", "user", "user", "user", "address", "watched"), pick("who", "u", "v")}
			d := Descriptor{Entries: []Entry{entry}}
			if entry.Key == "user" {
				d.Entries = append(d.Entries, Entry{"tier", pick("tier", tiers...)})
			}
			d.HasHits, d.Hits = true, uint64(rapid.SampledFrom([]int{0, 1, 1, 2, 3, 5, 9, 40, 300}).Draw(rt, "hits"))
			d.Refund = rapid.IntRange(0, 9).Draw(rt, "refund") == 0
			return d
		}
		for range rapid.IntRange(20, 120).Draw(rt, "steps") {
			step := rapid.IntRange(0, 19).Draw(rt, "step")
			switch {
			case step == 0:
				w.override(pick("overridden", "u", "v"), pick("to", tiers...))
			case step == 1:
				for _, l := range w {
					l.SetRules(rules[rapid.IntRange(0, 1).Draw(rt, "rules")])
				}
				w[1].SetRules(w[0].Rules())
			case step == 2:
				who, tier := pick("reset", "u", "v"), pick("of", tiers...)
				for _, l := range w {
					if err := l.Reset(context.Background(), "tollgate", []Entry{{"user", who}, {"tier", tier}}); err != nil {
						t.Fatal(err)
					}
				}
			case step == 3:
				for _, l := range w {
					if l.leases != nil {
						l.giveBack(context.Background(), l.leases.sweep(l.now().Sub(l.began), false))
					}
				}
			case step == 4:
				w[0].confirm()
			case several && step == 5:
				d := descriptor()
				d.Refund = false // It would be seen when the memory ends.
				for _, l := range others {
					l.decide(request(d))
				}
			case step < 9:
				d := time.Duration(rapid.SampledFrom([]int{1, 5_000, 300_000, 800_000, 2_000_000, 7_000_000}).Draw(rt, "time")) * time.Microsecond
				for _, l := range w {
					l.clock.Advance(d)
				}
			default:
				req := request(descriptor())
				if several && rapid.IntRange(0, 3).Draw(rt, "two") == 0 {
					req.Descriptors = append(req.Descriptors, descriptor())
				}
				a, b := w[0].decide(req), w[1].decide(req)
				if a.Path == PathDenied {
					remembered++
				}
				if a.Allowed != b.Allowed {
					rt.Fatalf("%+v: allowed %t by %s with a memory, %t by %s without", req, a.Allowed, a.Path, b.Allowed, b.Path)
				}
				if several {
					continue // What other demands charged since to a bucket that denies is not told.
				}
				for i := range a.Statuses {
					x, y := &a.Statuses[i], &b.Statuses[i]
					if x.Denied != y.Denied || x.Over != y.Over || x.Reset != y.Reset || x.Remaining != y.Remaining || x.Retry != y.Retry {
						rt.Fatalf("%+v: %+v by %s with a memory, %+v without", req, *x, a.Path, *y)
					}
				}
			}
		}
	})
	if remembered < 20 {
		t.Errorf("only %d denials came from memory", remembered)
	}
}

// TestMemoryLeavesLeases: what a replica took in advance it hands out, though the
// bucket has nothing more for whoever asks for more than that.
func TestMemoryLeavesLeases(t *testing.T) {
	rules := mustParse(t, "domain: tollgate\ndescriptors: [{key: user, rate_limit: {unit: hour, requests_per_unit: 36000, path: leased}}]")
	w := newTwins(t, rules, func(o *Options) { o.LeaseLife = time.Second })
	ask := func(hits uint64) Request { return request(Descriptor{Entries: []Entry{{"user", "u"}}}.with(hits)) }
	for i, l := range w {
		l.decide(ask(1))
		l.decide(ask(1)) // and a lease
		other := newLab(t, rules, func(o *Options) { o.Store, o.Now, o.Timeout = l.store, l.clock.Now, time.Minute })
		other.decide(ask(uint64(other.decide(ask(0)).Statuses[0].Remaining)))
		if got := l.decide(ask(30_000)); got.Allowed {
			t.Fatalf("%+v", got)
		}
		if got := l.decide(ask(1)); !got.Allowed || got.Path != PathLeased {
			t.Errorf("limiter %d: %+v", i, got)
		}
		if got := l.decide(ask(30_000)); got.Allowed || i == 0 && got.Path != PathDenied {
			t.Errorf("limiter %d: %+v", i, got)
		}
	}
}

// giving is a store that took something of each demand first, and gave it back
// meanwhile, as one over several servers may.
type giving struct{ Store }

func (g giving) Take(ctx context.Context, demands []*Demand) error {
	err := g.Store.Take(ctx, demands)
	for _, d := range demands {
		d.Returned = true
	}
	return err
}

// TestMemoryEndsWithWhatComesBack: neither a memory from before something came
// back to a bucket counts, nor what was asked before and answered after.
func TestMemoryEndsWithWhatComesBack(t *testing.T) {
	l, _ := newDenyingLab(t)
	u, v := of("free", "u", "x").with(10), of("free", "v", "x").with(10)
	l.decide(request(u, v))
	if got := l.decide(request(u, v)); got.Path != PathDenied {
		t.Fatalf("%+v", got)
	}
	// A refund to one of them by another request.
	v.Refund = true
	l.decide(request(v))
	v.Refund = false
	if got := l.decide(request(u, v)); got.Path != PathExact {
		t.Errorf("%+v", got)
	}
	if got := l.decide(request(u, v)); got.Path != PathDenied {
		t.Errorf("%+v", got)
	}
	l.store = giving{l.store}
	l.batcher.store = l.store
	l.decide(request(v)) // is denied by u no more
	if got := l.decide(request(u, v)); got.Path != PathExact {
		t.Errorf("%+v", got)
	}
	if got := l.decide(request(u, v)); got.Path != PathDenied {
		t.Errorf("what it gave back itself hides its denial: %+v", got)
	}
	ds, d := newDenials(1000), ask(0, "k")
	d.Now = 1
	before := ds.returnsTo(d)
	ds.returned(d)
	ds.remember(d, 0, 0, before, d)
	if denied, _ := ds.decide(d, 0, nil); denied {
		t.Error("what was asked before something came back is remembered")
	}
	before = ds.returnsTo(d)
	for i, others := 0, 0; others < 100; i++ { // Refunds to others do not matter.
		if key := fmt.Sprint(i); ds.returnsOf(key) != ds.returnsOf("k") {
			ds.returned(ask(0, key))
			others++
		}
	}
	ds.remember(d, 0, 0, before, d)
	if denied, _ := ds.decide(d, 0, nil); !denied {
		t.Error("it is not remembered")
	}
}
