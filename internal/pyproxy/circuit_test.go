package pyproxy_test

import (
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/polltest"
	"github.com/tollgate-proxy/tollgate/internal/pyproxy"
)

func TestTheCircuitOpensAndRefusesFast(t *testing.T) {
	b := newBackend(t, says(status("500 x", "no")))
	opened := ""
	g := newGate(t, settings(b.address), func(o *pyproxy.Options) { o.OnOpen = func(u string) { opened = u } })
	for range 20 {
		g.want(g.do("POST", "/post", ""), 500, "")
	}
	r := g.do("GET", "/get", "")
	g.want(r, 503, "circuit_open")
	if got, err := strconv.Atoi(r.header.Get("Retry-After")); err != nil || got < 30 || got > 60 {
		t.Fatalf("Retry-After %v %v", got, err)
	}
	if b.calls.Load() != 20 || opened != "s" {
		t.Fatalf("%d calls, opened %q", b.calls.Load(), opened)
	}
	if g.metric("tollgate_pyproxy_breaker_state", "upstream", "s", "class", "default") != 2 ||
		g.metric("tollgate_pyproxy_breaker_transitions_total", "to", "open", "cause", "failures") != 1 {
		t.Fatal("metrics")
	}
}

func TestClassesHaveCircuitsOfTheirOwn(t *testing.T) {
	b := newBackend(t, func(c net.Conn, r *http.Request, n int64) bool {
		if r.URL.Path == "/post" {
			return says(status("500 x", "no"))(c, r, n)
		}
		return says(ok("x"))(c, r, n)
	})
	c := settings(b.address)
	c.Routes[2].Class = "slow"
	g := newGate(t, c)
	for range 20 {
		g.do("POST", "/post", "")
	}
	g.want(g.do("POST", "/post", ""), 503, "circuit_open")
	g.want(g.do("GET", "/get", ""), 200, "")
}

// The demo's step: a service dies, the circuit opens; it comes back, the circuit
// closes without a single request of a client.
func TestTheCircuitClosesByItselfWhenTheServiceReturns(t *testing.T) {
	var down atomic.Bool
	healthy := newSwitch(t, &down)
	c := settings(healthy)
	c.Health.Interval, c.Health.UnhealthyAfter = 5*time.Millisecond, 1
	c.Breaker.Reset = time.Hour // so that only health checks can end it
	g := newGate(t, c).running()
	g.want(g.do("POST", "/post", ""), 200, "")
	down.Store(true)
	polltest.Until(t, "open", func() bool { g.do("POST", "/post", ""); return g.state() == "open" })
	polltest.Until(t, "unhealthy", func() bool { return g.metric("tollgate_pyproxy_addresses", "state", "unhealthy") == 1 })
	down.Store(false)
	polltest.Until(t, "closed", func() bool { return g.state() == "closed" })
	g.want(g.do("POST", "/post", ""), 200, "")
}

// It need not wait for the next interval to see what the calls have seen: a short
// outage could otherwise end unseen, and the circuit stay open for all its time.
func TestAnOpenedCircuitIsReasonToLookAtOnce(t *testing.T) {
	g, c, down := checkedOnce(t)
	g.reload(c)
	polltest.Until(t, "the first round after a reload", func() bool { return g.metric("tollgate_pyproxy_health_checks_total") == 2 })
	down.Store(true)
	polltest.Until(t, "open", func() bool { g.do("POST", "/post", ""); return g.state() == "open" })
	polltest.Until(t, "seen", func() bool { return g.metric("tollgate_pyproxy_addresses", "state", "unhealthy") == 1 })
}

// newSwitch is a service that resets every connection while down.
func newSwitch(t *testing.T, down *atomic.Bool) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if down.Load() {
			panic(http.ErrAbortHandler)
		}
		w.Write([]byte("x"))
	})}
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(l) }()
	t.Cleanup(func() { s.Close(); <-done })
	return l.Addr().String()
}

func TestUnhealthyAddressesAreLeftOut(t *testing.T) {
	var down atomic.Bool
	sick := newSwitch(t, &down)
	well := newBackend(t, says(ok("x")))
	c := settings(sick, well.address)
	c.Health.Interval, c.Health.UnhealthyAfter = 5*time.Millisecond, 1
	g := newGate(t, c).running()
	down.Store(true)
	polltest.Until(t, "noticed", func() bool { return g.metric("tollgate_pyproxy_addresses", "state", "unhealthy") == 1 })
	for range 20 { // unsafe: one attempt each, so none may meet the sick one
		g.want(g.do("POST", "/post", ""), 200, "")
	}
}

func TestAllUnhealthyIsNoReasonNotToTry(t *testing.T) {
	b := newBackend(t, says(ok("x")))
	c := settings(b.address)
	c.Upstreams[0].HealthPath = "/not-there" // the backend answers it, so:
	c.Health.Interval, c.Health.UnhealthyAfter = 5*time.Millisecond, 1
	bad := newBackend(t, func(conn net.Conn, r *http.Request, n int64) bool {
		if r.URL.Path == "/not-there" {
			return says(status("500 x", ""))(conn, r, n)
		}
		return says(ok("x"))(conn, r, n)
	})
	c.Upstreams[0].Addresses = []string{bad.address}
	g := newGate(t, c).running()
	polltest.Until(t, "unhealthy", func() bool { return g.metric("tollgate_pyproxy_addresses", "state", "unhealthy") == 1 })
	g.want(g.do("POST", "/post", ""), 200, "")
}

func TestAnAddressThatFailsItsCallsIsEjected(t *testing.T) {
	bad := newBackend(t, says(status("500 x", "no")))
	good := newBackend(t, says(ok("x")))
	c := settings(bad.address, good.address)
	c.Breaker.MinimumCalls = 1000
	var later atomic.Int64
	g := newGate(t, c, func(o *pyproxy.Options) {
		o.Now = func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
	})
	polltest.Until(t, "ejected", func() bool {
		g.do("POST", "/post", "")
		later.Add(int64(time.Second)) // a suspect is the last choice for a while
		return g.metric("tollgate_pyproxy_ejections_total") == 1
	})
	before := bad.calls.Load()
	for range 20 {
		g.want(g.do("POST", "/post", ""), 200, "")
	}
	if bad.calls.Load() != before {
		t.Fatal("the ejected address is still called")
	}
	if g.metric("tollgate_pyproxy_addresses", "state", "ejected") != 1 {
		t.Fatal("metric")
	}
}

func TestTheLastAddressIsNeverEjected(t *testing.T) {
	bad := newBackend(t, says(status("500 x", "no")))
	c := settings(bad.address)
	c.Breaker.MinimumCalls = 1000
	g := newGate(t, c)
	for range 50 {
		g.want(g.do("POST", "/post", ""), 500, "")
	}
	if g.metric("tollgate_pyproxy_ejections_total") != 0 {
		t.Fatal("ejected")
	}
}

// Answers that come, but slowly, open the circuit too.
func TestSlowAnswersOpenTheCircuit(t *testing.T) {
	b := newBackend(t, says(ok("x")))
	c := settings(b.address)
	c.Breaker.SlowCall, c.Breaker.SlowRate, c.Breaker.MinimumCalls = time.Nanosecond, 0.5, 5
	g := newGate(t, c)
	for range 5 {
		g.want(g.do("POST", "/post", ""), 200, "")
	}
	g.want(g.do("POST", "/post", ""), 503, "circuit_open")
	if n := g.metric("tollgate_pyproxy_breaker_transitions_total", "cause", "slow_calls"); n != 1 {
		t.Fatal(n)
	}
}
