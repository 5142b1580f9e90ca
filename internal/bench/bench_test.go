package main

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"

	"github.com/tollgate-proxy/tollgate/internal/envoyconf"
	"github.com/tollgate-proxy/tollgate/internal/ratelimit"
)

// TestMain lets the test binary be the servers too, as the command is.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && !strings.HasPrefix(os.Args[1], "-") {
		if err := run(context.Background(), os.Args[1:], os.Stdout); err != nil {
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

func noopAddr(t *testing.T) string {
	t.Helper()
	addr, err := freeAddr()
	if err != nil {
		t.Fatal(err)
	}
	p, err := start(t.Context(), 0, filepath.Join(t.TempDir(), "log"), addr, nil, os.Args[0], "noop", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.stop)
	return addr
}

func TestLoadCountsAnswers(t *testing.T) {
	addr := noopAddr(t)
	s := &settings{users: 10, tokens: 10, work: t.TempDir()}
	contests, err1 := s.rls()
	more, err2 := s.authz()
	if err := errors.Join(err1, err2); err != nil || len(contests) != 3 {
		t.Fatalf("%d contests, %v", len(contests), err)
	}
	for _, c := range append(contests, more...) {
		ctx, cancel := context.WithCancel(t.Context())
		var r result
		l := &load{addr: addr, method: c.method, messages: c.messages, conns: 2, inflight: 4, classify: func(m []byte) kind {
			if r.requests() >= 200 {
				cancel()
			}
			return c.classify(m)
		}}
		if err := l.run(ctx, &r); err != nil {
			t.Fatal(err)
		}
		cancel()
		if r.passed.Load() < 200 || r.failed.Load() > 0 || r.refused.Load() > 0 || r.percentile(0.5) <= 0 || r.percentile(0.99) < r.percentile(0.5) {
			t.Errorf("%s: passed %d, refused %d, failed %d", c.name, r.passed.Load(), r.refused.Load(), r.failed.Load())
		}
	}
}

func TestLoadReportsFailures(t *testing.T) {
	addr := noopAddr(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var r result
	l := &load{addr: addr, method: "/none/None", messages: [][]byte{{}}, conns: 1, inflight: 1, classify: func([]byte) kind { return passed }}
	go func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for r.failed.Load() == 0 && ctx.Err() == nil {
			<-tick.C
		}
		cancel()
	}()
	if err := l.run(ctx, &r); err != nil {
		t.Fatal(err)
	}
	if r.failed.Load() == 0 || *r.failure.Load() != "grpc-status 12" {
		t.Errorf("failed %d, %v", r.failed.Load(), r.failure.Load())
	}
}

func TestRLS(t *testing.T) {
	s := &settings{users: 1, work: t.TempDir()}
	contests, err := s.rls()
	if err != nil {
		t.Fatal(err)
	}
	over, err := proto.Marshal(&rlsv3.RateLimitResponse{OverallCode: rlsv3.RateLimitResponse_OVER_LIMIT})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range contests {
		if c.classify(over) != refused {
			t.Errorf("%s: over the limit counts as passed", c.name)
		}
		file, _ := strings.CutPrefix(c.env[0], "TOLLGATE_LIMITS_FILES=")
		rules, err := ratelimit.LoadRules(file)
		if err != nil || !rules.HasTier("tollgate", "premium") {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	s.work = "/nowhere"
	if _, err := s.rls(); err == nil {
		t.Error("rules were written to no folder")
	}
}

func TestParseStat(t *testing.T) {
	got, err := parseStat("7 (a (b) c) S 1 7 7 0 -1 4194560 5 0 0 0 12 34 0 0 20 0 1 0 99")
	if err != nil || got != 460_000 {
		t.Errorf("got %d, %v", got, err)
	}
	for _, bad := range []string{"", "7 (x) S 1", "7 (x) S 1 7 7 0 -1 4194560 5 0 0 0 a b 0 0"} {
		if _, err := parseStat(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
	data, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parseStat(string(data)); err != nil {
		t.Error(err)
	}
}

func TestStartSaysWhy(t *testing.T) {
	_, err := start(t.Context(), 0, filepath.Join(t.TempDir(), "log"), "127.0.0.1:1", nil, "sh", "-c", "echo no such luck")
	if err == nil || !strings.Contains(err.Error(), "no such luck") {
		t.Errorf("got %v", err)
	}
}

func TestCommandLine(t *testing.T) {
	for _, args := range [][]string{{"-nope"}, {"-runs", "x"}} {
		if err := run(t.Context(), args, &bytes.Buffer{}); err == nil {
			t.Errorf("%v: no error", args)
		}
	}
}

func TestMedian(t *testing.T) {
	f := []figures{{server: 3}, {server: 1}, {server: 2}}
	if got := median(f, func(f figures) float64 { return f.server }); got != 2 {
		t.Errorf("got %v", got)
	}
	if (&result{}).percentile(0.5) != 0 {
		t.Error("a percentile of nothing")
	}
}

// The whole of it, once, short: no figure is asserted.
func TestWholeRun(t *testing.T) {
	bin := t.TempDir()
	if out, err := exec.Command("go", "build", "-o", bin+"/", "../../cmd/authz").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var out bytes.Buffer
	err := run(t.Context(), []string{"-runs", "1", "-window", "200ms", "-warm", "100ms", "-bin", bin, "-config", "../../config", "authz"}, &out)
	if err != nil || !strings.Contains(out.String(), "ratio to no-op: ") {
		t.Errorf("%v: %s", err, &out)
	}
}

// Each way's configuration is one that Envoy's API allows, with the filters that
// the way asks and no others.
func TestWays(t *testing.T) {
	t.Chdir(filepath.Join("..", ".."))
	for _, w := range ways() {
		o := envoyconf.Options{}
		if w.change != nil {
			w.change(&o)
		}
		path := filepath.Join(t.TempDir(), "envoy.yaml")
		if err := writeEnvoy(path, o, w); err != nil {
			t.Fatalf("%s: %v", w.name, err)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]bool{
			"name: envoy.filters.http.ext_authz\n": w.authz, "name: envoy.filters.http.ratelimit\n": w.ratelimit && !o.Quotas, "envoy.filters.http.rate_limit_quota\n": o.Quotas,
		} {
			if got := strings.Contains(string(text), name); got != want {
				t.Errorf("%s: %q is %t", w.name, name, got)
			}
		}
	}
}

func TestDrive(t *testing.T) {
	var n atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n.Add(1); r.URL.Path != "/" {
			w.WriteHeader(http.StatusForbidden)
		}
	}))
	defer server.Close()
	addr := server.Listener.Addr().String()
	took, err := drive(t.Context(), addr, [][]byte{[]byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n")}, 50*time.Millisecond, 1000)
	if err != nil || int64(len(took)) != n.Load() || len(took) < connections {
		t.Errorf("%d of %d requests, %v", len(took), n.Load(), err)
	}
	if _, err := drive(t.Context(), addr, [][]byte{[]byte("GET /no HTTP/1.1\r\nHost: a\r\n\r\n")}, time.Millisecond, 0); err == nil || !strings.Contains(err.Error(), "403") {
		t.Errorf("got %v", err)
	}
}
