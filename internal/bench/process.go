package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// clockTick is the unit of CPU times in /proc, in microseconds: USER_HZ is 100
// on every Linux that Go runs on.
const clockTick = 10_000

// pinned is a child process that is bound to one processor.
type pinned struct {
	cmd   *exec.Cmd
	log   string
	ended chan struct{} // closed then
}

// start starts a command on a processor and waits until it listens. One that ends
// instead, or does not listen within readyWithin, is an error that says what it wrote.
func start(ctx context.Context, cpu int, log, addr string, env []string, name string, args ...string) (*pinned, error) {
	file, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	cmd := exec.Command("taskset", append([]string{"-c", strconv.Itoa(cpu), name}, args...)...)
	cmd.Stdout, cmd.Stderr = file, file
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &pinned{cmd: cmd, log: log, ended: make(chan struct{})}
	go func() { defer close(p.ended); _ = cmd.Wait() }()
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := net.DialTimeout("tcp", addr, time.Second)
		if err == nil {
			return p, c.Close()
		}
		select {
		case <-ctx.Done():
		case <-p.ended:
		case <-tick.C:
			continue
		}
		p.stop()
		text, _ := os.ReadFile(log)
		return nil, fmt.Errorf("%s does not listen on %s: %s", name, addr, strings.TrimSpace(string(text)))
	}
}

// stop kills the process.
func (p *pinned) stop() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// cpu returns the CPU time, user and system, that the process has used, in
// microseconds.
func (p *pinned) cpu() (int64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	return parseStat(string(data))
}

// parseStat reads utime and stime of /proc/PID/stat. The command's name, in
// parentheses, may hold anything.
func parseStat(stat string) (int64, error) {
	fields := strings.Fields(stat[strings.LastIndex(stat, ")")+1:])
	if len(fields) < 13 {
		return 0, errors.New("/proc/PID/stat is not what it was")
	}
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	return (user + system) * clockTick, errors.Join(err1, err2)
}

// memory returns a figure of /proc/PID/status in bytes: VmRSS, the memory held
// now, or VmHWM, the most since forgetPeak.
func (p *pinned) memory(name string) (int64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if text, ok := strings.CutPrefix(line, name+":"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(text), "kB")), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("/proc/PID/status has no %s", name)
}

// forgetPeak makes VmHWM begin anew.
func (p *pinned) forgetPeak() error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", p.cmd.Process.Pid), []byte("5"), 0)
}

// freeAddr returns a loopback address that nothing listened on a moment ago.
func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}
