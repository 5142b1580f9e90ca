package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"pgregory.net/rapid"

	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

// large has a bucket that refills slowly, so that what is granted can be
// counted, under a system-wide one.
const large = `domain: tollgate
system: [{unit: year, requests_per_unit: 20000}]
tiers: {entry: tier, subjects: [user], default: a, table: [{name: a, limits: [{unit: year, requests_per_unit: 5000}]}]}`

func newLeasingLab(t testing.TB, rules string) (*lab, *broken) {
	t.Helper()
	store := &broken{}
	return newLab(t, mustParse(t, rules), func(o *Options) {
		store.Store = o.Store
		o.Store, o.LeaseLife, o.Denials = store, time.Second, 1000
	}), store
}

func TestLeasesSpareTheStore(t *testing.T) {
	l, store := newLeasingLab(t, large)
	for i := range 5000 {
		dec := l.decide(request(of("a", "u", "x")))
		if s := dec.Statuses[0]; !dec.Allowed || int(s.Remaining) != 4999-i {
			t.Fatalf("request %d: %+v", i, dec)
		}
	}
	if n := store.count(); n > 500 {
		t.Errorf("%d calls for 5000 requests", n)
	}
	// At the end nothing is left, exactly.
	dec := l.decide(request(of("a", "u", "x")))
	if s := dec.Statuses[0]; dec.Allowed || !s.Denied || s.Remaining != 0 {
		t.Errorf("%+v", dec)
	}
}

// What leases answer tells the time of their store alone, though plans are reused
// and another store, or this one before its clock was set back, was ahead.
func TestLeasesTellTheirOwnTime(t *testing.T) {
	l, _ := newLeasingLab(t, large)
	ahead, _ := newLeasingLab(t, large)
	ahead.clock.Advance(24 * time.Hour)
	leased := 0
	for i := range 200 {
		ahead.decide(request(of("a", "u", "x")))
		dec := l.decide(request(of("a", "u", "x")))
		if int(dec.Statuses[0].Remaining) != 4999-i {
			t.Fatalf("request %d: %+v", i, dec)
		}
		if dec.Path == PathLeased {
			leased++
		}
	}
	if leased == 0 {
		t.Error("none was leased")
	}
}

func TestUnusedLeasesGoBack(t *testing.T) {
	l, store := newLeasingLab(t, large)
	for range 100 {
		l.decide(request(of("a", "u", "x")))
	}
	stored := func(key string) int64 {
		d := &Demand{Charges: []Charge{{Key: key, Capacity: maxCapacity}}}
		take(t, store, d)
		rule := l.Rules().domains["tollgate"]
		limit := &rule.tiers["a"].Limits[0]
		if key == rule.systemKeys[0] {
			limit = &rule.system[0]
		}
		return (d.Charges[0].Level - d.Now + limit.interval/2) / limit.interval
	}
	user := "tollgate:bucket:{tollgate~user=u}:31536000"
	system := "tollgate:bucket:{tollgate}:system:31536000"
	if got := stored(user); got <= 100 {
		t.Fatalf("no lease: the store was charged %d", got)
	}
	l.clock.Advance(2 * time.Second)
	l.giveBack(t.Context(), l.leases.sweep(l.now().Sub(l.began), false))
	if u, s := stored(user), stored(system); u != 100 || s != 100 {
		t.Errorf("charged %d and %d after unused tokens went back, want 100", u, s)
	}
	// What nobody asks for is forgotten.
	for range 3 {
		l.clock.Advance(2 * time.Second)
		l.leases.sweep(l.now().Sub(l.began), false)
	}
	for i := range l.leases.shards {
		if n := len(l.leases.shards[i].known); n != 0 {
			t.Errorf("%d leases are remembered", n)
		}
	}
	// The end gives everything back at once.
	for range 50 {
		l.decide(request(of("a", "u", "x")))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if u, s := stored(user), stored(system); u != 150 || s != 150 {
		t.Errorf("charged %d and %d after the end, want 150", u, s)
	}
}

// Who looks at a bucket sees what is held of it as left, and a reset gives no
// more than a full bucket.
func TestLeasesAndState(t *testing.T) {
	l, _ := newLeasingLab(t, large)
	remaining := func() (user, system uint32) {
		t.Helper()
		states, err := l.State(t.Context(), "tollgate", of("a", "u", "x").Entries)
		if err != nil || len(states) != 2 {
			t.Fatalf("%+v, %v", states, err)
		}
		return states[0].Remaining, states[1].Remaining
	}
	for range 100 {
		l.decide(request(of("a", "u", "x")))
	}
	if u, s := remaining(); u != 4900 || s != 19900 {
		t.Errorf("%d and %d left, want 4900 and 19900", u, s)
	}
	if err := l.Reset(t.Context(), "tollgate", of("a", "u", "x").Entries); err != nil {
		t.Fatal(err)
	}
	if u, s := remaining(); u != 5000 || s != 19900 {
		t.Errorf("%d and %d left after a reset", u, s)
	}
	granted := 0
	for l.decide(request(of("a", "u", "x"))).Allowed {
		granted++
	}
	if granted != 5000 {
		t.Errorf("granted %d after a reset", granted)
	}
}

// TestLeasesAreBounded meets more buckets than there is room for.
func TestLeasesAreBounded(t *testing.T) {
	ls := newLeases(time.Second, leaseShards*4, func() int64 { return 1 })
	for i := range 10_000 {
		c := Charge{Key: fmt.Sprint(i), Interval: 1, Capacity: 1e6, Need: 1, Cost: 1}
		ls.claim(&c, &claim{}, 0)
	}
	n := 0
	for i := range ls.shards {
		n += len(ls.shards[i].known)
	}
	if n == 0 || n > leaseShards*4 {
		t.Errorf("%d are remembered", n)
	}
}

func TestLeasesAreLeftAloneNearTheLimit(t *testing.T) {
	l, _ := newLeasingLab(t, `domain: tollgate
tiers: {entry: tier, subjects: [user], default: a, table: [{name: a, limits: [{unit: year, requests_per_unit: 63, path: leased}, {unit: month, requests_per_unit: 30000, path: exact}]}]}`)
	for i := range 64 {
		dec := l.decide(request(of("a", "u", "x")))
		if dec.Path != PathExact && dec.Path != PathDenied || dec.Allowed != (i < 63) {
			t.Fatalf("request %d: %+v", i, dec)
		}
	}
}

func TestLeasesWhereTheUserIsDenied(t *testing.T) {
	l, _ := newLeasingLab(t, `domain: tollgate
system: [{unit: year, requests_per_unit: 5000}]
tiers: {entry: tier, subjects: [user], default: a, table: [{name: a, limits: [{unit: year, requests_per_unit: 10}]}]}`)
	granted := 0
	for i := range 600 {
		if l.decide(request(of("a", fmt.Sprint("u", i%20), "x"))).Allowed {
			granted++
		}
	}
	if granted != 200 {
		t.Errorf("granted %d", granted)
	}
	l.giveBack(t.Context(), l.leases.sweep(0, true))
	s := l.decide(request(Descriptor{Entries: []Entry{{"floor", ""}}}))
	if !s.Allowed {
		t.Error("the system's bucket is empty")
	}
	d := &Demand{Charges: []Charge{{Key: l.Rules().domains["tollgate"].systemKeys[0], Capacity: maxCapacity}}}
	take(t, l.store, d)
	interval := l.Rules().domains["tollgate"].system[0].interval
	l.giveBack(t.Context(), l.leases.sweep(0, true))
	if used := (d.Charges[0].Level - d.Now) / interval; used != 201 {
		t.Errorf("the system's bucket was charged %d, want 201: denied requests take nothing", used)
	}
}

func TestLeasesWithoutTheStore(t *testing.T) {
	l, store := newLeasingLab(t, large)
	for range 20 {
		l.decide(request(of("a", "u", "x")))
	}
	store.set(errors.New("gone"))
	paths := map[Path]int{}
	for range 100 {
		paths[l.decide(request(of("a", "u", "x"))).Path]++
	}
	if paths[PathLeased] == 0 || paths[PathLocal] == 0 {
		t.Errorf("%v", paths)
	}
}

// TestLeasesGrantWhatAnExactBucketWould holds leases of several replicas to a
// bucket that is charged as requests come: whatever was saved up in leases, it
// would have allowed every request that they did, at that time.
func TestLeasesGrantWhatAnExactBucketWould(t *testing.T) {
	rules := mustParse(t, `domain: tollgate
tiers: {entry: tier, subjects: [user], default: a, table: [{name: a, limits: [{unit: minute, requests_per_unit: 600, path: leased}]}]}`)
	limit := &rules.domains["tollgate"].tiers["a"].Limits[0]
	leased := 0
	rapid.Check(t, func(rt *rapid.T) {
		c := newClock()
		store := NewMemory(1e6, c.Now)
		replicas := make([]*Limiter, rapid.IntRange(1, 4).Draw(rt, "replicas"))
		for i := range replicas {
			l, err := NewLimiter(Options{
				Rules: rules, Store: store, Now: c.Now, LeaseLife: time.Second, Replicas: len(replicas),
				Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
			})
			if err != nil {
				rt.Fatal(err)
			}
			replicas[i] = l
		}
		ideal := Charge{Capacity: limit.capacity}
		for range rapid.IntRange(1, 200).Draw(rt, "steps") {
			c.Advance(time.Duration(rapid.OneOf(rapid.Just(0), rapid.IntRange(0, 3000)).Draw(rt, "milliseconds")) * time.Millisecond)
			l, hits := replicas[rapid.IntRange(0, len(replicas)-1).Draw(rt, "replica")], rapid.Uint64Range(1, 3).Draw(rt, "hits")
			for range rapid.OneOf(rapid.Just(1), rapid.IntRange(1, 600)).Draw(rt, "requests") {
				req, dec := request(of("a", "u", "x").with(hits)), Decision{}
				if err := l.Decide(context.Background(), &req, &dec); err != nil {
					rt.Fatal(err)
				}
				if !dec.Allowed {
					break
				}
				if dec.Path == PathLeased {
					leased++
				}
				ideal.Need = limit.worth(hits)
				ideal.Cost = ideal.Need
				d := &Demand{Charges: []Charge{ideal}}
				Decide(c.Now().UnixMicro(), d)
				if ideal.Level = d.Charges[0].Level; !d.Allowed {
					rt.Fatalf("%d hits granted (%v) that the bucket does not hold", hits, dec.Path)
				}
			}
		}
	})
	if leased == 0 {
		t.Error("nothing was leased")
	}
}

// TestLeasesOfLukewarmBuckets asks now and then for many users whose buckets are
// always full: few requests reach the store, and nothing has to go back.
func TestLeasesOfLukewarmBuckets(t *testing.T) {
	l, store := newLeasingLab(t, `domain: tollgate
tiers: {entry: tier, subjects: [user], default: a, table: [{name: a, limits: [{unit: minute, requests_per_unit: 5000}, {unit: hour, requests_per_unit: 100000}]}]}`)
	const users, seconds, rate = 20, 20, 10
	back := 0
	for at := range seconds * rate {
		for u := range users {
			l.clock.Advance(time.Second / users / rate)
			l.decide(request(of("a", fmt.Sprint("u", u), "x")))
		}
		if at%rate == 0 {
			back += len(l.leases.sweep(l.now().Sub(l.began), false))
		}
	}
	if n := store.count(); n > users*seconds*rate/12 || back > 0 {
		t.Errorf("%d calls for %d requests, and %d returns", n, users*seconds*rate, back)
	}
}

// TestReplicasNeverGrantMore lets clients of four replicas take what they can
// of one bucket, with tokens in advance and without.
func TestReplicasNeverGrantMore(t *testing.T) {
	for name, life := range map[string]time.Duration{"exact": 0, "leased": 50 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			client := redis.NewClient(&redis.Options{Addr: redistest.Server(t), PoolSize: 16})
			defer client.Close()
			ctx, cancel := context.WithCancel(t.Context())
			var running sync.WaitGroup
			replicas := make([]*Limiter, 4)
			for i := range replicas {
				l, err := NewLimiter(Options{
					Rules: mustParse(t, large), Store: NewRedis(client, false), LeaseLife: life, Denials: 100,
					Timeout: 10 * time.Second, Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
				})
				if err != nil {
					t.Fatal(err)
				}
				replicas[i] = l
				running.Go(func() { _ = l.Run(ctx) })
			}
			var granted, leased, asked atomic.Int64
			var clients sync.WaitGroup
			for i := range 64 {
				clients.Go(func() {
					req := request(of("a", "u", "x"))
					var dec Decision
					tick := time.NewTicker(10 * time.Millisecond)
					defer tick.Stop()
					// Until denied a while: what others hold unused comes back.
					for denied := 0; denied < 20 && asked.Add(1) < 100_000; {
						if err := replicas[i%4].Decide(ctx, &req, &dec); err != nil {
							t.Error(err)
							return
						}
						switch {
						case !dec.Allowed:
							denied++
							<-tick.C // Gives what lies unused time to come back.
						case dec.Path == PathLeased:
							leased.Add(1)
							granted.Add(1)
						default:
							granted.Add(1)
						}
					}
				})
			}
			clients.Wait()
			cancel()
			running.Wait()
			if g := granted.Load(); g > 5000 || life == 0 && g != 5000 || g < 4900 {
				t.Errorf("granted %d of 5000", g)
			}
			if (leased.Load() > 0) != (life > 0) {
				t.Errorf("%d were leased", leased.Load())
			}
		})
	}
}
