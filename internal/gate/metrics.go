package gate

import (
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics count what a Gate decides. Labels come from the configuration and from
// the codes of the contract: their number is bounded.
type Metrics struct {
	decisions *prometheus.CounterVec
	shadows   *prometheus.CounterVec
	duration  prometheus.Histogram

	// children are the counters that have been used, so that a decision costs
	// one map look-up. The map is copied when one is added.
	children atomic.Pointer[map[decisionLabels]prometheus.Counter]
	adding   sync.Mutex
}

type decisionLabels struct{ endpoint, code string }

// NewMetrics registers the metrics.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tollgate_authz_decisions_total",
			Help: "Decisions by endpoint class and code; the code of an allowed request is ok.",
		}, []string{"endpoint", "code"}),
		shadows: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tollgate_authz_shadow_refusals_total",
			Help: "Requests that a rule marked as shadow would have refused.",
		}, []string{"rule", "code"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "tollgate_authz_decision_duration_seconds",
			Help:    "Time from a request to its decision, without gRPC.",
			Buckets: []float64{5e-6, 10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 100e-3},
		}),
	}
	m.children.Store(&map[decisionLabels]prometheus.Counter{})
	r.MustRegister(m.decisions, m.shadows, m.duration)
	return m
}

func (m *Metrics) observe(o *Outcome, took time.Duration) {
	labels := decisionLabels{"none", o.Code}
	if o.Route != nil {
		labels.endpoint = o.Route.Endpoint
	}
	if o.Allowed {
		labels.code = "ok"
	}
	m.counter(labels).Inc()
	m.duration.Observe(took.Seconds())
}

func (m *Metrics) counter(labels decisionLabels) prometheus.Counter {
	if c, ok := (*m.children.Load())[labels]; ok {
		return c
	}
	m.adding.Lock()
	defer m.adding.Unlock()
	next := maps.Clone(*m.children.Load())
	c := m.decisions.WithLabelValues(labels.endpoint, labels.code)
	next[labels] = c
	m.children.Store(&next)
	return c
}

func (m *Metrics) shadowed(rule, code string) { m.shadows.WithLabelValues(rule, code).Inc() }
