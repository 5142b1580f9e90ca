package pyproxy_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/clocktest"
	"github.com/tollgate-proxy/tollgate/internal/polltest"
	"github.com/tollgate-proxy/tollgate/internal/pyproxy"
)

// Every way in which a service can fail one request that is not repeated.
func TestAFailingServiceIsToldAsAProblem(t *testing.T) {
	bigHeader := "HTTP/1.1 200 OK\r\nX-Big: " + strings.Repeat("x", 1<<20)
	for _, tc := range []struct {
		name    string
		answer  answer
		status  int
		code    string
		outcome string
	}{
		{"closes at once", cuts(""), 502, "upstream_failed", "broken"},
		{"garbage", cuts("\x00\xffgarbage\r\n\r\n"), 502, "upstream_failed", "broken"},
		{"not a status", cuts("HTTP/1.1 abc\r\n\r\n"), 502, "upstream_failed", "broken"},
		{"half a header", cuts("HTTP/1.1 200 OK\r\nContent-Le"), 502, "upstream_failed", "broken"},
		{"endless header", cuts(bigHeader), 502, "upstream_failed", "broken"},
		{"two lengths", cuts("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx"), 502, "upstream_failed", "broken"},
		{"a bad length", cuts("HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nxx"), 502, "upstream_failed", "broken"},
		{"hangs before the headers", hangs(""), 504, "upstream_timeout", "timeout"},
		{"hangs within the headers", hangs("HTTP/1.1 200 OK\r\nX-A: "), 504, "upstream_timeout", "timeout"},
		{"switches protocol unasked", cuts("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"), 502, "upstream_failed", "broken"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBackend(t, tc.answer)
			c := settings(b.address)
			if tc.status == 504 {
				c.Timeouts.Attempt = 500 * time.Millisecond
			}
			g := newGate(t, c)
			g.want(g.do("POST", "/post", "x", "X-Request-Id", "r-7"), tc.status, tc.code)
			if n := g.metric("tollgate_pyproxy_attempts_total", "outcome", tc.outcome); n != 1 {
				t.Fatalf("%s: %v", tc.outcome, n)
			}
			if n := b.calls.Load(); n != 1 {
				t.Fatalf("attempted %d times", n)
			}
		})
	}
}

func TestNothingListens(t *testing.T) {
	g := newGate(t, settings(gone(t)))
	g.want(g.do("POST", "/post", "x"), 502, "upstream_failed")
	if n := g.metric("tollgate_pyproxy_attempts_total", "outcome", "connect"); n != 1 {
		t.Fatal(n)
	}
}

// A body that breaks must not look whole to the client, and counts as failure.
func TestABodyThatBreaksAbortsTheAnswer(t *testing.T) {
	for _, tc := range []struct {
		name   string
		answer answer
		idle   time.Duration
	}{
		{"closed before its length", cuts("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"), patience},
		{"chunked and closed", cuts("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"), patience},
		{"a chunk that is none", cuts("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\n"), patience},
		{"stalled", hangs("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"), 50 * time.Millisecond},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := settings(newBackend(t, tc.answer).address)
			c.Timeouts.BodyIdle = tc.idle
			g := newGate(t, c)
			r := g.do("POST", "/post", "x")
			if r.err == nil { // net/http may break off before it has sent the status

				t.Fatalf("%+v", r)
			}
			polltest.Until(t, "counted", func() bool { return g.metric("tollgate_pyproxy_attempts_total", "outcome", "body") == 1 })
		})
	}
}

func TestADrippingBodyEndsAtItsDeadline(t *testing.T) {
	b := newBackend(t, func(c net.Conn, _ *http.Request, _ int64) bool {
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
		for {
			if _, err := io.WriteString(c, "x"); err != nil {
				return false
			}
			<-time.After(time.Millisecond) // a drip is what this service does
		}
	})
	c := settings(b.address)
	c.Timeouts.BodyIdle, c.Timeouts.Body = 50*time.Millisecond, 200*time.Millisecond
	g := newGate(t, c)
	if r := g.do("POST", "/post", "x"); r.err == nil {
		t.Fatalf("%+v", r)
	}
}

func TestAClientThatLeavesCancelsTheServiceAndCountsForNothing(t *testing.T) {
	left := make(chan struct{})
	b := newBackend(t, func(c net.Conn, r *http.Request, n int64) bool {
		hangs("")(c, r, n)
		close(left)
		return false
	})
	g := newGate(t, settings(b.address))
	ctx, cancel := context.WithCancel(context.Background())
	req, _ := http.NewRequestWithContext(ctx, "GET", g.url+"/get", nil)
	done := make(chan error, 1)
	go func() {
		_, err := g.client.Do(req)
		done <- err
	}()
	polltest.Until(t, "the call arrives", func() bool { return b.calls.Load() == 1 })
	cancel()
	if err := <-done; err == nil {
		t.Fatal("an answer")
	}
	select {
	case <-left:
	case <-time.After(patience):
		t.Fatal("the service is still asked")
	}
	polltest.Until(t, "counted", func() bool { return g.metric("tollgate_pyproxy_attempts_total", "outcome", "client_gone") == 1 })
	if g.metric("tollgate_pyproxy_requests_total", "status", "client_gone") != 1 {
		t.Fatal("not counted as gone")
	}
}

func TestASlowClientIsNotTheServicesFault(t *testing.T) {
	b := newBackend(t, says(ok("x")))
	c := settings(b.address)
	c.Timeouts.Attempt = 500 * time.Millisecond
	g := newGate(t, c)
	conn, err := net.Dial("tcp", strings.TrimPrefix(g.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "POST /post HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nslow")
	conn.SetReadDeadline(time.Now().Add(patience))
	got := make([]byte, 12)
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "HTTP/1.1 408" {
		t.Fatalf("%q %v", got, err)
	}
	if g.metric("tollgate_pyproxy_attempts_total", "outcome", "client_slow") != 1 || g.metric("tollgate_pyproxy_attempts_total", "outcome", "timeout") != 0 {
		t.Fatal("counted against the service")
	}
}

func TestAnOverloadedServiceIsProtected(t *testing.T) {
	b := newBackend(t, hangs(""))
	c := settings(b.address)
	c.Limit.Initial, c.Limit.Min = 1, 1
	g := newGate(t, c)
	ctx, cancel := context.WithCancel(context.Background())
	req, _ := http.NewRequestWithContext(ctx, "GET", g.url+"/get", nil)
	done := make(chan struct{})
	go func() {
		defer close(done)
		g.client.Do(req)
	}()
	polltest.Until(t, "the place is taken", func() bool { return b.calls.Load() == 1 })
	r := g.do("GET", "/get", "")
	g.want(r, 503, "dependency_unavailable")
	if r.header.Get("Retry-After") == "" {
		t.Fatal(r.header)
	}
	cancel()
	<-done
	polltest.Until(t, "the place is free", func() bool { return g.metric("tollgate_pyproxy_attempts_in_flight") == 0 })
}

func TestDetailsNameNoAddress(t *testing.T) {
	address := gone(t)
	g := newGate(t, settings(address), func(*pyproxy.Options) {})
	if r := g.do("POST", "/post", ""); strings.Contains(r.body, address) || strings.Contains(r.body, "127.0.0.1") {
		t.Fatal(r.body)
	}
}

// A body that is kept for a retry is read before the service is asked: it hears
// nothing of a client that stalls or breaks off.
func TestAClientWithHalfABodyReachesNoService(t *testing.T) {
	for name, tc := range map[string]struct {
		headers, body, status string
		leaves                bool
	}{
		"stalls":                {"Content-Length: 10\r\n", "half", "408", false},
		"stalls within a chunk": {"Transfer-Encoding: chunked\r\n", "a\r\nhalf", "408", false},
		"leaves":                {"Content-Length: 10\r\n", "half", "", true},
		"leaves within a chunk": {"Transfer-Encoding: chunked\r\n", "a\r\nhalf", "", true},
		"sends no chunk":        {"Transfer-Encoding: chunked\r\n", "zz\r\n", "400", false},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBackend(t, says(ok("x")))
			c := settings(b.address)
			if tc.status == "408" {
				c.Timeouts.Attempt = 500 * time.Millisecond
			}
			g := newGate(t, c)
			conn, err := net.Dial("tcp", strings.TrimPrefix(g.url, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			io.WriteString(conn, "POST /pure HTTP/1.1\r\nHost: x\r\n"+tc.headers+"\r\n"+tc.body)
			if tc.leaves {
				conn.Close()
			}
			if tc.status != "" {
				conn.SetReadDeadline(time.Now().Add(patience))
				got := make([]byte, 12)
				if _, err := io.ReadFull(conn, got); err != nil || string(got) != "HTTP/1.1 "+tc.status {
					t.Fatalf("%q %v", got, err)
				}
			}
			polltest.Until(t, "the request ends", func() bool {
				return g.metric("tollgate_pyproxy_requests_total") == 1 && g.metric("tollgate_pyproxy_requests_in_flight") == 0
			})
			if b.calls.Load() != 0 || g.metric("tollgate_pyproxy_attempts_total") != 0 {
				t.Fatal("the service was asked")
			}
			if n := g.metric("tollgate_pyproxy_requests_total", "status", "client_gone"); (n == 1) != (tc.status == "") {
				t.Fatalf("%v counted as gone", n)
			}
		})
	}
}

// Nor is it the service's fault where the body is streamed to it.
func TestAMalformedBodyIsTheClientsFault(t *testing.T) {
	b := newBackend(t, says(ok("x")))
	g := newGate(t, settings(b.address))
	if got := g.raw("POST /post HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n"); got != 400 {
		t.Fatal(got)
	}
	if g.metric("tollgate_pyproxy_attempts_total", "outcome", "malformed") != 1 || b.calls.Load() != 0 {
		t.Fatal("not counted as the client's")
	}
}

// The server reads what is left of a small body before it answers.
func TestAClientThatOwesABodyNobodyWantsIsAnswered(t *testing.T) {
	b := newBackend(t, says(ok("x")))
	c := settings(b.address)
	c.Timeouts.Attempt = 300 * time.Millisecond
	g := newGate(t, c)
	g.proxy.Trip("s")
	if got := g.raw("POST /post HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"); got != http.StatusServiceUnavailable {
		t.Fatalf("%d, want 503", got)
	}
}

// However long a client takes for a body that is kept, the service has its time.
func TestASlowBodyLeavesTheServiceItsTime(t *testing.T) {
	b := newBackend(t, says(ok("x")))
	clock := clocktest.New(time.Now())
	g := newGate(t, settings(b.address), func(o *pyproxy.Options) { o.Now = clock.Now })
	w := httptest.NewRecorder()
	g.proxy.ServeHTTP(w, httptest.NewRequest("POST", "/pure", readerFunc(func(p []byte) (int, error) {
		clock.Advance(time.Hour)
		return copy(p, "x"), io.EOF
	})))
	if w.Code != http.StatusOK {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
}
