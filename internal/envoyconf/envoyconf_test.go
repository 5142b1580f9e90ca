package envoyconf

import (
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// root is the top of the source tree.
const root = "../.."

// shipped is the configuration that users deploy.
func shipped(t *testing.T) *bootstrapv3.Bootstrap {
	t.Helper()
	b, err := Load(filepath.Join(root, "envoy", "envoy.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRenderGolden(t *testing.T) {
	b, err := Render(shipped(t), Options{
		Listener:   "127.0.0.1:20000",
		Admin:      "127.0.0.1:20901",
		AdminPaths: []string{"/ready"},
		Clusters: map[string][]Endpoint{
			ClusterAuthz:     {{Address: "unix:///run/tollgate/authz.sock"}},
			ClusterRateLimit: {{Address: "ratelimit:9102"}},
			ClusterPyproxy:   {{Address: "[::1]:8103", HealthPort: 7103}},
		},
		TraceCollector: "jaeger:4317",
		TraceSampling:  10,
		AccessLog:      "/var/log/envoy.json",
	})
	if err != nil {
		t.Fatal(err)
	}
	got, err := YAML(b)
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "rendered.golden.yaml")
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("rendered configuration differs (go test -update rewrites it):\n%s", diff)
	}
}

func TestRenderWithoutOptionsChangesNothing(t *testing.T) {
	before := shipped(t)
	after, err := Render(before, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, after, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

func TestRenderLeavesItsInputAlone(t *testing.T) {
	b := shipped(t)
	if _, err := Render(b, Options{Listener: "0.0.0.0:1", TraceCollector: "a:1", TraceSampling: 1, AccessLog: "/x"}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(shipped(t), b, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

func TestYAMLReadsBackAsItself(t *testing.T) {
	b := shipped(t)
	text, err := YAML(b)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(b, again, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

func TestRenderRefuses(t *testing.T) {
	one := func(address string) map[string][]Endpoint {
		return map[string][]Endpoint{ClusterAuthz: {{Address: address}}}
	}
	for _, tc := range []struct {
		name string
		opts Options
		want string
	}{
		{"unknown cluster", Options{Clusters: map[string][]Endpoint{"auth": {{Address: "a:1"}}}}, `cluster "auth" is not in the configuration; it has authz, ratelimit, pyproxy, account, backend, otel_collector`},
		{"no endpoint", Options{Clusters: map[string][]Endpoint{ClusterAuthz: {}}}, "no endpoint given"},
		{"no port", Options{Clusters: one("localhost")}, "neither host:port nor unix:///path"},
		{"no host", Options{Clusters: one(":80")}, "needs a host"},
		{"port too large", Options{Clusters: one("a:70000")}, "from 0 to 65535"},
		{"relative socket", Options{Clusters: one("unix://run/x")}, "unix:///path"},
		{"listener", Options{Listener: "x"}, "listener: address"},
		{"admin", Options{Admin: "x"}, "admin: address"},
		{"sampling without collector", Options{TraceSampling: 5}, "without a collector"},
		{"sampling above 100", Options{TraceCollector: "a:1", TraceSampling: 101}, "not a percentage"},
		{"health port", Options{Clusters: map[string][]Endpoint{ClusterAuthz: {{Address: "a:1", HealthPort: 99999}}}}, "PortValue"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Render(shipped(t), tc.opts)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
		})
	}
}

func TestRenderRefusesAConfigurationWithoutTheParts(t *testing.T) {
	for _, tc := range []struct {
		name, text, want string
		opts             Options
	}{
		{"no listener", `{}`, "no listener", Options{Listener: "a:1"}},
		{"no manager", `static_resources: {listeners: [{name: a}]}`, "no HTTP connection manager", Options{AccessLog: "/x"}},
		{"no access log", bareManager, "no file access log", Options{AccessLog: "/x"}},
		{"no ratelimit filter", bareManager, "no ratelimit filter", Options{OneCall: true}},
		{"no ratelimit filter for quotas", bareManager, "no ratelimit filter", Options{Quotas: true}},
		{"no tracing", bareManager, "no tracing section", Options{TraceCollector: "a:1"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b, err := Parse([]byte(tc.text))
			if err != nil {
				t.Fatal(err)
			}
			if tc.name == "no tracing" {
				b.StaticResources.Clusters = shipped(t).StaticResources.Clusters
			}
			if _, err := Render(b, tc.opts); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
		})
	}
}

// bareManager is a configuration with one bare HTTP connection manager.
const bareManager = `
static_resources:
  listeners:
  - name: public
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: public
          route_config: {name: none}
`

// Each file under testdata/busted has one fault and says in its first line what the error must mention.
func TestLoadRefuses(t *testing.T) {
	files, err := filepath.Glob("testdata/busted/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no busted files: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			first, _, _ := strings.Cut(string(text), "\n")
			want, ok := strings.CutPrefix(first, "# want: ")
			if !ok {
				t.Fatal("the first line does not say what is wanted")
			}
			_, err = Load(file)
			if err == nil || !strings.Contains(strings.ReplaceAll(err.Error(), "\u00a0", " "), want) {
				t.Errorf("got %v, want an error with %q", err, want)
			}
			if err != nil && !strings.Contains(err.Error(), file) {
				t.Errorf("the error does not name the file: %v", err)
			}
		})
	}
}

func TestLoadMissingFile(t *testing.T) {
	if _, err := Load("testdata/none.yaml"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want %v", err, os.ErrNotExist)
	}
}

func TestWriteFileIsPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "envoy.yaml")
	if err := WriteFile(path, shipped(t)); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, want 0600", info.Mode().Perm())
	}
}

// envoy returns the real Envoy, which the tests cannot do without.
func envoy(t *testing.T) string {
	t.Helper()
	binary, err := Binary(os.Getenv, root)
	if err != nil {
		t.Fatal(err)
	}
	return binary
}

// TestEnvoyAccepts asks the real Envoy about every bootstrap file that the project ships.
func TestEnvoyAccepts(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(root, "envoy", "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no configuration found: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, file := range files {
		if err := Check(ctx, envoy(t), file); err != nil {
			t.Error(err)
		}
	}
}

func TestEnvoyRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(path, []byte("static_resources: {clusters: [{name: x, type: STATIC, connect_timeout: 1s, lb_policy: NONE}]}"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := Check(t.Context(), envoy(t), path)
	if err == nil || !strings.Contains(err.Error(), "NONE") {
		t.Errorf("got %v, want Envoy's words about NONE", err)
	}
}

func TestBinary(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "envoy")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	say := func(value string) func(string) string {
		return func(name string) string {
			if name == BinaryVariable {
				return value
			}
			return ""
		}
	}
	if got, err := Binary(say(program), dir); err != nil || got != program {
		t.Errorf("got %q, %v; want %q", got, err, program)
	}
	for _, value := range []string{"", dir, filepath.Join(dir, "none")} {
		_, err := Binary(say(value), dir)
		if !errors.Is(err, ErrNoEnvoy) || !strings.Contains(err.Error(), "make tools") {
			t.Errorf("%s=%q: got %v, want %v", BinaryVariable, value, err, ErrNoEnvoy)
		}
	}
}
