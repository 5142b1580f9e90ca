package anomaly

import "github.com/prometheus/client_golang/prometheus"

// What came of looking at a request; indexes of watchMetrics.evaluations.
const (
	clean = iota
	suspicious
	settled
	failed
	late
	dropped
	pool
)

type watchMetrics struct {
	all         []prometheus.Collector
	evaluations [7]prometheus.Counter
	signals     map[Code]prometheus.Counter
	actions     [Deny + 1]prometheus.Counter
	scores      prometheus.Histogram
	endFailures prometheus.Counter
}

func (m *watchMetrics) collectors() []prometheus.Collector { return m.all }

func newWatchMetrics(w *Watch) *watchMetrics {
	evaluations := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tollgate_anomaly_evaluations_total",
		Help: "Requests that were looked at because something changed, by result; late ones went on without an assessment, dropped ones found the queue full, failed ones found the store away, pooled ones were one too many new ones of their token.",
	}, []string{"result"})
	signals := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tollgate_anomaly_signals_total", Help: "Signals raised, settled ones included.",
	}, []string{"signal"})
	actions := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tollgate_anomaly_actions_total", Help: "Actions that scores led to.",
	}, []string{"action"})
	m := &watchMetrics{
		signals: map[Code]prometheus.Counter{},
		scores: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "tollgate_anomaly_score", Help: "Scores of the requests that were looked at and had signals.",
			Buckets: []float64{10, 20, 30, 40, 50, 60, 70, 80, 90, 100},
		}),
		endFailures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tollgate_anomaly_session_end_failures_total", Help: "Suspicious sessions that could not be ended.",
		}),
	}
	for i, result := range []string{"clean", "suspicious", "settled", "failed", "late", "dropped", "pooled"} {
		m.evaluations[i] = evaluations.WithLabelValues(result)
	}
	for _, c := range Codes() {
		m.signals[c] = signals.WithLabelValues(string(c))
	}
	for a := Log; a <= Deny; a++ {
		m.actions[a] = actions.WithLabelValues(a.String())
	}
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value)
	}
	m.all = []prometheus.Collector{
		evaluations, signals, actions, m.scores, m.endFailures,
		gauge("tollgate_anomaly_tracked", "Assessments that this process keeps.", func() float64 { return float64(w.len()) }),
		gauge("tollgate_anomaly_failing_addresses", "Addresses with failed verifications that this process counts.",
			func() float64 { return float64(w.failures.Load().len()) }),
		gauge("tollgate_anomaly_queue_length", "Requests that wait to be looked at.", func() float64 { return float64(len(w.queue)) }),
		gauge("tollgate_anomaly_store_up", "Whether the store answered last time.", func() float64 {
			if w.away.Load() {
				return 0
			}
			return 1
		}),
	}
	return m
}

// judged counts a verdict.
func (m *watchMetrics) judged(v *Verdict) {
	for i := range v.Signals {
		m.signals[v.Signals[i].Code].Inc()
	}
	switch {
	case v.Settled:
		m.evaluations[settled].Inc()
	case len(v.Signals) == 0:
		m.evaluations[clean].Inc()
	default:
		m.evaluations[suspicious].Inc()
		m.scores.Observe(float64(v.Score))
		if v.Action != None {
			m.actions[v.Action].Inc()
		}
	}
}
