package pyproxy_test

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tollgate-proxy/tollgate/internal/pyproxy"
)

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler)) // net/http's, about what broken services send
	os.Exit(m.Run())
}

// patience bounds every wait of a test; nothing asserts how long a thing took.
const patience = 20 * time.Second

// backend is a service at the level of TCP: it reads each request whole and
// writes whatever bytes the test likes.
type backend struct {
	address string
	calls   atomic.Int64
	mu      sync.Mutex
	seen    []*http.Request
	bodies  []string
}

// answer writes to a connection; false closes it.
type answer func(conn net.Conn, r *http.Request, n int64) bool

func newBackend(t testing.TB, a answer) *backend {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &backend{address: l.Addr().String()}
	var wg sync.WaitGroup
	var mu sync.Mutex
	conns := map[net.Conn]bool{}
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns[c] = true
			mu.Unlock()
			wg.Go(func() { b.serve(c, a) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return b
}

func (b *backend) serve(c net.Conn, a answer) {
	defer c.Close()
	br := bufio.NewReader(c)
	for {
		r, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		if r.URL.Path == "/health" {
			io.WriteString(c, ok("well"))
			continue
		}
		b.mu.Lock()
		b.seen = append(b.seen, r)
		b.bodies = append(b.bodies, string(body))
		b.mu.Unlock()
		if !a(c, r, b.calls.Add(1)) {
			return
		}
	}
}

func (b *backend) last() *http.Request {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.seen[len(b.seen)-1]
}

// ok is a whole answer.
func ok(body string) string { return status("200 OK", body) }

func status(line, body string, headers ...string) string {
	h := ""
	for _, x := range headers {
		h += x + "\r\n"
	}
	return "HTTP/1.1 " + line + "\r\nContent-Length: " + itoa(len(body)) + "\r\n" + h + "\r\n" + body
}

func itoa(n int) string {
	b, _ := json.Marshal(n)
	return string(b)
}

// says answers every request with the same bytes and keeps the connection.
func says(raw string) answer {
	return func(c net.Conn, _ *http.Request, _ int64) bool {
		_, err := io.WriteString(c, raw)
		return err == nil
	}
}

// cuts writes bytes and closes.
func cuts(raw string) answer {
	return func(c net.Conn, _ *http.Request, _ int64) bool {
		io.WriteString(c, raw)
		return false
	}
}

// hangs never answers; the connection closes when the proxy gives up.
func hangs(before string) answer {
	return func(c net.Conn, _ *http.Request, _ int64) bool {
		io.WriteString(c, before)
		io.Copy(io.Discard, c)
		return false
	}
}

// each answers the nth request with the nth answer, and further ones with the last.
func each(as ...answer) answer {
	return func(c net.Conn, r *http.Request, n int64) bool {
		return as[min(int(n), len(as))-1](c, r, n)
	}
}

// gone is an address where nothing listens.
func gone(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// gate is a proxy under test behind a real HTTP server.
type gate struct {
	*testing.T
	proxy    *pyproxy.Proxy
	url      string
	registry *prometheus.Registry
	client   *http.Client
}

// settings is a configuration for tests: short waits, one upstream "s" with the
// given addresses, and one route of each kind.
func settings(addresses ...string) pyproxy.Config {
	c := pyproxy.Defaults()
	c.Timeouts = pyproxy.TimeoutConfig{Attempt: patience, Total: patience, BodyIdle: patience, Body: patience}
	c.Retry.Base, c.Retry.MaxWait = time.Millisecond, 2*time.Second
	c.Upstreams = []pyproxy.Upstream{{Name: "s", Addresses: addresses}}
	c.Routes = []pyproxy.Route{
		{Name: "get", Upstream: "s", Method: "GET", Path: "/get"},
		{Name: "item", Upstream: "s", Method: "GET", Path: "/items/{id}", UpstreamPath: "/v2/{id}/show"},
		{Name: "post", Upstream: "s", Method: "POST", Path: "/post"},
		{Name: "pure", Upstream: "s", Method: "POST", Path: "/pure", Idempotent: true},
	}
	return c
}

func newGate(t *testing.T, c pyproxy.Config, change ...func(*pyproxy.Options)) *gate {
	t.Helper()
	g := &gate{T: t, registry: prometheus.NewRegistry()}
	o := pyproxy.Options{Metrics: g.registry}
	for _, f := range change {
		f(&o)
	}
	g.proxy = pyproxy.New(c, o)
	s := httptest.NewServer(g.proxy)
	t.Cleanup(s.Close)
	g.url = s.URL
	g.client = &http.Client{Transport: &http.Transport{DisableCompression: true}, Timeout: patience}
	t.Cleanup(g.client.CloseIdleConnections)
	return g
}

// running also checks health and looks names up.
func (g *gate) running() *gate {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		g.proxy.Run(ctx)
	}()
	g.Cleanup(func() { cancel(); <-done })
	return g
}

type reply struct {
	status int
	header http.Header
	body   string
	err    error // of sending, or of reading the body
	code   string
}

func (g *gate) do(method, path, body string, headers ...string) reply {
	g.Helper()
	var rd io.Reader
	if body != "" {
		rd = strings.NewReader(body)
	}
	req, err := http.NewRequest(method, g.url+path, rd)
	if err != nil {
		g.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header[headers[i]] = append(req.Header[headers[i]], headers[i+1])
	}
	return g.send(req)
}

func (g *gate) send(req *http.Request) reply {
	g.Helper()
	resp, err := g.client.Do(req)
	if err != nil {
		return reply{err: err}
	}
	defer resp.Body.Close()
	r := reply{status: resp.StatusCode, header: resp.Header}
	b, err := io.ReadAll(resp.Body)
	r.body, r.err = string(b), err
	if resp.Header.Get("Content-Type") == "application/problem+json" {
		var p struct {
			Code   string
			Status int
		}
		if err := json.Unmarshal(b, &p); err != nil || p.Status != r.status {
			g.Fatalf("problem %q: %v", b, err)
		}
		r.code = p.Code
	}
	return r
}

func (g *gate) want(r reply, status int, code string) {
	g.Helper()
	if r.status != status || r.code != code {
		g.Fatalf("status %d code %q body %q error %v, want %d %q", r.status, r.code, r.body, r.err, status, code)
	}
}

// metric sums a family's samples whose labels include the given pairs.
func (g *gate) metric(name string, labels ...string) float64 {
	g.Helper()
	families, err := g.registry.Gather()
	if err != nil {
		g.Fatal(err)
	}
	sum, found := 0.0, false
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		found = true
	samples:
		for _, m := range f.GetMetric() {
			have := map[string]string{}
			for _, l := range m.GetLabel() {
				have[l.GetName()] = l.GetValue()
			}
			for i := 0; i < len(labels); i += 2 {
				if have[labels[i]] != labels[i+1] {
					continue samples
				}
			}
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	if !found {
		g.Fatalf("no metric %s", name)
	}
	return sum
}

func (g *gate) state() string { return g.proxy.Status()[0].Circuits[0].State }
