package pyproxy

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/resilience"
)

// setup is what one configuration makes: it is built whole, and not changed once
// it is in use. Requests end with the setup that they began with.
type setup struct {
	*shared
	config    Config
	peers     peers
	router    *router
	upstreams []*upstream
	transport *http.Transport
	health    *http.Client
}

// newSetup builds a setup from a validated configuration; old, which may be nil,
// is the one that it takes the place of.
func newSetup(s *shared, c Config, old *setup) *setup {
	p := &setup{shared: s, config: c, peers: c.TrustedPeers}
	if old != nil && old.config.Transport == c.Transport {
		p.transport, p.health = old.transport, old.health
	} else {
		p.transport = newTransport(c.Transport)
		p.health = &http.Client{Transport: healthTransport(c.Transport), CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	}
	for _, u := range c.Upstreams {
		p.upstreams = append(p.upstreams, p.newUpstream(u, old))
	}
	var routes []*route
	for _, r := range c.Routes {
		routes = append(routes, p.newRoute(r, old))
	}
	p.router = newRouter(routes)
	return p
}

// watch looks names up and checks health until ctx ends.
func (p *setup) watch(ctx context.Context) {
	var wg sync.WaitGroup
	for _, u := range p.upstreams {
		wg.Go(func() { u.watchNames(ctx, p.config.Transport, p.look) })
		wg.Go(func() { u.watchHealth(ctx, p.config.Health, p.health) })
	}
	wg.Wait()
}

// newUpstream makes an upstream; what is known of its addresses, its open streams
// and its retry budget are taken over from old, which may be nil.
func (p *setup) newUpstream(c Upstream, old *setup) *upstream {
	if c.HealthPath == "" {
		c.HealthPath = defaultHealth
	}
	u := &upstream{
		Upstream: c, healthURL: c.HealthPath,
		kick:    make(chan struct{}, 1),
		log:     p.log.With("upstream", c.Name),
		metrics: p.metrics.upstream(c.Name),
	}
	es := unresolved(c.Addresses)
	u.streams = new(atomic.Int64)
	before := old.upstream(c.Name)
	if before != nil {
		es = before.reuse(c.Addresses)
		u.streams, u.kick = before.streams, before.kick // a circuit that is kept knows no other
	}
	u.endpoints.Store(&es)
	retry := p.config.Retry
	if before != nil && old.config.Retry.BudgetRatio == retry.BudgetRatio && old.config.Retry.BudgetPerSecond == retry.BudgetPerSecond {
		u.budget = before.budget
	} else {
		u.budget = resilience.NewBudget(resilience.BudgetConfig{Ratio: retry.BudgetRatio, PerSecond: retry.BudgetPerSecond}, p.now)
	}
	return u
}

func (p *setup) newRoute(c Route, old *setup) *route {
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
		setup: p, route: rt, upstream: u, circuit: p.circuit(u, c.Class, old),
		metrics: p.metrics.route(c.Upstream, c.Name),
		backoff: resilience.Backoff{Base: p.config.Retry.Base, Max: p.config.Retry.MaxWait},
	}
	rt.served = &served{metrics: caller.metrics, reverse: &httputil.ReverseProxy{
		Rewrite:        p.rewrite(rt),
		Transport:      p.layers(c, caller),
		ModifyResponse: rt.complete,
		BufferPool:     &buffers{},
		ErrorHandler:   p.answerFailure(rt),
		ErrorLog:       slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug), // every error has reached a metric and, where sampled, a span
	}}
	return rt
}

func (p *setup) upstream(name string) *upstream {
	if p == nil {
		return nil
	}
	for _, u := range p.upstreams {
		if u.Name == name {
			return u
		}
	}
	return nil
}

// circuit returns the circuit of a class, made when first asked for: the old one,
// with all it has learnt, where nothing that it was learnt under has changed.
func (p *setup) circuit(u *upstream, class string, old *setup) *circuit {
	if c := u.circuit(class); c != nil {
		return c
	}
	if before := old.upstream(u.Name); before != nil && reflect.DeepEqual(before.Upstream, u.Upstream) &&
		old.config.Breaker == p.config.Breaker && old.config.Limit == p.config.Limit {
		if c := before.circuit(class); c != nil {
			u.circuits = append(u.circuits, c)
			return c
		}
	}
	c := &circuit{class: class}
	c.breaker = resilience.NewBreaker(p.config.Breaker.decision(), p.now, func(t resilience.Transition) {
		p.metrics.transition(u.Name, class, t)
		level := slog.LevelInfo
		if t.To == resilience.Open {
			level = slog.LevelWarn
			p.onOpen(u.Name)
			u.probeSoon() // whose checks have seen it down is tried again as soon as they see it well
		}
		u.log.Log(context.Background(), level, "circuit changed", "class", class, "from", t.From.String(), "to", t.To.String(), "cause", t.Cause)
	})
	if l := p.config.Limit; l.Enabled {
		c.limit = resilience.NewLimit(resilience.LimitConfig{Initial: l.Initial, Min: l.Min, Max: l.Max, Tolerance: l.Tolerance})
	}
	u.circuits = append(u.circuits, c)
	return c
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
