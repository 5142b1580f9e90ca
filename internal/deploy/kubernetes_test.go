package deploy

import (
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/tollgate-proxy/tollgate/internal/envoyconf"
)

// manifest is what the tests look at in a Kubernetes object.
type manifest struct {
	File     string `yaml:"-"`
	Kind     string `yaml:"kind"`
	Metadata struct {
		Name string `yaml:"name"`
	} `yaml:"metadata"`
	Spec struct {
		Ports    []struct{ Port int } `yaml:"ports"`
		Template struct {
			Spec pod `yaml:"spec"`
		} `yaml:"template"`
	} `yaml:"spec"`
}

type pod struct {
	AutomountServiceAccountToken *bool `yaml:"automountServiceAccountToken"`
	SecurityContext              struct {
		RunAsNonRoot   bool              `yaml:"runAsNonRoot"`
		SeccompProfile map[string]string `yaml:"seccompProfile"`
	} `yaml:"securityContext"`
	Containers []container `yaml:"containers"`
}

type container struct {
	Name      string   `yaml:"name"`
	Image     string   `yaml:"image"`
	Command   []string `yaml:"command"`
	Env       []struct{ Name, Value string }
	Liveness  map[string]any `yaml:"livenessProbe"`
	Readiness map[string]any `yaml:"readinessProbe"`
	Resources struct {
		Limits map[string]string `yaml:"limits"`
	} `yaml:"resources"`
	SecurityContext struct {
		Escalation   *bool `yaml:"allowPrivilegeEscalation"`
		ReadOnly     bool  `yaml:"readOnlyRootFilesystem"`
		Capabilities struct {
			Drop []string `yaml:"drop"`
		} `yaml:"capabilities"`
	} `yaml:"securityContext"`
}

func manifests(t *testing.T) []manifest {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, "deploy", "kubernetes", "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no manifests: %v", err)
	}
	var all []manifest
	for _, file := range files {
		if filepath.Base(file) == "kustomization.yaml" {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for decoder := yaml.NewDecoder(strings.NewReader(string(text))); ; {
			m := manifest{File: filepath.Base(file)}
			if err := decoder.Decode(&m); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			all = append(all, m)
		}
	}
	return all
}

func TestKubernetesPodsAreRestricted(t *testing.T) {
	seen := 0
	for _, m := range manifests(t) {
		if m.Kind != "Deployment" {
			continue
		}
		seen++
		p := m.Spec.Template.Spec
		if !p.SecurityContext.RunAsNonRoot || p.SecurityContext.SeccompProfile["type"] != "RuntimeDefault" {
			t.Errorf("%s: security context %+v", m.File, p.SecurityContext)
		}
		if p.AutomountServiceAccountToken == nil || *p.AutomountServiceAccountToken {
			t.Errorf("%s mounts a token of the cluster", m.File)
		}
		for _, c := range p.Containers {
			s := c.SecurityContext
			if s.Escalation == nil || *s.Escalation || !s.ReadOnly || !slices.Equal(s.Capabilities.Drop, []string{"ALL"}) {
				t.Errorf("%s: %s: security context %+v", m.File, c.Name, s)
			}
			if c.Resources.Limits["memory"] == "" || c.Liveness == nil || c.Readiness == nil {
				t.Errorf("%s: %s lacks a memory limit or a probe", m.File, c.Name)
			}
			if c.Image != "tollgate:local" && !pinned.MatchString(c.Image) {
				t.Errorf("%s: image %q is not pinned", m.File, c.Image)
			}
		}
	}
	if seen < 4 {
		t.Errorf("only %d deployments", seen)
	}
}

// TestKubernetesResourcesAreListed keeps kustomization.yaml complete.
func TestKubernetesResourcesAreListed(t *testing.T) {
	var k struct {
		Resources          []string `yaml:"resources"`
		ConfigMapGenerator []struct {
			Name  string   `yaml:"name"`
			Files []string `yaml:"files"`
		} `yaml:"configMapGenerator"`
	}
	if err := yaml.Unmarshal(read(t, "deploy/kubernetes/kustomization.yaml"), &k); err != nil {
		t.Fatal(err)
	}
	for _, m := range manifests(t) {
		if !slices.Contains(k.Resources, m.File) {
			t.Errorf("%s is not listed", m.File)
		}
	}
	for _, c := range k.ConfigMapGenerator {
		for _, file := range c.Files {
			read(t, filepath.Join("deploy/kubernetes", file))
		}
	}
}

// TestKubernetesConfigurationIsDerived renders the shipped files with the Services' names, and has each program check
// its own.
func TestKubernetesConfigurationIsDerived(t *testing.T) {
	b, err := envoyconf.Load(filepath.Join(root, "envoy", "envoy.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	services := map[string][]int{}
	for _, m := range manifests(t) {
		if m.Kind == "Service" {
			for _, p := range m.Spec.Ports {
				services[m.Metadata.Name] = append(services[m.Metadata.Name], p.Port)
			}
		}
	}
	clusters := map[string][]envoyconf.Endpoint{
		envoyconf.ClusterAuthz:     {{Address: "authz.tollgate.svc.cluster.local:9101"}},
		envoyconf.ClusterRateLimit: {{Address: "ratelimit.tollgate.svc.cluster.local:9102"}},
		envoyconf.ClusterPyproxy:   {{Address: "pyproxy.tollgate.svc.cluster.local:8103", HealthPort: 7103}},
		envoyconf.ClusterAccount:   {{Address: "authz.tollgate.svc.cluster.local:8101", HealthPort: 7101}},
		envoyconf.ClusterBackend:   {{Address: "backend.default.svc.cluster.local:8080"}},
		envoyconf.ClusterCollector: {{Address: "collector.monitoring.svc.cluster.local:4317"}},
	}
	for cluster, endpoints := range clusters {
		for _, e := range endpoints {
			host, port, err := net.SplitHostPort(e.Address)
			name, inside := strings.CutSuffix(host, ".tollgate.svc.cluster.local")
			if err != nil || (inside && !slices.ContainsFunc(services[name], func(p int) bool { return port == itoa(p) })) {
				t.Errorf("cluster %s: no Service has %s", cluster, e.Address)
			}
		}
	}
	rendered, err := envoyconf.Render(b, envoyconf.Options{
		Listener: "0.0.0.0:10000",
		Admin:    "0.0.0.0:9901",
		// Probes and Prometheus, and the container's own preStop hook.
		AdminPaths: []string{"/ready", "/stats/prometheus", "/drain_listeners?graceful"},
		Clusters:   clusters,
	})
	if err != nil {
		t.Fatal(err)
	}
	text, err := envoyconf.YAML(rendered)
	if err != nil {
		t.Fatal(err)
	}
	derived(t, "deploy/kubernetes/config/envoy.yaml", "envoy/envoy.yaml", text)
	derived(t, "deploy/kubernetes/config/flags.yaml", "config/flags.yaml", read(t, "config/flags.yaml"))
	derived(t, "deploy/kubernetes/config/authz.yaml", "config/authz.yaml", production(t, string(read(t, "config/authz.yaml"))))
	derived(t, "deploy/kubernetes/config/pyproxy.yaml", "config/pyproxy.yaml", withServices(t))
}

// TestKubernetesProgramsAcceptTheirConfiguration runs each program's own check with the manifest's environment.
func TestKubernetesProgramsAcceptTheirConfiguration(t *testing.T) {
	bin := programs(t)
	for _, m := range manifests(t) {
		for _, c := range m.Spec.Template.Spec.Containers {
			if !strings.HasPrefix(c.Command[0], "/bin/") {
				continue
			}
			args := slices.Clone(c.Command[1:])
			for i, arg := range args {
				if name, ok := strings.CutPrefix(arg, "/etc/tollgate/own/"); ok {
					args[i] = filepath.Join(root, "deploy", "kubernetes", "config", name)
				} else if name, ok := strings.CutPrefix(arg, "/etc/tollgate/"); ok {
					args[i] = filepath.Join(root, "config", name)
				}
			}
			cmd := exec.CommandContext(t.Context(), filepath.Join(bin, filepath.Base(c.Command[0])), append(args, "-check-config")...)
			cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
			for _, e := range c.Env {
				if e.Name == "TOLLGATE_REDIS_URL" {
					e.Value = "rediss://user:password@redis.example.com:6380/0" // from a Secret
				}
				cmd.Env = append(cmd.Env, e.Name+"="+e.Value)
			}
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: %v: %v\n%s", m.File, cmd.Args, err, out)
			}
		}
	}
}

// production is config/authz.yaml as it is for the real thing: no development key, and the issuer that the file has as
// an example.
func production(t *testing.T, text string) []byte {
	t.Helper()
	var out []string
	inIssuers, inDevelopment, changed := false, false, 0
	for line := range strings.SplitSeq(text, "\n") {
		if inIssuers {
			if example, ok := strings.CutPrefix(line, "  # "); ok {
				out = append(out, "  "+example)
				changed++
				continue
			}
			inIssuers = false
		}
		if inDevelopment && strings.HasPrefix(line, " ") {
			continue
		}
		inDevelopment = false
		switch {
		case strings.HasPrefix(line, "mode: development"):
			line, changed = "mode: production", changed+1
		case strings.HasPrefix(line, "development:"):
			inDevelopment = true
			continue
		case strings.HasPrefix(line, "  issuers: []"):
			line, inIssuers = "  issuers:  # yours", true
		}
		out = append(out, line)
	}
	if changed < 4 {
		t.Fatal("config/authz.yaml no longer has mode: development and an example of an issuer")
	}
	return []byte(strings.Join(out, "\n"))
}
