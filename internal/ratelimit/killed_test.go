package ratelimit

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

// replicaVariable makes this program a replica on the Redis of that address, and
// endlessVariable one that goes on until it is killed.
const (
	replicaVariable = "TOLLGATE_TEST_REPLICA"
	endlessVariable = "TOLLGATE_TEST_ENDLESS"
)

func TestMain(m *testing.M) {
	if addr := os.Getenv(replicaVariable); addr != "" {
		if err := beReplica(addr); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// replicaClients is how many clients a replica has at once.
const replicaClients = 8

// beReplica takes what it can of one bucket, by rules from its standard input, and
// writes a byte for each answer: what it said is known whenever it is killed.
func beReplica(addr string) error {
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	rules, err := ParseRules("rules.yaml", text)
	if err != nil {
		return err
	}
	client := redis.NewClient(&redis.Options{Addr: addr})
	defer client.Close()
	l, err := NewLimiter(Options{
		Rules: rules, Store: NewRedis(client, false), LeaseLife: 20 * time.Millisecond, Timeout: 10 * time.Second,
		Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = l.Run(ctx) })
	defer running.Wait()
	defer cancel()
	endless := os.Getenv(endlessVariable) != ""
	var clients sync.WaitGroup
	for range replicaClients {
		clients.Go(func() {
			req := request(of("a", "u", "x"))
			var dec Decision
			tick := time.NewTicker(5 * time.Millisecond)
			defer tick.Stop()
			for denied := 0; denied < 40 || endless; {
				mark := "g"
				if err := l.Decide(ctx, &req, &dec); err != nil || !dec.Allowed {
					mark = "d"
					denied++
					<-tick.C // What others hold unused comes back.
				} else if dec.Path == PathLeased {
					mark = "l"
				}
				if _, err := os.Stdout.WriteString(mark); err != nil {
					return
				}
			}
		})
	}
	clients.Wait()
	return nil
}

// TestReplicasKilled kills two of four processes while they take what they can of
// one bucket, in part from leases: together they never grant more than it holds,
// and what dies with them is no more than their leases.
func TestReplicasKilled(t *testing.T) {
	addr := redistest.Server(t)
	var granted, leased atomic.Int64
	var all sync.WaitGroup
	for i := range 4 {
		rules, err := os.CreateTemp(t.TempDir(), "rules")
		if err != nil {
			t.Fatal(err)
		}
		defer rules.Close()
		if _, err := rules.WriteAt([]byte(large), 0); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(os.Args[0]) //nolint:noctx // Killed below, or done soon.
		cmd.Env, cmd.Stdin, cmd.Stderr = append(os.Environ(), replicaVariable+"="+addr), rules, os.Stderr
		if i < 2 {
			cmd.Env = append(cmd.Env, endlessVariable+"=1")
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		all.Go(func() {
			answers := bufio.NewReader(out)
			for n := 0; ; n++ {
				if n == 300 && i < 2 {
					if err := cmd.Process.Kill(); err != nil {
						t.Error(err)
					}
				}
				mark, err := answers.ReadByte()
				if err != nil {
					break
				}
				switch mark {
				case 'l':
					leased.Add(1)
					fallthrough
				case 'g':
					granted.Add(1)
				}
			}
			if err := cmd.Wait(); (err != nil) != (i < 2) {
				t.Errorf("replica %d: %v", i, err)
			}
		})
	}
	all.Wait()
	t.Logf("granted %d, %d of them leased", granted.Load(), leased.Load())
	// The bucket holds 5000, and one lease is at most an eighth of it. What the
	// killed ones were about to say is lost as well.
	if g := granted.Load(); g > 5000 || g < 5000-2*(5000/leaseShare+replicaClients) || leased.Load() == 0 {
		t.Errorf("granted %d of 5000, %d of them leased", g, leased.Load())
	}
}
