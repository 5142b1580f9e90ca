package ratelimit

import (
	"strings"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// outcome labels a decision about one descriptor.
type outcome uint8

const (
	outcomeAllowed outcome = iota
	outcomeDenied
	outcomeShadow
	outcomes
)

func (o outcome) String() string {
	return [...]string{"allowed", "denied", "shadow_denied"}[o]
}

const paths = int(PathFallback) + 1

// counters are the resolved children of one rule.
type counters [paths][outcomes]atomic.Pointer[prometheus.Counter]

// maxDetailed bounds the rule labels that hold values of requests.
const maxDetailed = 1000

// metrics are what the package tells Prometheus.
type metrics struct {
	decisions *prometheus.CounterVec
	store     prometheus.Histogram
	batch     prometheus.Histogram
	failures  prometheus.Counter
	degraded  prometheus.Gauge
	replicas  prometheus.Gauge
	reloads   *prometheus.CounterVec
	loaded    prometheus.Gauge

	mu       sync.Mutex
	detailed map[string]bool
}

func newMetrics(reg prometheus.Registerer, localBuckets func() float64) (*metrics, error) {
	m := &metrics{
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tollgate_ratelimit_decisions_total",
			Help: "Decisions about descriptors, by domain, rule, how they were reached, and outcome.",
		}, []string{"domain", "rule", "path", "outcome"}),
		store: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "tollgate_ratelimit_store_seconds",
			Help:    "Time of one call of the shared store.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .02, .05, .1},
		}),
		batch: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "tollgate_ratelimit_store_batch_demands",
			Help:    "Demands decided in one call of the shared store.",
			Buckets: []float64{1, 2, 4, 8, 16, 32, 64},
		}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tollgate_ratelimit_store_failures_total",
			Help: "Calls of the shared store that failed or took too long.",
		}),
		degraded: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "tollgate_ratelimit_degraded",
			Help: "1 while the shared store is not asked because it failed.",
		}),
		replicas: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "tollgate_ratelimit_replicas",
			Help: "Processes that share the limits, this one among them.",
		}),
		reloads: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tollgate_ratelimit_rules_loads_total",
			Help: "Loads of the rule files, by result.",
		}, []string{"result"}),
		loaded: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "tollgate_ratelimit_rules_loaded_timestamp_seconds",
			Help: "When the rules in force were loaded.",
		}),
		detailed: map[string]bool{},
	}
	local := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tollgate_ratelimit_local_buckets",
		Help: "Buckets kept in this process while the shared store is gone.",
	}, localBuckets)
	for _, c := range []prometheus.Collector{m.decisions, m.store, m.batch, m.failures, m.degraded, m.replicas, m.reloads, m.loaded, local} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// count counts the decision about one descriptor.
func (m *metrics) count(domain string, rule *Rule, entries []Entry, p Path, o outcome) {
	if rule.detailed || rule.hasValues() {
		m.decisions.WithLabelValues(domain, m.label(rule, entries), p.String(), o.String()).Inc()
		return
	}
	at := &rule.counters[p][o]
	c := at.Load()
	if c == nil {
		child := m.decisions.WithLabelValues(domain, rule.Name, p.String(), o.String())
		c = &child
		at.Store(c)
	}
	(*c).Inc()
}

func (r *Rule) hasValues() bool {
	for _, v := range r.valued {
		if v {
			return true
		}
	}
	return false
}

// label names a rule with the values of the entries that met it, as long as
// there are not too many.
func (m *metrics) label(rule *Rule, entries []Entry) string {
	var b strings.Builder
	for i, e := range entries {
		if i > 0 {
			b.WriteByte('.')
		}
		b.WriteString(e.Key)
		if rule.detailed || i < len(rule.valued) && rule.valued[i] {
			b.WriteByte('_')
			b.WriteString(strings.ToValidUTF8(e.Value, "?"))
		}
	}
	label := b.String()
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.detailed[label] {
		if len(m.detailed) >= maxDetailed || len(label) > 256 {
			return rule.Name
		}
		m.detailed[label] = true
	}
	return label
}
