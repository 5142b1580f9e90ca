package main

import (
	"bytes"
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/tollgate-proxy/tollgate/internal/app"
	"github.com/tollgate-proxy/tollgate/internal/config"
	"github.com/tollgate-proxy/tollgate/internal/configtest"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

func TestConfiguration(t *testing.T) { configtest.Process(t, process()) }

func TestFaults(t *testing.T) {
	for name, c := range map[string]struct{ yaml, want string }{
		"no rule file":       {"", "limits.files"},
		"bad listen":         {"limits: {files: [l]}\ngrpc: {listen: here}", "grpc.listen"},
		"a bare timeout":     {"limits: {files: [l]}\nstore: {timeout: 20}", "store.timeout"},
		"a long timeout":     {"limits: {files: [l]}\nstore: {timeout: 1h}", "1ms to 10s"},
		"an unknown mode":    {"limits: {files: [l]}\nstore: {on_failure: pray}", "local, allow or deny"},
		"no replica":         {"limits: {files: [l]}\nstore: {replicas: 0}", "store.replicas"},
		"less than nothing":  {"limits: {files: [l]}\nstore: {deny_cache: -1}", "store.deny_cache"},
		"a short lease":      {"limits: {files: [l]}\nstore: {lease_life: 1us}", "store.lease_life"},
		"few buckets":        {"limits: {files: [l]}\nstore: {local_buckets: 1}", "store.local_buckets"},
		"no failure":         {"limits: {files: [l]}\nstore: {failures: 0}", "store.failures"},
		"a probe all along":  {"limits: {files: [l]}\nstore: {probe_interval: 1us}", "store.probe_interval"},
		"an unknown section": {"limits: {files: [l]}\nquota: {}", "unknown key"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "ratelimit.yaml")
			if err := os.WriteFile(path, []byte(c.yaml), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := config.Load(path, nil, defaults()); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}

// output collects what the process writes.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// running is the whole process inside the test.
type running struct {
	t          *testing.T
	client     rlsv3.RateLimitServiceClient
	health     grpc_health_v1.HealthClient
	operations string
	rules      string
	log        *output
}

const rulesText = "domain: tollgate\ntiers: {entry: tier, subjects: [user], default: free, table: [{name: free, limits: [{unit: hour, requests_per_unit: LIMIT}]}]}\n"

func start(t *testing.T, redisAddr string) *running {
	t.Helper()
	dir := t.TempDir()
	r := &running{t: t, operations: redistest.FreeAddr(t), rules: filepath.Join(dir, "rules.yaml"), log: &output{}}
	listen := redistest.FreeAddr(t)
	r.write("10")
	file := filepath.Join(dir, "ratelimit.yaml")
	text := "limits: {files: [rules.yaml]}\nredis: {url: 'redis://" + redisAddr + "'}\ngrpc: {listen: '" + listen +
		"'}\noperations: {listen: '" + r.operations + "'}\nshutdown: {drain_delay: 0s}\nstore: {timeout: 250ms, probe_interval: 20ms}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ended := make(chan int, 1)
	go func() { ended <- app.Main(process(), []string{"-config", file}, nil, r.log, r.log) }()
	conn, err := grpc.NewClient(listen, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	r.client, r.health = rlsv3.NewRateLimitServiceClient(conn), grpc_health_v1.NewHealthClient(conn)
	t.Cleanup(func() {
		_ = conn.Close()
		if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		if code := <-ended; code != 0 {
			t.Errorf("exit code %d\n%s", code, r.log)
		}
	})
	r.eventually("ready", func() bool {
		resp, err := http.Get("http://" + r.operations + "/readyz") //nolint:noctx // A loopback probe that is tried again.
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	return r
}

func (r *running) write(limit string) {
	r.t.Helper()
	if err := os.WriteFile(r.rules, []byte(strings.ReplaceAll(rulesText, "LIMIT", limit)), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

func (r *running) eventually(what string, f func() bool) {
	r.t.Helper()
	deadline, tick := time.After(30*time.Second), time.NewTicker(5*time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-deadline:
			r.t.Fatalf("never: %s\n%s", what, r.log)
		case <-tick.C:
		}
	}
}

func (r *running) ask(user string) *rlsv3.RateLimitResponse {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 10*time.Second)
	defer cancel()
	out, err := r.client.ShouldRateLimit(ctx, &rlsv3.RateLimitRequest{Domain: "tollgate", Descriptors: []*commonv3.RateLimitDescriptor{{
		Entries: []*commonv3.RateLimitDescriptor_Entry{{Key: "tier", Value: "free"}, {Key: "user", Value: user}},
	}}})
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

func (r *running) metric(name string) string {
	r.t.Helper()
	resp, err := http.Get("http://" + r.operations + "/metrics") //nolint:noctx // A loopback probe.
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil {
		r.t.Fatal(err)
	}
	for line := range strings.Lines(b.String()) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(rest)
		}
	}
	return ""
}

// TestProcess runs the process against a real Redis that dies and comes back.
func TestProcess(t *testing.T) {
	server := redistest.NewProcess(t)
	r := start(t, server.Addr())
	if s, err := r.health.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{}); err != nil || s.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("health %v, %v", s, err)
	}
	for i := range 11 {
		if got := r.ask("a").GetOverallCode(); (got == rlsv3.RateLimitResponse_OK) != (i < 10) {
			t.Errorf("request %d: %s", i, got)
		}
	}

	// New rules; then faulty ones, which change nothing.
	r.write("20")
	r.eventually("the new rules are in force", func() bool {
		return r.ask("b").GetStatuses()[0].GetCurrentLimit().GetRequestsPerUnit() == 20
	})
	r.write("many")
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	r.eventually("the log says why", func() bool { return strings.Contains(r.log.String(), "requests_per_unit") })
	if got := r.ask("b").GetStatuses()[0].GetCurrentLimit().GetRequestsPerUnit(); got != 20 {
		t.Errorf("the limit is %d", got)
	}

	server.Kill()
	for i := range 30 {
		if got := r.ask("c").GetOverallCode(); (got == rlsv3.RateLimitResponse_OK) != (i < 20) {
			t.Errorf("without redis, request %d: %s", i, got)
		}
	}
	if got := r.metric("tollgate_ratelimit_degraded"); got != "1" {
		t.Errorf("degraded is %q", got)
	}
	server.Start()
	r.eventually("redis is used again", func() bool { return r.metric("tollgate_ratelimit_degraded") == "0" })
	if got := r.ask("c").GetOverallCode(); got != rlsv3.RateLimitResponse_OVER_LIMIT {
		t.Errorf("recovery granted a burst: %s", got)
	}
}

// TestProcessWithoutRedisAtStart shows that it starts, decides, and recovers.
func TestProcessWithoutRedisAtStart(t *testing.T) {
	server := redistest.NewProcess(t)
	server.Kill()
	r := start(t, server.Addr())
	for i := range 12 {
		if got := r.ask("a").GetOverallCode(); (got == rlsv3.RateLimitResponse_OK) != (i < 10) {
			t.Errorf("request %d: %s", i, got)
		}
	}
	server.Start()
	r.eventually("redis is used", func() bool { return r.metric("tollgate_ratelimit_degraded") == "0" })
	if got := r.ask("a").GetOverallCode(); got != rlsv3.RateLimitResponse_OVER_LIMIT {
		t.Errorf("recovery granted a burst: %s", got)
	}
}
