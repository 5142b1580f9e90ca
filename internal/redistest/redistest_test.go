package redistest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/redis/go-redis/v9"
)

func TestEach(t *testing.T) {
	n := 0
	Each(t, func(t *testing.T, c *redis.Client) {
		n++
		if err := c.Set(t.Context(), "k", "v", 0).Err(); err != nil {
			t.Fatal(err)
		}
		if got := c.Get(t.Context(), "k").Val(); got != "v" {
			t.Errorf("got %q", got)
		}
	})
	if n != 2 {
		t.Errorf("ran over %d servers", n)
	}
}

// A redis-server that refuses its port, as a Cluster's refuses those above
// 55535, gets another one.
func TestServerTriesOtherPorts(t *testing.T) {
	server, err := exec.LookPath("redis-server")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	script := fmt.Sprintf("#!/bin/sh\necho >>%s/tried\n[ $(wc -l <%[1]s/tried) -gt 8 ] || exit 1\nexec %s \"$@\"\n", dir, server)
	if err := os.WriteFile(filepath.Join(dir, "redis-server"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+string(filepath.ListSeparator)+os.Getenv("PATH"))
	if err := Client(t, Server(t)).Ping(t.Context()).Err(); err != nil {
		t.Error(err)
	}
}

func TestKilledServerComesBackEmpty(t *testing.T) {
	p := NewProcess(t)
	c := Client(t, p.Addr())
	if err := c.Set(t.Context(), "k", "v", 0).Err(); err != nil {
		t.Fatal(err)
	}
	p.Kill()
	p.Kill() // twice is no harm
	if c.Ping(t.Context()).Err() == nil {
		t.Error("a killed server answers")
	}
	p.Start()
	if err := c.Get(t.Context(), "k").Err(); !errors.Is(err, redis.Nil) {
		t.Errorf("got %v, want an empty server", err)
	}
	p.Pause()
	p.Resume()
	if err := c.Ping(t.Context()).Err(); err != nil {
		t.Errorf("after a pause: %v", err)
	}
}

// Who answers at the address may be another server, that took it first.
func TestAnotherServerIsNotTakenForOurs(t *testing.T) {
	p := &Process{t: t, addr: Server(t), dir: t.TempDir()}
	if err := p.start(); err == nil {
		p.Kill()
		t.Error("a server on a port that is taken")
	}
}
