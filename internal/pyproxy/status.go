package pyproxy

import (
	"time"

	"github.com/tollgate-proxy/tollgate/internal/resilience"
)

// The states of an address.
const (
	stateHealthy   = "healthy"
	stateUnhealthy = "unhealthy"
	stateEjected   = "ejected"
)

func addressStates() []string { return []string{stateHealthy, stateUnhealthy, stateEjected} }

// UpstreamStatus is the live state of one upstream.
type UpstreamStatus struct {
	Name        string          `json:"name"`
	Addresses   []AddressStatus `json:"addresses"`
	Circuits    []CircuitStatus `json:"circuits"`
	RetryBudget float64         `json:"retry_budget"` // retries that the budget holds
}

// AddressStatus is the live state of one address.
type AddressStatus struct {
	Address  string `json:"address"`
	Name     string `json:"name,omitempty"` // as configured, where that differs
	State    string `json:"state"`          // healthy, unhealthy or ejected
	InFlight int64  `json:"in_flight"`
}

// CircuitStatus is the live state of one route class.
type CircuitStatus struct {
	Class             string   `json:"class"`
	State             string   `json:"state"`                         // closed, half_open or open
	RetryAfterSeconds float64  `json:"retry_after_seconds,omitempty"` // until a call may pass
	Limit             int      `json:"limit,omitempty"`               // calls that may be in flight; 0 where not limited
	InFlight          int      `json:"in_flight,omitempty"`
	Routes            []string `json:"routes"`
}

func (e *endpoint) state(now time.Time) string {
	switch {
	case e.unhealthy.Load():
		return stateUnhealthy
	case e.ejected(now):
		return stateEjected
	default:
		return stateHealthy
	}
}

func (u *upstream) addressStates(now time.Time) map[string]int {
	n := map[string]int{}
	for _, e := range u.current() {
		n[e.state(now)]++
	}
	return n
}

// Status is the live state of every upstream, in the order of the configuration.
func (p *Proxy) Status() []UpstreamStatus {
	now, current := p.now(), p.current.Load()
	out := make([]UpstreamStatus, 0, len(current.upstreams))
	for _, u := range current.upstreams {
		s := UpstreamStatus{Name: u.Name, Addresses: []AddressStatus{}, Circuits: []CircuitStatus{}, RetryBudget: u.budget.Left()}
		for _, e := range u.current() {
			a := AddressStatus{Address: e.address, State: e.state(now), InFlight: e.inFlight.Load()}
			if e.host != e.address {
				a.Name = e.host
			}
			s.Addresses = append(s.Addresses, a)
		}
		for _, c := range u.circuits {
			s.Circuits = append(s.Circuits, current.circuitStatus(u, c))
		}
		out = append(out, s)
	}
	return out
}

func (p *setup) circuitStatus(u *upstream, c *circuit) CircuitStatus {
	state, wait := c.breaker.State()
	s := CircuitStatus{Class: c.class, State: state.String(), RetryAfterSeconds: wait.Seconds(), Routes: []string{}}
	if c.limit != nil {
		s.Limit, s.InFlight = c.limit.Now()
	}
	for _, r := range p.config.Routes {
		class := r.Class
		if class == "" {
			class = defaultClass
		}
		if r.Upstream == u.Name && class == c.class {
			s.Routes = append(s.Routes, r.Name)
		}
	}
	return s
}

// Trip opens every circuit of an upstream for its reset time; false if there is
// no such upstream.
func (p *Proxy) Trip(name string) bool {
	return p.each(name, (*resilience.Breaker).Trip)
}

// Reset closes every circuit of an upstream; false if there is no such upstream.
func (p *Proxy) Reset(name string) bool {
	return p.each(name, (*resilience.Breaker).Reset)
}

// ProbeSoon checks an upstream's health now rather than at the next interval.
func (p *Proxy) ProbeSoon(name string) {
	if u := p.current.Load().upstream(name); u != nil {
		u.probeSoon()
	}
}

func (p *Proxy) each(name string, do func(*resilience.Breaker)) bool {
	u := p.current.Load().upstream(name)
	if u == nil {
		return false
	}
	for _, c := range u.circuits {
		do(c.breaker)
	}
	return true
}
