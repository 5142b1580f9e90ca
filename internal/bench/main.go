// Command bench measures what a decision costs: CPU microseconds per request of
// our servers, beside a stock no-op gRPC server of the same grpc-go version
// under the same load in the same run. Machines differ and drift, so the ratio
// is the figure to keep.
//
// The server under test runs alone on processor 0; the load and Redis run on
// processor 1. Load: 4 connections with 16 calls in flight each, as Envoy sends
// them, 10,000 users (1,000 tokens). Runs alternate between the no-op and the
// server; medians are printed.
//
// e2e measures through the real Envoy instead: what each way of asking about a
// request adds (e2e.go).
//
// pyproxy measures that proxy beside a bare httputil.ReverseProxy, with what its
// promises name: CPU, latency at a fixed rate, hits of its cache, memory of idle
// connections and of a large body (pyproxy.go).
//
//	bench [-runs 3] [-window 5s] [-warm 2s] [-bin bin] [-config config] [rls] [authz] [pyproxy] [e2e]
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/protobuf/proto"

	"github.com/tollgate-proxy/tollgate/internal/authn"
)

func main() {
	if err := run(context.Background(), os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// settings of one invocation.
type settings struct {
	runs   int
	window time.Duration
	warm   time.Duration
	bin    string
	config string
	work   string
	self   string
	users  int
	tokens int
	// clients are the idle connections to pyproxy, measured after settled.
	clients int
	settled time.Duration
	out     io.Writer
}

func run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) == 2 && args[0] == "noop" {
		return serveNoop(args[1])
	}
	if len(args) == 2 && args[0] == "backend" {
		return serveBackend(args[1])
	}
	if len(args) == 2 && args[0] == "service" {
		return serveService(args[1])
	}
	if len(args) == 3 && args[0] == "bare" {
		return serveBare(args[1], args[2])
	}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	s := &settings{users: 10_000, tokens: 1000, clients: idleClients, settled: settled, out: out}
	flags.IntVar(&s.runs, "runs", 3, "measured runs of each server")
	flags.DurationVar(&s.window, "window", 5*time.Second, "length of a run")
	flags.DurationVar(&s.warm, "warm", 2*time.Second, "load before each run that is not measured")
	flags.StringVar(&s.bin, "bin", "bin", "`FOLDER` of our programs")
	flags.StringVar(&s.config, "config", "config", "`FOLDER` of their configuration")
	if err := flags.Parse(args); err != nil {
		return err
	}
	which := flags.Args()
	if len(which) == 0 {
		which = []string{"rls", "authz", "pyproxy"}
	}
	if runtime.NumCPU() < 2 {
		return errors.New("two processors are needed: one for the server, one for the load")
	}
	for _, tool := range []string{"taskset", "redis-server"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is not installed: %w", tool, err)
		}
	}
	var err error
	if s.self, err = os.Executable(); err != nil {
		return err
	}
	if s.work, err = os.MkdirTemp("", "tollgate-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(s.work)
	// The load shares a processor with Redis, not with the server.
	if err := pinSelf(ctx, 1); err != nil {
		return err
	}
	for _, name := range which {
		var contests []*contest
		switch name {
		case "rls":
			contests, err = s.rls()
		case "authz":
			contests, err = s.authz()
		case "e2e", "pyproxy":
			measure := s.endToEnd
			if name == "pyproxy" {
				measure = s.pyproxy
			}
			if err := measure(ctx); err != nil {
				return err
			}
			continue
		default:
			err = fmt.Errorf("unknown server %q: rls, authz, pyproxy or e2e", name)
		}
		if err != nil {
			return err
		}
		for _, c := range contests {
			if err := s.measure(ctx, c); err != nil {
				return err
			}
		}
	}
	return nil
}

// pinSelf binds this process, with all its threads, to a processor.
func pinSelf(ctx context.Context, cpu int) error {
	text, err := exec.CommandContext(ctx, "taskset", "-a", "-c", "-p", fmt.Sprint(cpu), fmt.Sprint(os.Getpid())).CombinedOutput()
	if err != nil {
		return fmt.Errorf("taskset: %w: %s", err, text)
	}
	return nil
}

// contest is a server of ours and the load for it.
type contest struct {
	name     string
	binary   string
	env      []string // listen addresses are added
	listen   string   // variable of the gRPC side
	others   []string // variables of the other sides
	method   string
	messages [][]byte
	classify func([]byte) kind
	// refusals are as good as passes: a limit that is reached is a decision too.
	refusals bool
}

func (s *settings) authz() ([]*contest, error) {
	key := filepath.Join(s.work, "key.pem")
	minter, err := authn.NewMinter(key)
	if err != nil {
		return nil, err
	}
	c := &contest{
		name: "authz", binary: "authz", listen: "TOLLGATE_GRPC_LISTEN", others: []string{"TOLLGATE_OPERATIONS_LISTEN", "TOLLGATE_HTTP_LISTEN"},
		env:    []string{"TOLLGATE_MODE=development", "TOLLGATE_DEVELOPMENT_KEY_FILE=" + key},
		method: authv3.Authorization_Check_FullMethodName,
		classify: func(m []byte) kind {
			var a authv3.CheckResponse
			if proto.Unmarshal(m, &a) == nil && a.GetStatus().GetCode() == 0 {
				return passed
			}
			return refused
		},
	}
	for i := range s.tokens {
		token, err := minter.Mint(authn.MintOptions{User: fmt.Sprintf("user-%06d", i), Tier: "premium", Roles: []string{"reader", "writer"}, Session: fmt.Sprintf("s-%06d", i)})
		if err != nil {
			return nil, err
		}
		m, err := proto.Marshal(&authv3.CheckRequest{Attributes: &authv3.AttributeContext{
			Source: peer("127.0.0.1", 51000), Destination: peer("127.0.0.1", 10000),
			Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
				Id: fmt.Sprint(i), Method: "GET", Path: fmt.Sprintf("/api/items/%d", i), Host: "localhost", Scheme: "http", Protocol: "HTTP/1.1",
				Headers: map[string]string{
					"authorization": "Bearer " + token, "user-agent": "bench/1.0", "x-request-id": fmt.Sprintf("00000000-0000-4000-8000-%012d", i),
					"x-envoy-external-address": "192.0.2.7", ":method": "GET", ":path": fmt.Sprintf("/api/items/%d", i), ":authority": "localhost", ":scheme": "http",
				},
			}},
		}})
		if err != nil {
			return nil, err
		}
		c.messages = append(c.messages, m)
	}
	return []*contest{c}, nil
}

func peer(address string, port uint32) *authv3.AttributeContext_Peer {
	return &authv3.AttributeContext_Peer{Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: address, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
	}}}}
}

// figures of one run.
type figures struct {
	server, redis float64 // CPU microseconds per request
	rate          float64 // requests per second
	p50, p99      int32   // microseconds
	refused       float64 // share
}

func (s *settings) measure(ctx context.Context, c *contest) error {
	var base, ours []figures
	for i := range s.runs {
		fmt.Fprintf(s.out, "%s: run %d of %d\r", c.name, i+1, s.runs)
		b, err := s.once(ctx, c, true)
		if err != nil {
			return err
		}
		o, err := s.once(ctx, c, false)
		if err != nil {
			return err
		}
		base, ours = append(base, b), append(ours, o)
	}
	fmt.Fprintf(s.out, "%-22s %10s %10s %10s %8s %8s %8s\n", c.name, "CPU µs/req", "Redis µs", "req/s", "p50 µs", "p99 µs", "refused")
	row := func(name string, f []figures) float64 {
		m := func(get func(figures) float64) float64 { return median(f, get) }
		server := m(func(f figures) float64 { return f.server })
		fmt.Fprintf(s.out, "  %-20s %10.1f %10.1f %10.0f %8.0f %8.0f %7.0f%%\n", name, server,
			m(func(f figures) float64 { return f.redis }), m(func(f figures) float64 { return f.rate }),
			m(func(f figures) float64 { return float64(f.p50) }), m(func(f figures) float64 { return float64(f.p99) }),
			100*m(func(f figures) float64 { return f.refused }))
		return server
	}
	n := row("no-op", base)
	fmt.Fprintf(s.out, "  ratio to no-op: %.2f\n\n", row(c.binary, ours)/n)
	return nil
}

func median(f []figures, get func(figures) float64) float64 {
	f = slices.SortedFunc(slices.Values(f), func(a, b figures) int { return cmp.Compare(get(a), get(b)) })
	return get(f[len(f)/2])
}

// once starts a server with a fresh Redis, loads it, and stops both.
func (s *settings) once(ctx context.Context, c *contest, noop bool) (figures, error) {
	redisAddr, err := freeAddr()
	if err != nil {
		return figures{}, err
	}
	_, port, _ := strings.Cut(redisAddr, ":")
	redis, err := start(ctx, 1, filepath.Join(s.work, "redis.log"), redisAddr, nil, "redis-server",
		"--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", s.work)
	if err != nil {
		return figures{}, err
	}
	defer redis.stop()
	addr, err := freeAddr()
	if err != nil {
		return figures{}, err
	}
	name, args := s.self, []string{"noop", addr}
	env := slices.Clone(c.env)
	if !noop {
		name, args = filepath.Join(s.bin, c.binary), []string{"-config", filepath.Join(s.config, c.binary+".yaml")}
		env = append(env, "TOLLGATE_REDIS_URL=redis://"+redisAddr, "TOLLGATE_LOG_LEVEL=warn", c.listen+"="+addr)
		for _, v := range c.others {
			env = append(env, v+"=127.0.0.1:0")
		}
	}
	server, err := start(ctx, 0, filepath.Join(s.work, "server.log"), addr, env, name, args...)
	if err != nil {
		return figures{}, err
	}
	defer server.stop()
	l := &load{addr: addr, method: c.method, messages: c.messages, conns: 4, inflight: 16, classify: c.classify}
	return s.drive(ctx, l, server, redis, c.refusals)
}

// readyWithin is how long a server may take to be ready.
const readyWithin = 20 * time.Second

// drive loads a server, and accounts for the window after the warm-up.
func (s *settings) drive(ctx context.Context, l *load, server, redis *pinned, refusals bool) (figures, error) {
	// A server listens before it is ready, and refuses until then.
	for waiting := time.Now(); ; {
		var r result
		warm, cancel := context.WithTimeout(ctx, s.warm)
		err := l.run(warm, &r)
		cancel()
		if err != nil {
			return figures{}, err
		}
		if refusals || r.passed.Load() > 0 || time.Since(waiting) > readyWithin {
			break
		}
	}
	before, err1 := server.cpu()
	redisBefore, err2 := redis.cpu()
	var r result
	window, cancel := context.WithTimeout(ctx, s.window)
	defer cancel()
	began := time.Now()
	err3 := l.run(window, &r)
	took := time.Since(began)
	after, err4 := server.cpu()
	redisAfter, err5 := redis.cpu()
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		return figures{}, err
	}
	n := float64(r.requests())
	if bad := r.failed.Load(); n == 0 || bad > 0 || !refusals && r.refused.Load() > 0 {
		text := "none"
		if p := r.failure.Load(); p != nil {
			text = *p
		}
		log, _ := os.ReadFile(server.log)
		return figures{}, fmt.Errorf("of %.0f calls %d failed (%s) and %d were refused; the server's log: %s", n, bad, text, r.refused.Load(), log)
	}
	return figures{
		server: float64(after-before) / n, redis: float64(redisAfter-redisBefore) / n, rate: n / took.Seconds(),
		p50: r.percentile(0.5), p99: r.percentile(0.99), refused: float64(r.refused.Load()) / n,
	}, nil
}
