package e2e

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/apiclient"
	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/envoyconf"
	"github.com/tollgate-proxy/tollgate/internal/stack"
	"github.com/tollgate-proxy/tollgate/internal/supervisor"
)

// TestSystem starts everything once. Its subtests run in this order, and the last
// one looks at what all of them left in the logs.
func TestSystem(t *testing.T) {
	s := startSystem(t)
	for _, part := range []struct {
		name string
		test func(*testing.T, *system)
	}{
		{"tour", testTour},
		{"headers", testHeaders},
		{"ofrep", testOFREP},
		{"paths", testPaths},
		{"tokens", testTokens},
		{"limits", testLimits},
		{"problems", testProblems},
		{"oversize", testOversize},
		{"slow clients", testSlowClients},
		{"malformed calls", testMalformedCalls},
		{"requests to be logged", testLogged},
		{"tracing", testTracing},
		{"metrics", testMetrics},
		{"guides", testGuides},
		{"reload", testReload},
		{"python faults", testPythonFaults},
		{"logs", testLogs},
		{"backend down", testBackendDown},
		{"authz down", testAuthzDown},
		{"ratelimit down", testRatelimitDown},
		{"hangs", testHangs},
		{"runbook", testRunbook},
		{"redis down at start", testRedisDownAtStart},
		{"redis down mid-run", testRedisDownMidRun},
		{"drain", testDrain},
		{"secrets", testSecrets},
	} {
		t.Run(part.name, func(t *testing.T) {
			t.Cleanup(func() { s.repair(t) })
			part.test(t, s)
		})
	}
}

// system is everything running, and what tests need to use and break it.
type system struct {
	*stack.Stack
	work      string
	redis     *redisServer
	minter    *authn.Minter
	api       *apiclient.Client
	collector *collector
	rogue     *rogue
	// second is a replica of authz that Envoy knows and that is not running unless
	// a test starts it.
	second replica

	logged []logged

	mu      sync.Mutex
	secrets []string // what no log may hold
	died    []error  // parts that ended by themselves
}

// replica holds the addresses of a process of ours.
type replica struct{ grpc, http, operations string }

func (r replica) env() []string {
	env := []string{"TOLLGATE_GRPC_LISTEN=" + r.grpc, "TOLLGATE_OPERATIONS_LISTEN=" + r.operations}
	if r.http != "" {
		env = append(env, "TOLLGATE_HTTP_LISTEN="+r.http)
	}
	return env
}

// The times that the tests would otherwise wait for.
const (
	attemptTimeout = "1500ms"
	breakerReset   = "1s"
	drainDelay     = "4s" // longer than Envoy's health checks take to notice, on a slow machine too
)

// The deadlines of what a request waits for are for machines that are fast enough
// for them: past them it is refused, or passes unlimited, or is limited by one
// process alone. Where a test is not about that, nothing is late.
const (
	unhurried  = 10 * time.Second // how long Envoy waits for authz and ratelimit
	storeWaits = "1s"             // how long ratelimit waits for Redis, and with limits in one call authz
)

func startSystem(t *testing.T) *system {
	t.Helper()
	// The logs stay for whoever wants to know what happened.
	s := &system{work: filepath.Join(root, "var", "e2e")}
	err := os.RemoveAll(s.work)
	if err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(s.work, "signing-key.pem")
	if s.minter, err = authn.NewMinter(key); err != nil {
		t.Fatal(err)
	}
	free := freeAddresses(t, 3)
	s.second = replica{grpc: free[0], http: free[1], operations: free[2]}
	s.collector = startCollector(t)
	s.rogue = startRogue(t)
	s.redis = startRedis(t, filepath.Join(s.work, "redis"))
	s.hide(s.redis.password)
	options := stack.Options{
		ReadyWithin: 3 * time.Minute, Grace: patience,
		Root: root, Bin: programs, Work: s.work, KeyFile: key,
		EnvoyPath: os.Getenv(envoyconf.BinaryVariable), RedisURL: s.redis.url(), Faults: true,
		Environ:    environ(),
		Env:        s.environment(),
		EditConfig: s.editConfig,
		EditEnvoy: func(o *envoyconf.Options) {
			o.TraceCollector, o.TraceSampling = s.collector.grpc, 100
			o.Clusters[envoyconf.ClusterAuthz] = append(o.Clusters[envoyconf.ClusterAuthz], envoyconf.Endpoint{Address: s.second.grpc})
			o.DecisionTimeout = unhurried
		},
		OnExit: func(e *stack.ExitError) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.died = append(s.died, e)
		},
	}
	// A port that was free may be taken by the time that it is wanted.
	for attempt := 1; s.Stack == nil; attempt++ {
		for options.Ports = nil; options.Ports == nil || !reserve(slices.Collect(maps.Values(options.Ports))); {
			if options.Ports, err = stack.FreePorts(); err != nil {
				t.Fatal(err)
			}
		}
		if s.Stack, err = stack.Start(t.Context(), options); err != nil && (attempt == 3 || !strings.Contains(err.Error(), "in use")) {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Errorf("stop: %v", err)
		}
		s.checkAlive(t)
	})
	s.hide(s.Operator().Token)
	if s.api, err = apiclient.New(s.Operator().URL, s.Operator().Token, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	s.repair(t)
	return s
}

// environment is what parts are told beyond the shipped configuration.
func (s *system) environment() map[string][]string {
	traced := []string{
		"TOLLGATE_TRACING_ENDPOINT=http://" + s.collector.grpc,
		"TOLLGATE_TRACING_SAMPLE_RATIO=1",
		"OTEL_BSP_SCHEDULE_DELAY=200",
	}
	env := map[string][]string{
		"authz":     append(traced[:3:3], "TOLLGATE_SHUTDOWN_DRAIN_DELAY="+drainDelay),
		"ratelimit": append(traced[:3:3], "TOLLGATE_STORE_TIMEOUT="+storeWaits),
		"pyproxy": append(traced[:3:3],
			"TOLLGATE_SHUTDOWN_DRAIN_DELAY="+drainDelay,
			"TOLLGATE_BREAKER_RESET="+breakerReset,
			"TOLLGATE_HEALTH_INTERVAL=500ms",
			"TOLLGATE_CACHE_REDIS_TIMEOUT="+storeWaits,
		),
	}
	for _, service := range stack.Services() {
		env[service] = []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + s.collector.http, "OTEL_BSP_SCHEDULE_DELAY=200"}
	}
	return env
}

// environ is this process's environment without what would change the tests.
func environ() []string {
	var env []string
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "TOLLGATE_") && !strings.HasPrefix(variable, "OTEL_") {
			env = append(env, variable)
		}
	}
	return env
}

func (s *system) environFor(extra ...string) []string { return append(environ(), extra...) }

// config is the path of the configuration that the stack gave a part.
func (s *system) config(part string) string { return filepath.Join(s.work, "config", part+".yaml") }

// spawn starts one more process, which ends with the test at the latest.
func (s *system) spawn(t *testing.T, name, program string, args, env []string) *supervisor.Process {
	t.Helper()
	p, err := supervisor.Start(supervisor.Spec{
		Name: name, Path: program, Args: args, Env: env, Dir: root,
		Log: filepath.Join(s.work, "logs", name+".log"),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Kill(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// mint makes a token that lasts an hour.
func (s *system) mint(t *testing.T, o authn.MintOptions) string {
	t.Helper()
	token, err := s.minter.Mint(o)
	if err != nil {
		t.Fatal(err)
	}
	s.hide(token)
	return token
}

// user makes a user that nobody has met, and a token.
func (s *system) user(t *testing.T, tier string) (user, token string) {
	t.Helper()
	user = "e2e-" + strings.ToLower(rand.Text()[:10])
	return user, s.mint(t, authn.MintOptions{User: user, Tier: tier})
}

// hide names something that no log may hold.
func (s *system) hide(secret string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.secrets = append(s.secrets, secret)
}

// kill ends a part of the stack as a crash would.
func (s *system) kill(t *testing.T, part string) {
	t.Helper()
	if err := s.KillPart(part); err != nil {
		t.Fatal(err)
	}
}

// start starts a part of the stack and waits until it is ready.
func (s *system) start(t *testing.T, part string) {
	t.Helper()
	if err := s.StartPart(t.Context(), part); err != nil {
		t.Fatal(err)
	}
}

// repair brings back whatever a test left broken, so that the next one judges
// its own subject.
func (s *system) repair(t *testing.T) {
	t.Helper()
	s.redis.ensure(t)
	// The test's own context has ended where this is its cleanup.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 3*time.Minute)
	defer cancel()
	for _, part := range s.Status() {
		if !part.Running {
			if err := s.StartPart(ctx, part.Name); err != nil {
				t.Fatalf("repair: %v", err)
			}
		}
	}
	for _, service := range stack.Services() {
		s.fault(t, service, "")
	}
	_, token := s.user(t, "admin")
	await(t, "the gateway to serve every route", func() error {
		for _, ask := range []ask{
			{path: "/orders", token: token},
			{path: languages, token: token, header: fresh()},
			{path: "/api/v1/data/e2e/ok", token: token},
		} {
			if a, err := s.try(ask); err != nil || a.status != 200 {
				return errors.Join(err, fmt.Errorf("%s: %d %s", ask.path, a.status, a.body))
			}
		}
		return nil
	})
	s.checkAlive(t)
}

// checkAlive fails the test where a part ended although nobody asked it to.
func (s *system) checkAlive(t *testing.T) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, err := range s.died {
		t.Error(err)
	}
	s.died = nil
}

// log is what a part has written so far.
func (s *system) log(t *testing.T, part string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(s.LogFolder(), part+".log"))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// named are the ports that tests have named: what is to listen on one may do so
// later, or again.
var named = map[int]bool{}

// reserve names the ports, unless one is named already.
func reserve(ports []int) bool {
	if slices.ContainsFunc(ports, func(port int) bool { return named[port] }) {
		return false
	}
	for _, port := range ports {
		named[port] = true
	}
	return true
}

func freeAddresses(t *testing.T, n int) []string {
	t.Helper()
	var ports []int
	for ports == nil || !reserve(ports) {
		var err error
		if ports, err = supervisor.FreePorts(n); err != nil {
			t.Fatal(err)
		}
	}
	addresses := make([]string, n)
	for i, port := range ports {
		addresses[i] = fmt.Sprintf("127.0.0.1:%d", port)
	}
	return addresses
}

// patience is how long anything may take that is not a subject of a test: the
// machine may be busy with other things.
const patience = time.Minute

// await asks again and again until nothing is wrong.
func await(t *testing.T, what string, attempt func() error) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for {
		err := attempt()
		if err == nil {
			return
		}
		select {
		case <-deadline.C:
			t.Fatalf("waited %s for %s: %v", patience, what, err)
		case <-tick.C:
		}
	}
}
