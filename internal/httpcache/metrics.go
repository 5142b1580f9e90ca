package httpcache

import "github.com/prometheus/client_golang/prometheus"

// result is how a request met the cache.
type result uint8

const (
	hit         result = iota
	stale              // used although no longer fresh
	revalidated        // the service said that it still holds
	miss
	collapsed // answered by what another request fetched
	bypass
	results
)

func (r result) String() string {
	return [results]string{"hit", "stale", "revalidated", "miss", "collapsed", "bypass"}[r]
}

type metrics struct {
	requests     *prometheus.CounterVec
	storeErrors  prometheus.Counter
	storeSkipped prometheus.Counter
	usage        []prometheus.Collector
}

func newMetrics(c *Cache) *metrics {
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "tollgate_pyproxy_cache_" + name, Help: help}, f)
	}
	return &metrics{
		requests:     prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tollgate_pyproxy_cache_requests_total", Help: "Requests of cached routes, by how they met the cache."}, []string{"route", "result"}),
		storeErrors:  prometheus.NewCounter(prometheus.CounterOpts{Name: "tollgate_pyproxy_cache_store_errors_total", Help: "Calls of the shared store that failed."}),
		storeSkipped: prometheus.NewCounter(prometheus.CounterOpts{Name: "tollgate_pyproxy_cache_store_skipped_total", Help: "Entries not put into the shared store, since this process has its share there."}),
		usage: []prometheus.Collector{
			gauge("memory_bytes", "Memory that entries take.", func() float64 { b, _, _ := c.lru.usage(); return float64(b) }),
			gauge("entries", "Entries in memory.", func() float64 { _, n, _ := c.lru.usage(); return float64(n) }),
			prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "tollgate_pyproxy_cache_evictions_total", Help: "Entries dropped from memory for want of room."},
				func() float64 { _, _, n := c.lru.usage(); return float64(n) }),
		},
	}
}

func (m *metrics) collectors() []prometheus.Collector {
	return append([]prometheus.Collector{m.requests, m.storeErrors, m.storeSkipped}, m.usage...)
}

func (m *metrics) route(name string) (r [results]prometheus.Counter) {
	for i := range r {
		r[i] = m.requests.WithLabelValues(name, result(i).String())
	}
	return r
}
