package pyproxy_test

import (
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/pyproxy"
)

// Whoever gives the answer, it names its request and says how it met the cache.
func TestEveryAnswerNamesItsRequestAndTheCache(t *testing.T) {
	b := newBackend(t, func(c net.Conn, r *http.Request, n int64) bool {
		if r.URL.Query().Has("break") {
			return cuts("")(c, r, n)
		}
		if r.Method == http.MethodHead { // A body would stand before the next answer on the connection.
			return says("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n")(c, r, n)
		}
		return says(ok("x"))(c, r, n)
	})
	c := settings(b.address)
	c.Retry.Max = 0
	c.Routes[0].Cache = &pyproxy.RouteCache{TTL: time.Minute}
	c.Routes[3].Cache, c.Routes[3].Fallback = &pyproxy.RouteCache{TTL: time.Minute}, &pyproxy.Fallback{Status: 200, ContentType: "text/plain", Body: "fallback"}
	c.Routes[2].BodyLimit = 4
	c.Routes = append(c.Routes, pyproxy.Route{Name: "spare", Upstream: "s", Method: "GET", Path: "/spare", Fallback: c.Routes[3].Fallback})
	g := newGate(t, c)
	for _, tc := range []struct {
		method, path, body string
		status             int
		cache              string
	}{
		{"GET", "/get", "", 200, "tollgate; fwd=miss; stored"},
		{"GET", "/get", "", 200, "tollgate; hit; ttl="},
		{"GET", "/get?break", "", 502, "tollgate; fwd=miss"},
		{"HEAD", "/get?other", "", 200, "tollgate; fwd=bypass"},
		{"GET", "/items/1", "", 200, "tollgate; fwd=bypass"},
		{"GET", "/items/1?break", "", 502, "tollgate; fwd=bypass"},
		{"POST", "/pure?break", "x", 200, "tollgate; fwd=miss"}, // the fallback
		{"GET", "/spare?break", "", 200, "tollgate; fwd=bypass"},
		{"POST", "/post", "too long", 413, "tollgate; fwd=bypass"},
		{"GET", "/nowhere", "", 404, "tollgate; fwd=bypass"},
		{"DELETE", "/get", "", 405, "tollgate; fwd=bypass"},
		{"GET", "/items/a%2Fb", "", 400, "tollgate; fwd=bypass"},
	} {
		for _, id := range []string{"r-7", ""} {
			var headers []string
			if id != "" {
				headers = []string{"X-Request-Id", id}
			}
			path := tc.path
			if strings.HasSuffix(tc.cache, "stored") && id == "" {
				path += "?again"
			}
			r := g.do(tc.method, path, tc.body, headers...)
			status := r.header["Cache-Status"]
			if r.status != tc.status || len(status) != 1 || !strings.HasPrefix(status[0], tc.cache) {
				t.Errorf("%s %s: %d %q, want %d %q", tc.method, tc.path, r.status, status, tc.status, tc.cache)
			}
			got := r.header["X-Request-Id"]
			if len(got) != 1 || got[0] == "" || id != "" && got[0] != id {
				t.Errorf("%s %s: request id %q, want %q", tc.method, tc.path, got, id)
			}
		}
	}
	first, second := g.do("GET", "/items/1", ""), g.do("GET", "/items/1", "")
	if sent := b.last().Header.Get("X-Request-Id"); sent != second.header.Get("X-Request-Id") || sent == first.header.Get("X-Request-Id") {
		t.Errorf("the service was told %q", sent)
	}
}

// What goes into every log is bounded, and one.
func TestARequestIDThatIsNoneIsReplaced(t *testing.T) {
	b := newBackend(t, says(ok("x")))
	g := newGate(t, settings(b.address))
	for _, ids := range [][]string{{""}, {"a", "b"}, {strings.Repeat("x", 129)}, {"a b"}, {"a\x80"}} {
		var headers []string
		for _, id := range ids {
			headers = append(headers, "X-Request-Id", id)
		}
		r := g.do("GET", "/get", "", headers...)
		sent := b.last().Header["X-Request-Id"]
		if got := r.header["X-Request-Id"]; len(sent) != 1 || len(got) != 1 || got[0] != sent[0] || sent[0] == ids[0] {
			t.Errorf("%q: the service got %q, the client %q", ids, sent, got)
		}
	}
}
