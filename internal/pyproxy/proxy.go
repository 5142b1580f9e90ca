package pyproxy

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/tollgate-proxy/tollgate/internal/httpcache"
	"github.com/tollgate-proxy/tollgate/internal/resilience"
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
}

// Proxy answers the requests of its routes. It is an http.Handler; Run keeps
// its view of the upstreams current.
type Proxy struct {
	config     Config
	now        func() time.Time
	log        *slog.Logger
	tracer     trace.Tracer
	propagator propagation.TextMapPropagator
	metrics    *metrics
	peers      peers
	router     *router
	upstreams  []*upstream
	transport  *http.Transport
	health     *http.Client
	look       resolver
	onOpen     func(upstream string)
	cache      *httpcache.Cache
}

// New builds a proxy from a validated configuration. It does not connect.
func New(c Config, o Options) *Proxy {
	p := &Proxy{
		config: c, now: o.Now, log: o.Log, propagator: o.Propagator, metrics: newMetrics(),
		peers: c.TrustedPeers, look: systemResolver, onOpen: o.OnOpen,
	}
	if p.now == nil {
		p.now = time.Now
	}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	if p.propagator == nil {
		p.propagator = propagation.TraceContext{}
	}
	if p.onOpen == nil {
		p.onOpen = func(string) {}
	}
	if o.Tracer == nil {
		o.Tracer = noop.NewTracerProvider()
	}
	if p.cache = o.Cache; p.cache == nil {
		p.cache = NewCache(c.Cache, nil, Options{Now: p.now, Log: p.log})
	}
	p.tracer = o.Tracer.Tracer("github.com/tollgate-proxy/tollgate/internal/pyproxy")
	p.transport = newTransport(c.Transport)
	p.health = &http.Client{Transport: healthTransport(c.Transport), CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	for _, u := range c.Upstreams {
		p.upstreams = append(p.upstreams, p.newUpstream(u))
	}
	var routes []*route
	for _, r := range c.Routes {
		routes = append(routes, p.newRoute(r))
	}
	p.router = newRouter(routes)
	if o.Metrics != nil {
		o.Metrics.MustRegister(append(p.metrics.collectors(), newLive(p.upstreams, p.now))...)
	}
	return p
}

// NewCache builds the cache that a Proxy is given; store may be nil. It uses the
// options' Log, Metrics and Now.
func NewCache(c CacheConfig, store httpcache.Store, o Options) *httpcache.Cache {
	return httpcache.New(httpcache.Options{
		Bytes: int64(c.Memory), MaxEntry: int64(c.MaxEntry), MaxKeyBody: int64(c.MaxKeyBody),
		Store: store, StoreTimeout: c.RedisTimeout, StoreRest: c.RedisRest, PollInterval: c.Poll,
		Now: o.Now, Log: o.Log, Metrics: o.Metrics,
	})
}

func (p *Proxy) newUpstream(c Upstream) *upstream {
	if c.HealthPath == "" {
		c.HealthPath = defaultHealth
	}
	u := &upstream{
		Upstream: c, healthURL: c.HealthPath,
		budget:  resilience.NewBudget(resilience.BudgetConfig{Ratio: p.config.Retry.BudgetRatio, PerSecond: p.config.Retry.BudgetPerSecond}, p.now),
		kick:    make(chan struct{}, 1),
		log:     p.log.With("upstream", c.Name),
		metrics: p.metrics.upstream(c.Name),
	}
	es := unresolved(c.Addresses)
	u.endpoints.Store(&es)
	return u
}

func (p *Proxy) newRoute(c Route) *route {
	if c.Class == "" {
		c.Class = defaultClass
	}
	if c.Timeout == 0 {
		c.Timeout = p.config.Timeouts.Attempt
	}
	if c.TotalTimeout == 0 {
		c.TotalTimeout = max(p.config.Timeouts.Total, c.Timeout)
	}
	if c.BodyLimit == 0 {
		c.BodyLimit = defaultBodyLimit
	}
	rt := &route{Route: c, spanName: "pyproxy " + c.Name, invalidates: p.invalidates(c)}
	u := p.upstream(c.Upstream)
	caller := &caller{
		proxy: p, route: rt, upstream: u, circuit: p.circuit(u, c.Class),
		metrics: p.metrics.route(c.Upstream, c.Name),
		backoff: resilience.Backoff{Base: p.config.Retry.Base, Max: p.config.Retry.MaxWait},
	}
	rt.served = &served{metrics: caller.metrics, reverse: &httputil.ReverseProxy{
		Rewrite:        p.rewrite(rt),
		Transport:      p.layers(c, caller),
		ModifyResponse: complete(c.Cache != nil),
		BufferPool:     &buffers{},
		ErrorHandler:   p.answerFailure(rt),
		ErrorLog:       slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug), // every error has reached a metric and, where sampled, a span
	}}
	return rt
}

func (p *Proxy) upstream(name string) *upstream {
	for _, u := range p.upstreams {
		if u.Name == name {
			return u
		}
	}
	return nil
}

// circuit returns the circuit of a class, made when first asked for.
func (p *Proxy) circuit(u *upstream, class string) *circuit {
	if c := u.circuit(class); c != nil {
		return c
	}
	c := &circuit{class: class}
	c.breaker = resilience.NewBreaker(p.config.Breaker.decision(), p.now, func(t resilience.Transition) {
		p.metrics.transition(u.Name, class, t)
		level := slog.LevelInfo
		if t.To == resilience.Open {
			level = slog.LevelWarn
			p.onOpen(u.Name)
		}
		u.log.Log(context.Background(), level, "circuit changed", "class", class, "from", t.From.String(), "to", t.To.String(), "cause", t.Cause)
	})
	if l := p.config.Limit; l.Enabled {
		c.limit = resilience.NewLimit(resilience.LimitConfig{Initial: l.Initial, Min: l.Min, Max: l.Max, Tolerance: l.Tolerance})
	}
	u.circuits = append(u.circuits, c)
	return c
}

// Run looks names up, checks health and learns of other replicas' purges until ctx ends, and then closes unused
// connections.
func (p *Proxy) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, u := range p.upstreams {
		wg.Go(func() { u.watchNames(ctx, p.config.Transport, p.look) })
		wg.Go(func() { u.watchHealth(ctx, p.config.Health, p.health) })
	}
	wg.Go(func() { _ = p.cache.Run(ctx) }) // it ends with ctx, and otherwise never
	wg.Wait()
	p.transport.CloseIdleConnections()
	return nil
}

func newTransport(c TransportConfig) *http.Transport {
	return &http.Transport{
		DialContext:            (&net.Dialer{Timeout: c.Connect, KeepAlive: 30 * time.Second}).DialContext,
		MaxIdleConnsPerHost:    c.MaxIdle,
		IdleConnTimeout:        c.Idle,
		MaxResponseHeaderBytes: int64(c.HeaderLimit),
		DisableCompression:     true, // bodies are passed on as they are
		ReadBufferSize:         8 << 10,
		WriteBufferSize:        8 << 10,
	}
}

func healthTransport(c TransportConfig) *http.Transport {
	t := newTransport(c)
	t.DisableKeepAlives = true // a check tells whether a new connection works
	return t
}

// buffers hands out the 32 KiB pieces that bodies are copied through.
type buffers struct{ pool sync.Pool }

// Get returns a buffer.
func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return *p
	}
	return make([]byte, 32<<10)
}

// Put takes one back.
func (b *buffers) Put(p []byte) { b.pool.Put(&p) }
