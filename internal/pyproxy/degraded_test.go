package pyproxy_test

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/clocktest"
	"github.com/tollgate-proxy/tollgate/internal/polltest"
	"github.com/tollgate-proxy/tollgate/internal/pyproxy"
)

func TestKeptAnswersServeWhileTheCircuitIsOpen(t *testing.T) {
	b := newBackend(t, says(status("200 OK", "kept", "Cache-Control: max-age=60")))
	c := settings(b.address)
	c.Routes[0].Cache = &pyproxy.RouteCache{}
	c.Routes[3].Cache = &pyproxy.RouteCache{TTL: time.Minute}
	g := newGate(t, c)
	g.want(g.do("GET", "/get", ""), 200, "")
	g.want(g.do("POST", "/pure", "x"), 200, "")
	g.proxy.Trip("s")
	for _, r := range []reply{g.do("GET", "/get", ""), g.do("POST", "/pure", "x")} {
		if r.status != 200 || r.body != "kept" || !strings.HasPrefix(r.header.Get("Cache-Status"), "tollgate; hit") {
			t.Fatalf("%+v", r)
		}
	}
	g.want(g.do("GET", "/get?other", ""), 503, "circuit_open")
	g.want(g.do("POST", "/pure", "other"), 503, "circuit_open")
	if b.calls.Load() != 2 {
		t.Fatal(b.calls.Load())
	}
}

func TestAStaleAnswerBeforeTheFallbackBeforeAProblem(t *testing.T) {
	clock := clocktest.New(time.Now())
	b := newBackend(t, says(ok("fresh")))
	c := settings(b.address)
	c.Routes[0].Cache = &pyproxy.RouteCache{TTL: time.Minute, StaleIfError: time.Minute}
	c.Routes[0].Fallback = &pyproxy.Fallback{Status: 200, ContentType: "application/json", Body: `{"fallback":true}`}
	c.Breaker.Reset = 24 * time.Hour
	g := newGate(t, c, func(o *pyproxy.Options) { o.Now = clock.Now })
	g.want(g.do("GET", "/get", ""), 200, "")
	g.proxy.Trip("s")
	clock.Advance(90 * time.Second)
	if r := g.do("GET", "/get", ""); r.body != "fresh" || !strings.Contains(r.header.Get("Cache-Status"), "stale-if-error") {
		t.Fatalf("%+v", r)
	}
	clock.Advance(90 * time.Second)
	r := g.do("GET", "/get", "")
	if r.status != 200 || r.body != `{"fallback":true}` || r.header.Get("X-Tollgate-Degraded") != "fallback; reason=circuit_open" || r.header.Get("Cache-Control") != "no-store" {
		t.Fatalf("%+v", r)
	}
	if r := g.do("HEAD", "/get", ""); r.status != 200 || r.body != "" {
		t.Fatalf("%+v", r)
	}
	g.want(g.do("GET", "/items/x", ""), 503, "circuit_open")
}

func TestAFallbackIsNotForTheClientsFaults(t *testing.T) {
	b := newBackend(t, says(status("500 x", "own error")))
	c := settings(b.address)
	c.Routes[2].BodyLimit = 10
	c.Routes[2].Fallback = &pyproxy.Fallback{Status: 200, ContentType: "text/plain", Body: "fallback"}
	g := newGate(t, c)
	req, _ := http.NewRequest("POST", g.url+"/post", io.MultiReader(strings.NewReader("longer than ten")))
	g.want(g.send(req), 413, "body_too_large")
	if r := g.do("POST", "/post", "x"); r.status != 500 || r.body != "own error" {
		t.Fatalf("%+v", r)
	}
}

func TestATooLargeBodyOfACachedRoute(t *testing.T) {
	b := newBackend(t, says(ok("x")))
	c := settings(b.address)
	c.Routes[3].Cache = &pyproxy.RouteCache{TTL: time.Minute}
	c.Routes[3].BodyLimit = 10
	g := newGate(t, c)
	req, _ := http.NewRequest("POST", g.url+"/pure", io.MultiReader(strings.NewReader("longer than ten")))
	g.want(g.send(req), 413, "body_too_large")
}

func TestSuccessPurges(t *testing.T) {
	var bad atomic.Bool
	b := newBackend(t, func(conn net.Conn, r *http.Request, n int64) bool {
		if bad.Load() && r.URL.Path == "/post" {
			return says(status("422 x", "no"))(conn, r, n)
		}
		return says(ok(itoa(int(n))))(conn, r, n)
	})
	c := settings(b.address)
	c.Routes[3].Cache = &pyproxy.RouteCache{TTL: time.Minute, Tags: []string{"model"}}
	c.Routes[2].Purges = []string{"model"}
	g := newGate(t, c)
	first := g.do("POST", "/pure", "x").body
	bad.Store(true)
	g.do("POST", "/post", "train")
	if got := g.do("POST", "/pure", "x").body; got != first {
		t.Fatal("purged by a failure")
	}
	bad.Store(false)
	g.do("POST", "/post", "train")
	second := g.do("POST", "/pure", "x").body
	if second == first {
		t.Fatal("not purged")
	}
	m := g.proxy.Management(open, open)
	for name, want := range map[string]int{"model": 204, "pure": 204, "other": 404} {
		w := httptest.NewRecorder()
		m.ServeHTTP(w, httptest.NewRequest("POST", "/v1/cache/"+name+"/purge", nil))
		if w.Code != want {
			t.Errorf("%s: %d", name, w.Code)
		}
	}
	if got := g.do("POST", "/pure", "x").body; got == second {
		t.Fatal("not purged by the API")
	}
}

func TestHedging(t *testing.T) {
	cancelled := make(chan struct{}, 8)
	slow := newBackend(t, func(c net.Conn, r *http.Request, n int64) bool {
		hangs("")(c, r, n)
		cancelled <- struct{}{}
		return false
	})
	quick := newBackend(t, says(ok("quick")))
	c := settings(slow.address, quick.address)
	c.Routes[0].HedgeAfter = 5 * time.Millisecond
	c.Routes[2].HedgeAfter = 5 * time.Millisecond
	g := newGate(t, c)
	for slow.calls.Load() == 0 { // which is first is chance
		if r := g.do("GET", "/get", ""); r.status != 200 || r.body != "quick" {
			t.Fatalf("%+v", r)
		}
	}
	select {
	case <-cancelled:
	case <-time.After(patience):
		t.Fatal("the slow attempt goes on")
	}
	if g.metric("tollgate_pyproxy_hedges_total") < 1 {
		t.Fatal("not counted")
	}
	polltest.Until(t, "the loser counts for nothing", func() bool { return g.metric("tollgate_pyproxy_attempts_total", "outcome", "client_gone") >= 1 })
	if g.metric("tollgate_pyproxy_attempts_total", "outcome", "timeout") != 0 {
		t.Fatal("counted as a failure")
	}
}

func TestHedgingWhenTheFirstFails(t *testing.T) {
	b, d := newBackend(t, says(status("503 x", "no"))), newBackend(t, says(status("503 x", "no")))
	c := settings(b.address, d.address)
	c.Routes[0].HedgeAfter = time.Hour
	g := newGate(t, c)
	g.want(g.do("GET", "/get", ""), 503, "")
	if n := b.calls.Load() + d.calls.Load(); n != 4 {
		t.Fatalf("%d attempts", n)
	}
}

func TestUnsafeRequestsAreNotHedged(t *testing.T) {
	release := make(chan struct{})
	wait := func(c net.Conn, r *http.Request, n int64) bool { <-release; return says(ok("x"))(c, r, n) }
	b, d := newBackend(t, wait), newBackend(t, wait)
	c := settings(b.address, d.address)
	c.Routes[2].HedgeAfter = time.Nanosecond
	g := newGate(t, c)
	done := make(chan reply, 1)
	go func() { done <- g.do("POST", "/post", "x") }()
	polltest.Until(t, "asked", func() bool { return b.calls.Load()+d.calls.Load() == 1 })
	close(release)
	if r := <-done; r.status != 200 || b.calls.Load()+d.calls.Load() != 1 {
		t.Fatalf("%+v", r)
	}
}

// checkedOnce is a gate that has found its service well, and by itself will not
// look again for an hour; down makes the service fail.
func checkedOnce(t *testing.T) (g *gate, c pyproxy.Config, down *atomic.Bool) {
	t.Helper()
	down = new(atomic.Bool)
	c = settings(newSwitch(t, down))
	c.Health.Interval, c.Health.UnhealthyAfter = time.Hour, 1
	g = newGate(t, c).running()
	polltest.Until(t, "the first round", func() bool { return g.metric("tollgate_pyproxy_health_checks_total") == 1 })
	return g, c, down
}

func TestAHintMakesTheReplicaLookAtOnce(t *testing.T) {
	g, _, down := checkedOnce(t)
	down.Store(true)
	g.proxy.ProbeSoon("s")
	g.proxy.ProbeSoon("no such upstream")
	polltest.Until(t, "seen", func() bool { return g.metric("tollgate_pyproxy_addresses", "state", "unhealthy") == 1 })
	g.want(g.do("POST", "/post", ""), 502, "upstream_failed") // a hint trips nothing
}
