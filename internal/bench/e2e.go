package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/envoyconf"
)

// way is one way to ask, or not to ask, about requests.
type way struct {
	name             string
	authz, ratelimit bool // processes that run
	noop             bool // a server that decides nothing stands for authz
	env              []string
	change           func(*envoyconf.Options)
}

// ways are compared side by side.
func ways() []way {
	return []way{
		{name: "no filter"},
		{name: "no-op ext_authz", authz: true, noop: true},
		{name: "ext_authz alone", authz: true},
		{name: "both filters", authz: true, ratelimit: true},
		{name: "one call", authz: true, env: []string{"TOLLGATE_LIMITS_IN_AUTHZ=true"}, change: func(o *envoyconf.Options) { o.OneCall = true }},
		{name: "quotas (RLQS)", authz: true, ratelimit: true, change: func(o *envoyconf.Options) { o.Quotas = true }},
	}
}

// connections is how many a load keeps, with one request under way on each.
const connections = 16

// pace is the rate, in requests a second, at which latencies are measured.
const pace = 1000

// passage is what one run through Envoy found.
type passage struct {
	envoy, servers, redis float64 // CPU microseconds per request
	rate                  float64 // requests a second, as fast as it goes
	p50, p99              float64 // microseconds, at pace
}

// endToEnd measures all ways, taking turns, and prints medians.
func (s *settings) endToEnd(ctx context.Context) error {
	binary, err := envoyconf.Binary(os.Getenv, ".")
	if err != nil {
		return err
	}
	minter, err := authn.NewMinter(filepath.Join(s.work, "key.pem"))
	if err != nil {
		return err
	}
	var requests [][]byte
	for i := range s.tokens {
		token, err := minter.Mint(authn.MintOptions{User: fmt.Sprintf("user-%06d", i), Tier: "admin"})
		if err != nil {
			return err
		}
		requests = append(requests, fmt.Appendf(nil, "GET /orders/%d HTTP/1.1\r\nHost: bench\r\nUser-Agent: bench/1.0\r\nAuthorization: Bearer %s\r\n\r\n", i, token))
	}
	found := map[string][]passage{}
	for i := range s.runs {
		for _, w := range ways() {
			fmt.Fprintf(s.out, "\r\033[Krun %d of %d: %s", i+1, s.runs, w.name)
			p, err := s.through(ctx, binary, w, requests)
			if err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
			found[w.name] = append(found[w.name], p)
		}
	}
	fmt.Fprintf(s.out, "\r\033[K%-18s %9s %9s %9s %9s %9s %11s %11s\n", "CPU µs/request", "Envoy", "servers", "Redis", "added", "req/s", "p50 µs", "p99 µs")
	base := 0.0
	for _, w := range ways() {
		m := func(get func(passage) float64) float64 {
			var all []float64
			for _, p := range found[w.name] {
				all = append(all, get(p))
			}
			slices.Sort(all)
			return all[len(all)/2]
		}
		cpu := m(func(p passage) float64 { return p.envoy + p.servers })
		if base == 0 {
			base = cpu
		}
		fmt.Fprintf(s.out, "%-18s %9.1f %9.1f %9.1f %9.1f %9.0f %11.0f %11.0f\n", w.name,
			m(func(p passage) float64 { return p.envoy }), m(func(p passage) float64 { return p.servers }), m(func(p passage) float64 { return p.redis }),
			cpu-base, m(func(p passage) float64 { return p.rate }), m(func(p passage) float64 { return p.p50 }), m(func(p passage) float64 { return p.p99 }))
	}
	fmt.Fprintf(s.out, "Envoy (one worker) and servers on one core; load, backend and Redis on the other. CPU and req/s at full load on %d connections,\nlatencies at %d requests a second. added: Envoy and servers, beyond no filter.\n", connections, pace)
	return nil
}

// through starts what a way needs, drives it, and stops everything.
func (s *settings) through(ctx context.Context, binary string, w way, requests [][]byte) (passage, error) {
	var addrs []string
	for range 6 {
		a, err := freeAddr()
		if err != nil {
			return passage{}, err
		}
		addrs = append(addrs, a)
	}
	redisAddr, backend, authz, ratelimit, public, admin := addrs[0], addrs[1], addrs[2], addrs[3], addrs[4], addrs[5]
	var running []*pinned
	defer func() {
		for _, p := range running {
			p.stop()
		}
	}()
	begin := func(cpu int, log, addr string, env []string, name string, args ...string) (*pinned, error) {
		p, err := start(ctx, cpu, filepath.Join(s.work, log+".log"), addr, env, name, args...)
		if err == nil {
			running = append(running, p)
		}
		return p, err
	}
	_, port, _ := strings.Cut(redisAddr, ":")
	redis, err := begin(1, "redis", redisAddr, nil, "redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", s.work)
	if err != nil {
		return passage{}, err
	}
	if _, err := begin(1, "backend", backend, nil, s.self, "backend", backend); err != nil {
		return passage{}, err
	}
	var servers []*pinned
	if w.noop {
		p, err := begin(0, "noop", authz, nil, s.self, "noop", authz)
		if err != nil {
			return passage{}, err
		}
		servers = append(servers, p)
	}
	for _, process := range []struct {
		run        bool
		name, addr string
		env        []string
	}{
		{w.authz && !w.noop, "authz", authz, append(slices.Clone(w.env), "TOLLGATE_MODE=development", "TOLLGATE_DEVELOPMENT_KEY_FILE="+filepath.Join(s.work, "key.pem"), "TOLLGATE_HTTP_LISTEN=127.0.0.1:0")},
		{w.ratelimit, "ratelimit", ratelimit, nil},
	} {
		if !process.run {
			continue
		}
		env := slices.Concat(process.env, []string{"TOLLGATE_GRPC_LISTEN=" + process.addr, "TOLLGATE_OPERATIONS_LISTEN=127.0.0.1:0", "TOLLGATE_REDIS_URL=redis://" + redisAddr, "TOLLGATE_LOG_LEVEL=warn"})
		p, err := begin(0, process.name, process.addr, env, filepath.Join(s.bin, process.name), "-config", filepath.Join(s.config, process.name+".yaml"))
		if err != nil {
			return passage{}, err
		}
		servers = append(servers, p)
	}
	o := envoyconf.Options{Listener: public, Admin: admin, AccessLog: "/dev/null", Clusters: map[string][]envoyconf.Endpoint{
		envoyconf.ClusterAuthz: {{Address: authz}}, envoyconf.ClusterRateLimit: {{Address: ratelimit}},
		envoyconf.ClusterBackend: {{Address: backend}}, envoyconf.ClusterPyproxy: {{Address: backend}},
	}}
	if w.change != nil {
		w.change(&o)
	}
	path := filepath.Join(s.work, "envoy.yaml")
	if err := writeEnvoy(path, o, w); err != nil {
		return passage{}, err
	}
	envoy, err := begin(0, "envoy", public, nil, binary, "-c", path, "--concurrency", "1", "--disable-hot-restart", "--log-level", "error")
	if err != nil {
		return passage{}, err
	}
	return s.traverse(ctx, public, requests, envoy, servers, redis)
}

// writeEnvoy writes the shipped configuration with a way's changes.
func writeEnvoy(path string, o envoyconf.Options, w way) error {
	b, err := envoyconf.Load(filepath.Join("envoy", "envoy.yaml"))
	if err != nil {
		return err
	}
	if b, err = envoyconf.Render(b, o); err != nil {
		return err
	}
	if !w.authz {
		err = without(b, "envoy.filters.http.ext_authz", "envoy.filters.http.ratelimit")
	} else if !w.ratelimit && !o.OneCall {
		err = without(b, "envoy.filters.http.ratelimit")
	}
	return errors.Join(err, envoyconf.WriteFile(path, b))
}

// without removes HTTP filters from the first listener.
func without(b *bootstrapv3.Bootstrap, names ...string) error {
	packed := b.GetStaticResources().GetListeners()[0].GetFilterChains()[0].GetFilters()[0].GetTypedConfig()
	var manager hcmv3.HttpConnectionManager
	if err := packed.UnmarshalTo(&manager); err != nil {
		return err
	}
	manager.HttpFilters = slices.DeleteFunc(manager.GetHttpFilters(), func(f *hcmv3.HttpFilter) bool { return slices.Contains(names, f.GetName()) })
	changed, err := anypb.New(&manager)
	if err != nil {
		return err
	}
	packed.Value = changed.GetValue()
	return nil
}

// traverse loads Envoy: once as fast as it goes, for what a request costs, and
// once at pace, for how long it takes.
func (s *settings) traverse(ctx context.Context, addr string, requests [][]byte, envoy *pinned, servers []*pinned, redis *pinned) (passage, error) {
	// Until every cluster is found healthy, answers are 503.
	if err := until(ctx, readyWithin, func() error { _, err := drive(ctx, addr, requests[:1], time.Millisecond, 0); return err }); err != nil {
		return passage{}, err
	}
	if _, err := drive(ctx, addr, requests, s.warm, 0); err != nil {
		return passage{}, err
	}
	used := func() (u [3]int64, err error) {
		for i, group := range [][]*pinned{{envoy}, servers, {redis}} {
			for _, p := range group {
				cpu, e := p.cpu()
				u[i] += cpu
				err = errors.Join(err, e)
			}
		}
		return u, err
	}
	before, err1 := used()
	began := time.Now()
	full, err2 := drive(ctx, addr, requests, s.window, 0)
	took := time.Since(began)
	after, err3 := used()
	paced, err4 := drive(ctx, addr, requests, s.window, pace)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return passage{}, err
	}
	n := float64(len(full))
	slices.Sort(paced)
	at := func(p float64) float64 {
		return float64(paced[min(len(paced)-1, int(p*float64(len(paced))))].Nanoseconds()) / 1e3
	}
	return passage{
		envoy: float64(after[0]-before[0]) / n, servers: float64(after[1]-before[1]) / n, redis: float64(after[2]-before[2]) / n,
		rate: n / took.Seconds(), p50: at(0.5), p99: at(0.99),
	}, nil
}

func until(ctx context.Context, patience time.Duration, attempt func() error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := attempt()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}

// drive sends requests on all connections for a while, rate a second together
// where it is not 0, and returns how long each took. Any answer but 200 is an
// error. At a rate a request's time begins when it was due.
func drive(ctx context.Context, addr string, requests [][]byte, window time.Duration, rate int) ([]time.Duration, error) {
	var mu sync.Mutex
	var all []time.Duration
	var errs []error
	var conns sync.WaitGroup
	end := time.Now().Add(window)
	for i := range connections {
		conns.Go(func() {
			took, err := converse(ctx, addr, requests, end, i, rate)
			mu.Lock()
			defer mu.Unlock()
			all = append(all, took...)
			errs = append(errs, err)
		})
	}
	conns.Wait()
	return all, errors.Join(errs...)
}

func converse(ctx context.Context, addr string, requests [][]byte, end time.Time, i, rate int) ([]time.Duration, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(end.Add(10 * time.Second)); err != nil {
		return nil, err
	}
	in := bufio.NewReader(conn)
	var all []time.Duration
	due := time.Now()
	var gap time.Duration
	if rate > 0 {
		gap = connections * time.Second / time.Duration(rate)
		due = due.Add(time.Duration(i) * gap / connections)
	}
	for {
		if rate > 0 {
			time.Sleep(time.Until(due))
		} else {
			due = time.Now()
		}
		if _, err := conn.Write(requests[rand.IntN(len(requests))]); err != nil { //nolint:gosec // a choice of load, not a secret
			return nil, err
		}
		response, err := http.ReadResponse(in, nil)
		if err != nil {
			return nil, err
		}
		_, err = io.Copy(io.Discard, response.Body)
		if err = errors.Join(err, response.Body.Close()); err != nil {
			return nil, err
		}
		if response.StatusCode != http.StatusOK {
			return nil, errors.New("the answer is " + strconv.Itoa(response.StatusCode))
		}
		all = append(all, time.Since(due))
		due = due.Add(gap)
		if !time.Now().Before(end) {
			return all, nil
		}
	}
}

// serveBackend answers everything.
func serveBackend(addr string) error {
	server := &http.Server{Addr: addr, ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "ok")
	})}
	return server.ListenAndServe()
}
