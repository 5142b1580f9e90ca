// Package redistest gives tests a Redis: a real redis-server, or the embedded
// one. A store's conformance suite runs over both.
package redistest

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/polltest"
)

// Process is a redis-server that a test can kill and start again at the same
// address. It keeps nothing on disk.
type Process struct {
	t    testing.TB
	addr string
	dir  string
	args []string
	cmd  *exec.Cmd
	done chan error
}

// Server starts a redis-server that stops with the test and returns its address.
func Server(t testing.TB, args ...string) string {
	t.Helper()
	return NewProcess(t, args...).Addr()
}

// NewProcess starts a redis-server with further arguments, such as
// "--maxmemory", "10mb". It fails the test where redis-server is not installed.
func NewProcess(t testing.TB, args ...string) *Process {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Fatalf("redis-server is not installed: run `make tools` (Debian's package redis-server): %v", err)
	}
	// Between choosing a free port and redis-server's bind another process may
	// take it, and the port 10,000 above, which a node of a Cluster wants too, may
	// be taken. Then choose again.
	var err error
	for range 20 {
		p := &Process{t: t, addr: FreeAddr(t), dir: t.TempDir(), args: args}
		if err = p.start(); err == nil {
			t.Cleanup(p.Kill)
			return p
		}
	}
	t.Fatalf("redis-server did not start on any of twenty ports; on the last one: %v", err)
	return nil
}

// Addr returns host:port.
func (p *Process) Addr() string { return p.addr }

// Kill ends the server as kill -9 does. A killed server can be started again.
func (p *Process) Kill() {
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Kill()
	<-p.done
	p.cmd = nil
}

// Pause stops the server's process without closing connections: calls hang.
func (p *Process) Pause() { p.signal(syscall.SIGSTOP) }

// Resume lets a paused server go on.
func (p *Process) Resume() { p.signal(syscall.SIGCONT) }

func (p *Process) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatalf("signal %v to redis-server: %v", s, err)
	}
}

// Start starts a killed server again, empty, at the same address.
func (p *Process) Start() {
	p.t.Helper()
	if err := p.start(); err != nil {
		p.t.Fatal(err)
	}
}

func (p *Process) start() error {
	_, port, _ := net.SplitHostPort(p.addr)
	args := append([]string{"--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", p.dir}, p.args...)
	logfile, err := os.OpenFile(filepath.Join(p.dir, "redis.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer logfile.Close()
	before, err := logfile.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	cmd := exec.Command("redis-server", args...)
	cmd.Stdout, cmd.Stderr = logfile, logfile
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	late := time.NewTimer(polltest.Patience)
	defer late.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		// Its own word: whoever answers at the address may be another, that took it.
		text, err := os.ReadFile(logfile.Name())
		if err != nil {
			return err
		}
		if bytes.Contains(text[before:], []byte("Ready to accept connections")) {
			p.cmd, p.done = cmd, done
			return nil
		}
		select {
		case err := <-done:
			return fmt.Errorf("redis-server ended: %w: %s", err, text)
		case <-late.C:
			_ = cmd.Process.Kill()
			<-done
			return fmt.Errorf("redis-server is not ready at %s: %s", p.addr, text)
		case <-tick.C:
		}
	}
}

// Embedded starts the embedded Redis and returns its address. Its clock stands
// still for expiries: use EmbeddedServer to move it.
func Embedded(t testing.TB) string {
	t.Helper()
	return EmbeddedServer(t).Addr()
}

// EmbeddedServer starts the embedded Redis.
func EmbeddedServer(t testing.TB) *miniredis.Miniredis {
	t.Helper()
	m := miniredis.NewMiniRedis()
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m
}

// Client returns a client of the Redis at addr that is closed with the test.
func Client(t testing.TB, addr string) *redis.Client {
	t.Helper()
	c := redis.NewClient(&redis.Options{Addr: addr})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// Each runs f once over a real redis-server and once over the embedded one.
func Each(t *testing.T, f func(t *testing.T, c *redis.Client)) {
	t.Run("redis-server", func(t *testing.T) { f(t, Client(t, Server(t))) })
	t.Run("embedded", func(t *testing.T) { f(t, Client(t, Embedded(t))) })
}

// FreeAddr returns a loopback address that nothing listened on a moment ago. It is
// none that the system gives to those who ask for any, nor to connections, so that
// a server that was killed finds it free again.
func FreeAddr(t testing.TB) string {
	t.Helper()
	const from, below = 12_000, 32_000 // Linux gives ports from 32768 on by itself
	var err error
	for range 100 {
		addr := fmt.Sprint("127.0.0.1:", from+rand.IntN(below-from))
		var l net.Listener
		if l, err = net.Listen("tcp", addr); err == nil {
			_ = l.Close()
			return addr
		}
	}
	t.Fatalf("no free port: %v", err)
	return ""
}
