package ratelimit

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// guard is the breaker around the shared store. It opens after a number of
// failures in a row; while it is open no request asks the store, so that a
// store that is gone costs requests nothing. Only its own probe, in the
// background, closes it again.
type guard struct {
	failures int64
	open     atomic.Bool
	inRow    atomic.Int64
	tripped  chan struct{}

	log     *slog.Logger
	metrics *metrics
	notify  func(up bool, reason string)
	// mu orders changes of state, so that log, metrics and notify tell them in
	// order.
	mu sync.Mutex
	// counted is when the last failure ended that counted.
	counted time.Time
}

func newGuard(failures int, log *slog.Logger, m *metrics, notify func(bool, string)) *guard {
	if notify == nil {
		notify = func(bool, string) {}
	}
	return &guard{failures: int64(max(failures, 1)), tripped: make(chan struct{}, 1), log: log, metrics: m, notify: notify}
}

// allows says whether the store may be asked.
func (g *guard) allows() bool { return !g.open.Load() }

// succeeded notes that the store answered.
func (g *guard) succeeded() {
	if g.inRow.Load() != 0 {
		g.inRow.Store(0)
	}
}

// failed notes that the store did not answer a call. Calls that were under way at
// once are one failure in the row: one short stall of the store fails them all.
func (g *guard) failed(start, end time.Time, err error) {
	g.metrics.failures.Inc()
	g.mu.Lock()
	again := start.Before(g.counted)
	if !again {
		g.counted = end
	}
	g.mu.Unlock()
	if !again && g.inRow.Add(1) >= g.failures {
		g.trip(err)
	}
}

func (g *guard) trip(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open.Swap(true) {
		return
	}
	g.metrics.degraded.Set(1)
	g.log.Warn("rate limit store is gone; deciding without it", slog.Any("error", err))
	g.notify(false, "rate limit store: "+err.Error())
	select {
	case g.tripped <- struct{}{}:
	default:
	}
}

func (g *guard) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inRow.Store(0)
	if !g.open.Swap(false) {
		return
	}
	g.metrics.degraded.Set(0)
	g.log.Info("rate limit store is back")
	g.notify(true, "")
}

// run probes the store while the guard is open, until ctx ends. Before the
// guard closes, and once more after, settle tells the store what was granted
// without it.
func (g *guard) run(ctx context.Context, every time.Duration, probe, settle func(context.Context) error) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.tripped:
		}
		tick := time.NewTicker(every)
		for g.open.Load() && ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-tick.C:
				if probe(ctx) != nil || settle(ctx) != nil {
					continue
				}
				g.close()
				if err := settle(ctx); err != nil {
					g.trip(err)
				}
			}
		}
		tick.Stop()
	}
}
