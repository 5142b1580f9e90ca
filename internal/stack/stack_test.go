package stack_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"
	"go.yaml.in/yaml/v3"

	"github.com/tollgate-proxy/tollgate/internal/credential"
	"github.com/tollgate-proxy/tollgate/internal/envoyconf"
	"github.com/tollgate-proxy/tollgate/internal/polltest"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
	"github.com/tollgate-proxy/tollgate/internal/stack"
	"github.com/tollgate-proxy/tollgate/internal/stack/stacktest"
	"github.com/tollgate-proxy/tollgate/internal/supervisor"
)

func TestMain(m *testing.M) {
	if code, played := stacktest.Play(os.Environ(), os.Args[1:], os.Stdout); played {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// options are of a stack of stand-ins on free ports.
func options(t *testing.T) stack.Options {
	t.Helper()
	ports, err := stack.FreePorts()
	if err != nil {
		t.Fatal(err)
	}
	return stack.Options{Root: stacktest.Tree(t), Environ: os.Environ(), Ports: ports, ReadyWithin: 3 * time.Minute, Grace: time.Minute}
}

func start(t *testing.T, o stack.Options) *stack.Stack {
	t.Helper()
	s, err := stack.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func get(t *testing.T, url string) (status int, body string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(data)
}

var everything = []string{"redis", "echo", "ml", "nlp", "fraud", "data", "blockchain", "authz", "ratelimit", "pyproxy-1", "pyproxy-2", "envoy"}

func TestStartAndStop(t *testing.T) {
	o := options(t)
	var ready, stopped []string
	o.Progress = func(p stack.Progress) {
		switch p.Step {
		case stack.StepReady:
			ready = append(ready, p.Part)
		case stack.StepStopped:
			stopped = append(stopped, p.Part)
		}
	}
	o.Environ = append(os.Environ(), "TOLLGATE_API_TOKEN=secret", "TOLLGATE_LOG_LEVEL=debug")
	o.Env = map[string][]string{"pyproxy": {"BOTH=yes"}, "pyproxy-2": {"SECOND=yes"}}
	s := start(t, o)
	if last := ready[len(ready)-1]; last != stack.Envoy {
		t.Errorf("%s was ready last, not envoy", last)
	}
	slices.Sort(ready)
	if diff := cmp.Diff(slices.Sorted(slices.Values(everything)), ready); diff != "" {
		t.Errorf("ready (-want +got):\n%s", diff)
	}
	for i, part := range s.Status() {
		inProcess := part.Name == stack.Redis || part.Name == stack.Echo
		if part.Name != everything[i] || !part.Running || (part.PID == 0) != inProcess || (part.Log == "") != inProcess || len(part.Endpoints) == 0 {
			t.Errorf("status %+v", part)
		}
	}
	if status, body := get(t, s.URL(stack.EchoBackend)+"/x"); status != http.StatusOK || !strings.Contains(body, `"uri": "/x"`) {
		t.Errorf("echo: %d %s", status, body)
	}

	_, env := get(t, s.URL(stack.Pyproxy2Ops))
	for _, want := range []string{"BOTH=yes", "SECOND=yes", "TOLLGATE_LOG_LEVEL=debug", "TOLLGATE_REDIS_URL=" + s.RedisURL()} {
		if !strings.Contains(env, want+"\n") {
			t.Errorf("pyproxy-2's environment lacks %s", want)
		}
	}
	if strings.Contains(env, "TOLLGATE_API_TOKEN") {
		t.Error("the operator's secret was handed on")
	}
	if _, env := get(t, s.URL(stack.Pyproxy1Ops)); strings.Contains(env, "SECOND=yes") {
		t.Error("pyproxy-1 got pyproxy-2's environment")
	}
	if _, env := get(t, s.URL(stack.ServiceML)); strings.Contains(env, "TOLLGATE_") {
		t.Error("a Python service got Tollgate's configuration")
	}

	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	want := slices.Clone(everything)
	slices.Reverse(want)
	if diff := cmp.Diff(want, stopped); diff != "" {
		t.Errorf("stopped (-want +got):\n%s", diff)
	}
	for _, part := range s.Status() {
		if part.Running {
			t.Errorf("%s still runs", part.Name)
		}
	}
	for e := range s.Ports() {
		if err := supervisor.CheckPort(string(e), s.Ports().Address(e)); err != nil {
			t.Error(err)
		}
	}
	// And again, at once, over what the first left behind.
	start(t, o)
}

func TestPartsDieAndComeBack(t *testing.T) {
	o := options(t)
	exits := make(chan *stack.ExitError, 10)
	o.OnExit = func(e *stack.ExitError) { exits <- e }
	s := start(t, o)
	for _, part := range []string{stack.Authz, "nlp", stack.Redis, stack.Echo, stack.Envoy} {
		for _, end := range []func(string) error{s.KillPart, s.StopPart} {
			if err := end(part); err != nil {
				t.Fatal(err)
			}
			if running(s, part) {
				t.Errorf("%s still runs", part)
			}
			if err := end(part); err != nil {
				t.Errorf("%s, which does not run, cannot be ended: %v", part, err)
			}
			if err := s.StartPart(t.Context(), part); err != nil {
				t.Fatal(err)
			}
			if !running(s, part) {
				t.Errorf("%s does not run", part)
			}
		}
		if err := s.StartPart(t.Context(), part); err == nil || err.Error() != part+" runs already" {
			t.Errorf("second start of %s: %v", part, err)
		}
	}
	for _, err := range []error{s.KillPart("grafana"), s.StopPart("grafana"), s.StartPart(t.Context(), "grafana")} {
		if err == nil || err.Error() != `no part of the stack is named "grafana"` {
			t.Errorf("error %v", err)
		}
	}
	select {
	case e := <-exits:
		t.Errorf("reported although it was asked to end: %v", e)
	default:
	}

	// One that ends by itself is reported, with its log.
	at := slices.IndexFunc(s.Status(), func(p stack.Status) bool { return p.Name == stack.Ratelimit })
	process, err := os.FindProcess(s.Status()[at].PID)
	if err != nil {
		t.Fatal(err)
	}
	if err := process.Kill(); err != nil {
		t.Fatal(err)
	}
	exit := <-exits
	if exit.Name != stack.Ratelimit || !strings.Contains(exit.Error(), "ratelimit ended by itself (signal: killed); the end of ") || len(exit.Tail) == 0 {
		t.Errorf("exit %v", exit)
	}
	if err := s.StartPart(t.Context(), stack.Ratelimit); err != nil {
		t.Error(err)
	}
}

func running(s *stack.Stack, part string) bool {
	return slices.ContainsFunc(s.Status(), func(p stack.Status) bool { return p.Name == part && p.Running })
}

func TestStartFails(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(t *testing.T, o *stack.Options)
		want   []string
	}{
		{"no root", func(_ *testing.T, o *stack.Options) { o.Root = "" }, []string{"the stack needs the repository's root folder"}},
		{"no environment", func(_ *testing.T, o *stack.Options) { o.Environ = nil }, []string{"the stack needs the environment"}},
		{"unknown redis", func(_ *testing.T, o *stack.Options) { o.Redis = "valkey" }, []string{`redis "valkey": must be embedded or server`}},
		{"port out of range", func(_ *testing.T, o *stack.Options) { o.Ports[stack.EchoBackend] = 65536 }, []string{"port 65536 of echo is not within 1 to 65535"}},
		{"port twice", func(_ *testing.T, o *stack.Options) { o.Ports[stack.EchoBackend] = o.Ports[stack.ServiceML] }, []string{"is given to both echo and ml"}},
		{"no envoy", func(t *testing.T, o *stack.Options) { remove(t, o.Root, ".venv/envoy/bin/envoy") }, []string{"envoy is missing at ", "`make demo` installs it"}},
		{"no binaries", func(t *testing.T, o *stack.Options) { remove(t, o.Root, "bin/authz"); remove(t, o.Root, "bin/pyproxy") },
			[]string{"authz is missing at ", "pyproxy is missing at ", "`make build` builds it"}},
		{"not a program", func(_ *testing.T, o *stack.Options) { o.EnvoyPath = o.Root }, []string{"envoy at ", "is not a program"}},
		{"port taken", func(t *testing.T, o *stack.Options) {
			l, err := net.Listen("tcp", o.Ports.Address(stack.AuthzGRPC))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = l.Close() })
		}, []string{"(authz grpc) is already in use by ", "(pid " + strconv.Itoa(os.Getpid()) + ")"}},
		{"no configuration", func(t *testing.T, o *stack.Options) { remove(t, o.Root, "config/ratelimit.yaml") }, []string{"configuration of ratelimit: "}},
		{"bad envoy configuration", func(t *testing.T, o *stack.Options) {
			stacktest.Write(t, filepath.Join(o.Root, "envoy", "envoy.yaml"), "static_resources: 7\n", 0o644)
		}, []string{"envoy.yaml"}},
		{"envoy lacks a cluster", func(_ *testing.T, o *stack.Options) {
			o.EditEnvoy = func(c *envoyconf.Options) { c.Clusters["mystery"] = c.Clusters[envoyconf.ClusterAuthz] }
		}, []string{"configuration of envoy: ", "mystery"}},
		{"a part dies", func(_ *testing.T, o *stack.Options) {
			o.Env = map[string][]string{"authz": {stacktest.Die + "=the key is not readable"}}
		}, []string{"authz ended by itself (exit status 3); the end of ", "\n    the key is not readable"}},
		{"a part is never ready", func(_ *testing.T, o *stack.Options) {
			o.ReadyWithin = 15 * time.Second // in which all the others become ready, on a slow machine too
			o.Env = map[string][]string{"nlp": {stacktest.Never + "=1"}}
		}, []string{"nlp was not ready in time (", "answered 503"}},
		{"work folder is a file", func(t *testing.T, o *stack.Options) {
			o.Work = filepath.Join(o.Root, "config", "authz.yaml")
		}, []string{"work folder: "}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := options(t)
			tc.change(t, &o)
			s, err := stack.Start(t.Context(), o)
			if err == nil {
				t.Fatal(errors.Join(errors.New("it started"), s.Stop()))
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
			// Nothing is left running.
			for e, port := range o.Ports {
				if tc.name == "port taken" && e == stack.AuthzGRPC || port > 65535 {
					continue
				}
				if err := supervisor.CheckPort(string(e), o.Ports.Address(e)); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func remove(t *testing.T, root, path string) {
	t.Helper()
	if err := os.Remove(filepath.Join(root, path)); err != nil {
		t.Fatal(err)
	}
}

func TestStartIsInterrupted(t *testing.T) {
	o := options(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	left := errors.New("nobody wants it any more")
	o.Env = map[string][]string{"authz": {stacktest.Never + "=1"}}
	o.Progress = func(p stack.Progress) {
		if p.Part == stack.Ratelimit && p.Step == stack.StepReady {
			cancel(left)
		}
	}
	_, err := stack.Start(ctx, o)
	if !errors.Is(err, left) {
		t.Errorf("error %v", err)
	}
}

func TestConfigurationIsTheShippedOne(t *testing.T) {
	o := options(t)
	var mu sync.Mutex
	edited := map[string]bool{}
	o.EditConfig = func(part string, yaml []byte) []byte {
		mu.Lock()
		defer mu.Unlock()
		edited[part] = true
		return append(yaml, "# edited\n"...)
	}
	s := start(t, o)
	config, err := os.ReadFile(filepath.Join(o.Root, "var", "demo", "config", "pyproxy-2.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	p := s.Ports()
	want := "listen: " + p.Address(stack.Pyproxy1HTTP) + " # the public side\n" + // the environment says otherwise
		`operations: {listen: "` + p.Address(stack.Pyproxy1Ops) + `"}` + "\n" +
		`upstreams: ["` + p.Address(stack.ServiceML) + `", "example.com:9201"]` + "\n# edited\n"
	if diff := cmp.Diff(want, string(config)); diff != "" {
		t.Errorf("pyproxy-2's configuration (-want +got):\n%s", diff)
	}
	if len(edited) != 4 {
		t.Errorf("edited %v", edited)
	}
}

func TestOperatorCredential(t *testing.T) {
	o := options(t)
	s := start(t, o)
	work := filepath.Join(o.Root, "var", "demo")
	operator, err := stack.LoadOperator(work)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(s.Operator(), operator); diff != "" {
		t.Errorf("credential (-want +got):\n%s", diff)
	}
	if operator.URL != s.URL(stack.AuthzHTTP) || operator.Ratelimit != s.URL(stack.RatelimitHTTP) || len(operator.Token) < 26 || len(operator.Pyproxy) != 2 {
		t.Errorf("credential %+v", operator)
	}
	file := filepath.Join(work, stack.OperatorFile)
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %o", info.Mode().Perm())
	}
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := stack.LoadOperator(work); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("error %v", err)
	}
	if _, err := stack.LoadOperator(o.Root); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v", err)
	}

	// The processes know its hash alone.
	_, env := get(t, s.URL(stack.AuthzOperations))
	if strings.Contains(env, operator.Token) {
		t.Error("authz was told the secret")
	}
	var clients []credential.Client
	for line := range strings.Lines(env) {
		if list, ok := strings.CutPrefix(line, "TOLLGATE_MANAGEMENT_CLIENTS="); ok {
			if err := yaml.Unmarshal([]byte(list), &clients); err != nil {
				t.Fatal(err)
			}
		}
	}
	authenticator, err := credential.New(clients)
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Header.Set("Authorization", "Bearer "+s.Operator().Token)
	if caller, ok := authenticator.Authenticate(r); !ok || !caller.Has(credential.Operator) || caller.Has(credential.Admin) {
		t.Errorf("caller %+v, %t", caller, ok)
	}
}

func TestRedisKinds(t *testing.T) {
	for _, tc := range []struct {
		name string
		set  func(t *testing.T, o *stack.Options)
		own  bool
	}{
		{"embedded", func(_ *testing.T, o *stack.Options) { o.Redis = stack.RedisEmbedded }, true},
		{"server", func(_ *testing.T, o *stack.Options) { o.Redis = stack.RedisProcess }, true},
		{"another's", func(t *testing.T, o *stack.Options) { o.RedisURL = "redis://" + redistest.Server(t) + "/0" }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := options(t)
			tc.set(t, &o)
			s := start(t, o)
			if got := running(s, stack.Redis); got != tc.own {
				t.Errorf("the stack runs a Redis: %t, want %t", got, tc.own)
			}
			settings, err := redis.ParseURL(s.RedisURL())
			if err != nil {
				t.Fatal(err)
			}
			client := redis.NewClient(settings)
			t.Cleanup(func() { _ = client.Close() })
			if err := client.Set(t.Context(), "key", "value", 100*time.Millisecond).Err(); err != nil {
				t.Fatal(err)
			}
			polltest.Until(t, "the key to expire", func() bool { return errors.Is(client.Get(t.Context(), "key").Err(), redis.Nil) })
			if !tc.own {
				return
			}
			if err := client.Set(t.Context(), "kept", "no", 0).Err(); err != nil {
				t.Fatal(err)
			}
			if err := s.KillPart(stack.Redis); err != nil {
				t.Fatal(err)
			}
			if err := s.StartPart(t.Context(), stack.Redis); err != nil {
				t.Fatal(err)
			}
			if n, err := client.Exists(t.Context(), "kept").Result(); n != 0 || err != nil {
				t.Errorf("%d keys outlived the kill: %v", n, err)
			}
		})
	}
}

func TestMissingProgramOfPath(t *testing.T) {
	o := options(t)
	o.Redis = stack.RedisProcess
	t.Setenv("PATH", t.TempDir())
	_, err := stack.Start(t.Context(), o)
	if err == nil || !strings.Contains(err.Error(), "redis-server is not installed: `apt-get install redis-server` installs it") {
		t.Errorf("error %v", err)
	}
}

func TestContractPorts(t *testing.T) {
	p := stack.ContractPorts()
	if got := p.URL(stack.EnvoyListener); got != "http://127.0.0.1:10000" {
		t.Errorf("envoy at %s", got)
	}
	seen := map[int]bool{}
	for e, port := range p {
		if seen[port] {
			t.Errorf("port %d of %s is used twice", port, e)
		}
		seen[port] = true
	}
}
