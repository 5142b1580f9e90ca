package ratelimit

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/polltest"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

func TestStoreGone(t *testing.T) {
	gone := errors.New("gone")
	for mode, want := range map[FailureMode][]bool{
		FailLocal: {true, true, true, true, true, false, false}, // half of 10, as there are two replicas
		FailAllow: {true, true, true, true, true, true, true},
		FailDeny:  {false, false, false, false, false, false, false},
	} {
		var log bytes.Buffer
		store := &broken{}
		l := newLab(t, mustLoad(t, shipped), func(o *Options) {
			store.Store = o.Store
			o.Store, o.OnFailure, o.Replicas, o.Failures = store, mode, 2, 3
			o.ProbeEvery = time.Millisecond
			o.Log = slog.New(slog.NewTextHandler(&log, nil))
		})
		store.set(gone)
		got := make([]bool, len(want))
		for i := range got {
			dec := l.decide(request(of("free", "u", "x")))
			got[i] = dec.Allowed
			if wantPath := map[bool]Path{true: PathLocal, false: PathFallback}[mode == FailLocal]; dec.Path != wantPath {
				t.Errorf("%s: path %s", mode, dec.Path)
			}
			if len(dec.Statuses) != 1 || dec.Statuses[0].Denied == dec.Allowed {
				t.Errorf("%s: %+v", mode, dec)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", mode, diff)
		}
		if n := store.count(); n != 3 {
			t.Errorf("%s: a store that is gone was asked %d times", mode, n)
		}
		if n := strings.Count(log.String(), "\n"); n != 1 {
			t.Errorf("%s: %d log lines: %s", mode, n, log.String())
		}
		if got := testutil.ToFloat64(l.metrics.degraded); got != 1 {
			t.Errorf("%s: degraded is %v", mode, got)
		}

		// When it is back, it learns what was granted: no burst.
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- l.Run(ctx) }()
		store.set(nil)
		polltest.Until(t, "the store is used again", l.guard.allows)
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		s := l.decide(request(of("free", "u", "x").with(0))).Statuses[0]
		if wantLeft := map[bool]uint32{true: 5, false: 10}[mode == FailLocal]; s.Remaining != wantLeft {
			t.Errorf("%s: %d left after recovery, want %d", mode, s.Remaining, wantLeft)
		}
		if n := strings.Count(log.String(), "\n"); n != 2 {
			t.Errorf("%s: %d log lines: %s", mode, n, log.String())
		}
	}
}

// TestStoreGoneByRule shows that each descriptor fails as its rule says.
func TestStoreGoneByRule(t *testing.T) {
	rules := mustParse(t, "domain: d\nsystem: [{unit: hour, requests_per_unit: 3}]\ndescriptors:\n"+
		"- {key: open, on_failure: allow, rate_limit: {unit: hour, requests_per_unit: 1}}\n"+
		"- {key: shut, on_failure: deny, rate_limit: {unit: hour, requests_per_unit: 1}}\n"+
		"- {key: here, on_failure: local, rate_limit: {unit: hour, requests_per_unit: 2}}\n"+
		"- {key: seen, on_failure: deny, shadow_mode: true, rate_limit: {unit: hour, requests_per_unit: 1}}\n"+
		"- {key: own, rate_limit: {unit: hour, requests_per_unit: 1}}\n")
	for _, c := range []struct {
		keys   []string
		mode   FailureMode
		want   []bool
		path   Path
		denied []bool // of the last answer
	}{
		{[]string{"open"}, FailDeny, []bool{true, true, true, true}, PathFallback, []bool{false}},
		{[]string{"shut"}, FailAllow, []bool{false}, PathFallback, []bool{true}},
		{[]string{"here"}, FailDeny, []bool{true, true, false}, PathLocal, []bool{true}},
		{[]string{"seen"}, FailLocal, []bool{true, true}, PathFallback, []bool{false}},
		{[]string{"own"}, FailDeny, []bool{false}, PathFallback, []bool{true}},
		{[]string{"open", "here"}, FailAllow, []bool{true, true, false}, PathLocal, []bool{false, true}},
		{[]string{"shut", "here"}, FailLocal, []bool{false}, PathFallback, []bool{true, false}},
		{[]string{"unheard"}, FailLocal, []bool{true, true, true, false}, PathLocal, []bool{true}},
	} {
		store := &broken{err: errors.New("gone")}
		l := newLab(t, rules, func(o *Options) { store.Store, o.Store, o.OnFailure = o.Store, store, c.mode })
		req := Request{Domain: "d"}
		for _, key := range c.keys {
			req.Descriptors = append(req.Descriptors, Descriptor{Entries: []Entry{{key, "x"}}})
		}
		for i, want := range c.want {
			dec := l.decide(req)
			if dec.Allowed != want || dec.Path != c.path || len(dec.Statuses) != len(c.keys) {
				t.Errorf("%v, request %d: %+v", c.keys, i, dec)
			}
			if i == len(c.want)-1 {
				for j := range dec.Statuses {
					if dec.Statuses[j].Denied != c.denied[j] {
						t.Errorf("%v, descriptor %d: %+v", c.keys, j, dec.Statuses[j])
					}
				}
			}
		}
	}
}

func TestCallerWhoLeavesIsNotTheStoresFault(t *testing.T) {
	l := newLab(t, mustLoad(t, shipped))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var dec Decision
	req := request(of("free", "u", "x"))
	for range 10 {
		if err := l.Decide(ctx, &req, &dec); err != nil {
			t.Fatal(err)
		}
	}
	if !l.guard.allows() {
		t.Error("the breaker opened")
	}
}

func TestRecoveryThatFailsKeepsTheDebts(t *testing.T) {
	store := &broken{}
	l := newLab(t, mustLoad(t, shipped), func(o *Options) { store.Store = o.Store; o.Store = store; o.Failures = 1; o.Replicas = 2 })
	store.set(errors.New("gone"))
	l.decide(request(of("free", "u", "x").with(4)))
	if err := l.settle(t.Context()); err == nil {
		t.Fatal("no error")
	}
	if got := l.decide(request(of("free", "u", "x").with(2))); got.Allowed {
		t.Error("the local buckets forgot what they had granted")
	}
	if err := l.probe(t.Context()); err == nil {
		t.Error("the probe of a store that is gone")
	}
}

// TestRedisKilledAndBack kills a real server under load and starts it again.
func TestRedisKilledAndBack(t *testing.T) {
	server := redistest.NewProcess(t)
	client := redis.NewClient(&redis.Options{Addr: server.Addr(), MaxRetries: -1, ContextTimeoutEnabled: true})
	defer client.Close()
	store := NewRedis(client, false)
	l := newLab(t, mustLoad(t, shipped), func(o *Options) {
		o.Store, o.Probe, o.ProbeEvery, o.Timeout, o.Now = store, store.Load, 20*time.Millisecond, 200*time.Millisecond, time.Now
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { _ = l.Run(ctx) }()

	ask := func(hits uint64) *Decision { return l.decide(request(of("premium", "u", "x").with(hits))) }
	path := func() Path { return ask(0).Path }
	polltest.Until(t, "decided in redis", func() bool { return path() == PathExact })
	server.Kill()
	polltest.Until(t, "decided here", func() bool { return path() == PathLocal && !l.guard.allows() })
	start := time.Now()
	if dec := ask(40); !dec.Allowed || dec.Path != PathLocal {
		t.Fatalf("%+v", dec)
	}
	server.Start()
	polltest.Until(t, "decided in redis again", func() bool { return path() == PathExact })
	// The new server has nothing of the old one, but what was granted without it;
	// meanwhile 50 a minute come back.
	left := int(ask(0).Statuses[0].Remaining)
	if most := 10 + int(time.Since(start)/(time.Minute/50)) + 1; left > most {
		t.Errorf("%d left after recovery, at most %d by what was granted", left, most)
	}
	server.Pause()
	polltest.Until(t, "decided here while redis hangs", func() bool { return path() == PathLocal && !l.guard.allows() })
	server.Resume()
	polltest.Until(t, "decided in redis again", func() bool { return path() == PathExact })
}
