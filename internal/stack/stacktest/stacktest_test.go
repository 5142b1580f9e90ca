package stacktest_test

import (
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/envoyconf"
	"github.com/tollgate-proxy/tollgate/internal/polltest"
	"github.com/tollgate-proxy/tollgate/internal/stack/stacktest"
	"github.com/tollgate-proxy/tollgate/internal/supervisor"
)

func TestMain(m *testing.M) {
	if code, played := stacktest.Play(os.Environ(), os.Args[1:], os.Stdout); played {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

func status(t *testing.T, address string) int {
	t.Helper()
	client := &http.Client{Timeout: time.Second}
	code := 0
	polltest.Until(t, "somebody listens on "+address, func() bool {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := client.Do(r)
		if err != nil {
			return false
		}
		_ = response.Body.Close()
		code = response.StatusCode
		return true
	})
	return code
}

func TestStandIns(t *testing.T) {
	root := stacktest.Tree(t)
	ports, err := supervisor.FreePorts(5)
	if err != nil {
		t.Fatal(err)
	}
	address := func(i int) string { return "127.0.0.1:" + strconv.Itoa(ports[i]) }
	bootstrap, err := envoyconf.Load(filepath.Join(root, "envoy", "envoy.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	bootstrap, err = envoyconf.Render(bootstrap, envoyconf.Options{Listener: address(0), Admin: address(1)})
	if err != nil {
		t.Fatal(err)
	}
	if err := envoyconf.WriteFile(filepath.Join(root, "rendered.yaml"), bootstrap); err != nil {
		t.Fatal(err)
	}
	stacktest.Write(t, filepath.Join(root, "own.yaml"), `operations: {listen: "`+address(2)+`"}`, 0o600)
	for _, tc := range []struct {
		name      string
		command   []string
		env       string
		addresses []string
		status    int
		code      int
	}{
		{"envoy", []string{".venv/envoy/bin/envoy", "-c", "rendered.yaml"}, "", []string{address(0), address(1)}, 200, 0},
		{"process", []string{"bin/authz", "-config", "own.yaml"}, "", []string{address(2)}, 200, 0},
		{"process told by its environment", []string{"bin/pyproxy", "-config", "own.yaml"}, "TOLLGATE_OPERATIONS_LISTEN=" + address(3), []string{address(3)}, 200, 0},
		{"never ready", []string{".venv/services/bin/python", "--host", "127.0.0.1", "--port", strconv.Itoa(ports[4])}, stacktest.Never + "=1", []string{address(4)}, 503, 0},
		{"dies", []string{"bin/authz", "-config", "own.yaml"}, stacktest.Die + "=oh", nil, 0, 3},
		{"no configuration", []string{"bin/authz", "-config", "none.yaml"}, "", nil, 0, 1},
		{"no address", []string{"bin/authz", "-config", "envoy/envoy.yaml"}, "", nil, 0, 1},
		{"no Envoy configuration", []string{".venv/envoy/bin/envoy", "-c", "own.yaml"}, "", nil, 0, 1},
		{"address of another", []string{".venv/services/bin/python", "--host", "192.0.2.1", "--port", "1"}, "", nil, 0, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), filepath.Join(root, tc.command[0]), tc.command[1:]...)
			cmd.Dir, cmd.Env = root, append(os.Environ(), tc.env)
			var out strings.Builder
			cmd.Stdout = &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			for _, a := range tc.addresses {
				if got := status(t, a); got != tc.status {
					t.Errorf("%s answered %d, want %d", a, got, tc.status)
				}
			}
			if tc.code == 0 {
				if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
					t.Fatal(err)
				}
			}
			code := 0
			if exit := new(exec.ExitError); errors.As(cmd.Wait(), &exit) {
				code = exit.ExitCode()
			}
			if code != tc.code || !strings.HasPrefix(out.String(), "arguments: ") {
				t.Errorf("exit code %d, want %d; said %q", code, tc.code, out.String())
			}
		})
	}
}
