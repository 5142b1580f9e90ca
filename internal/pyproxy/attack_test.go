package pyproxy_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/clocktest"
	"github.com/tollgate-proxy/tollgate/internal/faultproxy"
	"github.com/tollgate-proxy/tollgate/internal/polltest"
	"github.com/tollgate-proxy/tollgate/internal/pyproxy"
)

func faulty(t *testing.T, to string) *faultproxy.Proxy {
	p, err := faultproxy.New(to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// Every way a network breaks an answer, before, within and after its headers:
// the client sees an error, never a wrong or shortened answer as a good one.
func TestNoBrokenAnswerLooksWhole(t *testing.T) {
	const body = "a body of some length, to be cut somewhere"
	whole := status("200 OK", body, "Content-Type: text/plain")
	b := newBackend(t, says(whole))
	line := faulty(t, b.address)
	c := settings(line.Address())
	c.Timeouts.Attempt, c.Timeouts.BodyIdle, c.Timeouts.Body = 200*time.Millisecond, 100*time.Millisecond, 300*time.Millisecond
	c.Breaker.MinimumCalls = 1000
	g := newGate(t, c)
	for _, action := range []faultproxy.Action{faultproxy.Hang, faultproxy.Close, faultproxy.Reset, faultproxy.Garbage, faultproxy.Endless} {
		for _, after := range []int{0, 5, 20, strings.Index(whole, "\r\n\r\n") + 4, len(whole) - 5} {
			t.Run(fmt.Sprint(action, " after ", after), func(t *testing.T) {
				line.Set(faultproxy.Fault{Action: action, After: int64(after)})
				r := g.do("POST", "/post", "x")
				// Bytes put in the place of the body's are the one thing that no
				// proxy can tell; the length still holds.
				forged := (action == faultproxy.Garbage || action == faultproxy.Endless) && after > strings.Index(whole, "\r\n\r\n")
				switch {
				case r.status == 502 || r.status == 504 || r.err != nil:
				case forged && len(r.body) == len(body):
				default:
					t.Fatalf("%+v", r)
				}
			})
		}
	}
	line.Set(faultproxy.Fault{})
	polltest.Until(t, "a whole answer after it", func() bool { return g.do("POST", "/post", "x").body == body }) // its time is short
}

// A header of 100 MB is given up at the limit, in bounded memory.
func TestAHugeHeaderIsGivenUp(t *testing.T) {
	var sent atomic.Int64
	b := newBackend(t, func(c net.Conn, _ *http.Request, _ int64) bool {
		io.WriteString(c, "HTTP/1.1 200 OK\r\n")
		piece := "X-Filler: " + strings.Repeat("x", 32<<10) + "\r\n"
		for sent.Load() < 100<<20 {
			n, err := io.WriteString(c, piece)
			sent.Add(int64(n))
			if err != nil {
				return false
			}
		}
		return false
	})
	g := newGate(t, settings(b.address))
	g.want(g.do("POST", "/post", "x"), 502, "upstream_failed")
	if n := sent.Load(); n > 50<<20 { // socket buffers take some
		t.Fatalf("%d bytes were taken", n)
	}
}

// An answer of 1 GiB, and a request of a quarter, pass in constant memory.
func TestLargeBodiesStreamInConstantMemory(t *testing.T) {
	const size = 1 << 30
	service := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n, err := io.Copy(io.Discard, r.Body); err == nil && r.Method == "POST" {
			fmt.Fprint(w, n)
			return
		}
		w.Header().Set("Content-Length", fmt.Sprint(size))
		io.CopyN(w, zeros{}, size)
	})}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go service.Serve(l)
	t.Cleanup(func() { service.Close() })
	c := settings(l.Addr().String())
	c.Timeouts = pyproxy.TimeoutConfig{Attempt: 5 * time.Minute, Total: 5 * time.Minute, BodyIdle: time.Minute, Body: 5 * time.Minute}
	for i := range c.Routes {
		c.Routes[i].BodyLimit = 2 << 30
	}
	g := newGate(t, c)
	g.client.Timeout = 0
	var peak atomic.Uint64
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			if m.HeapAlloc > peak.Load() {
				peak.Store(m.HeapAlloc)
			}
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	resp, err := g.client.Get(g.url + "/get")
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	if n != size || err != nil {
		t.Fatal(n, err)
	}
	const up = size / 4 // the race detector makes each byte dear
	req, _ := http.NewRequest("POST", g.url+"/pure", io.LimitReader(zeros{}, up))
	if r := g.send(req); r.body != fmt.Sprint(up) {
		t.Fatalf("%+v", r)
	}
	close(stop)
	<-done
	if mib := peak.Load() >> 20; mib > 100 {
		t.Fatalf("the heap grew to %d MiB", mib)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// A client that asks for much and never reads holds its place for a bounded time,
// whether it asks for one large answer, many small ones, or a stream.
func TestAClientThatDoesNotReadIsLetGo(t *testing.T) {
	for _, tc := range []struct {
		name   string
		answer http.HandlerFunc
	}{
		{"a large answer", func(w http.ResponseWriter, _ *http.Request) { io.CopyN(w, zeros{}, 256<<20) }},
		{"small answers", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "16384")
			io.CopyN(w, zeros{}, 16384)
		}},
		{"answers smaller than any buffer", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, strings.Repeat("x", 1500)) }},
		{"a stream", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			io.Copy(w, zeros{})
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			large := httptest.NewServer(tc.answer)
			t.Cleanup(func() { large.CloseClientConnections(); large.Close() })
			c := settings(strings.TrimPrefix(large.URL, "http://"))
			c.Timeouts.BodyIdle, c.Timeouts.Body = 2*time.Second, 2*time.Second // the service has it too, until the buffers are full
			g := newGate(t, c)
			conn, err := net.Dial("tcp", strings.TrimPrefix(g.url, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(polltest.Patience))
			for err == nil {
				_, err = io.WriteString(conn, strings.Repeat("GET /get HTTP/1.1\r\nHost: x\r\n\r\n", 50))
			}
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal("not let go")
			}
			polltest.Until(t, "nothing under way", func() bool {
				return g.metric("tollgate_pyproxy_requests_in_flight") == 0 && g.metric("tollgate_pyproxy_attempts_in_flight") == 0
			})
			for _, ours := range []string{"body", "broken", "timeout", "error_status"} {
				if g.metric("tollgate_pyproxy_attempts_total", "outcome", ours) != 0 {
					t.Fatal("counted against the service")
				}
			}
		})
	}
}

// Half of the replicas bad: requests that may be repeated all succeed.
func TestHalfOfTheReplicasBad(t *testing.T) {
	b := newBackend(t, says(ok("x")))
	bad1, bad2, good := faulty(t, b.address), faulty(t, b.address), faulty(t, b.address)
	c := settings(bad1.Address(), bad2.Address(), good.Address(), b.address)
	c.Retry.BudgetPerSecond = 1000
	g := newGate(t, c)
	bad1.Set(faultproxy.Fault{Action: faultproxy.Reset})
	bad2.Set(faultproxy.Fault{Action: faultproxy.Garbage})
	var wg sync.WaitGroup
	var failed atomic.Int64
	for range 8 {
		wg.Go(func() {
			for range 50 {
				if r := g.do("GET", "/get", ""); r.status != 200 {
					failed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if n := failed.Load(); n != 0 {
		t.Fatalf("%d of 400 failed", n)
	}
	if n := bad1.Accepted() + bad2.Accepted(); n > 60 {
		t.Fatalf("the bad ones were used %d times", n)
	}
}

// All replicas bad, under load, and then well again: while the circuit is open
// nearly nothing reaches the service, and its return meets a few probes, not a
// stampede.
func TestRecoveryUnderLoadWithoutAStampede(t *testing.T) {
	var down, atOnce, most atomic.Int64
	release := make(chan struct{})
	b := newBackend(t, func(c net.Conn, r *http.Request, n int64) bool {
		if down.Load() == 1 {
			return false
		}
		if down.Load() == 2 { // back, but slow to answer its first calls
			if now := atOnce.Add(1); now > most.Load() {
				most.Store(now)
			}
			<-release
			atOnce.Add(-1)
		}
		return says(ok("x"))(c, r, n)
	})
	clock := clocktest.New(time.Now())
	c := settings(b.address)
	g := newGate(t, c, func(o *pyproxy.Options) { o.Now = clock.Now })
	down.Store(1)
	polltest.Until(t, "open", func() bool { g.do("POST", "/post", ""); return g.state() == "open" })
	before := b.calls.Load()
	for range 100 {
		g.want(g.do("POST", "/post", ""), 503, "circuit_open")
	}
	if b.calls.Load() != before {
		t.Fatal("an open circuit lets calls through")
	}
	down.Store(2)
	clock.Advance(time.Minute) // half-open, with a hundred clients waiting
	var wg sync.WaitGroup
	var answered atomic.Int64
	for range 100 {
		wg.Go(func() {
			if g.do("POST", "/post", "").status == 200 {
				answered.Add(1)
			}
		})
	}
	polltest.Until(t, "the probes are out", func() bool { return atOnce.Load() == 3 })
	polltest.Until(t, "the others are refused", func() bool { return g.metric("tollgate_pyproxy_requests_total", "status", "5xx") >= float64(20+100+97) })
	close(release)
	wg.Wait()
	if most.Load() != 3 || answered.Load() != 3 || g.state() != "closed" {
		t.Fatalf("%d at once, %d answered, %s", most.Load(), answered.Load(), g.state())
	}
}
