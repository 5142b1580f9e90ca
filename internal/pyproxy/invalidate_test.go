package pyproxy_test

import (
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/pyproxy"
)

// RFC 9111, section 4.4: what a request changes is not answered from before.
func TestARequestThatChangesAPathVoidsWhatIsKeptForIt(t *testing.T) {
	var fail atomic.Bool
	b := newBackend(t, func(c net.Conn, r *http.Request, n int64) bool {
		if fail.Load() && r.Method != http.MethodGet {
			return says(status("409 Conflict", ""))(c, r, n)
		}
		return says(status("200 OK", itoa(int(n)), "Cache-Control: max-age=60"))(c, r, n)
	})
	c := settings(b.address)
	c.Routes[0].Cache, c.Routes[1].Cache, c.Routes[3].Cache = &pyproxy.RouteCache{}, &pyproxy.RouteCache{}, &pyproxy.RouteCache{TTL: time.Minute}
	c.Routes = append(c.Routes,
		pyproxy.Route{Name: "put", Upstream: "s", Method: "PUT", Path: "/items/{id}", UpstreamPath: "/v2/change/{id}"},
		pyproxy.Route{Name: "ask", Upstream: "s", Method: "POST", Path: "/get", Idempotent: true, Cache: &pyproxy.RouteCache{TTL: time.Minute}},
	)
	g := newGate(t, c)
	kept := func(path string) bool {
		t.Helper()
		r := g.do("GET", path, "")
		g.want(r, 200, "")
		return strings.Contains(r.header.Get("Cache-Status"), "hit")
	}
	all := []string{"/items/1", "/items/1?as=table", "/items/2", "/get"}
	for _, path := range all {
		if kept(path) || !kept(path) {
			t.Fatalf("%s is not kept", path)
		}
	}
	fail.Store(true)
	g.want(g.do("PUT", "/items/1", "x"), 409, "")
	for _, path := range all {
		if !kept(path) {
			t.Fatalf("%s is void although nothing has changed", path)
		}
	}
	fail.Store(false)
	g.want(g.do("PUT", "/items/1", "x"), 200, "")
	for i, path := range all {
		if kept(path) != (i >= 2) {
			t.Fatalf("%s after the change of /items/1: kept is %t", path, i < 2)
		}
	}
	// A question changes nothing.
	g.want(g.do("POST", "/get", "x"), 200, "")
	if !kept("/get") {
		t.Fatal("void after a question")
	}
}

// Location and Content-Location name what else has changed; of another origin
// they are not believed.
func TestAnAnswerNamesWhatElseHasChanged(t *testing.T) {
	var header atomic.Pointer[string]
	b := newBackend(t, func(c net.Conn, r *http.Request, n int64) bool {
		if r.Method != http.MethodGet {
			return says(status("201 Created", "", *header.Load()))(c, r, n)
		}
		return says(status("200 OK", itoa(int(n)), "Cache-Control: max-age=60"))(c, r, n)
	})
	c := settings(b.address)
	c.Routes[0].Cache, c.Routes[1].Cache = &pyproxy.RouteCache{}, &pyproxy.RouteCache{}
	g := newGate(t, c)
	self := strings.TrimPrefix(g.url, "http://")
	for _, tc := range []struct {
		header string
		void   string // the path whose answer is not to be used again
		sent   []string
	}{
		{header: "Location: /items/7", void: "/items/7"},
		{header: "Content-Location: /items/7", void: "/items/7"},
		{header: "Location: items/7?as=table#top", void: "/items/7"},
		{header: "Location: /v2/7/show", void: "/items/7"}, // as the service sees it
		{header: "Location: http://" + b.address + "/v2/7/show", void: "/items/7"},
		{header: "Location: http://" + b.address + "/get", void: "/get"},
		{header: "Location: //" + self + "/get", void: "/get"},
		{header: "Location: HTTP://" + self + "/items/7", void: "/items/7"},
		{header: "Location: https://" + self + "/items/7", void: "/items/7", sent: []string{"X-Forwarded-Proto", "https"}},
		{header: "Location: https://" + self + "/items/7"},
		{header: "Location: http://other.example/items/7"},
		{header: "Location: //other.example/get"},
		{header: "Location: http://" + b.address + "1/get"},
		{header: "Location: /elsewhere"},
		{header: "Location: http://[bad"},
		{header: "X-Location: /items/7"},
	} {
		t.Run(tc.header, func(t *testing.T) {
			header.Store(&tc.header)
			for _, path := range []string{"/items/7", "/get"} {
				g.want(g.do("GET", path, ""), 200, "")
			}
			g.want(g.do("POST", "/post", "x", tc.sent...), 201, "")
			for _, path := range []string{"/items/7", "/get"} {
				hit := strings.Contains(g.do("GET", path, "").header.Get("Cache-Status"), "; hit")
				if hit == (path == tc.void) {
					t.Errorf("%s: answered from before: %t", path, hit)
				}
			}
		})
	}
}
