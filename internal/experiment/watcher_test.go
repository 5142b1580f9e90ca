package experiment

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/logtest"
	"github.com/tollgate-proxy/tollgate/internal/polltest"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
	"github.com/tollgate-proxy/tollgate/internal/versioned"
)

func watch(t *testing.T, o WatcherOptions) *Watcher {
	t.Helper()
	o.Poll, o.Log = 10*time.Millisecond, slog.New(slog.DiscardHandler)
	w, err := NewWatcher(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return w
}

func TestWatcher(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rdb *redis.Client) {
		c := NewCatalog(rdb, fixedNow)
		changes := make(chan int, 100)
		w := watch(t, WatcherOptions{Catalog: c, Changed: func(s *Set) { changes <- len(s.Live()) }, Metrics: prometheus.NewRegistry()})
		started(t, c, valid())
		w.Wake()
		polltest.Until(t, "a live experiment", func() bool { return len(w.Current().Live()) == 1 })
		// What a newer release has written does not take away what is known.
		if err := rdb.HSet(t.Context(), catalogRoot+"definitions", "checkout", "{").Err(); err != nil {
			t.Fatal(err)
		}
		other := valid()
		other.Key = "other"
		put(t, c, other)
		polltest.Until(t, "both", func() bool { return w.Current().Find("other") != nil })
		if w.Current().Find("checkout") == nil || len(w.Current().Live()) != 1 || w.Current().Find("none") != nil {
			t.Error("the broken one was not kept")
		}
		// A Redis that has lost everything gets it back.
		if err := rdb.FlushAll(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		polltest.Until(t, "everything back", func() bool {
			s, err := c.List(t.Context())
			return err == nil && len(s.Records) == 2 && s.Find("checkout").Definition.State == Started
		})
	})
}

// What is not understood is told of once, and again when that is something else.
func TestWatcherTellsOfBrokenOnce(t *testing.T) {
	c, log := NewCatalog(redistest.Client(t, redistest.Embedded(t)), fixedNow), &logtest.Buffer{}
	w, err := NewWatcher(WatcherOptions{Catalog: c, Log: log.Logger(), Now: fixedNow})
	if err != nil {
		t.Fatal(err)
	}
	for i, key := range []string{"odd", "other", "later", "more"} {
		if i%2 == 0 {
			newer := map[string]versioned.Write{key: {Version: 1, Document: []byte(`{"definition":{"weather":"rain"}}`), Entry: []byte("{}")}}
			if written, err := c.documents.Write(t.Context(), int64(i), newer); err != nil || !written {
				t.Fatal(written, err)
			}
		} else {
			d := valid()
			d.Key = key
			put(t, c, d)
		}
		w.sync(t.Context())
		// First one, then both of them.
		if want := []int{1, 1, 3, 3}[i]; w.Current().version != int64(i+1) || log.Count("is not understood") != want {
			t.Errorf("after %s, at version %d, want %d times:\n%s", key, w.Current().version, want, log)
		}
	}
}

func TestWatcherWithoutRedis(t *testing.T) {
	server := redistest.NewProcess(t)
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr(), MaxRetries: -1})
	t.Cleanup(func() { _ = rdb.Close() })
	c := NewCatalog(rdb, fixedNow)
	started(t, c, valid())
	w := watch(t, WatcherOptions{Catalog: c})
	polltest.Until(t, "a live experiment", func() bool { return len(w.Current().Live()) == 1 })
	server.Kill()
	if _, err := c.List(t.Context()); err == nil {
		t.Error("a dead Redis was read")
	}
	server.Start()
	polltest.Until(t, "the experiment back in Redis", func() bool {
		s, err := c.List(t.Context())
		return err == nil && len(s.Records) == 1
	})
	if len(w.Current().Live()) != 1 {
		t.Error("the last known experiment is gone")
	}
}
