// Package health says whether a process lives and whether it should get
// traffic.
//
// Each part of a process registers a Component and sets its state when it
// changes. The process is ready while every critical component is well and it
// is not draining. The state is served over HTTP (/livez, /readyz) and as
// grpc.health.v1, and exported as the metric tollgate_component_up.
package health

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// Registry holds the components of one process. It is safe for concurrent use.
type Registry struct {
	log    *slog.Logger
	grpc   *health.Server
	metric *prometheus.GaugeVec

	mu         sync.Mutex
	components []*Component
	draining   bool
	started    bool
	ready      bool
}

// Component is one part of a process that can be well or not. Its methods are
// safe for concurrent use.
type Component struct {
	name     string
	critical bool
	r        *Registry
	gauge    prometheus.Gauge

	ok     bool
	reason string
}

// New makes an empty registry. It logs each change once.
func New(log *slog.Logger, metrics prometheus.Registerer) *Registry {
	r := &Registry{
		log:  log,
		grpc: health.NewServer(),
		metric: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "tollgate_component_up",
			Help: "1 while the component is well, 0 while it is not.",
		}, []string{"component"}),
	}
	metrics.MustRegister(r.metric)
	r.grpc.SetServingStatus("", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	return r
}

// Component registers a part under a name that is unique in the process. It
// begins as not well, "starting". A critical component that is not well makes
// the process not ready.
func (r *Registry) Component(name string, critical bool) *Component {
	c := &Component{name: name, critical: critical, r: r, gauge: r.metric.WithLabelValues(name), reason: "starting"}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.components = append(r.components, c)
	r.update()
	return c
}

// Set records the state of the component. The reason is for operators: it is
// logged once per change and shown by /readyz; it holds no secret.
func (c *Component) Set(ok bool, reason string) {
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	if ok {
		reason = ""
	}
	if c.ok == ok && c.reason == reason {
		return
	}
	changed := c.ok != ok
	c.ok, c.reason = ok, reason
	if ok {
		c.gauge.Set(1)
	} else {
		c.gauge.Set(0)
	}
	if changed {
		level := slog.LevelInfo
		if !ok {
			level = slog.LevelWarn
		}
		c.r.log.Log(context.Background(), level, "component changed", "component", c.name, "ok", ok, "reason", reason)
	}
	c.r.update()
}

// Start says that every component is registered: before it, the process is not
// ready.
func (r *Registry) Start() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.started = true
	r.update()
}

// Drain makes the process not ready for good.
func (r *Registry) Drain() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.draining = true
	r.update()
}

// Ready says whether the process should get traffic.
func (r *Registry) Ready() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ready
}

// update recomputes readiness; r.mu is held.
func (r *Registry) update() {
	ready := r.started && !r.draining
	for _, c := range r.components {
		ready = ready && (c.ok || !c.critical)
	}
	if ready == r.ready {
		return
	}
	r.ready = ready
	status := grpc_health_v1.HealthCheckResponse_NOT_SERVING
	if ready {
		status = grpc_health_v1.HealthCheckResponse_SERVING
	}
	r.grpc.SetServingStatus("", status)
}

// GRPC returns the grpc.health.v1 server that follows the registry.
func (r *Registry) GRPC() grpc_health_v1.HealthServer { return r.grpc }

// state is the body of /readyz.
type state struct {
	Ready      bool             `json:"ready"`
	Draining   bool             `json:"draining,omitempty"`
	Components []componentState `json:"components"`
}

type componentState struct {
	Name     string `json:"name"`
	OK       bool   `json:"ok"`
	Critical bool   `json:"critical"`
	Reason   string `json:"reason,omitempty"`
}

// Live answers 200 as long as the process can answer at all.
func (r *Registry) Live(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write([]byte(`{"live":true}` + "\n"))
}

// ServeReady answers 200 while the process is ready and 503 while it is not,
// with every component's state.
func (r *Registry) ServeReady(w http.ResponseWriter, _ *http.Request) {
	r.mu.Lock()
	s := state{Ready: r.ready, Draining: r.draining, Components: []componentState{}}
	for _, c := range r.components {
		s.Components = append(s.Components, componentState{c.name, c.ok, c.critical, c.reason})
	}
	r.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	if !s.Ready {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	body, err := json.Marshal(s)
	if err != nil { // texts and booleans always encode
		panic(err)
	}
	_, _ = w.Write(append(body, '\n')) // the prober is gone; nobody is left to tell
}
