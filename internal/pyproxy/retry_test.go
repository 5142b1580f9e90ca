package pyproxy_test

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/polltest"
)

func TestSafeRequestsAreRepeated(t *testing.T) {
	for _, tc := range []struct {
		name   string
		first  answer
		method string
		path   string
		body   string
		header []string
		calls  int64
		status int
	}{
		{"GET after a reset", cuts(""), "GET", "/get", "", nil, 2, 200},
		{"GET after 503", says(status("503 x", "no")), "GET", "/get", "", nil, 2, 200},
		{"GET after 500", says(status("500 x", "no")), "GET", "/get", "", nil, 1, 500},
		{"GET after 404", says(status("404 x", "no")), "GET", "/get", "", nil, 1, 404},
		{"POST after a reset", cuts(""), "POST", "/post", "x", nil, 1, 502},
		{"POST after 503", says(status("503 x", "no")), "POST", "/post", "x", nil, 1, 503},
		{"POST without a body", cuts(""), "POST", "/post", "", nil, 1, 502},
		{"POST with a key", cuts(""), "POST", "/post", "x", []string{"Idempotency-Key", "k"}, 2, 200},
		{"POST with a key of the older name", cuts(""), "POST", "/post", "x", []string{"X-Idempotency-Key", "k"}, 2, 200},
		{"POST with an empty key", cuts(""), "POST", "/post", "x", []string{"Idempotency-Key", ""}, 1, 502},
		{"POST with two keys", cuts(""), "POST", "/post", "x", []string{"Idempotency-Key", "k", "Idempotency-Key", "l"}, 1, 502},
		{"POST on an idempotent route", cuts(""), "POST", "/pure", "x", nil, 2, 200},
		{"POST as large as is kept", cuts(""), "POST", "/pure", strings.Repeat("x", 64<<10), nil, 2, 200},
		{"POST larger than is kept", cuts(""), "POST", "/pure", strings.Repeat("x", 64<<10+1), nil, 1, 502},
		{"Retry-After of 0", says(status("429 x", "no", "Retry-After: 0")), "GET", "/get", "", nil, 2, 200},
		{"Retry-After in the past", says(status("503 x", "no", "Retry-After: Fri, 02 Jan 2026 03:04:05 GMT")), "GET", "/get", "", nil, 2, 200},
		{"Retry-After beyond what is waited", says(status("503 x", "no", "Retry-After: 3")), "GET", "/get", "", nil, 1, 503},
		{"Retry-After as a far date", says(status("503 x", "no", "Retry-After: Fri, 02 Jan 2099 03:04:05 GMT")), "GET", "/get", "", nil, 1, 503},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBackend(t, each(tc.first, says(ok("done"))))
			g := newGate(t, settings(b.address))
			r := g.do(tc.method, tc.path, tc.body, tc.header...)
			if r.status != tc.status || b.calls.Load() != tc.calls {
				t.Fatalf("status %d after %d calls, want %d after %d", r.status, b.calls.Load(), tc.status, tc.calls)
			}
			for _, got := range b.bodies {
				if got != tc.body {
					t.Fatalf("a body of %d bytes, want %d", len(got), len(tc.body))
				}
			}
			if n := g.metric("tollgate_pyproxy_retries_total"); n != float64(tc.calls-1) {
				t.Fatalf("%v retries counted", n)
			}
		})
	}
}

func TestRetriesEnd(t *testing.T) {
	b := newBackend(t, says(status("503 x", "no")))
	g := newGate(t, settings(b.address))
	r := g.do("GET", "/get", "")
	if r.status != 503 || r.body != "no" || b.calls.Load() != 4 {
		t.Fatalf("%+v after %d", r, b.calls.Load())
	}
}

func TestTheTotalDeadlineHolds(t *testing.T) {
	b := newBackend(t, hangs(""))
	c := settings(b.address)
	c.Timeouts.Attempt, c.Timeouts.Total = 40*time.Millisecond, 100*time.Millisecond
	c.Retry.Max = 10
	g := newGate(t, c)
	g.want(g.do("GET", "/get", ""), 504, "upstream_timeout")
	if n := b.calls.Load(); n > 3 {
		t.Fatalf("%d attempts of 40ms in 100ms", n)
	}
}

func TestTheBudgetBoundsRetries(t *testing.T) {
	b := newBackend(t, says(status("503 x", "no")))
	c := settings(b.address)
	c.Retry.BudgetPerSecond = 0
	c.Breaker.MinimumCalls = 1000
	g := newGate(t, c)
	for range 50 {
		g.do("GET", "/get", "")
	}
	if n := g.metric("tollgate_pyproxy_retries_total"); n != 10 {
		t.Fatalf("%v retries of 50 calls", n)
	}
}

func TestRetriesGoElsewhere(t *testing.T) {
	good := newBackend(t, says(ok("x")))
	g := newGate(t, settings(gone(t), good.address))
	for range 20 {
		g.want(g.do("GET", "/get", ""), 200, "")
	}
}

// A stale connection of the pool is no reason to send an unsafe request twice.
func TestAnUnsafeRequestIsSentOnceOverAStaleConnection(t *testing.T) {
	b := newBackend(t, each(says(ok("first")), cuts("")))
	g := newGate(t, settings(b.address))
	g.want(g.do("POST", "/post", "x"), 200, "")
	g.want(g.do("POST", "/post", "x"), 502, "upstream_failed")
	if n := b.calls.Load(); n != 2 {
		t.Fatalf("%d calls", n)
	}
	for _, key := range []string{"Idempotency-Key", "X-Idempotency-Key"} { // for which net/http itself would send it twice
		b := newBackend(t, each(says(ok("first")), cuts("")))
		g := newGate(t, settings(b.address))
		g.want(g.do("POST", "/post", ""), 200, "")
		g.want(g.do("POST", "/post", "", key, ""), 502, "upstream_failed")
		if n := b.calls.Load(); n != 2 {
			t.Fatalf("%d calls with an empty %s", n, key)
		}
	}
}

func TestABodyIsNotReadToRefuse(t *testing.T) {
	g := newGate(t, settings(gone(t)))
	g.proxy.Trip("s")
	read := false
	req, _ := http.NewRequest("POST", g.url+"/post", io.MultiReader(strings.NewReader("x"), readerFunc(func([]byte) (int, error) {
		read = true
		return 0, io.EOF
	})))
	req.Header.Set("Expect", "100-continue")
	g.client.Transport.(*http.Transport).ExpectContinueTimeout = patience
	g.want(g.send(req), 503, "circuit_open")
	if read {
		t.Fatal("the body was asked for")
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// An answer that a retry takes the place of is closed: a short one gives its
// connection back, a long one does not hold the retry up, and neither holds a
// place of the concurrency limit.
func TestDiscardedAnswersAreClosed(t *testing.T) {
	endless := func(c net.Conn, _ *http.Request, _ int64) bool {
		io.WriteString(c, "HTTP/1.1 503 x\r\nTransfer-Encoding: chunked\r\n\r\n")
		for {
			if _, err := io.WriteString(c, "1000\r\n"+strings.Repeat("x", 0x1000)+"\r\n"); err != nil {
				return false
			}
		}
	}
	short, stalled := says(status("503 x", "no")), hangs("HTTP/1.1 503 x\r\nContent-Length: 10\r\n\r\nno")
	for name, tc := range map[string]struct {
		first       answer
		connections int
	}{"short": {short, 1}, "endless": {endless, 2}, "stalled": {stalled, 2}} {
		t.Run(name, func(t *testing.T) {
			line := faulty(t, newBackend(t, each(tc.first, says(ok("done")))).address)
			g := newGate(t, settings(line.Address()))
			if r := g.do("GET", "/get", ""); r.body != "done" {
				t.Fatalf("%+v", r)
			}
			if n := line.Accepted(); n != tc.connections {
				t.Errorf("%d connections", n)
			}
			polltest.Until(t, "nothing is held", func() bool { return g.metric("tollgate_pyproxy_attempts_in_flight") == 0 })
		})
	}
}
