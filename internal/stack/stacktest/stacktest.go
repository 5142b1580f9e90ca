// Package stacktest has stand-ins for the parts of a stack, so that what starts
// and stops them is tested without Envoy, Python and built binaries. The
// stand-ins are the test binary itself.
package stacktest

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/envoyconf"
)

const roleVariable = "STACK_TEST_ROLE"

// Environment variables with which a test tells a stand-in what to do.
const (
	// Die: say the value and exit with 3.
	Die = "STACK_TEST_DIE"
	// Never: never be ready.
	Never = "STACK_TEST_NEVER"
)

// Play plays a part where this process was started as one; then the caller, a
// TestMain, exits with the code. environ and arguments are the process's own, and
// out is where its log goes.
func Play(environ, arguments []string, out io.Writer) (code int, played bool) {
	role := variable(environ, roleVariable)
	if role == "" {
		return 0, false
	}
	return play(role, environ, arguments, out), true
}

// variable returns an environment variable, empty where it is not set.
func variable(environ []string, name string) string {
	for _, v := range environ {
		if value, ok := strings.CutPrefix(v, name+"="); ok {
			return value
		}
	}
	return ""
}

// play stands in for Envoy, a Python service or one of our processes: it serves
// what tells that the part is ready, until SIGTERM.
func play(role string, environ, arguments []string, out io.Writer) int {
	say := func(words ...any) { _, _ = fmt.Fprintln(out, words...) }
	say("arguments:", strings.Join(arguments, " "))
	if last := variable(environ, Die); last != "" {
		say(last)
		return 3
	}
	addresses, err := listens(role, environ, arguments)
	if err != nil {
		say(err)
		return 1
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	status := http.StatusOK
	if variable(environ, Never) != "" {
		status = http.StatusServiceUnavailable
	}
	failed := make(chan error, len(addresses))
	for _, address := range addresses {
		server := &http.Server{
			Addr:              address,
			ReadHeaderTimeout: time.Minute,
			Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(status)
				_, _ = io.WriteString(w, strings.Join(environ, "\n")+"\n")
			}),
		}
		go func() { failed <- server.ListenAndServe() }()
	}
	select {
	case <-stop:
		return 0
	case err := <-failed:
		say(err)
		return 1
	}
}

// after returns the argument that follows a flag.
func after(arguments []string, flag string) string {
	for i, a := range arguments[:len(arguments)-1] {
		if a == flag {
			return arguments[i+1]
		}
	}
	return ""
}

func listens(role string, environ, arguments []string) ([]string, error) {
	switch role {
	case "python":
		return []string{after(arguments, "--host") + ":" + after(arguments, "--port")}, nil
	case "envoy":
		bootstrap, err := envoyconf.Load(after(arguments, "-c"))
		if err != nil {
			return nil, err
		}
		admin := bootstrap.GetAdmin().GetAddress().GetSocketAddress()
		listener := bootstrap.GetStaticResources().GetListeners()[0].GetAddress().GetSocketAddress()
		return []string{
			fmt.Sprintf("%s:%d", admin.GetAddress(), admin.GetPortValue()),
			fmt.Sprintf("%s:%d", listener.GetAddress(), listener.GetPortValue()),
		}, nil
	default:
		if address := variable(environ, "TOLLGATE_OPERATIONS_LISTEN"); address != "" {
			return []string{address}, nil
		}
		config, err := os.ReadFile(after(arguments, "-config"))
		if err != nil {
			return nil, err
		}
		address := regexp.MustCompile(`operations: {listen: "([^"]+)"}`).FindSubmatch(config)
		if address == nil {
			return nil, fmt.Errorf("no operations address in %s", config)
		}
		return []string{string(address[1])}, nil
	}
}

// Tree makes a root folder with configuration, the Envoy configuration that is
// shipped and stand-ins.
func Tree(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for path, role := range map[string]string{
		"bin/authz": "process", "bin/ratelimit": "process", "bin/pyproxy": "process",
		".venv/envoy/bin/envoy": "envoy", ".venv/services/bin/python": "python",
	} {
		Write(t, filepath.Join(root, path), fmt.Sprintf("#!/bin/sh\nGORACE=atexit_sleep_ms=0 %s=%s exec %s \"$@\"\n", roleVariable, role, self), 0o755)
	}
	for name, config := range map[string]string{
		"authz":     `operations: {listen: "127.0.0.1:7101"}`,
		"ratelimit": `operations: {listen: "127.0.0.1:7102"}`,
		"pyproxy":   "listen: 127.0.0.1:8103 # the public side\noperations: {listen: \"127.0.0.1:7103\"}\nupstreams: [\"127.0.0.1:9201\", \"example.com:9201\"]",
	} {
		Write(t, filepath.Join(root, "config", name+".yaml"), config+"\n", 0o644)
	}
	if err := os.CopyFS(filepath.Join(root, "envoy"), os.DirFS(filepath.Join(source(t), "envoy"))); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(root, "examples", "python-services"), 0o750); err != nil {
		t.Fatal(err)
	}
	return root
}

// Write writes a file and the folders that it needs.
func Write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// source is the top of the source tree, which holds go.mod.
func source(t *testing.T) string {
	t.Helper()
	folder, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(folder, "go.mod")); err == nil {
			return folder
		}
		parent := filepath.Dir(folder)
		if parent == folder {
			t.Fatal("no go.mod above the test's folder")
		}
		folder = parent
	}
}
