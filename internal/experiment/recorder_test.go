package experiment

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/clocktest"
	"github.com/tollgate-proxy/tollgate/internal/logtest"
	"github.com/tollgate-proxy/tollgate/internal/outage"
	"github.com/tollgate-proxy/tollgate/internal/polltest"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

func newRecorder(t *testing.T, c redis.UniversalClient) (*Recorder, *logtest.Buffer) {
	t.Helper()
	log := &logtest.Buffer{}
	r, err := NewRecorder(RecorderOptions{
		Store: NewStore(c), Flush: 10 * time.Millisecond, Log: log.Logger(), Metrics: prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return r, log
}

// Several goroutines at two replicas record; everything arrives.
func TestRecorder(t *testing.T) {
	redistest.Each(t, func(t *testing.T, c *redis.Client) {
		d := valid()
		var running, seers sync.WaitGroup
		ctx, cancel := context.WithCancel(context.Background())
		defer running.Wait()
		defer cancel()
		for replica := range 2 {
			r, _ := newRecorder(t, c)
			running.Go(func() {
				if err := r.Run(ctx); err != nil {
					t.Error(err)
				}
			})
			for worker := range 3 {
				seers.Go(func() {
					for i := range 300 { // more than one batch
						user := fmt.Sprintf("user-%d-%d-%d", replica, worker, i)
						variant, _ := d.Assign(user)
						r.Expose(d, user, variant)
						r.Observe(d, user, variant, "conversion", 1)
					}
				})
			}
		}
		seers.Wait()
		polltest.Until(t, "1800 users", func() bool {
			data, err := NewStore(c).Read(t.Context(), d)
			return err == nil && data[0].Users+data[1].Users == 1800 && data[0].Metrics["conversion"].Users.Mean == 1
		})
	})
}

// What is left when the process ends is written then.
func TestRecorderWritesAtTheEnd(t *testing.T) {
	c := redistest.Client(t, redistest.Embedded(t))
	r, _ := newRecorder(t, c)
	r.options.Flush = time.Hour
	d := valid()
	r.Expose(d, "ann", 0)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if data, err := NewStore(c).Read(t.Context(), d); err != nil || data[0].Users != 1 {
		t.Errorf("got %+v, %v", data, err)
	}
}

func TestRecorderWithoutRedis(t *testing.T) {
	server := redistest.NewProcess(t)
	c := redis.NewClient(&redis.Options{Addr: server.Addr(), MaxRetries: -1, DialTimeout: 100 * time.Millisecond})
	t.Cleanup(func() { _ = c.Close() })
	server.Kill()
	r, log := newRecorder(t, c)
	clock := clocktest.New(catalogTime)
	r.options.Now = clock.Now
	d := valid()
	r.Observe(d, "ann", 0, "latency", 1)
	for range 2 {
		r.flush(t.Context())
	}
	if log.Count("are not recorded") != 1 {
		t.Errorf("logged %d times", log.Count("are not recorded"))
	}
	server.Start()
	for told, passed := range []time.Duration{0, outage.Calm} { // it is told of once it has stayed so
		clock.Advance(passed)
		r.Observe(d, "bob", 1, "latency", 2)
		r.flush(t.Context())
		if log.Count("recorded again") != told {
			t.Errorf("after %s: %s", passed, log)
		}
	}
	data, err := NewStore(c).Read(t.Context(), d)
	if err != nil || data[0].Users != 1 || data[1].Users != 1 {
		t.Errorf("got %+v, %v", data, err)
	}
}

// A process that ends while it writes writes once more what was left, and raises
// no alarm.
func TestRecorderEndsWhileItWrites(t *testing.T) {
	c := redistest.Client(t, redistest.Embedded(t))
	r, log := newRecorder(t, c)
	d := valid()
	r.Expose(d, "ann", 0)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r.flush(ctx)
	if len(r.pending) != 1 || log.String() != "" {
		t.Errorf("%d wait; log:\n%s", len(r.pending), log)
	}
	if err := r.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if data := read(t, r.options.Store, d); data[0].Users != 1 || log.String() != "" {
		t.Errorf("got %+v; log:\n%s", data, log)
	}
}

// What Redis will never take is left out, counted, told of once, and in nobody's
// way. A Redis that is full takes it later.
func TestRecorderRefused(t *testing.T) {
	c := redistest.Client(t, redistest.Server(t))
	poisoned, other := valid(), valid()
	other.Key = "other"
	if err := c.Set(t.Context(), keyOf(poisoned, "users"), "not a hash", 0).Err(); err != nil {
		t.Fatal(err)
	}
	r, log := newRecorder(t, c)
	for range 3 {
		r.Observe(poisoned, "ann", 0, "latency", 1)
		r.Observe(other, "ann", 0, "latency", 1)
		r.flush(t.Context())
	}
	if data := read(t, r.options.Store, other); data[0].Metrics["latency"].Users.N != 1 || len(r.pending) != 0 {
		t.Errorf("got %+v, %d wait", data, len(r.pending))
	}
	if got := testutil.ToFloat64(r.dropped.WithLabelValues("refused")); got != 9 || log.Count("Redis refuses") != 1 || log.Count("are not recorded") != 0 {
		t.Errorf("%v were refused, told of %d times", got, log.Count("Redis refuses"))
	}
	if err := c.ConfigSet(t.Context(), "maxmemory", "1").Err(); err != nil {
		t.Fatal(err)
	}
	r.Observe(other, "bob", 1, "latency", 1)
	r.flush(t.Context())
	if len(r.pending) != 1 || log.Count("are not recorded") != 1 {
		t.Errorf("a full Redis: %d wait", len(r.pending))
	}
	if err := c.ConfigSet(t.Context(), "maxmemory", "0").Err(); err != nil {
		t.Fatal(err)
	}
	r.flush(t.Context())
	if data := read(t, r.options.Store, other); data[1].Users != 1 {
		t.Errorf("got %+v", data)
	}
}

func TestRecorderIsBounded(t *testing.T) {
	c := redis.NewClient(&redis.Options{Addr: redistest.FreeAddr(t), MaxRetries: -1})
	t.Cleanup(func() { _ = c.Close() })
	r, _ := newRecorder(t, c)
	d := valid()
	for i := range (maxPending + 2) * maxBatch {
		r.Expose(d, fmt.Sprint(i), 0)
	}
	r.flush(t.Context())
	if len(r.pending) != maxPending {
		t.Errorf("%d batches wait", len(r.pending))
	}
	if got := testutil.ToFloat64(r.dropped.WithLabelValues("full")); got != 2*maxBatch {
		t.Errorf("%v were dropped", got)
	}
}

func TestRecorderRefuses(t *testing.T) {
	c := redistest.Client(t, redistest.Embedded(t))
	r, log := newRecorder(t, c)
	d := valid()
	r.Observe(d, "ann", 0, "weight", 1)
	r.Expose(d, "", 0)
	if got := testutil.ToFloat64(r.dropped.WithLabelValues("invalid")); got != 2 {
		t.Errorf("%v were dropped", got)
	}
	r.Expose(d, "ann", 0)
	r.flush(t.Context())
	r.Expose(d, "ann", 1)
	r.flush(t.Context())
	if got := testutil.ToFloat64(r.strays); got != 1 || log.Count("changed the variant") != 1 {
		t.Errorf("%v strays", got)
	}
	registry := prometheus.NewRegistry()
	for i := range 2 {
		if _, err := NewRecorder(RecorderOptions{Metrics: registry}); (err != nil) != (i == 1) {
			t.Errorf("recorder %d: %v", i, err)
		}
	}
}
