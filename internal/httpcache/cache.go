package httpcache

import (
	"context"
	"encoding/hex"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Options are what a Cache is made with.
type Options struct {
	Bytes        int64 // memory for entries, roughly; at least 1 MiB
	MaxEntry     int64 // largest body that is kept
	MaxKeyBody   int64 // largest request body that is a key; a larger one bypasses
	Store        Store // nil for this process alone
	StoreBytes   int64 // most bytes of entries in it at once, roughly
	StoreTimeout time.Duration
	StoreRest    time.Duration // how long a store that failed is left alone
	PollInterval time.Duration // how often other replicas' purges are looked for
	Now          func() time.Time
	Log          *slog.Logger
	Metrics      prometheus.Registerer // may be nil
	// Panicked is told of a panic in a goroutine of ours, while it is recovered.
	Panicked func(where string, value any)
}

// Cache holds the answers of all routes. It is safe for concurrent use.
type Cache struct {
	options Options
	lru     *lru
	ration  *ration
	metrics *metrics
	epochs  atomic.Pointer[epochs]
	resting atomic.Int64 // the store is left alone until then, Unix nanoseconds
	learnt  atomic.Bool  // the store's purges are known: before, it may hold what was purged

	mu      sync.Mutex
	names   map[string]bool
	flights map[key]*flight
	untold  map[string]string // purges that the store has not taken, by name
}

// New returns an empty cache.
func New(o Options) *Cache {
	c := &Cache{options: o, lru: newLRU(o.Bytes), ration: newRation(o.StoreBytes), names: map[string]bool{}, flights: map[key]*flight{}, untold: map[string]string{}}
	c.epochs.Store(&epochs{values: map[string]string{}, remote: map[string]string{}})
	c.metrics = newMetrics(c)
	if o.Metrics != nil {
		o.Metrics.MustRegister(c.metrics.collectors()...)
	}
	return c
}

// get looks in memory, then in the store.
func (c *Cache) get(ctx context.Context, k key, now time.Time) *entry {
	if e := c.lru.get(k, now); e != nil {
		return e
	}
	if !c.storeUp(now) {
		return nil
	}
	// A client that leaves meanwhile says nothing about the store.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.options.StoreTimeout)
	defer cancel()
	b, err := c.options.Store.Get(ctx, hex.EncodeToString(k[:]))
	if err != nil {
		c.storeFailed(ctx, err, now)
		return nil
	}
	if b == nil {
		return nil
	}
	e, err := decode(b)
	if err != nil || now.After(e.last()) {
		return nil // another version's, or old: as good as none
	}
	c.lru.put(k, e)
	return e
}

func (c *Cache) put(ctx context.Context, k key, e *entry, now time.Time) {
	c.lru.put(k, e)
	ttl := min(e.last().Sub(now), storeLongest)
	if !c.storeUp(now) || ttl <= 0 {
		return
	}
	b, err := e.encode()
	if err != nil {
		c.storeFailed(ctx, err, now)
		return
	}
	if !c.ration.take(int64(len(b))+storeOverhead, ttl, now) {
		c.metrics.storeSkipped.Inc()
		return
	}
	ctx, cancel := context.WithTimeout(ctx, c.options.StoreTimeout)
	defer cancel()
	if err := c.options.Store.Set(ctx, hex.EncodeToString(k[:]), b, ttl); err != nil {
		c.storeFailed(ctx, err, now)
	}
}

func (c *Cache) storeUp(now time.Time) bool {
	return c.options.Store != nil && c.learnt.Load() && c.rested(now)
}

func (c *Cache) rested(now time.Time) bool { return now.UnixNano() >= c.resting.Load() }

// storeFailed leaves the store alone for a while; the log has one line for each
// such while.
func (c *Cache) storeFailed(ctx context.Context, err error, now time.Time) {
	c.metrics.storeErrors.Inc()
	until := now.Add(c.options.StoreRest).UnixNano()
	if old := c.resting.Load(); old <= now.UnixNano() && c.resting.CompareAndSwap(old, until) {
		c.options.Log.WarnContext(ctx, "cache store left alone", "error", err, "for", c.options.StoreRest)
	}
}
