package app

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/tollgate-proxy/tollgate/internal/logtest"
	"github.com/tollgate-proxy/tollgate/internal/polltest"
)

type sample struct {
	Base  `yaml:",inline"`
	Greet string `yaml:"greet" doc:"What to say."`
}

func defaults() sample {
	b := DefaultBase("127.0.0.1:0")
	b.Shutdown.DrainDelay = 0
	return sample{Base: b, Greet: "hello"}
}

func process(wire func(ctx context.Context, cfg sample, rt *Runtime) error) Process[sample] {
	return Process[sample]{
		Name:     "sample",
		Defaults: defaults,
		Base:     func(c *sample) *Base { return &c.Base },
		Check: func(c sample) error {
			if c.Greet == "bad rules" {
				return errors.New("rules.yaml:1: no")
			}
			return nil
		},
		Wire: wire,
	}
}

func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sample.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// running is a process under test.
type running struct {
	rt   *Runtime
	log  *logtest.Buffer
	stop context.CancelFunc
	code chan int
}

func launch(t *testing.T, yaml string, wire func(ctx context.Context, cfg sample, rt *Runtime) error) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r := &running{log: &logtest.Buffer{}, stop: cancel, code: make(chan int, 1)}
	started := make(chan *Runtime, 1)
	path := file(t, yaml)
	go func() {
		r.code <- run(ctx, process(wire), []string{"-config", path}, nil, io.Discard, r.log, func(rt *Runtime) { started <- rt })
	}()
	select {
	case r.rt = <-started:
	case code := <-r.code:
		t.Fatalf("exit %d: %s", code, r.log)
	}
	return r
}

func (r *running) get(t *testing.T, path string, header ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, "http://"+r.rt.Addr("operations")+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(header) == 2 {
		req.Header.Set(header[0], header[1])
	}
	a, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	body, _ := io.ReadAll(a.Body)
	return a.StatusCode, string(body)
}

func TestCommandLine(t *testing.T) {
	good, bad := file(t, "greet: hi\n"), file(t, "great: hi\n")
	never := func(context.Context, sample, *Runtime) error { t.Error("wired"); return nil }
	for name, c := range map[string]struct {
		args   []string
		code   int
		stdout string
		stderr string
	}{
		"version":        {[]string{"-version"}, 0, "tollgate sample ", ""},
		"help":           {[]string{"-help"}, 0, "", "configuration `FILE`"[:13]},
		"bad flag":       {[]string{"-nope"}, 2, "", "nope"},
		"bad argument":   {[]string{"stray"}, 2, "", "unexpected argument \"stray\""},
		"check, good":    {[]string{"-config", good, "-check-config"}, 0, "is valid", ""},
		"check, bad":     {[]string{"-config", bad, "-check-config"}, 1, "", ":1: great: unknown key"},
		"check, rules":   {[]string{"-config", file(t, "greet: bad rules"), "-check-config"}, 1, "", "rules.yaml:1: no"},
		"start, bad":     {[]string{"-config", bad}, 1, "", "unknown key"},
		"start, no file": {[]string{"-config", bad + ".none"}, 1, "", "cannot be read"},
		"reference":      {[]string{"-config-reference"}, 0, "| `greet` | text | `hello` | `TOLLGATE_GREET` | restart | What to say. |", ""},
		"bad operations": {[]string{"-config", file(t, "operations: {listen: x}")}, 1, "", "operations.listen"},
		"bad debug hash": {[]string{"-config", file(t, "operations: {debug_secret_sha256: hunter2}")}, 1, "", "operations.debug_secret_sha256"},
		"bad memory":     {[]string{"-config", file(t, "memory: {gc_percent: 0, limit: 1KiB}")}, 1, "", "memory.limit"},
		"bad shutdown":   {[]string{"-config", file(t, "shutdown: {drain_delay: -1s, timeout: 0s}")}, 1, "", "shutdown.timeout"},
	} {
		t.Run(name, func(t *testing.T) {
			var out, errs bytes.Buffer
			code := run(t.Context(), process(never), c.args, nil, &out, &errs, nil)
			if code != c.code || !strings.Contains(out.String(), c.stdout) || !strings.Contains(errs.String(), c.stderr) {
				t.Errorf("exit %d\nstdout: %s\nstderr: %s", code, &out, &errs)
			}
			if strings.Contains(errs.String(), "hunter2") {
				t.Error("a secret is shown")
			}
		})
	}
}

func TestLifecycle(t *testing.T) {
	var mu sync.Mutex
	var order []string
	note := func(s string) { mu.Lock(); defer mu.Unlock(); order = append(order, s) }
	r := launch(t, "greet: hi\n", func(_ context.Context, cfg sample, rt *Runtime) error {
		if cfg.Greet != "hi" {
			t.Errorf("got %q", cfg.Greet)
		}
		rt.Cleanup("first", func(context.Context) error { note("first"); return nil })
		rt.Cleanup("second", func(context.Context) error { note("second"); return nil })
		rt.Background("work", func(ctx context.Context) error { <-ctx.Done(); note("work"); return nil })
		c := rt.Health.Component("thing", true)
		rt.Background("health", func(context.Context) error { c.Set(true, ""); return nil })
		if err := rt.ServeGRPC("grpc", "127.0.0.1:0", func(*grpc.Server) {}); err != nil {
			return err
		}
		return rt.ServeHTTP("http", "127.0.0.1:0", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { panic("secret of the handler") }))
	})
	polltest.Until(t, "ready", func() bool { code, _ := r.get(t, "/readyz"); return code == 200 })
	if code, _ := r.get(t, "/livez"); code != 200 {
		t.Errorf("/livez %d", code)
	}
	conn, err := grpc.NewClient(r.rt.Addr("grpc"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	h, err := grpc_health_v1.NewHealthClient(conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if err != nil || h.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("grpc health %v, %v", h, err)
	}
	a, err := http.Get("http://" + r.rt.Addr("http"))
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(a.Body)
	_ = a.Body.Close()
	if a.StatusCode != 500 || strings.Contains(string(body), "secret of the handler") {
		t.Errorf("a panic answers %d %s", a.StatusCode, body)
	}
	if _, metrics := r.get(t, "/metrics"); !strings.Contains(metrics, "tollgate_panics_total 1") || !strings.Contains(metrics, `tollgate_component_up{component="thing"} 1`) {
		t.Errorf("metrics: %s", metrics)
	}
	r.stop()
	if code := <-r.code; code != 0 {
		t.Errorf("exit %d: %s", code, r.log)
	}
	if want := []string{"work", "second", "first"}; !slices.Equal(order, want) {
		t.Errorf("stopped in the order %v, want %v", order, want)
	}
}

func TestAFailureEndsTheProcess(t *testing.T) {
	r := launch(t, "", func(_ context.Context, _ sample, rt *Runtime) error {
		rt.Background("doomed", func(context.Context) error { return errors.New("disk on fire") })
		rt.Cleanup("cleanup", func(context.Context) error { return errors.New("cleanup failed too") })
		return nil
	})
	if code := <-r.code; code != 1 || !strings.Contains(r.log.String(), "disk on fire") {
		t.Errorf("exit %d: %s", code, r.log)
	}
}

func TestWireFailureUndoes(t *testing.T) {
	var log logtest.Buffer
	cleaned, addr := false, ""
	code := run(t.Context(), process(func(_ context.Context, _ sample, rt *Runtime) error {
		rt.Cleanup("x", func(context.Context) error { cleaned = true; return errors.New("odd") })
		if err := rt.ServeGRPC("grpc", "127.0.0.1:0", func(*grpc.Server) {}); err != nil {
			return err
		}
		if err := rt.ServeHTTP("http", "127.0.0.1:0", http.NotFoundHandler()); err != nil {
			return err
		}
		addr = rt.Addr("http")
		return errors.New("no rules")
	}), []string{"-config", file(t, "")}, nil, io.Discard, &log, nil)
	if code != 1 || !cleaned || !strings.Contains(log.String(), "no rules") {
		t.Errorf("exit %d, cleaned %v: %s", code, cleaned, &log)
	}
	if _, err := net.Dial("tcp", addr); err == nil {
		t.Error("still listening")
	}
}

func TestPortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var log logtest.Buffer
	code := run(t.Context(), process(func(context.Context, sample, *Runtime) error { return nil }),
		[]string{"-config", file(t, "operations: {listen: '"+l.Addr().String()+"'}")}, nil, io.Discard, &log, nil)
	if code != 1 || !strings.Contains(log.String(), "address already in use") {
		t.Errorf("exit %d: %s", code, &log)
	}
}

// What a reload cannot change is named, once for each change.
func TestReloadNamesWhatTakesARestart(t *testing.T) {
	r := launch(t, "greet: hi\n", func(context.Context, sample, *Runtime) error { return nil })
	reload := func(text string, fault bool) {
		t.Helper()
		if err := os.WriteFile(r.rt.ConfigFile, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := r.rt.Reload(t.Context()); (err != nil) != fault {
			t.Errorf("%s: %v", text, err)
		}
	}
	const said = "some changes take effect with a restart only"
	for _, step := range []struct {
		text  string
		fault bool
		told  int
		keys  string
	}{
		{"greet: hi\n", false, 0, ""},
		{"greet: hello\nshutdown: {timeout: 1s}\n", false, 1, `["shutdown.timeout","greet"]`},
		{"greet: hello\nshutdown: {timeout: 1s}\n", false, 1, ""},
		{"grete: hello\n", true, 1, ""},
		{"greet: hello\n", false, 2, `["greet"]`},
		{"greet: hi\n", false, 2, ""},
		{"greet: hello\n", false, 3, ""},
	} {
		reload(step.text, step.fault)
		if n := r.log.Count(said); n != step.told || !strings.Contains(r.log.String(), step.keys) {
			t.Errorf("%s: told %d times, want %d with %s:\n%s", step.text, n, step.told, step.keys, r.log)
		}
	}
}

// The file is loaded once, and a fault in it is the configuration's own, and not
// of the part that would have come first.
func TestReloadLoadsTheConfigurationOnce(t *testing.T) {
	var got []string
	r := launch(t, "greet: hi\n", func(_ context.Context, _ sample, rt *Runtime) error {
		OnConfig(rt, "first", func(next sample) (func(), error) {
			got = append(got, next.Greet)
			// What a later load of the file would find.
			return func() {}, os.WriteFile(rt.ConfigFile, []byte("grete: hello\n"), 0o600)
		})
		OnConfig(rt, "second", func(next sample) (func(), error) {
			got = append(got, next.Greet)
			return func() {}, nil
		})
		return nil
	})
	if err := r.rt.Reload(t.Context()); err != nil || !slices.Equal(got, []string{"hi", "hi"}) {
		t.Errorf("got %v, %v", got, err)
	}
	if err := r.rt.Reload(t.Context()); err == nil || len(got) != 2 {
		t.Errorf("a faulty file was handed on: %v, %v", got, err)
	}
	if log := r.log.String(); r.log.Count("reload refused") != 1 || r.log.Count(`"part":"configuration"`) != 1 {
		t.Errorf("log:\n%s", log)
	}
	OnConfig(r.rt, "of another process", func(int) (func(), error) { return func() {}, nil })
	if err := os.WriteFile(r.rt.ConfigFile, []byte("greet: hi\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.rt.Reload(t.Context()); err == nil {
		t.Error("a part got a configuration that is none of its own")
	}
}

func TestReloadIsAllOrNothing(t *testing.T) {
	var mu sync.Mutex
	value, bad := "old", true
	r := launch(t, "", func(_ context.Context, _ sample, rt *Runtime) error {
		rt.OnReload("value", func(context.Context) (func(), error) {
			return func() { mu.Lock(); value = "new"; mu.Unlock() }, nil
		})
		rt.OnReload("rules", func(context.Context) (func(), error) {
			mu.Lock()
			defer mu.Unlock()
			if bad {
				return nil, errors.New("rules.yaml:3: wrong")
			}
			return func() {}, nil
		})
		return nil
	})
	get := func() string { mu.Lock(); defer mu.Unlock(); return value }
	if err := r.rt.Reload(t.Context()); err == nil || get() != "old" {
		t.Errorf("a refused reload: %v, value %s", err, get())
	}
	mu.Lock()
	bad = false
	mu.Unlock()
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	polltest.Until(t, "SIGHUP reloads", func() bool { return get() == "new" })
	if !strings.Contains(r.log.String(), "rules.yaml:3: wrong") {
		t.Error("the reason is not logged")
	}
	r.stop()
	<-r.code
}

func TestWatchedFile(t *testing.T) {
	rules := file(t, "one")
	reloaded := make(chan struct{}, 10)
	r := launch(t, "", func(_ context.Context, _ sample, rt *Runtime) error {
		rt.WatchFile(rules)
		rt.OnReload("rules", func(context.Context) (func(), error) { return func() { reloaded <- struct{}{} }, nil })
		return nil
	})
	next := rules + ".next"
	if err := os.WriteFile(next, []byte("two"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, rules); err != nil {
		t.Fatal(err)
	}
	<-reloaded
	r.stop()
	<-r.code
}

func TestFileWatchIgnoresAMissingFile(t *testing.T) {
	content, missing := "one", false
	w := newFileWatch([]string{"x"}, func(string) ([]byte, error) {
		if missing {
			return nil, os.ErrNotExist
		}
		return []byte(content), nil
	})
	if w.changed() {
		t.Error("changed without a change")
	}
	missing = true
	if w.changed() {
		t.Error("a file that is away for a moment is not a change")
	}
	missing, content = false, "two"
	if !w.changed() || w.changed() {
		t.Error("one change is seen once")
	}
}

func TestMemoryLeavesGoVariablesAlone(t *testing.T) {
	before := debug.SetGCPercent(123)
	defer debug.SetGCPercent(before)
	limit := debug.SetMemoryLimit(-1)
	defer debug.SetMemoryLimit(limit)
	now := func() int { p := debug.SetGCPercent(100); debug.SetGCPercent(p); return p }
	c := MemoryConfig{GCPercent: 400, Limit: 1 << 30}
	c.apply([]string{"GOGC=50", "GOMEMLIMIT=2GiB"})
	if now() != 123 || debug.SetMemoryLimit(-1) != limit {
		t.Error("the environment has the last word")
	}
	c.apply(nil)
	if now() != 400 || debug.SetMemoryLimit(-1) != 1<<30 {
		t.Error("the configuration is not applied")
	}
}

func TestUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	l, err := Listen("unix://" + path)
	if err != nil {
		t.Fatal(err)
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o660 {
		t.Errorf("mode %v", info.Mode())
	}
	if _, err := Listen("unix://" + path); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a socket in use: %v", err)
	}
	// A socket left behind by a killed process.
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	_ = l.Close()
	again, err := Listen("unix://" + path)
	if err != nil {
		t.Fatal(err)
	}
	_ = again.Close()
	for _, bad := range []string{"unix://relative", "nowhere", "127.0.0.1:", "unix:///" + strings.Repeat("x", 120)} {
		if _, err := Listen(bad); err == nil {
			t.Errorf("%s: no error", bad)
		}
	}
}

func TestDebugWantsTheSecret(t *testing.T) {
	h := sha256.Sum256([]byte("open sesame"))
	wire := func(context.Context, sample, *Runtime) error { return nil }
	closed := launch(t, "", wire)
	if code, _ := closed.get(t, "/debug/pprof/", "Authorization", "Bearer "); code != 404 {
		t.Errorf("closed: %d", code)
	}
	closed.stop()
	<-closed.code
	open := launch(t, "operations: {debug_secret_sha256: "+hex.EncodeToString(h[:])+"}", wire)
	for token, want := range map[string]int{"": 401, "Bearer nope": 401, "Basic open sesame": 401, "Bearer open sesame": 200} {
		if code, _ := open.get(t, "/debug/pprof/", "Authorization", token); code != want {
			t.Errorf("%q: %d, want %d", token, code, want)
		}
	}
	open.stop()
	<-open.code
}

func TestRecoverGRPC(t *testing.T) {
	rt := &Runtime{Log: slog.New(slog.DiscardHandler), metrics: newRuntimeMetrics(prometheus.NewRegistry())}
	_, err := rt.recoverUnary(t.Context(), nil, &grpc.UnaryServerInfo{}, func(context.Context, any) (any, error) { panic("x") })
	if status.Code(err) != codes.Internal {
		t.Errorf("got %v", err)
	}
	err = rt.recoverStream(nil, nil, &grpc.StreamServerInfo{}, func(any, grpc.ServerStream) error { panic("x") })
	if status.Code(err) != codes.Internal {
		t.Errorf("got %v", err)
	}
}

func TestTracedServers(t *testing.T) {
	r := launch(t, "tracing: {endpoint: 'http://127.0.0.1:1', sample_ratio: 1}", func(_ context.Context, _ sample, rt *Runtime) error {
		if err := rt.ServeGRPC("grpc", "127.0.0.1:0", func(*grpc.Server) {}); err != nil {
			return err
		}
		return rt.ServeHTTP("http", "127.0.0.1:0", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			panic(http.ErrAbortHandler)
		}))
	})
	if a, err := http.Get("http://" + r.rt.Addr("http")); err == nil {
		_ = a.Body.Close()
		t.Error("an aborted answer looks whole")
	}
	r.stop()
	if code := <-r.code; code != 0 { // the collector is away: spans are lost, the stop is clean
		t.Errorf("exit %d: %s", code, r.log)
	}
}

func TestExportErrorsAreLoggedOnceAMinute(t *testing.T) {
	var log bytes.Buffer
	now := time.Unix(1000, 0)
	e := newExportErrors(slog.New(slog.NewTextHandler(&log, nil)), func() time.Time { return now })
	for range 3 {
		e.Handle(errors.New("away"))
	}
	now = now.Add(time.Minute)
	e.Handle(errors.New("away"))
	if n := strings.Count(log.String(), "tracing failed"); n != 2 {
		t.Errorf("%d lines", n)
	}
}
