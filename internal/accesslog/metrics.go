package accesslog

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	streams  prometheus.Gauge
	ignored  prometheus.Counter
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec

	// Endpoint classes come from authz's configuration; a bound holds even
	// where something else writes to the sink.
	mu        sync.Mutex
	endpoints map[string]string
}

// maxEndpoints bounds the endpoint classes that get a label of their own.
const maxEndpoints = 200

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		streams: prometheus.NewGauge(prometheus.GaugeOpts{Name: "tollgate_accesslog_streams", Help: "Envoys that send their access log."}),
		ignored: prometheus.NewCounter(prometheus.CounterOpts{Name: "tollgate_accesslog_ignored_total", Help: "Entries that say nothing about a finished HTTP request."}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tollgate_requests_total",
			Help: "Finished requests that Envoy told of, by endpoint class and class of status; none where the client left before an answer.",
		}, []string{"endpoint", "status"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "tollgate_request_duration_seconds",
			Help:    "Time from a request's first byte to its answer's last, as Envoy saw it.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"endpoint"}),
		endpoints: map[string]string{"": "none"},
	}
	r.MustRegister(m.streams, m.ignored, m.requests, m.duration)
	return m
}

func (m *metrics) observe(o *Outcome) {
	endpoint := m.endpoint(o.Endpoint)
	m.requests.WithLabelValues(endpoint, statusClass(o.Status)).Inc()
	m.duration.WithLabelValues(endpoint).Observe(o.Duration.Seconds())
}

func (m *metrics) endpoint(name string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if label, ok := m.endpoints[name]; ok {
		return label
	}
	if len(m.endpoints) >= maxEndpoints {
		return "other"
	}
	m.endpoints[name] = name
	return name
}

func statusClass(status int) string {
	switch status / 100 {
	case 1:
		return "1xx"
	case 2:
		return "2xx"
	case 3:
		return "3xx"
	case 4:
		return "4xx"
	case 5:
		return "5xx"
	default:
		return "none"
	}
}
