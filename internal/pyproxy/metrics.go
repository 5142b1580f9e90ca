package pyproxy

import (
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tollgate-proxy/tollgate/internal/resilience"
)

// metrics are the proxy's vectors. Children are resolved once, at construction:
// the request path only adds to them.
type metrics struct {
	requests    *prometheus.CounterVec
	duration    *prometheus.HistogramVec
	attempts    *prometheus.CounterVec
	attemptTime *prometheus.HistogramVec
	retries     *prometheus.CounterVec
	hedges      *prometheus.CounterVec
	transitions *prometheus.CounterVec
	health      *prometheus.CounterVec
	ejections   *prometheus.CounterVec
	unrouted    prometheus.Counter
	refused     prometheus.Counter
	inFlight    prometheus.Gauge
}

func newMetrics() *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tollgate_pyproxy_" + name, Help: help}, labels)
	}
	histogram := func(name, help string, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "tollgate_pyproxy_" + name, Help: help,
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}}, labels)
	}
	return &metrics{
		requests:    counter("requests_total", "Requests answered, by class of the answer's status.", "upstream", "route", "status"),
		duration:    histogram("request_duration_seconds", "From the request's headers to the end of the answer.", "upstream", "route"),
		attempts:    counter("attempts_total", "Attempts at an upstream, by how they ended; circuit_open and overload were not sent, streams may not have been.", "upstream", "route", "outcome"),
		attemptTime: histogram("attempt_duration_seconds", "From the start of an attempt to its answer's headers, or to its failure.", "upstream", "route"),
		retries:     counter("retries_total", "Attempts beyond the first.", "upstream", "route"),
		hedges:      counter("hedges_total", "Second attempts made because the first was slow.", "upstream", "route"),
		transitions: counter("breaker_transitions_total", "Changes of a circuit breaker's state.", "upstream", "class", "to", "cause"),
		health:      counter("health_checks_total", "Health checks of addresses.", "upstream", "result"),
		ejections:   counter("ejections_total", "Addresses taken out of use for failing calls.", "upstream"),
		unrouted:    prometheus.NewCounter(prometheus.CounterOpts{Name: "tollgate_pyproxy_unrouted_total", Help: "Requests that no route takes."}),
		refused:     prometheus.NewCounter(prometheus.CounterOpts{Name: "tollgate_pyproxy_refused_total", Help: "Requests refused for their headers or path."}),
		inFlight:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "tollgate_pyproxy_requests_in_flight", Help: "Requests being answered."}),
	}
}

func (m *metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.requests, m.duration, m.attempts, m.attemptTime, m.retries, m.hedges, m.transitions, m.health, m.ejections, m.unrouted, m.refused, m.inFlight}
}

// forget removes the series of upstreams and routes that are no more.
func (m *metrics) forget(old, next *setup) {
	for _, u := range old.upstreams {
		if next.upstream(u.Name) == nil {
			m.remove(prometheus.Labels{"upstream": u.Name})
		}
	}
	for _, r := range old.config.Routes {
		same := func(n Route) bool { return n.Name == r.Name && n.Upstream == r.Upstream }
		if !slices.ContainsFunc(next.config.Routes, same) {
			m.remove(prometheus.Labels{"upstream": r.Upstream, "route": r.Name})
		}
	}
}

func (m *metrics) remove(labels prometheus.Labels) {
	for _, c := range m.collectors() {
		if v, ok := c.(interface {
			DeletePartialMatch(prometheus.Labels) int
		}); ok {
			v.DeletePartialMatch(labels)
		}
	}
}

// upstreamMetrics and routeMetrics are children of the vectors.
type upstreamMetrics struct {
	healthOK, healthFailed, ejections prometheus.Counter
}

func (m *metrics) upstream(name string) *upstreamMetrics {
	return &upstreamMetrics{
		healthOK:     m.health.WithLabelValues(name, "ok"),
		healthFailed: m.health.WithLabelValues(name, "failed"),
		ejections:    m.ejections.WithLabelValues(name),
	}
}

type routeMetrics struct {
	status      [6]prometheus.Counter // by first digit of the status; 0 the client went away
	duration    prometheus.Observer
	attempts    [causes]prometheus.Counter
	attemptTime prometheus.Observer
	retries     prometheus.Counter
	hedges      prometheus.Counter
}

func (m *metrics) route(upstream, route string) *routeMetrics {
	r := &routeMetrics{
		duration:    m.duration.WithLabelValues(upstream, route),
		attemptTime: m.attemptTime.WithLabelValues(upstream, route),
		retries:     m.retries.WithLabelValues(upstream, route),
		hedges:      m.hedges.WithLabelValues(upstream, route),
	}
	for i := range r.status {
		label := strconv.Itoa(i) + "xx"
		if i == 0 {
			label = "client_gone"
		}
		r.status[i] = m.requests.WithLabelValues(upstream, route, label)
	}
	for c := range causes {
		r.attempts[c] = m.attempts.WithLabelValues(upstream, route, c.String())
	}
	return r
}

// answered counts a finished request. Status 0 or 499 is a client that went away.
func (r *routeMetrics) answered(status int, took time.Duration) {
	class := status / 100
	if class < 1 || class > 5 || status == statusClientGone {
		class = 0
	}
	r.status[class].Inc()
	r.duration.Observe(took.Seconds())
}

// live exports what is read at the moment of the scrape, so that it is true
// without traffic.
type live struct {
	upstreams func() []*upstream
	now       func() time.Time
	desc      descriptions
}

// descriptions of what live exports.
type descriptions struct{ state, limit, inFlight, budget, addresses, streams *prometheus.Desc }

func newLive(us func() []*upstream, now func() time.Time) *live {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("tollgate_pyproxy_"+name, help, labels, nil)
	}
	return &live{upstreams: us, now: now, desc: descriptions{
		state:     desc("breaker_state", "State of a circuit breaker: 0 closed, 1 half-open, 2 open.", "upstream", "class"),
		limit:     desc("concurrency_limit", "Calls that may be in flight.", "upstream", "class"),
		inFlight:  desc("attempts_in_flight", "Calls in flight.", "upstream", "class"),
		budget:    desc("retry_budget", "Retries that the budget holds.", "upstream"),
		streams:   desc("streams", "Event streams and upgraded connections that are open.", "upstream"),
		addresses: desc("addresses", "Addresses of an upstream by state.", "upstream", "state"),
	}}
}

// Describe sends the descriptions.
func (l *live) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{l.desc.state, l.desc.limit, l.desc.inFlight, l.desc.budget, l.desc.addresses, l.desc.streams} {
		ch <- d
	}
}

// Collect reads the present state.
func (l *live) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for _, u := range l.upstreams() {
		gauge(l.desc.budget, u.budget.Left(), u.Name)
		gauge(l.desc.streams, float64(u.streams.Load()), u.Name)
		counts := u.addressStates(l.now())
		for _, s := range addressStates() {
			gauge(l.desc.addresses, float64(counts[s]), u.Name, s)
		}
		for _, c := range u.circuits {
			s, _ := c.breaker.State()
			gauge(l.desc.state, float64(s), u.Name, c.class)
			if c.limit != nil {
				limit, inFlight := c.limit.Now()
				gauge(l.desc.limit, float64(limit), u.Name, c.class)
				gauge(l.desc.inFlight, float64(inFlight), u.Name, c.class)
			}
		}
	}
}

func (m *metrics) transition(upstream, class string, t resilience.Transition) {
	m.transitions.WithLabelValues(upstream, class, t.To.String(), t.Cause).Inc()
}
