// Package supervisor runs child processes for the demo and the end-to-end
// tests: each in a process group of its own, its output in a log file, stopped
// with SIGTERM and, past a deadline, SIGKILL.
//
// On Linux the kernel ends a child when its parent dies (PR_SET_PDEATHSIG), so
// a demo that is killed leaves nothing behind. The kernel ties that signal to
// the thread that started the child; the goroutine that starts a child
// therefore keeps its thread until the child has ended.
package supervisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// Spec says what to run.
type Spec struct {
	// Name is how people know the child, "authz" for instance.
	Name string
	// Path is the program; a name without a slash is looked up in PATH.
	Path string
	// Args are the arguments after the program's name.
	Args []string
	// Env is the child's whole environment; nothing is inherited.
	Env []string
	// Dir is the child's working directory; empty is the parent's.
	Dir string
	// Log is the file that the child's output is appended to; its directory is
	// made where it is missing.
	Log string
}

// Process is a child that was started. Its methods may be called from several
// goroutines.
type Process struct {
	spec    Spec
	pid     int
	done    chan struct{}
	err     error // how the child ended; written before done is closed
	started int64 // size of the log file at the start
}

// tailBytes bounds how much of a log file Tail reads.
const tailBytes = 16 << 10

// Start runs the child and returns at once. A program that cannot be run, or a
// log file that cannot be opened, is an error.
func Start(spec Spec) (*Process, error) {
	if err := os.MkdirAll(filepath.Dir(spec.Log), 0o750); err != nil {
		return nil, fmt.Errorf("log directory of %s: %w", spec.Name, err)
	}
	log, err := os.OpenFile(spec.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("log of %s: %w", spec.Name, err)
	}
	size, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("log of %s: %w", spec.Name, err), log.Close())
	}
	// A child lives until it is stopped, whatever context asked for it.
	cmd := exec.CommandContext(context.Background(), spec.Path, spec.Args...)
	cmd.Env = spec.Env
	if cmd.Env == nil {
		cmd.Env = []string{}
	}
	cmd.Dir = spec.Dir
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = processAttributes()

	p := &Process{spec: spec, done: make(chan struct{}), started: size}
	begun := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		// The child has its own copy of the descriptor.
		err = errors.Join(err, log.Close())
		if err == nil {
			p.pid = cmd.Process.Pid
		}
		begun <- err
		if err != nil {
			return
		}
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := <-begun; err != nil {
		return nil, fmt.Errorf("start %s: %w", spec.Name, err)
	}
	return p, nil
}

// Name returns the name given in the Spec.
func (p *Process) Name() string { return p.spec.Name }

// PID returns the process id, which is also the id of the child's group.
func (p *Process) PID() int { return p.pid }

// Log returns the path of the log file.
func (p *Process) Log() string { return p.spec.Log }

// Done is closed when the child has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Running tells whether the child has not ended yet.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Err says how the child ended: nil for exit code 0, else an *exec.ExitError.
// It is nil while the child runs.
func (p *Process) Err() error {
	if p.Running() {
		return nil
	}
	return p.err
}

// Signal sends a signal to the child's process group. A group that has ended is
// no error.
func (p *Process) Signal(sig syscall.Signal) error {
	if !p.Running() {
		return nil
	}
	if err := syscall.Kill(-p.pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("signal %s (pid %d) with %s: %w", p.spec.Name, p.pid, sig, err)
	}
	return nil
}

// Stop asks the child to end (SIGTERM), waits for grace, then kills what is left
// of its group. It returns an error when the child had to be killed; a child
// that ended by itself, with whatever code, is stopped.
func (p *Process) Stop(grace time.Duration) error {
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-p.done:
		return nil
	case <-timer.C:
	}
	if err := p.Kill(); err != nil {
		return err
	}
	return fmt.Errorf("%s (pid %d) did not stop within %s and was killed", p.spec.Name, p.pid, grace)
}

// Kill ends the child's group with SIGKILL and waits for it.
func (p *Process) Kill() error {
	if err := p.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-p.done
	return nil
}

// Tail returns the last lines, at most n, that this run of the child wrote. A
// log that cannot be read gives one line that says so.
func (p *Process) Tail(n int) []string {
	data, err := readFrom(p.spec.Log, p.started)
	if err != nil {
		return []string{"(log not readable: " + err.Error() + ")"}
	}
	lines := strings.Split(string(bytes.TrimRight(data, "\n")), "\n")
	if len(lines) == 1 && lines[0] == "" {
		return nil
	}
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return lines
}

func readFrom(path string, offset int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // read only: nothing to lose
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	if _, err := f.Seek(max(offset, size-tailBytes), io.SeekStart); err != nil {
		return nil, err
	}
	return io.ReadAll(f)
}
