package pyproxy_test

import (
	"context"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"go.opentelemetry.io/otel/propagation"

	"github.com/tollgate-proxy/tollgate/internal/logtest"
	"github.com/tollgate-proxy/tollgate/internal/polltest"
	"github.com/tollgate-proxy/tollgate/internal/pyproxy"
)

// fault is a fault of this program: a part of every attempt, which can be told to panic.
type fault struct {
	propagation.TraceContext
	calls  atomic.Int64
	inject func(n int64)
}

func (f *fault) Inject(context.Context, propagation.TextMapCarrier) { f.inject(f.calls.Add(1)) }

// A goroutine of its own has no server's recovery above it: a panic there would be the end of the process.
func TestAPanicInAGoroutineOfARequestEndsOneRequest(t *testing.T) {
	for where, change := range map[string]func(*pyproxy.Route){
		"hedged attempt": func(r *pyproxy.Route) { r.HedgeAfter = time.Hour },
		"cache":          func(r *pyproxy.Route) { r.Cache = &pyproxy.RouteCache{TTL: time.Minute} },
	} {
		t.Run(where, func(t *testing.T) { testAPanicIn(t, where, change) })
	}
}

func testAPanicIn(t *testing.T, part string, change func(*pyproxy.Route)) {
	b := newBackend(t, says(ok("x")))
	c := settings(b.address)
	change(&c.Routes[0])
	var told atomic.Int64
	f := &fault{inject: func(n int64) {
		if n == 1 {
			panic("a fault")
		}
	}}
	g := newGate(t, c, func(o *pyproxy.Options) {
		o.Propagator, o.Panicked = f, func(where string, value any) {
			if where == part && value == "a fault" {
				told.Add(1)
			}
		}
	})
	g.want(g.do("GET", "/get", ""), 500, "internal_error")
	if told.Load() != 1 || g.metric("tollgate_pyproxy_attempts_total", "outcome", "panic") != 1 || g.metric("tollgate_pyproxy_requests_total", "status", "5xx") != 1 {
		t.Fatalf("told %d times, or not counted", told.Load())
	}
	if g.metric("tollgate_pyproxy_attempts_in_flight") != 0 || g.state() != "closed" {
		t.Fatal("it keeps a place, or counts against the service")
	}
	g.want(g.do("GET", "/get", ""), 200, "")
}

// Nobody waits for the loser any more.
func TestAPanicOfTheLoserIsToldToo(t *testing.T) {
	b, d := newBackend(t, says(ok("x"))), newBackend(t, says(ok("x")))
	c := settings(b.address, d.address)
	c.Routes[0].HedgeAfter = time.Millisecond
	answered := make(chan struct{})
	var log logtest.Buffer
	g := newGate(t, c, func(o *pyproxy.Options) {
		o.Propagator = &fault{inject: func(n int64) {
			if n == 1 {
				<-answered
				panic("a fault")
			}
		}}
		o.Log = log.Logger()
	})
	g.want(g.do("GET", "/get", ""), 200, "")
	close(answered)
	polltest.Until(t, "logged, with its stack", func() bool { return log.Count("msg=panic") == 1 && log.Count("hedge.go") > 0 })
	if g.metric("tollgate_pyproxy_attempts_total", "outcome", "panic") != 1 {
		t.Fatal("not counted")
	}
}

// In the request's own goroutine it is answered above us; nothing stays taken, and
// it is no client that went away.
func TestAPanicKeepsNoPlace(t *testing.T) {
	b := newBackend(t, says(ok("x")))
	g := newGate(t, settings(b.address), func(o *pyproxy.Options) { o.Propagator = &fault{inject: func(int64) { panic("a fault") }} })
	func() {
		defer func() {
			if v := recover(); v != "a fault" {
				t.Fatal(v)
			}
		}()
		g.proxy.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/get", nil))
	}()
	if g.metric("tollgate_pyproxy_attempts_in_flight") != 0 || g.metric("tollgate_pyproxy_requests_total", "status", "5xx") != 1 {
		t.Fatal("not so")
	}
}
