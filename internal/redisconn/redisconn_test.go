package redisconn

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/redis/go-redis/v9"
	"go.opentelemetry.io/otel/trace/noop"
	"pgregory.net/rapid"

	"github.com/tollgate-proxy/tollgate/internal/config"
	"github.com/tollgate-proxy/tollgate/internal/health"
	"github.com/tollgate-proxy/tollgate/internal/logtest"
	"github.com/tollgate-proxy/tollgate/internal/polltest"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

type root struct {
	Redis Config `yaml:"redis"`
}

func TestConfig(t *testing.T) {
	for _, text := range []string{
		"redis: {url: 'redis://u:p@h:1/2'}", "redis: {url: 'unix:///run/redis.sock'}", "redis: {mode: embedded}",
		"redis: {mode: sentinel, addresses: ['h:1'], master_name: m}", "redis: {mode: cluster, addresses: ['h:1'], tls: true}",
	} {
		if _, err := config.Decode("x.yaml", []byte(text), root{Default()}); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
	for text, want := range map[string]string{
		"redis: {mode: magic}":                        `redis.mode: "magic": one of standalone, sentinel, cluster, embedded`,
		"redis: {url: 'http://u:hunter2@h'}":          "redis.url: \"[redacted]\"",
		"redis: {mode: cluster}":                      "redis.addresses",
		"redis: {mode: sentinel, addresses: ['h:1']}": "redis.master_name",
		"redis: {tls_cert_file: x}":                   "redis.tls_cert_file",
		"redis: {pool_size: -1}":                      "redis.pool_size",
		"redis: {timeout: 2h}":                        "redis.timeout",
	} {
		_, err := config.Decode("x.yaml", []byte(text), root{Default()})
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: got %v", text, err)
		}
	}
}

// Two different lists of parts never make one key, and no part moves a key to
// another slot.
func TestKeysDoNotCollide(t *testing.T) {
	parts := rapid.SliceOfN(rapid.StringOfN(rapid.RuneFrom([]rune("ab:%{}_3A")), 0, 4, -1), 1, 3)
	rapid.Check(t, func(t *rapid.T) {
		a, b := parts.Draw(t, "a"), parts.Draw(t, "b")
		same := len(a) == len(b)
		for i := 0; same && i < len(a); i++ {
			same = a[i] == b[i]
		}
		if (Key(a...) == Key(b...)) != same {
			t.Errorf("%q and %q make %q and %q", a, b, Key(a...), Key(b...))
		}
		if strings.ContainsAny(Key(a...), "{}") {
			t.Errorf("a brace in %q", Key(a...))
		}
		if len(a) == 1 && Key(a[0]) != Prefix+Escape(a[0]) {
			t.Errorf("Escape differs from Key for %q", a[0])
		}
	})
}

func TestMonitorFollowsTheServer(t *testing.T) {
	p := redistest.NewProcess(t)
	p.Kill() // away at start
	var log logtest.Buffer
	logger := log.Logger()
	metrics := prometheus.NewRegistry()
	reg := health.New(logger, metrics)
	cfg := Default()
	cfg.URL = config.NewSecret("redis://" + p.Addr())
	cfg.PingInterval = 5 * time.Millisecond
	c, err := Open(cfg, Options{Log: logger, Metrics: metrics, Health: reg, Tracer: noop.NewTracerProvider(), Critical: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	reg.Start()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Monitor(ctx) }()

	polltest.Until(t, "the first failure is logged", func() bool { return strings.Contains(log.String(), "redis does not answer") })
	if reg.Ready() || testutil.ToFloat64(c.up) != 0 {
		t.Error("ready without Redis")
	}
	p.Start()
	polltest.Until(t, "ready", reg.Ready)
	p.Kill()
	polltest.Until(t, "not ready", func() bool { return !reg.Ready() })
	p.Start()
	polltest.Until(t, "ready again", reg.Ready)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n := strings.Count(log.String(), "redis does not answer"); n != 2 {
		t.Errorf("%d lines for two outages:\n%s", n, log.String())
	}
	if _, err := metrics.Gather(); err != nil {
		t.Error(err)
	}
}

func TestEmbeddedExpires(t *testing.T) {
	var log logtest.Buffer
	cfg := Default()
	cfg.Mode = Embedded
	c, err := Open(cfg, Options{Log: log.Logger()})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Set(t.Context(), "k", "v", 60*time.Millisecond).Err(); err != nil {
		t.Fatal(err)
	}
	polltest.Until(t, "the key expires", func() bool { return errors.Is(c.Get(t.Context(), "k").Err(), redis.Nil) })
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if !strings.Contains(log.String(), "nothing is kept") {
		t.Error("the embedded mode does not say that it keeps nothing")
	}
}

func TestSharedEmbedded(t *testing.T) {
	addr, stop, err := StartEmbedded("")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := StartEmbedded(addr); err == nil {
		t.Error("two servers on one port")
	}
	if err := redistest.Client(t, addr).Ping(t.Context()).Err(); err != nil {
		t.Error(err)
	}
	stop()
}

func TestOpenOtherModes(t *testing.T) {
	for _, m := range []string{Sentinel, Cluster} {
		cfg := Default()
		cfg.Mode, cfg.Addresses, cfg.MasterName = m, []string{"127.0.0.1:1"}, "m"
		c, err := Open(cfg, Options{Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatalf("%s: %v", m, err)
		}
		_ = c.Close()
	}
}

func TestTLSFiles(t *testing.T) {
	cfg := Default()
	cfg.URL = config.NewSecret("rediss://127.0.0.1:1")
	bad := filepath.Join(t.TempDir(), "bad.pem")
	if err := os.WriteFile(bad, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, f := range []func(*Config){
		func(c *Config) { c.TLSCAFile = config.Path(bad + ".none") },
		func(c *Config) { c.TLSCAFile = config.Path(bad) },
		func(c *Config) { c.TLSCertFile, c.TLSKeyFile = config.Path(bad), config.Path(bad) },
	} {
		c := cfg
		f(&c)
		if _, err := Open(c, Options{Log: slog.New(slog.DiscardHandler)}); err == nil || !strings.Contains(err.Error(), "redis.tls_c") {
			t.Errorf("got %v", err)
		}
	}
}

func TestCause(t *testing.T) {
	for want, err := range map[string]error{
		"canceled": context.Canceled, "timeout": context.DeadlineExceeded, "refused": errors.New("dial tcp: connection refused"),
		"readonly": errors.New("READONLY You can't write"), "auth": errors.New("NOAUTH Authentication required."), "error": errors.New("x"),
	} {
		if got := Cause(err); got != want {
			t.Errorf("%v: got %s, want %s", err, got, want)
		}
	}
}
