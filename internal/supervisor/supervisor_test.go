package supervisor_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tollgate-proxy/tollgate/internal/polltest"
	"github.com/tollgate-proxy/tollgate/internal/supervisor"
)

// parentVariable makes the test binary play a parent that is to be killed.
const parentVariable = "SUPERVISOR_TEST_PARENT_LOG"

func TestMain(m *testing.M) {
	if log := os.Getenv(parentVariable); log != "" {
		os.Exit(parent(log))
	}
	os.Exit(m.Run())
}

// parent starts a child that would outlive it, says the child's pid and waits.
func parent(log string) int {
	p, err := supervisor.Start(supervisor.Spec{
		Name: "orphan", Path: "sleep", Args: []string{"600"}, Env: os.Environ(), Log: log,
	})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println(p.PID())
	<-p.Done()
	return 0
}

func start(t *testing.T, script string) *supervisor.Process {
	t.Helper()
	p, err := supervisor.Start(supervisor.Spec{
		Name: "child",
		Path: "sh",
		Args: []string{"-c", script},
		Env:  []string{"PATH=" + os.Getenv("PATH"), "GREETING=hello"},
		Dir:  t.TempDir(),
		Log:  filepath.Join(t.TempDir(), "logs", "child.log"),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Kill(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// awaitTail waits until the child's log ends in line.
func awaitTail(t *testing.T, p *supervisor.Process, line string) {
	t.Helper()
	polltest.Until(t, "log line "+line, func() bool {
		tail := p.Tail(1)
		return len(tail) == 1 && tail[0] == line
	})
}

func TestProcessEnds(t *testing.T) {
	for _, tc := range []struct {
		name, script string
		code         int
		tail         []string
	}{
		{"quietly", "exit 0", 0, nil},
		{"with its own environment only", `echo "$GREETING $HOME"`, 0, []string{"hello "}},
		{"with an error", "echo one; echo two >&2; echo three; exit 3", 3, []string{"two", "three"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := start(t, tc.script)
			<-p.Done()
			code := 0
			if exit := new(exec.ExitError); errors.As(p.Err(), &exit) {
				code = exit.ExitCode()
			} else if p.Err() != nil {
				t.Fatal(p.Err())
			}
			if code != tc.code {
				t.Errorf("exit code %d, want %d", code, tc.code)
			}
			if diff := cmp.Diff(tc.tail, p.Tail(2)); diff != "" {
				t.Errorf("tail (-want +got):\n%s", diff)
			}
			if p.Running() {
				t.Error("still running")
			}
			if err := p.Stop(time.Minute); err != nil {
				t.Errorf("stop of an ended child: %v", err)
			}
		})
	}
}

func TestTailIsOfThisRun(t *testing.T) {
	log := filepath.Join(t.TempDir(), "child.log")
	if err := os.WriteFile(log, []byte("an earlier run\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := supervisor.Start(supervisor.Spec{Name: "child", Path: "sh", Args: []string{"-c", "echo this run"}, Env: os.Environ(), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	if diff := cmp.Diff([]string{"this run"}, p.Tail(10)); diff != "" {
		t.Errorf("tail (-want +got):\n%s", diff)
	}
	if err := os.Remove(log); err != nil {
		t.Fatal(err)
	}
	if got := p.Tail(10); len(got) != 1 || !strings.Contains(got[0], "log not readable") {
		t.Errorf("tail without a log: %q", got)
	}
}

func TestStopAsksFirst(t *testing.T) {
	p := start(t, `trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.01; done`)
	awaitTail(t, p, "up")
	if p.Err() != nil {
		t.Errorf("error of a running child: %v", p.Err())
	}
	if err := p.Stop(20 * time.Second); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"bye"}, p.Tail(1)); diff != "" {
		t.Errorf("tail (-want +got):\n%s", diff)
	}
}

func TestStopKillsTheDeaf(t *testing.T) {
	p := start(t, `trap '' TERM; echo up; while :; do sleep 0.01; done`)
	awaitTail(t, p, "up")
	err := p.Stop(50 * time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), "child (pid "+strconv.Itoa(p.PID())+") did not stop within 50ms and was killed") {
		t.Fatalf("error %v", err)
	}
	if p.Running() {
		t.Error("still running")
	}
}

func TestGroupDiesWithTheChild(t *testing.T) {
	p := start(t, `sleep 600 & echo $!; wait`)
	polltest.Until(t, "grandchild", func() bool { return len(p.Tail(1)) == 1 })
	grandchild, err := strconv.Atoi(p.Tail(1)[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	awaitGone(t, grandchild)
}

func TestChildDiesWithItsParent(t *testing.T) {
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p, err := supervisor.Start(supervisor.Spec{
		Name: "parent", Path: self, Log: filepath.Join(dir, "parent.log"),
		Env: append(os.Environ(), parentVariable+"="+filepath.Join(dir, "orphan.log")),
	})
	if err != nil {
		t.Fatal(err)
	}
	polltest.Until(t, "the parent's word", func() bool { return len(p.Tail(1)) == 1 })
	child, err := strconv.Atoi(p.Tail(1)[0])
	if err != nil {
		t.Fatalf("parent said %q", p.Tail(5))
	}
	if err := p.Kill(); err != nil { // the child is in another group
		t.Fatal(err)
	}
	awaitGone(t, child)
}

// awaitGone waits until pid has ended (a zombie that nobody has waited for yet
// counts as ended).
func awaitGone(t *testing.T, pid int) {
	t.Helper()
	polltest.Until(t, fmt.Sprintf("end of process %d", pid), func() bool {
		if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			return true
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(stat), ") Z ")
	})
}

func TestStartFails(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		spec supervisor.Spec
		want string
	}{
		{"no such program", supervisor.Spec{Name: "ghost", Path: filepath.Join(dir, "none"), Log: filepath.Join(dir, "a.log")}, "start ghost: "},
		{"log directory is a file", supervisor.Spec{Name: "x", Path: "true", Log: filepath.Join(file, "a.log")}, "log directory of x: "},
		{"log is a directory", supervisor.Spec{Name: "x", Path: "true", Log: dir}, "log of x: "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := supervisor.Start(tc.spec)
			if err == nil || !strings.HasPrefix(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
}

func TestCheckPort(t *testing.T) {
	ports, err := supervisor.FreePorts(1) // which no connection of somebody else's takes when it is free again
	if err != nil {
		t.Fatal(err)
	}
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[0]))
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	err = supervisor.CheckPort("envoy", address)
	use := new(supervisor.PortInUseError)
	if !errors.As(err, &use) {
		t.Fatalf("error %v, want a PortInUseError", err)
	}
	if use.PID != os.Getpid() {
		t.Errorf("pid %d, want %d", use.PID, os.Getpid())
	}
	_, port, _ := net.SplitHostPort(address)
	want := fmt.Sprintf("port %s (envoy) is already in use by %s (pid %d): stop it", port, use.Command, use.PID)
	if err.Error() != want {
		t.Errorf("error %q, want %q", err, want)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := supervisor.CheckPort("envoy", address); err != nil {
		t.Errorf("free port: %v", err)
	}
	if err := supervisor.CheckPort("envoy", "127.0.0.1:http-nope"); err == nil || errors.As(err, &use) {
		t.Errorf("bad address: %v", err)
	}
}

func TestPortUseWithoutOwner(t *testing.T) {
	err := &supervisor.PortInUseError{Address: "127.0.0.1:9901", Name: "envoy admin"}
	if want := "port 9901 (envoy admin) is already in use: stop what listens there"; err.Error() != want {
		t.Errorf("error %q, want %q", err, want)
	}
}

func TestFreePorts(t *testing.T) {
	ports, err := supervisor.FreePorts(5)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[int]bool{}
	for _, p := range ports {
		if seen[p] {
			t.Errorf("port %d twice", p)
		}
		seen[p] = true
		if err := supervisor.CheckPort("free", net.JoinHostPort("127.0.0.1", strconv.Itoa(p))); err != nil {
			t.Error(err)
		}
	}
	if len(seen) != 5 {
		t.Errorf("%d ports, want 5", len(seen))
	}
}
