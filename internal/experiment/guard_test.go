package experiment

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/logtest"
	"github.com/tollgate-proxy/tollgate/internal/polltest"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

// harmed starts an experiment whose guardrail is breached.
func harmed(t *testing.T, rdb *redis.Client, c *Catalog, d *Definition) {
	t.Helper()
	d = &started(t, c, d).Definition
	recorder, _ := newRecorder(t, rdb)
	for i := range 800 {
		user := fmt.Sprintf("user-%d", i)
		arm, _ := d.Assign(user)
		recorder.Observe(d, user, arm, "latency", 0.1+0.1*float64(arm)+float64(i%7)/1000)
	}
	recorder.flush(t.Context())
}

// pulled is a watcher that knows what its catalog holds now, and nothing of what
// comes after.
func pulled(t *testing.T, c *Catalog) *Watcher {
	t.Helper()
	w, err := NewWatcher(WatcherOptions{Catalog: c, Log: (&logtest.Buffer{}).Logger(), Now: fixedNow})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.pull(t.Context()); err != nil {
		t.Fatal(err)
	}
	return w
}

func stateOf(t *testing.T, c *Catalog, key string) State {
	t.Helper()
	r, err := c.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	return r.Definition.State
}

// Of several replicas one stops what asks for it, and nothing else.
func TestGuard(t *testing.T) {
	rdb := redistest.Client(t, redistest.Embedded(t))
	c := NewCatalog(rdb, fixedNow)
	bad, tolerated := valid(), valid()
	bad.AutoStop = true
	tolerated.Key = "tolerated"
	harmed(t, rdb, c, bad)
	harmed(t, rdb, c, tolerated)
	w := pulled(t, c)
	c.now = func() time.Time { return catalogTime.Add(time.Hour) }
	stopped, log := make(chan string, 10), &logtest.Buffer{}
	var judging sync.WaitGroup
	for range 3 {
		g := NewGuard(GuardOptions{
			Catalog: c, Store: NewStore(rdb), Watcher: w, Log: log.Logger(),
			Stopped: func(_ context.Context, key, verdict string) { stopped <- key + ": " + verdict },
		})
		judging.Go(func() {
			if err := g.round(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	judging.Wait()
	if len(stopped) != 1 || log.Count("stopped by itself") != 1 {
		t.Fatalf("stopped %d times:\n%s", len(stopped), log)
	}
	if got := <-stopped; !strings.HasPrefix(got, "checkout: guardrail breached") {
		t.Errorf("got %q", got)
	}
	if r, err := c.Get(t.Context(), "checkout"); err != nil || r.Definition.State != Stopped || r.UpdatedBy != guardActor {
		t.Errorf("got %+v, %v", r, err)
	}
	if got := stateOf(t, c, "tolerated"); got != Started {
		t.Errorf("the other one is %s", got)
	}
}

// One replica judges in a period, and stops nothing that somebody has changed
// since.
func TestGuardLease(t *testing.T) {
	rdb := redistest.Client(t, redistest.Embedded(t))
	c, d := NewCatalog(rdb, fixedNow), valid()
	d.AutoStop = true
	harmed(t, rdb, c, d)
	c.now = func() time.Time { return catalogTime.Add(time.Hour) }
	g := NewGuard(GuardOptions{Catalog: c, Store: NewStore(rdb), Watcher: pulled(t, c), Log: (&logtest.Buffer{}).Logger()})
	round := func(when string, want State) {
		t.Helper()
		if err := g.round(t.Context()); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		if got := stateOf(t, c, d.Key); got != want {
			t.Errorf("%s it is %s, want %s", when, got, want)
		}
	}
	if err := rdb.Set(t.Context(), keyLease, "1", 0).Err(); err != nil {
		t.Fatal(err)
	}
	round("while another one judges", Started)
	if _, err := c.Update(t.Context(), d.Key, anyone(""), func(d *Definition) error { d.Description = "changed"; return nil }); err != nil {
		t.Fatal(err)
	}
	rdb.Del(t.Context(), keyLease)
	round("where it knows an older revision", Started)
	if err := g.o.Watcher.pull(t.Context()); err != nil {
		t.Fatal(err)
	}
	round("in the same period", Started)
	rdb.Del(t.Context(), keyLease)
	round("in the next one", Stopped)
}

// calls counts what goes to Redis.
type calls struct{ n atomic.Int64 }

func (c *calls) DialHook(next redis.DialHook) redis.DialHook { return next }

func (c *calls) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (c *calls) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		defer c.n.Add(1)
		return next(ctx, cmd)
	}
}

// Without Redis it goes on trying, and says so once.
func TestGuardWithoutRedis(t *testing.T) {
	rdb := redis.NewClient(&redis.Options{Addr: redistest.FreeAddr(t), MaxRetries: -1})
	t.Cleanup(func() { _ = rdb.Close() })
	tried, log := &calls{}, &logtest.Buffer{}
	rdb.AddHook(tried)
	g := NewGuard(GuardOptions{Catalog: NewCatalog(rdb, fixedNow), Every: 5 * time.Millisecond, Log: log.Logger()})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	polltest.Until(t, "a third round", func() bool { return tried.n.Load() >= 3 })
	cancel()
	if err := <-done; err != nil || log.Count("are not judged") != 1 {
		t.Errorf("%v; log:\n%s", err, log)
	}
}
