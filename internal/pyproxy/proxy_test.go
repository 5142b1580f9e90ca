package pyproxy_test

import (
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestARequestReachesItsServiceAndComesBack(t *testing.T) {
	b := newBackend(t, says(status("201 Created", `{"a":1}`, "X-Answer: yes", "Content-Type: application/json")))
	g := newGate(t, settings(b.address))
	r := g.do("POST", "/post?q=1&r=%20", `{"x":2}`, "X-Request-Id", "r-1", "X-User-Id", "u", "X-Forwarded-For", "203.0.113.9")
	if r.status != 201 || r.body != `{"a":1}` || r.header.Get("X-Answer") != "yes" {
		t.Fatalf("%+v", r)
	}
	got := b.last()
	want := http.Header{"X-Request-Id": {"r-1"}, "X-User-Id": {"u"}, "X-Forwarded-For": {"203.0.113.9"}, "Content-Length": {"7"},
		"User-Agent": {"Go-http-client/1.1"}}
	if d := cmp.Diff(want, got.Header); d != "" {
		t.Fatal(d)
	}
	if got.Host != b.address || got.RequestURI != "/post?q=1&r=%20" || b.bodies[0] != `{"x":2}` {
		t.Fatalf("%s %s %q", got.Host, got.RequestURI, b.bodies[0])
	}
	if n := g.metric("tollgate_pyproxy_requests_total", "upstream", "s", "route", "post", "status", "2xx"); n != 1 {
		t.Fatalf("requests %v", n)
	}
}

func TestTemplatesRewritePaths(t *testing.T) {
	b := newBackend(t, says(ok("x")))
	g := newGate(t, settings(b.address))
	g.want(g.do("GET", "/items/a%20b", ""), 200, "")
	if got := b.last().URL.Path; got != "/v2/a b/show" {
		t.Fatal(got)
	}
}

func TestUnknownRoutesAndMethods(t *testing.T) {
	g := newGate(t, settings(gone(t)))
	g.want(g.do("GET", "/nowhere", ""), 404, "route_not_found")
	g.want(g.do("GET", "/get/", ""), 404, "route_not_found")
	g.want(g.do("GET", "/items/", ""), 404, "route_not_found")
	g.want(g.do("GET", "/items/..", ""), 404, "route_not_found")
	r := g.do("DELETE", "/get", "")
	g.want(r, 405, "method_not_allowed")
	if r.header.Get("Allow") != "GET" {
		t.Fatal(r.header)
	}
	g.want(g.do("GET", "/items/a%2Fb", ""), 400, "path_refused")
	g.want(g.do("GET", "//get", ""), 400, "path_refused")
}

func TestHeadIsTakenByGetRoutes(t *testing.T) {
	b := newBackend(t, says("HTTP/1.1 200 OK\r\nContent-Length: 77\r\n\r\n"))
	g := newGate(t, settings(b.address))
	r := g.do("HEAD", "/get", "")
	if r.status != 200 || r.header.Get("Content-Length") != "77" || b.last().Method != "HEAD" {
		t.Fatalf("%+v", r)
	}
}

func TestTooLargeBodies(t *testing.T) {
	b := newBackend(t, says(ok("x")))
	c := settings(b.address)
	for i := range c.Routes {
		c.Routes[i].BodyLimit = 100 << 10
	}
	g := newGate(t, c)
	big := strings.Repeat("x", 101<<10)
	g.want(g.do("POST", "/post", big), 413, "body_too_large")
	for _, path := range []string{"/post", "/pure"} { // chunked: only reading shows it
		req, _ := http.NewRequest("POST", g.url+path, io.MultiReader(strings.NewReader(big)))
		g.want(g.send(req), 413, "body_too_large")
	}
	if g.state() != "closed" || b.calls.Load() != 0 {
		t.Fatal("a client's large body counted against the service")
	}
	g.want(g.do("POST", "/post", big[:99<<10]), 200, "")
	if got := b.bodies[len(b.bodies)-1]; len(got) != 99<<10 {
		t.Fatal(len(got))
	}
}

func TestChunkedBodiesArrive(t *testing.T) {
	b := newBackend(t, says(ok("x")))
	g := newGate(t, settings(b.address))
	for _, path := range []string{"/post", "/pure"} {
		for _, n := range []int{1, 64 << 10, 64<<10 + 1, 300 << 10} {
			body := strings.Repeat("y", n)
			req, _ := http.NewRequest("POST", g.url+path, io.MultiReader(strings.NewReader(body)))
			g.want(g.send(req), 200, "")
			if got := b.bodies[len(b.bodies)-1]; got != body {
				t.Fatalf("%s %d: %d bytes", path, n, len(got))
			}
		}
	}
}

func TestAnswersOfTheServicePassUnchanged(t *testing.T) {
	for _, line := range []string{"200 OK", "204 No Content", "302 Found", "404 Not Found", "422 Unprocessable Entity", "429 Too Many Requests", "500 Internal Server Error", "501 Not Implemented", "503 Service Unavailable"} {
		raw := status(line, "body")
		if strings.HasPrefix(line, "204") {
			raw = "HTTP/1.1 204 No Content\r\n\r\n"
		}
		b := newBackend(t, says(raw))
		g := newGate(t, settings(b.address))
		r := g.do("POST", "/post", "x")
		if r.code != "" || !strings.HasPrefix(line, itoa(r.status)) || r.status != 204 && r.body != "body" {
			t.Errorf("%s: %+v", line, r)
		}
	}
}

func TestTrailersOfTheAnswerPass(t *testing.T) {
	b := newBackend(t, says("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n1\r\nx\r\n0\r\nX-Sum: 7\r\n\r\n"))
	g := newGate(t, settings(b.address))
	resp, err := g.client.Get(g.url + "/get")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, resp.Body)
	if resp.Trailer.Get("X-Sum") != "7" {
		t.Fatal(resp.Trailer)
	}
}

func TestCompressionIsLeftAlone(t *testing.T) {
	b := newBackend(t, says(status("200 OK", "\x1f\x8bnot really", "Content-Encoding: gzip")))
	g := newGate(t, settings(b.address))
	r := g.do("GET", "/get", "", "Accept-Encoding", "gzip")
	if r.body != "\x1f\x8bnot really" || r.header.Get("Content-Encoding") != "gzip" {
		t.Fatalf("%+v", r)
	}
}

// An answer of known length streams too: what has come is passed on.
func TestHalfAnAnswerIsNotHeldBack(t *testing.T) {
	release := make(chan struct{})
	let := sync.OnceFunc(func() { close(release) })
	defer let()
	b := newBackend(t, func(c net.Conn, _ *http.Request, _ int64) bool {
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nha")
		<-release
		io.WriteString(c, "lf")
		return true
	})
	g := newGate(t, settings(b.address))
	resp, err := g.client.Get(g.url + "/get")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	half := make([]byte, 2)
	if _, err := io.ReadFull(resp.Body, half); err != nil || string(half) != "ha" {
		t.Fatalf("%q %v", half, err)
	}
	let()
	if rest, err := io.ReadAll(resp.Body); err != nil || string(rest) != "lf" {
		t.Fatalf("%q %v", rest, err)
	}
}
