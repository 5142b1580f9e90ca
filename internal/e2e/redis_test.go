package e2e

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/supervisor"
)

// redisServer is a real redis-server that wants a password and keeps nothing.
type redisServer struct {
	address, password, folder string

	mu      sync.Mutex
	process *supervisor.Process
}

// newRedis names a server that does not run yet.
func newRedis(t *testing.T, folder string) *redisServer {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Fatal("redis-server is not installed: `make redis`, or apt-get install redis-server, installs it")
	}
	r := &redisServer{address: freeAddresses(t, 1)[0], password: "redis-" + rand.Text(), folder: folder}
	t.Cleanup(func() { r.kill(t) })
	return r
}

func startRedis(t *testing.T, folder string) *redisServer {
	t.Helper()
	r := newRedis(t, folder)
	r.ensure(t)
	return r
}

func (r *redisServer) url() string { return "redis://:" + r.password + "@" + r.address + "/0" }

// ensure starts the server, empty, unless it runs.
func (r *redisServer) ensure(t *testing.T) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.process != nil && r.process.Running() {
		return
	}
	host, port, err := net.SplitHostPort(r.address)
	if err != nil {
		t.Fatal(err)
	}
	r.process, err = supervisor.Start(supervisor.Spec{
		Name: "redis", Path: "redis-server", Log: filepath.Join(r.folder, "redis.log"), Env: environ(),
		Args: []string{
			"--bind", host, "--port", port, "--requirepass", r.password,
			"--save", "", "--appendonly", "no", "--dir", r.folder,
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	client := r.client()
	defer func() { _ = client.Close() }()
	await(t, "redis-server to answer", func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Second)
		defer cancel()
		return client.Ping(ctx).Err()
	})
}

// kill ends the server as a crash would.
func (r *redisServer) kill(t *testing.T) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.process == nil {
		return
	}
	if err := r.process.Kill(); err != nil {
		t.Error(err)
	}
}

func (r *redisServer) pid() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.process.PID()
}

func (r *redisServer) client() *redis.Client {
	return redis.NewClient(&redis.Options{Addr: r.address, Password: r.password, MaxRetries: -1})
}

// keys counts the keys that match a pattern.
func (r *redisServer) keys(t *testing.T, pattern string) int {
	t.Helper()
	client := r.client()
	defer func() { _ = client.Close() }()
	found, err := client.Keys(t.Context(), pattern).Result()
	if err != nil {
		t.Fatal(fmt.Errorf("redis: %w", err))
	}
	return len(found)
}
