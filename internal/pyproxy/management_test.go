package pyproxy_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/tollgate-proxy/tollgate/internal/pyproxy"
)

func open(h http.Handler) http.Handler { return h }

func TestManagementShowsTheLiveState(t *testing.T) {
	b := newBackend(t, says(ok("x")))
	g := newGate(t, settings(b.address))
	g.proxy.Trip("s")
	w := httptest.NewRecorder()
	g.proxy.Management(open, open).ServeHTTP(w, httptest.NewRequest("GET", "/v1/upstreams", nil))
	var got struct{ Upstreams []pyproxy.UpstreamStatus }
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Code != 200 {
		t.Fatalf("%d %s %v", w.Code, w.Body, err)
	}
	u := got.Upstreams[0]
	c := u.Circuits[0]
	if u.Name != "s" || u.Addresses[0].Address != b.address || u.Addresses[0].State != "healthy" || c.State != "open" || c.RetryAfterSeconds < 1 || strings.Join(c.Routes, " ") != "get item post pure" {
		t.Fatalf("%s", w.Body)
	}
}

func TestManagementSwitchesCircuits(t *testing.T) {
	b := newBackend(t, says(ok("x")))
	g := newGate(t, settings(b.address))
	m := g.proxy.Management(open, open)
	call := func(method, path string) int {
		w := httptest.NewRecorder()
		m.ServeHTTP(w, httptest.NewRequest(method, path, nil))
		return w.Code
	}
	if got := call("POST", "/v1/upstreams/s/trip"); got != 200 {
		t.Fatal(got)
	}
	g.want(g.do("GET", "/get", ""), 503, "circuit_open")
	if got := call("POST", "/v1/upstreams/s/reset"); got != 200 {
		t.Fatal(got)
	}
	g.want(g.do("GET", "/get", ""), 200, "")
	for _, path := range []string{"/v1/upstreams/x/trip", "/v1/upstreams/x/reset"} {
		if got := call("POST", path); got != 404 {
			t.Fatalf("%s: %d", path, got)
		}
	}
	if got := call("GET", "/v1/upstreams/x"); got != 404 {
		t.Fatal(got)
	}
}

func TestManagementIsGuarded(t *testing.T) {
	g := newGate(t, settings(gone(t)))
	no := func(status int) func(http.Handler) http.Handler {
		return func(http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })
		}
	}
	m := g.proxy.Management(no(401), no(403))
	for _, tc := range []struct {
		method, path string
		want         int
	}{{"GET", "/v1/upstreams", 401}, {"GET", "/v1/upstreams/s", 401}, {"POST", "/v1/upstreams/s/trip", 403}, {"POST", "/v1/upstreams/s/reset", 403}} {
		w := httptest.NewRecorder()
		m.ServeHTTP(w, httptest.NewRequest(tc.method, tc.path, nil))
		if w.Code != tc.want {
			t.Errorf("%s %s: %d", tc.method, tc.path, w.Code)
		}
	}
}
