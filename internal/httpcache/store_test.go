package httpcache_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/clocktest"
	"github.com/tollgate-proxy/tollgate/internal/httpcache"
	"github.com/tollgate-proxy/tollgate/internal/polltest"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
	"github.com/tollgate-proxy/tollgate/internal/replica"
)

// onStore is a cache of its own on a shared store.
func onStore(f *fixture, s httpcache.Store, p httpcache.Policy) *fixture {
	r := &fixture{T: f.T, service: f.service, Clock: clocktest.New(f.Now()), registry: f.registry}
	o := options(r)
	o.Store, o.Metrics = s, nil
	r.cache = httpcache.New(o)
	r.next = r.cache.Transport(p, f.service)
	return r
}

func (f *fixture) running() *fixture {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.cache.Run(ctx)
	}()
	f.Cleanup(func() { cancel(); <-done })
	return f
}

func TestReplicasShareAnswersAndPurges(t *testing.T) {
	redistest.Each(t, func(t *testing.T, c *redis.Client) {
		p := minute
		p.Tags = []string{"t"}
		long := strings.Repeat("a long answer, worth compressing; ", 1000)
		f := newFixture(t, p, nil)
		f.answer = numbered("X-Long", "no")
		s := replica.NewCache(c)
		a, b := onStore(f, s, p).running(), onStore(f, s, p).running()
		n := 0
		polltest.Until(t, "both know the store's purges", func() bool {
			n++
			path := fmt.Sprint("/probe/", n)
			one := a.ask("GET", path, "").body
			return b.ask("GET", path, "").body == one
		})
		one := a.ask("GET", "/shared", "").body
		b.want(b.ask("GET", "/shared", ""), one, "hit")
		if err := a.cache.Purge(t.Context(), "t"); err != nil {
			t.Fatal(err)
		}
		if got := a.ask("GET", "/shared", "").body; got == one {
			t.Fatal("not purged here")
		}
		polltest.Until(t, "purged there", func() bool { return b.ask("GET", "/shared", "").body != one })
		f.service.mu.Lock()
		f.answer = numbered("Content-Type", "text/plain", "X-Long", long)
		f.service.mu.Unlock()
		one = a.ask("GET", "/long", "").body
		g := b.ask("GET", "/long", "")
		b.want(g, one, "hit")
		if g.header.Get("X-Long") != long {
			t.Fatal("a compressed entry came back changed")
		}
	})
}

// memory is a Store that fails on demand.
type memory struct {
	fail    error
	calls   atomic.Int64
	value   []byte
	epochs  map[string]string
	longest time.Duration
	purges  int
}

func (m *memory) Get(ctx context.Context, _ string) ([]byte, error) {
	m.calls.Add(1)
	return m.value, errors.Join(m.fail, ctx.Err())
}
func (m *memory) Set(_ context.Context, _ string, _ []byte, ttl time.Duration) error {
	m.calls.Add(1)
	m.longest = max(m.longest, ttl)
	return m.fail
}
func (m *memory) Epochs(context.Context) (map[string]string, error) { return nil, m.fail }
func (m *memory) SetEpoch(_ context.Context, name, value string) error {
	m.purges++
	if m.fail == nil {
		m.epochs = map[string]string{name: value}
	}
	return m.fail
}

// look has a cache look at the store's purges once.
func (f *fixture) look() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	f.cache.Run(ctx)
}

func TestNothingDependsOnTheStore(t *testing.T) {
	m := &memory{}
	f := newFixture(t, minute, numbered())
	r := onStore(f, m, minute)
	r.look()
	m.fail = errors.New("down")
	r.want(r.ask("GET", "/", ""), "answer 1", "fwd=miss; stored")
	r.want(r.ask("GET", "/", ""), "answer 1", "hit")
	if m.calls.Load() != 1 {
		t.Fatalf("a store that failed is asked again: %d", m.calls.Load())
	}
	if err := r.cache.Purge(t.Context(), "r"); err == nil {
		t.Fatal("a purge that others cannot know of")
	}
	r.want(r.ask("GET", "/", ""), "answer 2", "fwd=miss")
	r.Advance(2 * time.Minute)
	m.fail = nil
	m.value = []byte("\x01\x00rubbish") // another version's entry
	r.want(r.ask("GET", "/", ""), "answer 3", "fwd=miss")
	if m.calls.Load() < 3 {
		t.Fatal("the store is never asked again")
	}
}

// Before the store's purges are known it may hold what was purged.
func TestAStoreWhosePurgesAreUnknownIsNotAsked(t *testing.T) {
	m := &memory{}
	f := newFixture(t, minute, numbered())
	r := onStore(f, m, minute)
	r.ask("GET", "/", "")
	if m.calls.Load() != 0 {
		t.Fatal("asked")
	}
}

// Whoever can leave early could otherwise keep the replicas from sharing.
func TestAClientThatLeavesSaysNothingAboutTheStore(t *testing.T) {
	m := &memory{}
	f := newFixture(t, minute, numbered())
	r := onStore(f, m, minute)
	r.look()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	ask(ctx, r.next, "GET", "/left", "")
	polltest.Until(t, "what it asked for is kept all the same", func() bool { return m.calls.Load() == 2 })
	r.ask("GET", "/", "")
	if m.calls.Load() != 4 {
		t.Fatal("the store is left alone")
	}
}

func TestAPurgeThatTheStoreMissedIsToldAgain(t *testing.T) {
	m := &memory{fail: errors.New("down")}
	f := newFixture(t, minute, numbered())
	r := onStore(f, m, minute)
	if err := r.cache.Purge(t.Context(), "r"); err == nil {
		t.Fatal("no error")
	}
	if err := r.cache.Purge(t.Context(), "r"); err == nil || m.purges != 1 {
		t.Fatalf("a store that failed is waited for again: %v, %d", err, m.purges)
	}
	r.look()
	m.fail = nil
	r.look()
	if m.epochs["r"] == "" {
		t.Fatal("the others never learn of it")
	}
	m.epochs = nil
	if r.look(); m.epochs != nil {
		t.Fatal("told twice")
	}
}

// Others need the store's memory too: it is bounded, and so is the time there, or
// an entry could outlive the word that it is void.
func TestTheStoreIsNotFilled(t *testing.T) {
	m := &memory{}
	f := newFixture(t, minute, numbered("Cache-Control", "max-age=31536000"))
	r := &fixture{T: t, service: f.service, Clock: clocktest.New(f.Now())}
	o := options(r)
	r.registry = prometheus.NewRegistry()
	o.Store, o.StoreBytes, o.Metrics = m, 1000, r.registry
	r.cache = httpcache.New(o)
	r.next = r.cache.Transport(minute, f.service)
	r.look()
	for i := range 10 {
		r.ask("GET", fmt.Sprint("/", i), "")
	}
	if n := r.metric("tollgate_pyproxy_cache_store_skipped_total"); n < 7 || n > 9 {
		t.Fatalf("%v skipped", n)
	}
	if m.longest != 7*24*time.Hour {
		t.Fatalf("kept for %s", m.longest)
	}
	r.want(r.ask("GET", "/9", ""), "answer 10", "hit")
}
