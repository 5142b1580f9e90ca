package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/polltest"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

func newDenyingLab(t testing.TB) (*lab, *broken) {
	t.Helper()
	store := &broken{}
	return newLab(t, mustLoad(t, shipped), func(o *Options) {
		store.Store = o.Store
		o.Store, o.Denials = store, 1000
	}), store
}

func TestFloodCostsTheStoreNothing(t *testing.T) {
	l, store := newDenyingLab(t)
	l.decide(request(of("free", "u", "x").with(10)))
	want := l.decide(request(of("free", "u", "x")))
	calls := store.count()
	for range 1000 {
		got := l.decide(request(of("free", "u", "x")))
		if got.Path != PathDenied || got.Allowed {
			t.Fatalf("%+v", got)
		}
		got.Path = want.Path
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(Rule{}, Limit{}), cmp.Comparer(func(a, b *counters) bool { return a == b })); diff != "" {
			t.Fatal(diff)
		}
	}
	if store.count() != calls {
		t.Errorf("%d calls of the store", store.count()-calls)
	}
	// Another cost, and another user, are other questions.
	if got := l.decide(request(of("free", "u", "x").with(3))); got.Path != PathDenied || got.Statuses[0].Reset != 18*time.Second {
		t.Errorf("%+v", got)
	}
	if got := l.decide(request(of("free", "v", "x"))); got.Path != PathExact || !got.Allowed {
		t.Errorf("%+v", got)
	}
}

// TestTheLastAllowedTellsTheNextDenial: one who spent a bucket is known to be
// denied from then on, without another call.
func TestTheLastAllowedTellsTheNextDenial(t *testing.T) {
	l, store := newDenyingLab(t)
	for range 10 {
		if got := l.decide(request(of("free", "u", "x"))); !got.Allowed {
			t.Fatalf("%+v", got)
		}
	}
	for i, want := range []bool{false, false, true, false, false, true, false} { // one each 6 s
		calls := store.count()
		if got := l.decide(request(of("free", "u", "x"))); got.Allowed != want || !want && got.Path != PathDenied {
			t.Fatalf("request %d: %+v", i, got)
		}
		if n := store.count() - calls; want != (n == 1) {
			t.Errorf("request %d: %d calls", i, n)
		}
		if !want {
			l.clock.Advance(denialAge / 2)
		}
		if i%3 == 1 {
			l.clock.Advance(5 * time.Second)
		}
	}
	// One who asks for less than is left is not denied.
	l.decide(request(of("free", "v", "x").with(7)))
	if got := l.decide(request(of("free", "v", "x").with(7))); got.Path != PathDenied {
		t.Errorf("%+v", got)
	}
	if got := l.decide(request(of("free", "v", "x").with(3))); !got.Allowed {
		t.Errorf("%+v", got)
	}
}

// TestTheLastAllowedBesideALease: that the system's bucket is leased takes
// nothing from what is known of the user's.
func TestTheLastAllowedBesideALease(t *testing.T) {
	l, store := newLeasingLab(t, `domain: tollgate
system: [{unit: second, requests_per_unit: 10000}]
tiers: {entry: tier, subjects: [user], default: free, table: [{name: free, limits: [{unit: minute, requests_per_unit: 10}]}]}`)
	leased := 0
	for i := range 20 {
		for range 10 {
			if got := l.decide(request(of("free", fmt.Sprint("u", i), "x"))); !got.Allowed {
				t.Fatalf("%+v", got)
			}
		}
		if l.leases.holds(l.Rules().domains["tollgate"].systemKeys[0], l.now().Sub(l.began)) > 0 {
			leased++
		}
		calls := store.count()
		if got := l.decide(request(of("free", fmt.Sprint("u", i), "x"))); got.Path != PathDenied || store.count() != calls {
			t.Fatalf("user %d: %+v, %d calls", i, got, store.count()-calls)
		}
	}
	if leased == 0 {
		t.Error("the system's bucket was never leased")
	}
}

// TestDenialsEndExactly holds every answer with a memory equal to one without.
func TestDenialsEndExactly(t *testing.T) {
	with, _ := newDenyingLab(t)
	without := newLab(t, mustLoad(t, shipped))
	remembered := 0
	for i := range 5000 {
		step := []time.Duration{time.Microsecond, 10 * time.Millisecond, 400 * time.Millisecond, 6 * time.Second}[i%4]
		req := request(of("free", "u", "x").with(uint64(i * 7 % 11)))
		a, b := with.decide(req), without.decide(req)
		if a.Path == PathDenied {
			remembered++
		}
		if a.Allowed != b.Allowed || a.Statuses[0].Reset != b.Statuses[0].Reset || a.Statuses[0].Remaining != b.Statuses[0].Remaining {
			t.Fatalf("request %d: %+v with a memory, %+v without", i, a, b)
		}
		with.clock.Advance(step)
		without.clock.Advance(step)
	}
	if remembered < 100 {
		t.Errorf("only %d denials came from memory", remembered)
	}
}

func TestRefundEndsADenial(t *testing.T) {
	l, _ := newDenyingLab(t)
	l.decide(request(of("free", "u", "x").with(10)))
	l.decide(request(of("free", "u", "x")))
	refund := of("free", "u", "x").with(5)
	refund.Refund = true
	l.decide(request(refund))
	if got := l.decide(request(of("free", "u", "x"))); !got.Allowed {
		t.Errorf("%+v", got)
	}
}

func TestDenialsOfOthers(t *testing.T) {
	l, _ := newDenyingLab(t)
	l.decide(request(of("free", "u", "x").with(10)))
	l.decide(request(of("free", "u", "x")))
	// A request about more than is remembered asks the store.
	if got := l.decide(request(of("free", "u", "x"), of("free", "v", "x"))); got.Path != PathExact || got.Allowed || got.Statuses[1].Remaining != 10 {
		t.Errorf("%+v", got)
	}
	// So does one with a denial of long ago: someone else may have refunded.
	l.clock.Advance(denialAge + time.Millisecond)
	if got := l.decide(request(of("free", "u", "x"))); got.Path != PathExact || got.Allowed {
		t.Errorf("%+v", got)
	}
}

// TestDenialsThatLast: what the store confirms is asked less often, and a refund
// through another replica is seen all the same.
func TestDenialsThatLast(t *testing.T) {
	l, store := newDenyingLab(t)
	l.decide(request(of("free", "u", "x").with(10)))
	before := store.count()
	for range 50 {
		l.decide(request(of("free", "u", "x").with(10))) // not before a minute has passed
		l.clock.Advance(time.Second)
	}
	if asked := store.count() - before; asked > 15 {
		t.Errorf("%d calls in 50 s", asked)
	}
	other := newLab(t, l.Rules(), func(o *Options) { o.Store = store })
	refund := of("free", "u", "x").with(10)
	refund.Refund = true
	other.decide(request(refund))
	l.clock.Advance(denialAgeMost)
	if got := l.decide(request(of("free", "u", "x").with(10))); !got.Allowed {
		t.Errorf("%+v", got)
	}
}

// TestDenialsConfirmedBehindTheRequest: who is denied for long costs no request
// a call, and everybody's memories that are to end go into common calls.
func TestDenialsConfirmedBehindTheRequest(t *testing.T) {
	l, store := newDenyingLab(t)
	user := func(i int) Request { return request(of("free", fmt.Sprint("u", i), "x").with(10)) }
	for i := range 2 * MaxBatch {
		l.decide(user(i))
		l.decide(user(i)) // not before a minute has passed
	}
	before := store.count()
	for tick := range 100 { // 40 s
		l.clock.Advance(400 * time.Millisecond)
		for i := range 2 * MaxBatch {
			if got := l.decide(user(i)); got.Allowed || got.Path != PathDenied {
				t.Fatalf("tick %d, user %d: %+v", tick, i, got)
			}
		}
		if len(l.denials.due) == 0 {
			continue
		}
		calls := store.count()
		if l.confirm(); store.count()-calls != 2 {
			t.Fatalf("%d calls to confirm %d", store.count()-calls, 2*MaxBatch)
		}
	}
	if asked := store.count() - before; asked < 10 || asked > 30 {
		t.Errorf("%d calls in 40 s", asked)
	}
}

// TestDenialsConfirmedInTheBackground does the same with nobody but Run to ask.
func TestDenialsConfirmedInTheBackground(t *testing.T) {
	l, _ := newDenyingLab(t)
	l.decide(request(of("free", "u", "x").with(10)))
	l.decide(request(of("free", "u", "x").with(10)))
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- l.Run(ctx) }()
	key := func() *denial {
		p := newPlan()
		defer p.release()
		req := request(of("free", "u", "x").with(10))
		p.build(l.Rules().domains["tollgate"], &req, nil)
		s, hash := l.denials.shard(first(p.active[0]).Key)
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.known[hash]
	}
	old := key()
	l.clock.Advance(denialAge - denialAge/8)
	if got := l.decide(request(of("free", "u", "x").with(10))); got.Path != PathDenied {
		t.Fatalf("%+v", got)
	}
	polltest.Until(t, "the denial is confirmed", func() bool { return key() != old })
	if n := key(); n.age != 2*denialAge {
		t.Errorf("it holds for %s", n.age)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestConfirmationsThatFail: a memory that nobody confirms ends when it would
// have, and one that the store does not confirm ends at once, unless something
// newer is known by then.
func TestConfirmationsThatFail(t *testing.T) {
	req := request(of("free", "u", "x").with(10))
	refund := of("free", "u", "x").with(10)
	refund.Refund = true
	for name, c := range map[string]struct {
		meanwhile func(l *lab, store *broken)
		want      Path
		allowed   bool
	}{
		"the store fails": {func(_ *lab, store *broken) { store.set(errors.New("gone")) }, PathDenied, false},
		"the store is known to be gone": {func(l *lab, store *broken) {
			l.guard.trip(errors.New("gone"))
			store.set(errors.New("nobody may ask"))
		}, PathDenied, false},
		"another replica refunded": {func(l *lab, store *broken) {
			newLab(l.t, l.Rules(), func(o *Options) { o.Store = store }).decide(request(refund))
		}, PathExact, true},
		"a request asked about more buckets": {func(l *lab, _ *broken) {
			l.decide(request(of("free", "u", "x").with(10), of("free", "v", "x")))
		}, PathExact, false},
	} {
		t.Run(name, func(t *testing.T) {
			l, store := newDenyingLab(t)
			l.decide(req)
			l.decide(req)
			l.clock.Advance(denialAge - denialAge/8)
			if got := l.decide(req); got.Path != PathDenied || len(l.denials.due) != 1 {
				t.Fatalf("%+v, %d asked", got, len(l.denials.due))
			}
			c.meanwhile(l, store)
			l.confirm()
			if len(l.denials.due) != 0 {
				t.Error("it still waits")
			}
			if got := l.decide(req); got.Path != c.want || got.Allowed != c.allowed {
				t.Errorf("%+v", got)
			}
			l.clock.Advance(denialAge / 4)
			store.set(nil)
			l.guard.close()
			if got := l.decide(req); c.want == PathDenied && got.Path != PathExact {
				t.Errorf("after its end: %+v", got)
			}
		})
	}
}

// TestConfirmationsAreBounded: what finds no place ends, and large demands ask
// for themselves.
func TestConfirmationsAreBounded(t *testing.T) {
	ds := newDenials(2 * denialsDue)
	large := &Demand{Now: 1}
	for i := range confirmBuckets + 1 {
		large.Charges = append(large.Charges, Charge{Key: fmt.Sprint(i), Capacity: 1, Need: 3, Cost: 3})
	}
	for i := range denialsDue + 10 {
		d := ask(0, fmt.Sprint("u", i))
		d.Now = 1
		ds.remember(d, 0, 0, 0)
		if denied, _ := ds.decide(d, denialAge-1, nil); !denied {
			t.Fatalf("demand %d is not denied", i)
		}
	}
	if n := len(ds.due); n != denialsDue {
		t.Errorf("%d wait", n)
	}
	<-ds.due
	ds.remember(large, 0, 0, 0)
	if denied, _ := ds.decide(large, denialAge-1, nil); !denied || len(ds.due) != denialsDue-1 {
		t.Errorf("denied %t, %d wait", denied, len(ds.due))
	}
}

func TestDenialsAreBounded(t *testing.T) {
	ds := newDenials(denialShards * 2)
	for i := range 10_000 {
		d := ask(0, fmt.Sprint(i))
		d.Now = 1
		ds.remember(d, 0, 0, 0)
	}
	n := 0
	for i := range ds.shards {
		n += len(ds.shards[i].known)
	}
	if n == 0 || n > denialShards*2 {
		t.Errorf("%d remembered", n)
	}
	shared := ask(0, "s")
	shared.Charges[0].Shared = true
	ds.remember(shared, 0, 0, 0)
	ds.forget(shared)
	if denied, known := ds.decide(shared, 0, nil); denied || known {
		t.Error("a shared bucket was remembered")
	}
}

// TestDenialsWithRedis races real time against a bucket that refills quickly:
// nothing is denied from memory that Redis would allow, so the count of what is
// granted stays what the bucket gives.
func TestDenialsWithRedis(t *testing.T) {
	client := redis.NewClient(&redis.Options{Addr: redistest.Server(t)})
	defer client.Close()
	rules := mustParse(t, "domain: tollgate\ndescriptors: [{key: user, rate_limit: {unit: second, requests_per_unit: 200, burst: 5}}]")
	l := newLab(t, rules, func(o *Options) {
		o.Store, o.Denials, o.Now, o.Timeout = NewRedis(client, false), 1000, time.Now, 5*time.Second
	})
	req := request(Descriptor{Entries: []Entry{{"user", "u"}}})
	start, granted, remembered := time.Now(), 0, 0
	for time.Since(start) < time.Second {
		var dec Decision
		if err := l.Decide(context.Background(), &req, &dec); err != nil {
			t.Fatal(err)
		}
		if dec.Allowed {
			granted++
		}
		if dec.Path == PathDenied {
			remembered++
		}
	}
	most := 5 + int(time.Since(start)/(5*time.Millisecond)) + 1
	if granted > most || remembered == 0 {
		t.Errorf("granted %d of at most %d; %d denials from memory", granted, most, remembered)
	}
}
