package pyproxy_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/polltest"
	"github.com/tollgate-proxy/tollgate/internal/pyproxy"
)

// reload puts another configuration in force.
func (g *gate) reload(c pyproxy.Config) { g.proxy.Prepare(c)() }

func TestAReloadChangesTheRoutes(t *testing.T) {
	b := newBackend(t, says(ok("x")))
	c := settings(b.address)
	g := newGate(t, c)
	g.want(g.do("GET", "/get", ""), 200, "")
	next := c
	next.Routes = []pyproxy.Route{{Name: "new", Upstream: "s", Method: "GET", Path: "/new"}}
	commit := g.proxy.Prepare(next)
	g.want(g.do("GET", "/new", ""), 404, "route_not_found")
	commit()
	g.want(g.do("GET", "/new", ""), 200, "")
	g.want(g.do("GET", "/get", ""), 404, "route_not_found")
	for route, want := range map[string]float64{"new": 1, "get": 0} {
		if got := g.metric("tollgate_pyproxy_attempts_total", "route", route, "outcome", "ok"); got != want {
			t.Errorf("%s: %v attempts", route, got)
		}
	}
	next.Upstreams = []pyproxy.Upstream{{Name: "other", Addresses: []string{b.address}}}
	next.Routes = []pyproxy.Route{{Name: "new", Upstream: "other", Method: "GET", Path: "/new"}}
	g.reload(next)
	g.want(g.do("GET", "/new", ""), 200, "")
	for upstream, want := range map[string]float64{"other": 1, "s": 0} {
		if got := g.metric("tollgate_pyproxy_requests_total", "upstream", upstream); got != want {
			t.Errorf("%s: %v requests", upstream, got)
		}
	}
	if all := g.proxy.Status(); len(all) != 1 || all[0].Name != "other" {
		t.Errorf("%+v", all)
	}
	if g.proxy.Trip("s") || !g.proxy.Trip("other") {
		t.Error("the switches are the old configuration's")
	}
}

// What was learnt stays where nothing has changed that it was learnt under, and
// nowhere else.
func TestWhatAReloadKeeps(t *testing.T) {
	b := newBackend(t, says(ok("x")))
	c := settings(b.address)
	c.Routes[3].Class = "pure"
	for name, tc := range map[string]struct {
		change func(*pyproxy.Config)
		open   bool // afterwards
	}{
		"nothing":           {func(*pyproxy.Config) {}, true},
		"routes":            {func(c *pyproxy.Config) { c.Routes = c.Routes[1:] }, true},
		"time-outs":         {func(c *pyproxy.Config) { c.Timeouts.Attempt = time.Hour }, true},
		"a route's cache":   {func(c *pyproxy.Config) { c.Routes[1].Cache = &pyproxy.RouteCache{TTL: time.Minute} }, true},
		"connections":       {func(c *pyproxy.Config) { c.Transport.MaxIdle++ }, true},
		"the health checks": {func(c *pyproxy.Config) { c.Health.Interval = time.Hour }, true},
		"the breaker":       {func(c *pyproxy.Config) { c.Breaker.Reset = time.Hour }, false},
		"the limit":         {func(c *pyproxy.Config) { c.Limit.Max++ }, false},
		"the addresses":     {func(c *pyproxy.Config) { c.Upstreams[0].Addresses = append(c.Upstreams[0].Addresses, gone(t)) }, false},
		"the class":         {func(c *pyproxy.Config) { c.Routes[1].Class = "of its own" }, false},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGate(t, c)
			g.proxy.Trip("s")
			next := c
			next.Routes = slices.Clone(c.Routes)
			next.Upstreams = []pyproxy.Upstream{{Name: "s", Addresses: slices.Clone(c.Upstreams[0].Addresses)}}
			tc.change(&next)
			g.reload(next)
			if r := g.do("GET", "/items/1", ""); (r.code == "circuit_open") != tc.open {
				t.Fatalf("%d %s", r.status, r.code)
			}
		})
	}
}

// Addresses that stay are known as before, and retries are not granted twice.
func TestAReloadKeepsAddressesAndTheBudget(t *testing.T) {
	bad := newBackend(t, says(status("503 x", "no")))
	c := settings(bad.address)
	c.Ejection.Failures = 2
	c.Retry.BudgetPerSecond = 0
	c.Upstreams[0].Addresses = []string{bad.address, newBackend(t, says(ok("x"))).address}
	g := newGate(t, c)
	polltest.Until(t, "ejected", func() bool {
		g.do("POST", "/post", "")
		return g.metric("tollgate_pyproxy_addresses", "state", "ejected") == 1
	})
	budget := g.metric("tollgate_pyproxy_retry_budget")
	next := c
	next.Upstreams = []pyproxy.Upstream{{Name: "s", Addresses: append(slices.Clone(c.Upstreams[0].Addresses), gone(t))}}
	g.reload(next)
	if n := g.metric("tollgate_pyproxy_addresses", "state", "ejected"); n != 1 || g.metric("tollgate_pyproxy_addresses") != 3 {
		t.Fatalf("%v ejected", n)
	}
	if got := g.metric("tollgate_pyproxy_retry_budget"); got != budget || budget == 0 {
		t.Fatalf("budget %v, was %v", got, budget)
	}
	next.Retry.BudgetRatio = 0.1
	g.reload(next)
	if got := g.metric("tollgate_pyproxy_retry_budget"); got != 0 {
		t.Fatalf("a new budget holds %v", got)
	}
}

// A request ends with the configuration that it began with.
func TestARequestUnderWayOutlivesAReload(t *testing.T) {
	release := make(chan struct{})
	let := sync.OnceFunc(func() { close(release) })
	defer let()
	slow := newBackend(t, func(c net.Conn, r *http.Request, n int64) bool {
		io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nha\r\n")
		<-release
		io.WriteString(c, "2\r\nlf\r\n0\r\n\r\n")
		return true
	})
	quick := newBackend(t, says(ok("quick")))
	c := settings(slow.address)
	g := newGate(t, c).running()
	resp, err := g.client.Get(g.url + "/get")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	next := settings(quick.address)
	next.Transport.MaxIdle++ // other connections, too
	next.Timeouts.BodyIdle = time.Nanosecond
	next.Routes = []pyproxy.Route{{Name: "new", Upstream: "s", Method: "GET", Path: "/new"}}
	g.reload(next)
	next.Timeouts = c.Timeouts
	g.reload(next)
	if r := g.do("GET", "/new", ""); r.body != "quick" {
		t.Fatalf("%+v", r)
	}
	let()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "half" {
		t.Fatalf("%q %v", body, err)
	}
}

// Checks follow the configuration: those of the old end, those of the new begin.
func TestAReloadMovesTheHealthChecks(t *testing.T) {
	var down atomic.Bool
	down.Store(true)
	c := settings(newSwitch(t, &down))
	c.Health.Interval, c.Health.UnhealthyAfter = time.Hour, 1
	g := newGate(t, c).running()
	polltest.Until(t, "the first round", func() bool { return g.metric("tollgate_pyproxy_addresses", "state", "unhealthy") == 1 })
	next := settings(newBackend(t, says(ok("x"))).address)
	next.Upstreams[0].Name = "n"
	for i := range next.Routes {
		next.Routes[i].Upstream = "n"
	}
	g.reload(next)
	polltest.Until(t, "the new one's", func() bool {
		return g.metric("tollgate_pyproxy_health_checks_total", "upstream", "n", "result", "ok") >= 1
	})
	if n := g.metric("tollgate_pyproxy_health_checks_total", "upstream", "s"); n != 0 {
		t.Fatalf("the old one's series is there: %v", n)
	}
}

// Reloads under load lose nothing.
func TestReloadsUnderLoad(t *testing.T) {
	b, d := newBackend(t, says(ok("x"))), newBackend(t, says(ok("x")))
	c, other := settings(b.address), settings(b.address, d.address)
	other.Breaker.Reset = time.Hour
	other.Transport.MaxIdle++
	for i := range other.Routes {
		other.Routes[i].Cache = nil
	}
	g := newGate(t, c).running()
	var clients sync.WaitGroup
	var lost atomic.Pointer[string]
	var stop atomic.Bool
	for range 8 {
		clients.Go(func() {
			for !stop.Load() {
				if r := g.do("POST", "/post", "x"); r.status != 200 {
					text := fmt.Sprintf("%+v", r)
					lost.Store(&text)
				}
			}
		})
	}
	for i := range 40 {
		before := g.metric("tollgate_pyproxy_attempts_total")
		g.reload([]pyproxy.Config{other, c}[i%2])
		polltest.Until(t, "some answers", func() bool { return g.metric("tollgate_pyproxy_attempts_total") >= before+8 })
	}
	stop.Store(true)
	clients.Wait()
	if p := lost.Load(); p != nil {
		t.Fatal(*p)
	}
}
