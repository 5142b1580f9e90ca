package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// What pyproxy is loaded with besides plain requests.
const (
	zipfKeys     = 10_000
	zipfExponent = 1.1
	idleClients  = 10_000
	largeBody    = 1 << 30
)

// settled is how long after their last request idle connections are measured:
// pyproxy parks them after 5 seconds, and gives memory back 5 seconds later, or
// 30 seconds after it last did.
const settled = 45 * time.Second

// pyproxy measures the proxy beside a bare httputil.ReverseProxy with pooled
// buffers: both run all the time, and are loaded in turns.
func (s *settings) pyproxy(ctx context.Context) error {
	var addrs [5]string
	for i := range addrs {
		var err error
		if addrs[i], err = freeAddr(); err != nil {
			return err
		}
	}
	backend, bare, ours, operations, redis := addrs[0], addrs[1], addrs[2], addrs[3], addrs[4]
	path := filepath.Join(s.work, "pyproxy.yaml")
	if err := os.WriteFile(path, pyproxyConfig(ours, operations, redis, backend), 0o600); err != nil {
		return err
	}
	_, port, _ := strings.Cut(redis, ":")
	var running []*pinned
	defer func() {
		for _, p := range running {
			p.stop()
		}
	}()
	for _, p := range []struct {
		cpu        int
		addr, name string
		args       []string
	}{
		{1, redis, "redis-server", []string{"--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", s.work}},
		{1, backend, s.self, []string{"service", backend}},
		{0, bare, s.self, []string{"bare", bare, backend}},
		{0, ours, filepath.Join(s.bin, "pyproxy"), []string{"-config", path}},
	} {
		started, err := start(ctx, p.cpu, filepath.Join(s.work, filepath.Base(p.name)+".log"), p.addr, nil, p.name, p.args...)
		if err != nil {
			return err
		}
		running = append(running, started)
	}
	r := &rivals{settings: s, backend: backend, bareAddr: bare, oursAddr: ours, operations: operations, bare: running[2], ours: running[3]}
	return errors.Join(r.costs(ctx), r.streams(ctx), r.idles(ctx))
}

// pyproxyConfig has everything on that is on by default.
func pyproxyConfig(listen, operations, redis, backend string) []byte {
	return fmt.Appendf(nil, `
http: {listen: %q}
operations: {listen: %q}
log: {level: warn}
redis: {url: "redis://%s"}
upstreams: [{name: s, addresses: [%q]}]
routes:
- {name: plain, upstream: s, method: POST, path: /plain, idempotent: true}
- {name: kept, upstream: s, method: POST, path: /kept, idempotent: true, cache: {ttl: 1h, stale_if_error: 1h}}
- {name: large, upstream: s, method: GET, path: /large}
`, listen, operations, redis, backend)
}

// rivals are the two proxies and the service behind them.
type rivals struct {
	*settings
	backend, bareAddr, oursAddr, operations string
	bare, ours                              *pinned
}

// lap is what one window found.
type lap struct {
	cpu, rate float64 // microseconds per request, and requests a second, as fast as it goes
	p50, p99  float64 // microseconds, at pace
}

// costs compares what a request costs, and how long it takes.
func (r *rivals) costs(ctx context.Context) error {
	plain, kept := [][]byte{asEnvoy("/plain", 0)}, questions()
	entrants := []struct {
		name, addr string
		process    *pinned // nil for none between
		requests   [][]byte
		laps       []lap
	}{
		{"no proxy", r.backend, nil, plain, nil},
		{"bare", r.bareAddr, r.bare, plain, nil},
		{"pyproxy", r.oursAddr, r.ours, plain, nil},
		{"pyproxy, kept", r.oursAddr, r.ours, zipf(kept), nil},
	}
	for _, e := range entrants {
		if _, err := drive(ctx, e.addr, e.requests, r.warm, 0); err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
	}
	if err := askAll(ctx, r.oursAddr, kept); err != nil {
		return err
	}
	hits, asked, err := r.cacheResults(ctx)
	if err != nil {
		return err
	}
	for range r.runs {
		for i := range entrants {
			e := &entrants[i]
			l, err := r.lap(ctx, e.addr, e.process, e.requests)
			if err != nil {
				return fmt.Errorf("%s: %w", e.name, err)
			}
			e.laps = append(e.laps, l)
		}
	}
	fmt.Fprintf(r.out, "%-18s %10s %8s %16s %16s\n", "pyproxy", "CPU µs/req", "req/s", "p50 µs at 1000/s", "p99 µs at 1000/s")
	mid := map[string]lap{}
	for _, e := range entrants {
		m := lap{
			cpu: medianOf(e.laps, func(l lap) float64 { return l.cpu }), rate: medianOf(e.laps, func(l lap) float64 { return l.rate }),
			p50: medianOf(e.laps, func(l lap) float64 { return l.p50 }), p99: medianOf(e.laps, func(l lap) float64 { return l.p99 }),
		}
		mid[e.name] = m
		fmt.Fprintf(r.out, "  %-16s %10.1f %8.0f %16.0f %16.0f\n", e.name, m.cpu, m.rate, m.p50, m.p99)
	}
	moreHits, moreAsked, err := r.cacheResults(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(r.out, "  CPU, ratio to bare: %.2f (at most 1.3)\n", mid["pyproxy"].cpu/mid["bare"].cpu)
	fmt.Fprintf(r.out, "  p99 added at 1000/s: %.2f ms to bare, %.2f ms to no proxy (under 2)\n",
		(mid["pyproxy"].p99-mid["bare"].p99)/1e3, (mid["pyproxy"].p99-mid["no proxy"].p99)/1e3)
	fmt.Fprintf(r.out, "  hits of Zipf's %d keys, s = %.1f: %.1f%% (at least 95)\n", zipfKeys, zipfExponent, 100*(moreHits-hits)/(moreAsked-asked))
	return nil
}

// lap loads one entrant, once as fast as it goes and once at pace.
func (r *rivals) lap(ctx context.Context, addr string, p *pinned, requests [][]byte) (lap, error) {
	used := func() (int64, error) {
		if p == nil {
			return 0, nil
		}
		return p.cpu()
	}
	before, err1 := used()
	began := time.Now()
	full, err2 := drive(ctx, addr, requests, r.window, 0)
	took := time.Since(began)
	after, err3 := used()
	p50, p99, err4 := paced(ctx, addr, requests, r.window)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return lap{}, err
	}
	n := float64(len(full))
	return lap{cpu: float64(after-before) / n, rate: n / took.Seconds(), p50: p50, p99: p99}, nil
}

// paced sends requests at pace, and returns percentiles in microseconds: medians
// of those of each second but the first, so that neither beginning nor a moment in
// which something else has the processors decides.
func paced(ctx context.Context, addr string, requests [][]byte, window time.Duration) (p50, p99 float64, err error) {
	const each = pace / connections // requests of a connection in a second
	took := make([][]time.Duration, connections)
	errs := make([]error, connections)
	var conns sync.WaitGroup
	end := time.Now().Add(window)
	for i := range connections {
		conns.Go(func() { took[i], errs[i] = converse(ctx, addr, requests, end, i, pace) })
	}
	conns.Wait()
	if err := errors.Join(errs...); err != nil {
		return 0, 0, err
	}
	var middles, tails []float64
	for first := each; first == each || len(took[0]) >= first+each; first += each {
		var second []float64
		for _, t := range took {
			for _, d := range t[min(first, len(t)/2):min(first+each, len(t))] { // a short window is its own second
				second = append(second, float64(d.Nanoseconds())/1e3)
			}
		}
		slices.Sort(second)
		middles = append(middles, second[len(second)/2])
		tails = append(tails, second[len(second)*99/100])
	}
	identity := func(v float64) float64 { return v }
	return medianOf(middles, identity), medianOf(tails, identity), nil
}

// streams passes a large body, and says how much the memory grew meanwhile.
func (r *rivals) streams(ctx context.Context) error {
	before, err := r.ours.memory("VmRSS")
	if err != nil {
		return err
	}
	if err := r.ours.forgetPeak(); err != nil {
		return err
	}
	began := time.Now()
	if n, err := download(ctx, r.oursAddr); err != nil || n != largeBody {
		return fmt.Errorf("a body of %d bytes: %d arrived: %w", largeBody, n, err)
	}
	took := time.Since(began)
	peak, err := r.ours.memory("VmHWM")
	if err != nil {
		return err
	}
	fmt.Fprintf(r.out, "  a body of 1 GiB in %.1f s: memory grew from %d to at most %d MiB\n", took.Seconds(), before>>20, peak>>20)
	return nil
}

func download(ctx context.Context, addr string) (int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/large", nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(io.Discard, resp.Body)
	return n, errors.Join(err, resp.Body.Close())
}

// idles opens many connections, asks once on each, and lets them be.
func (r *rivals) idles(ctx context.Context) error {
	var mu sync.Mutex
	var conns []net.Conn
	var errs []error
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	request := asEnvoy("/plain", 0)
	var all sync.WaitGroup
	for range connections {
		all.Go(func() {
			for range r.clients / connections {
				c, err := (&net.Dialer{}).DialContext(ctx, "tcp", r.oursAddr)
				if err == nil {
					err = askOnce(c, request)
				}
				mu.Lock()
				if c != nil {
					conns = append(conns, c)
				}
				errs = append(errs, err)
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%d connections: %w", len(conns), err)
	}
	used, err := r.ours.memory("VmRSS")
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(r.settled):
	}
	idle, err := r.ours.memory("VmRSS")
	if err != nil {
		return err
	}
	fmt.Fprintf(r.out, "  %d keep-alive connections: %d MiB in use, %d MiB idle (under 200)\n\n", len(conns), used>>20, idle>>20)
	for _, c := range conns { // they must still be of use
		if err := askOnce(c, request); err != nil {
			return fmt.Errorf("a connection that was idle: %w", err)
		}
	}
	return nil
}

func askOnce(c net.Conn, request []byte) error {
	if _, err := c.Write(request); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	if resp.StatusCode != http.StatusOK {
		err = errors.New("the answer is " + strconv.Itoa(resp.StatusCode))
	}
	return errors.Join(err, resp.Body.Close())
}

// cacheResults reads the cache's metric: hits, and requests in all.
func (r *rivals) cacheResults(ctx context.Context) (hits, all float64, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.operations+"/metrics", nil)
	if err != nil {
		return 0, 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "tollgate_pyproxy_cache_requests_total{") {
			continue
		}
		n, err := strconv.ParseFloat(strings.TrimSpace(line[strings.LastIndex(line, " ")+1:]), 64)
		if err != nil {
			return 0, 0, err
		}
		all += n
		if strings.Contains(line, `result="hit"`) {
			hits += n
		}
	}
	return hits, all, nil
}

// asEnvoy is a request as Envoy passes it on; number makes its body unlike others.
func asEnvoy(path string, number int) []byte {
	body := fmt.Sprintf(`{"text": "%090d"}`, number)
	return fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\nAccept: */*\r\nUser-Agent: bench/1.0\r\n"+
		"X-Request-Id: 00000000-0000-4000-8000-000000000000\r\nX-User-Id: user-1\r\nX-User-Tier: premium\r\nX-Feature-Flags: ml-v2=on\r\n"+
		"X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: https\r\nX-Envoy-External-Address: 192.0.2.7\r\n\r\n%s", path, len(body), body)
}

// questions are requests with a key each.
func questions() [][]byte {
	all := make([][]byte, zipfKeys)
	for i := range all {
		all[i] = asEnvoy("/kept", i)
	}
	return all
}

// zipf is a sample of requests, large enough that choosing evenly from it chooses
// them as Zipf's law has it.
func zipf(requests [][]byte) [][]byte {
	law := rand.NewZipf(rand.New(rand.NewPCG(1, 2)), zipfExponent, 1, uint64(len(requests)-1)) //nolint:gosec // a choice of load, not a secret
	sample := make([][]byte, 500_000)
	for i := range sample {
		sample[i] = requests[law.Uint64()]
	}
	return sample
}

// askAll makes every request once: the cache is warm then.
func askAll(ctx context.Context, addr string, requests [][]byte) error {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	for _, q := range requests {
		if err := askOnce(c, q); err != nil {
			return err
		}
	}
	return nil
}

func medianOf[T any](all []T, get func(T) float64) float64 {
	values := make([]float64, 0, len(all))
	for _, v := range all {
		values = append(values, get(v))
	}
	slices.Sort(values)
	return values[len(values)/2]
}

// serveService answers everything as a small service does, and /large at length.
func serveService(addr string) error {
	small := bytes.Repeat([]byte("x"), 200)
	return serveHTTP(addr, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Content-Type"] = []string{"application/json"}
		if r.URL.Path != "/large" {
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = w.Write(small)
			return
		}
		w.Header()["Content-Length"] = []string{strconv.Itoa(largeBody)}
		piece := make([]byte, 64<<10)
		for range largeBody / len(piece) {
			if _, err := w.Write(piece); err != nil {
				return
			}
		}
	}))
}

// serveBare is the proxy that ours is measured by.
func serveBare(addr, backend string) error {
	debug.SetGCPercent(400) // as ours has it
	to := &url.URL{Scheme: "http", Host: backend}
	return serveHTTP(addr, &httputil.ReverseProxy{
		Rewrite:    func(pr *httputil.ProxyRequest) { pr.SetURL(to) },
		Transport:  &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true},
		BufferPool: &buffers{},
	})
}

func serveHTTP(addr string, h http.Handler) error {
	return (&http.Server{Addr: addr, ReadHeaderTimeout: time.Minute, Handler: h}).ListenAndServe()
}

// buffers is the pool that the bare proxy copies through.
type buffers struct{ pool sync.Pool }

// Get returns a buffer.
func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return *p
	}
	return make([]byte, 32<<10)
}

// Put takes one back.
func (b *buffers) Put(p []byte) { b.pool.Put(&p) }
