package pyproxy

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/tollgate-proxy/tollgate/internal/httpcache"
)

// Options are what a Proxy is given to work with. Every field may be left out.
type Options struct {
	Log        *slog.Logger
	Metrics    prometheus.Registerer
	Tracer     trace.TracerProvider
	Propagator propagation.TextMapPropagator
	Now        func() time.Time
	// Cache holds the answers of routes that ask for it; nil makes one without a
	// shared store.
	Cache *httpcache.Cache
	// OnOpen is called when a circuit opens, with the upstream's name.
	OnOpen func(upstream string)
	// Panicked is told of a panic in a goroutine that a request has started, while
	// it is recovered; nil logs it.
	Panicked func(where string, value any)
}

// panicked is what is told of panics.
func (o Options) panicked() func(where string, value any) {
	if o.Panicked != nil {
		return o.Panicked
	}
	return func(where string, value any) {
		o.Log.Error("panic", "in", where, "value", fmt.Sprint(value), "stack", string(debug.Stack()))
	}
}

// shared is what all setups of a Proxy share.
type shared struct {
	now        func() time.Time
	log        *slog.Logger
	tracer     trace.Tracer
	propagator propagation.TextMapPropagator
	metrics    *metrics
	look       resolver
	onOpen     func(upstream string)
	panicked   func(where string, value any)
	cache      *httpcache.Cache
	streaming  context.Context // under which streams last //nolint:containedctx // it is the process's and not a call's
	endStreams context.CancelFunc
}

// Proxy answers the requests of its routes. It is an http.Handler; Run keeps
// its view of the upstreams current.
type Proxy struct {
	*shared
	current atomic.Pointer[setup]
	swapped chan struct{} // current has changed
}

// New builds a proxy from a validated configuration. It does not connect.
func New(c Config, o Options) *Proxy {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &shared{now: o.Now, log: o.Log, propagator: o.Propagator, metrics: newMetrics(), look: systemResolver, onOpen: o.OnOpen, panicked: o.panicked()}
	s.streaming, s.endStreams = context.WithCancel(context.Background())
	if s.now == nil {
		s.now = time.Now
	}
	if s.propagator == nil {
		s.propagator = propagation.TraceContext{}
	}
	if s.onOpen == nil {
		s.onOpen = func(string) {}
	}
	if o.Tracer == nil {
		o.Tracer = noop.NewTracerProvider()
	}
	if s.cache = o.Cache; s.cache == nil {
		s.cache = NewCache(c.Cache, nil, Options{Now: s.now, Log: s.log, Panicked: s.panicked})
	}
	s.tracer = o.Tracer.Tracer("github.com/tollgate-proxy/tollgate/internal/pyproxy")
	p := &Proxy{shared: s, swapped: make(chan struct{}, 1)}
	p.current.Store(newSetup(s, c, nil))
	if o.Metrics != nil {
		o.Metrics.MustRegister(append(s.metrics.collectors(), newLive(p.upstreams, s.now))...)
	}
	return p
}

// Prepare builds what a validated configuration says, and returns what puts it in
// the place of the present one. Requests under way end as they began. What is
// known of addresses, circuits, limits and budgets stays where nothing that it was
// learnt under has changed; kept answers stay. CacheConfig takes no effect: the
// cache is made once. Prepare and its commit must not run beside another's.
func (p *Proxy) Prepare(c Config) (commit func()) {
	old := p.current.Load()
	next := newSetup(p.shared, c, old)
	return func() {
		p.current.Store(next)
		select {
		case p.swapped <- struct{}{}:
		default: // Run has not seen the last change yet
		}
		p.metrics.forget(old, next)
	}
}

func (p *Proxy) upstreams() []*upstream { return p.current.Load().upstreams }

// ServeHTTP finds the request's route and answers it.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) { p.current.Load().ServeHTTP(w, r) }

// EndStreams breaks event streams and upgraded connections off, those to come too:
// they last as long as their clients like, who connect anew, and a server that stops gracefully would
// wait for them.
func (p *Proxy) EndStreams() { p.endStreams() }

// Run looks names up, checks health and learns of other replicas' purges until ctx ends, and then closes unused
// connections.
func (p *Proxy) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { _ = p.cache.Run(ctx) }) // it ends with ctx, and otherwise never
	for ctx.Err() == nil {
		now := p.current.Load()
		watching, cancel := context.WithCancel(ctx)
		var watches sync.WaitGroup
		watches.Go(func() { now.watch(watching) })
		select {
		case <-ctx.Done():
		case <-p.swapped:
		}
		cancel()
		watches.Wait()
		if p.current.Load().transport != now.transport || ctx.Err() != nil {
			now.transport.CloseIdleConnections()
		}
	}
	wg.Wait()
	return nil
}

// NewCache builds the cache that a Proxy is given; store may be nil. It uses the
// options' Log, Metrics and Now.
func NewCache(c CacheConfig, store httpcache.Store, o Options) *httpcache.Cache {
	return httpcache.New(httpcache.Options{
		Bytes: int64(c.Memory), MaxEntry: int64(c.MaxEntry), MaxKeyBody: int64(c.MaxKeyBody),
		Store: store, StoreBytes: int64(c.RedisMemory), StoreTimeout: c.RedisTimeout, StoreRest: c.RedisRest, PollInterval: c.Poll,
		Now: o.Now, Log: o.Log, Metrics: o.Metrics, Panicked: o.panicked(),
	})
}
