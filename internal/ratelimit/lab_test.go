package ratelimit

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/tollgate-proxy/tollgate/internal/clocktest"
)

func newClock() *clocktest.Clock { return clocktest.New(time.Unix(1_800_000_000, 0)) }

// lab is a limiter over a store in memory and a clock of its own.
type lab struct {
	*Limiter
	t        testing.TB
	clock    *clocktest.Clock
	registry *prometheus.Registry
}

func newLab(t testing.TB, rules *Rules, change ...func(*Options)) *lab {
	t.Helper()
	c, reg := newClock(), prometheus.NewRegistry()
	o := Options{Rules: rules, Store: NewMemory(1e6, c.Now), Now: c.Now, Log: slog.New(slog.DiscardHandler), Metrics: reg}
	for _, f := range change {
		f(&o)
	}
	l, err := NewLimiter(o)
	if err != nil {
		t.Fatal(err)
	}
	return &lab{Limiter: l, t: t, clock: c, registry: reg}
}

func (l *lab) decide(req Request) *Decision {
	l.t.Helper()
	var dec Decision
	if err := l.Decide(context.Background(), &req, &dec); err != nil {
		l.t.Fatal(err)
	}
	return &dec
}

func of(tier, user, endpoint string) Descriptor {
	return Descriptor{Entries: []Entry{{"tier", tier}, {"user", user}, {"endpoint", endpoint}}}
}

func request(descriptors ...Descriptor) Request {
	return Request{Domain: "tollgate", Descriptors: descriptors}
}

func (d Descriptor) with(hits uint64) Descriptor {
	d.Hits, d.HasHits = hits, true
	return d
}

func expectMetric(t *testing.T, l *lab, want string) {
	t.Helper()
	const name = "tollgate_ratelimit_decisions_total"
	want = "# HELP " + name + " Decisions about descriptors, by domain, rule, how they were reached, and outcome.\n# TYPE " + name + " counter" + want
	if err := testutil.GatherAndCompare(l.registry, strings.NewReader(want), name); err != nil {
		t.Error(err)
	}
}

// broken is a store that fails when told to.
type broken struct {
	Store
	mu    sync.Mutex
	err   error
	calls int
}

func (b *broken) Take(ctx context.Context, d []*Demand) error {
	b.mu.Lock()
	b.calls++
	err := b.err
	b.mu.Unlock()
	if err != nil {
		return err
	}
	return b.Store.Take(ctx, d)
}

func (b *broken) set(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
}

func (b *broken) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.calls
}
