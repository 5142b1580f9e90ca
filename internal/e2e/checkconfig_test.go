package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestCheckConfig gives each program one fault at a time: it exits with 1 and one
// line that says where the fault is, what it is, and what is allowed.
func TestCheckConfig(t *testing.T) {
	const process = "authz ratelimit pyproxy"
	for _, tc := range []struct {
		name, programs string
		old, new       string // in the shipped file; nothing where the environment has the fault
		env            string
		key, value     string
		allowed        string // part of what is allowed
	}{
		{"nothing wrong", process, "", "", "", "", "", ""},
		{"unknown key", process, "operations:", "operation:", "", "operation", "", "unknown key"},
		{"unknown inner key", process, "  level: info", "  levle: info", "", "log.levle", "", "unknown key"},
		{"no choice", process, "  level: info", "  level: loud", "", "log.level", "loud", "debug"},
		{"bare number", process, "  drain_delay: 2s", "  drain_delay: 2", "", "shutdown.drain_delay", "2", "unit"},
		{"no duration", process, "  drain_delay: 2s", "  drain_delay: soon", "", "shutdown.drain_delay", "soon", "unit"},
		{"out of range", process, "  sample_ratio: 0.1", "  sample_ratio: 7", "", "tracing.sample_ratio", "7", "0 to 1"},
		{"wrong type", process, "  sample_ratio: 0.1", "  sample_ratio: much", "", "tracing.sample_ratio", "much", "number"},
		{"section is a list", process, "  drain_delay: 2s", "  drain_delay: [2s]", "", "shutdown.drain_delay", "", ""},
		{"twice", process, "  drain_delay: 2s", "  drain_delay: 2s\n  drain_delay: 3s", "", "shutdown.drain_delay", "", "twice"},
		{"no YAML", process, "shutdown:", "shutdown: [", "", "", "", ""},
		{"listens nowhere", process, "operations:\n  listen: 127.0.0.1:", "operations:\n  listen: nowhere # ", "", "operations.listen", "nowhere", "host:port"},
		{"collector's address", process, `  endpoint: ""`, "  endpoint: not an address", "", "tracing.endpoint", "", "collector"},
		{"redis address", process, "  url: redis://", "  url: http://", "", "redis.url", "", "redis://"},
		{"unknown variable", process, "", "", "TOLLGATE_SHUTDOWN_DRAINDELAY=2s", "", "", "TOLLGATE_SHUTDOWN_DRAIN_DELAY"},
		{"variable's value", process, "", "", "TOLLGATE_SHUTDOWN_DRAIN_DELAY=2", "shutdown.drain_delay", "2", "unit"},

		{"mode", "authz", "mode: development", "mode: test", "", "mode", "test", "production or development"},
		{"size", "authz", "  max_token_size: 8KiB", "  max_token_size: 8 elephants", "", "tokens.max_token_size", "8 elephants", "KiB"},
		{"route's access", "authz", "    access: public", "    access: everybody", "", "policy.routes[0].access", "everybody", "public"},
		{"route's endpoint", "authz", "endpoint: nlp}", "endpoint: npl}", "", "endpoint", "npl", ""},
		{"flag file", "authz", "  file: flags.yaml", "  file: flogs.yaml", "", "", "", "flogs.yaml"},
		{"secret's hash", "authz", "  clients: []", "  clients: [{name: desk, secret_sha256: hunter2, roles: [operator]}]", "", "secret_sha256", "", "64"},

		{"failure mode", "ratelimit", "  on_failure: local", "  on_failure: hope", "", "store.on_failure", "hope", "local"},
		{"no rules", "ratelimit", "  files: [limits]", "  files: []", "", "limits.files", "", "at least one"},
		{"rules are not there", "ratelimit", "  files: [limits]", "  files: [limitz]", "", "", "", "limitz"},

		{"upstream", "pyproxy", "upstream: nlp, method: GET", "upstream: nope, method: GET", "", "upstream", "nope", "name of an upstream"},
		{"method", "pyproxy", "method: GET, path", "method: FETCH, path", "", "method", "FETCH", "GET, HEAD"},
		{"path", "pyproxy", "path: /api/v1/nlp/languages", "path: api/v1/nlp/languages", "", "path", "api/v1/nlp/languages", "beginning with /"},
		{"address", "pyproxy", `addresses: ["127.0.0.1:9202"]`, `addresses: ["127.0.0.1"]`, "", "addresses[0]", "127.0.0.1", "host:port"},
		{"rate", "pyproxy", "  failure_rate: 0.5", "  failure_rate: 50", "", "breaker.failure_rate", "50", "above 0, to 1"},
		{"network", "pyproxy", "trusted_peers: [127.0.0.0/8", "trusted_peers: [127.0.0.0/99", "", "trusted_peers[0]", "127.0.0.0/99", ""},
	} {
		for program := range strings.FieldsSeq(tc.programs) {
			t.Run(program+"/"+tc.name, func(t *testing.T) {
				path := filepath.Join(t.TempDir(), program+".yaml")
				line := breakConfig(t, program, path, tc.old, tc.new)
				var env []string
				if tc.env != "" {
					env = []string{tc.env}
				}
				code, stdout, stderr := checkConfig(t, program, path, env)
				if tc.name == "nothing wrong" {
					if code != 0 || stderr != "" || !strings.Contains(stdout, "valid") {
						t.Errorf("exit %d\n%s%s", code, stdout, stderr)
					}
					return
				}
				if code != 1 {
					t.Fatalf("exit %d\n%s%s", code, stdout, stderr)
				}
				lines := strings.Split(strings.TrimSuffix(stderr, "\n"), "\n")
				if len(lines) != 1 && tc.name != "secret's hash" {
					t.Errorf("%d lines:\n%s", len(lines), stderr)
				}
				said := lines[0]
				where := fmt.Sprintf("%s:%d: ", path, line)
				switch name, _, ok := strings.Cut(tc.env, "="); {
				case ok:
					where = "environment " + name + ": "
				case tc.name == "no YAML": // the parser notices a line early or late
					where = path + ":"
				case tc.key == "": // another file than the configuration itself
					where = filepath.Dir(path)
				}
				for _, want := range []string{where, tc.key, quoted(tc.value), tc.allowed} {
					if !strings.Contains(said, want) {
						t.Errorf("%q does not say %q", said, want)
					}
				}
				if strings.Contains(stderr, "hunter2") {
					t.Error("a secret is shown")
				}
			})
		}
	}
	t.Run("all at once", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "authz.yaml")
		if err := os.WriteFile(path, []byte("mode: test\nlog: {level: loud}\nshutdown: {timeout: 0s}\ngrpc: {listen: here}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		code, _, stderr := checkConfig(t, "authz", path, nil)
		for i, key := range []string{"mode", "log.level", "shutdown.timeout", "grpc.listen"} {
			if want := fmt.Sprintf("%s:%d: %s: ", path, i+1, key); !strings.Contains(stderr, want) {
				t.Errorf("exit %d: %s\ndoes not say %s", code, stderr, want)
			}
		}
	})
	t.Run("the operator's command", func(t *testing.T) {
		for kind, files := range map[string][]string{
			"authz": {"config/authz.yaml"}, "ratelimit": {"config/ratelimit.yaml"}, "pyproxy": {"config/pyproxy.yaml"},
			"limits": {"config/limits/tollgate.yaml"}, "flags": {"config/flags.yaml"}, "envoy": {"envoy/envoy.yaml"},
		} {
			if code, out, errs := runProgram(t, "tollgate", nil, append([]string{"check-config", kind}, files...)...); code != 0 {
				t.Errorf("%s: exit %d: %s%s", kind, code, out, errs)
			}
		}
		bad := filepath.Join(t.TempDir(), "tollgate.yaml")
		breakFile(t, filepath.Join(root, "config", "limits", "tollgate.yaml"), bad, "requests_per_unit: 10}", "requests_per_unit: ten}")
		if code, out, errs := runProgram(t, "tollgate", nil, "check-config", "limits", bad); code != 1 || !strings.Contains(out+errs, "ten") || !strings.Contains(out+errs, bad+":") {
			t.Errorf("limits: exit %d: %s%s", code, out, errs)
		}
	})
	t.Run("version", func(t *testing.T) {
		for _, program := range []string{"authz", "ratelimit", "pyproxy"} {
			if code, out, _ := runProgram(t, program, nil, "-version"); code != 0 || !strings.HasPrefix(out, "tollgate "+program+" ") {
				t.Errorf("%s: exit %d: %s", program, code, out)
			}
		}
	})
}

func quoted(value string) string {
	if value == "" {
		return ""
	}
	return `"` + value + `"`
}

// breakConfig writes a shipped configuration with one change, beside what it
// refers to, and returns the line of the change.
func breakConfig(t *testing.T, program, path, old, changed string) int {
	t.Helper()
	if err := os.CopyFS(filepath.Dir(path), os.DirFS(filepath.Join(root, "config"))); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	return breakFile(t, filepath.Join(root, "config", program+".yaml"), path, old, changed)
}

func breakFile(t *testing.T, shipped, path, old, changed string) int {
	t.Helper()
	data, err := os.ReadFile(shipped)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(data, []byte(old))
	if at < 0 {
		t.Fatalf("%s does not hold %q", shipped, old)
	}
	text := string(data[:at]) + changed + string(data[at+len(old):])
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return 1 + strings.Count(text[:at], "\n") + strings.Count(changed, "\n")
}

func checkConfig(t *testing.T, program, path string, env []string) (code int, stdout, stderr string) {
	t.Helper()
	return runProgram(t, program, env, "-config", path, "-check-config")
}

func runProgram(t *testing.T, program string, env []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	command := exec.CommandContext(t.Context(), filepath.Join(programs, program), args...)
	command.Dir, command.Env, command.Stdout, command.Stderr = root, append(environ(), env...), &out, &errs
	var exit *exec.ExitError
	if err := command.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return command.ProcessState.ExitCode(), out.String(), errs.String()
}
