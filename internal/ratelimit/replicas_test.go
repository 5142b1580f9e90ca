package ratelimit

import (
	"context"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/polltest"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

// TestReplicasCountEachOther starts and ends replicas, and kills Redis: each
// grants its share of those that were seen last.
func TestReplicasCountEachOther(t *testing.T) {
	server := redistest.NewProcess(t)
	client := redis.NewClient(&redis.Options{Addr: server.Addr(), MaxRetries: -1, ContextTimeoutEnabled: true})
	defer client.Close()
	var labs []*lab
	var stops []func()
	for range 3 {
		l := newLab(t, mustLoad(t, shipped), func(o *Options) {
			o.Store, o.Timeout, o.BeatEvery = NewRedis(client, false), 200*time.Millisecond, 500*time.Millisecond
			o.Failures, o.ProbeEvery = 1, time.Hour
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = l.Run(ctx) }()
		stop := func() { cancel(); <-done }
		defer stop()
		labs, stops = append(labs, l), append(stops, stop)
	}
	for _, l := range labs {
		polltest.Until(t, "three are seen", func() bool { return testutil.ToFloat64(l.metrics.replicas) == 3 })
	}
	stops[2]()
	for _, l := range labs[:2] {
		polltest.Until(t, "two are left", func() bool { return l.replicas.count() == 2 })
	}
	server.Kill()
	granted := 0
	for range 20 {
		for _, l := range labs[:2] {
			dec := l.decide(request(of("free", "u", "x")))
			if dec.Path != PathLocal {
				t.Fatalf("%+v", dec)
			}
			if dec.Allowed {
				granted++
			}
		}
	}
	if granted != 10 {
		t.Errorf("both together granted %d of 10", granted)
	}
}

func TestReplicas(t *testing.T) {
	for name, start := range servers {
		t.Run(name, func(t *testing.T) {
			client := redis.NewClient(&redis.Options{Addr: start(t)})
			defer client.Close()
			s := NewRedis(client, false)
			if n, err := s.Beat(t.Context(), "a", time.Minute); err != nil || n != 1 {
				t.Fatalf("%d, %v", n, err)
			}
			if n, err := s.Beat(t.Context(), "b", time.Minute); err != nil || n != 2 {
				t.Fatalf("%d, %v", n, err)
			}
			if err := s.Leave(t.Context(), "a"); err != nil {
				t.Fatal(err)
			}
			if n, err := s.Beat(t.Context(), "b", time.Minute); err != nil || n != 1 {
				t.Fatalf("%d, %v", n, err)
			}
			polltest.Until(t, "one that is silent is forgotten", func() bool {
				n, err := s.Beat(t.Context(), "c", time.Millisecond)
				return err == nil && n == 1
			})
			_ = client.Close()
			if _, err := s.Beat(t.Context(), "b", time.Minute); err == nil || s.Leave(t.Context(), "b") == nil {
				t.Error("no error without a server")
			}
		})
	}
	// What was granted is reckoned as it was granted.
	r := newReplicas(NewMemory(1, time.Now), 2, time.Second)
	if r.share(true) != 2 {
		t.Error(r.share(true))
	}
	r.seen.Store(5)
	if r.share(false) != 2 || r.share(true) != 5 || r.share(false) != 5 {
		t.Errorf("%+v", r)
	}
}
