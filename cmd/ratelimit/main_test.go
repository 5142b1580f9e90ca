package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
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
	"github.com/tollgate-proxy/tollgate/internal/logtest"
	"github.com/tollgate-proxy/tollgate/internal/polltest"
	"github.com/tollgate-proxy/tollgate/internal/ratelimit"
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
		"no poll":            {"limits: {files: [l], overrides_poll: 0s}", "limits.overrides_poll"},
		"bad management":     {"limits: {files: [l]}\nmanagement: {listen: there}", "management.listen"},
		"twin clients":       {"limits: {files: [l]}\nmanagement: {clients: [{name: a, secret_sha256: " + strings.Repeat("0", 64) + ", roles: [admin]}, {name: a, secret_sha256: " + strings.Repeat("1", 64) + ", roles: [admin]}]}", "management.clients"},
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

// running is the whole process inside the test.
type running struct {
	t          *testing.T
	client     rlsv3.RateLimitServiceClient
	health     grpc_health_v1.HealthClient
	operations string
	management string
	rules      string
	config     string // its file
	secret     string // of call
	log        *logtest.Buffer
}

const rulesText = "domain: tollgate\ntiers: {entry: tier, subjects: [user], default: free, table: [{name: free, limits: [{unit: hour, requests_per_unit: LIMIT}]}, {name: big, limits: [{unit: hour, requests_per_unit: 1000}]}]}\n"

func hashed(secret string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(secret))) }

func start(t *testing.T, redisAddr string, environ ...string) *running {
	t.Helper()
	dir := t.TempDir()
	r := &running{t: t, operations: redistest.FreeAddr(t), management: redistest.FreeAddr(t), rules: filepath.Join(dir, "rules.yaml"), config: filepath.Join(dir, "ratelimit.yaml"), secret: "secret", log: &logtest.Buffer{}}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(r.log)
		}
	})
	listen := redistest.FreeAddr(t)
	r.write("10")
	text := "limits: {files: [rules.yaml]}\nredis: {url: 'redis://" + redisAddr + "'}\ngrpc: {listen: '" + listen +
		"'}\noperations: {listen: '" + r.operations + "'}\nshutdown: {drain_delay: 0s}\nstore: {timeout: 250ms, probe_interval: 20ms}\n" +
		"management: {listen: '" + r.management + "', clients: [{name: support, roles: [operator], secret_sha256: " + hashed(r.secret) + "}]}\n"
	if err := os.WriteFile(r.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ended := make(chan int, 1)
	go func() { ended <- app.Main(process(), []string{"-config", r.config}, environ, r.log, r.log) }()
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
	polltest.Until(t, "ready", func() bool {
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

// append adds a line to the rule file.
func (r *running) append(line string) {
	r.t.Helper()
	text, err := os.ReadFile(r.rules)
	if err == nil {
		err = os.WriteFile(r.rules, append(text, line...), 0o600)
	}
	if err != nil {
		r.t.Fatal(err)
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
	polltest.Until(t, "the new rules are in force", func() bool {
		return r.ask("b").GetStatuses()[0].GetCurrentLimit().GetRequestsPerUnit() == 20
	})
	r.write("many")
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	polltest.Until(t, "the log says why", func() bool { return strings.Contains(r.log.String(), "requests_per_unit") })
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
	polltest.Until(t, "redis is used again", func() bool { return r.metric("tollgate_ratelimit_degraded") == "0" })
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
	polltest.Until(t, "redis is used", func() bool { return r.metric("tollgate_ratelimit_degraded") == "0" })
	if got := r.ask("a").GetOverallCode(); got != rlsv3.RateLimitResponse_OVER_LIMIT {
		t.Errorf("recovery granted a burst: %s", got)
	}
}

// call calls the management API and returns the status and the body.
func (r *running) call(method, path, body string) (int, string) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), method, "http://"+r.management+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+r.secret)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil {
		r.t.Fatal(err)
	}
	return resp.StatusCode, b.String()
}

func TestManagement(t *testing.T) {
	server := redistest.NewProcess(t)
	r := start(t, server.Addr())
	for range 4 {
		r.ask("alice")
	}
	until := time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
	for _, c := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"GET", "/v1/limits/alice?tier=free", "", 200, `"remaining":6`},
		{"GET", "/v1/limits/alice?tier=free", "", 200, `"remaining":6`}, // looking charges nothing
		{"GET", "/v1/limits/alice?domain=other", "", 404, "not_found"},
		{"GET", "/v1/limits/alice?entry=colour", "", 404, "not_found"},
		{"POST", "/v1/limits/alice/reset?reason=sorry", "", 204, ""},
		{"POST", "/v1/limits/alice/reset?entry=colour", "", 404, ""},
		{"GET", "/v1/limits/alice", "", 200, `"remaining":10`},
		{"PUT", "/v1/limits/alice/override", `{"tier":"big"`, 400, "request_invalid"},
		{"PUT", "/v1/limits/alice/override", `{"tier":"none","until":"` + until + `"}`, 400, "no tier"},
		{"PUT", "/v1/limits/alice/override", `{"tier":"big","until":"2001-01-01T00:00:00Z"}`, 400, "in the past"},
		{"PUT", "/v1/limits/alice/override", `{"tier":"big","until":"` + until + `"}`, 200, until},
		{"GET", "/v1/limit-overrides", "", 200, `"subject":"alice"`},
		{"GET", "/v1/limits/alice", "", 200, `"limit":1000`},
		{"DELETE", "/v1/limits/alice/override", "", 204, ""},
		{"GET", "/v1/limits/alice", "", 200, `"limit":10,`},
		{"DELETE", "/v1/limits/alice", "", 404, "not_found"},
	} {
		if status, body := r.call(c.method, c.path, c.body); status != c.status || !strings.Contains(body, c.want) {
			t.Errorf("%s %s: %d %s", c.method, c.path, status, body)
		}
	}
	for _, want := range []string{`"action":"limit.reset","target":"alice"`, `"reason":"sorry"`, `"action":"limit.override","target":"alice to big until `, `"action":"limit.override.end"`, `"actor":"support"`} {
		if !strings.Contains(r.log.String(), want) {
			t.Errorf("the audit has no %s:\n%s", want, r.log)
		}
	}
	// Looking charged nothing, and was not counted.
	if got := r.metric(`tollgate_ratelimit_decisions_total{domain="tollgate",outcome="allowed",path="exact",rule="tier.free"}`); got != "4" {
		t.Errorf("%q decisions are counted, want 4", got)
	}
	resp, err := http.Get("http://" + r.management + "/v1/limits/alice") //nolint:noctx // Without credentials.
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("without credentials: %d", resp.StatusCode)
	}
	server.Kill()
	for _, c := range [][2]string{{"GET", "/v1/limits/alice"}, {"POST", "/v1/limits/alice/reset"}, {"DELETE", "/v1/limits/alice/override"}} {
		if status, body := r.call(c[0], c[1], ""); status != 503 || !strings.Contains(body, "dependency_unavailable") {
			t.Errorf("%v without redis: %d %s", c, status, body)
		}
	}
}

// TestManagementClientsReload: who may call the API changes with the file, and
// stays as it is where the file is faulty.
func TestManagementClientsReload(t *testing.T) {
	r := start(t, redistest.Server(t))
	text, err := os.ReadFile(r.config)
	if err != nil {
		t.Fatal(err)
	}
	write := func(from, to string) {
		t.Helper()
		if err := os.WriteFile(r.config, []byte(strings.Replace(string(text), from, to, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	allowed := func(secret string) bool {
		r.secret = secret
		status, _ := r.call("GET", "/v1/limit-overrides", "")
		return status == http.StatusOK
	}
	write(hashed("secret"), hashed("another secret"))
	polltest.Until(t, "the new client may call", func() bool { return allowed("another secret") })
	if allowed("secret") {
		t.Error("the client that is gone may call")
	}
	write(hashed("secret"), "no hash")
	polltest.Until(t, "the reload is refused", func() bool { return strings.Contains(r.log.String(), "reload refused") })
	if !allowed("another secret") {
		t.Error("the client may not call after a faulty change")
	}
	if strings.Contains(r.log.String(), "with a restart only") {
		t.Error("clients are said to need a restart")
	}
}

// TestTooManyOverrides is told of as what it is, and not as the store's failure.
func TestTooManyOverrides(t *testing.T) {
	w := httptest.NewRecorder()
	refuse(w, httptest.NewRequestWithContext(t.Context(), http.MethodPut, "/v1/limits/a/override", nil), fmt.Errorf("keep: %w", ratelimit.ErrTooManyOverrides))
	if body := w.Body.String(); w.Code != http.StatusConflict || !strings.Contains(body, "too_many_overrides") || !strings.Contains(body, "100000") {
		t.Errorf("%d %s", w.Code, body)
	}
}
