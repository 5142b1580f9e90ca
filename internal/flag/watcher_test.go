package flag

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/logtest"
	"github.com/tollgate-proxy/tollgate/internal/outage"
	"github.com/tollgate-proxy/tollgate/internal/polltest"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
	"github.com/tollgate-proxy/tollgate/internal/versioned"
)

// watch starts a watcher; stop ends it and waits.
func watch(t *testing.T, o WatcherOptions) (w *Watcher, log *logtest.Buffer, stop func()) {
	t.Helper()
	log = &logtest.Buffer{}
	if o.Log = log.Logger(); o.Now == nil {
		o.Now = testClock
	}
	if o.Poll == 0 {
		o.Poll = 20 * time.Millisecond
	}
	w, err := NewWatcher(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := w.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(stop)
	return w, log, stop
}

func bootstrap(t *testing.T) *Definitions {
	return &Definitions{Flags: map[string]Definition{"boot": onOff(t, "boot", 100)}}
}

func isOn(w *Watcher, key string) bool {
	return w.Current().Evaluate(key, &Subject{Key: "u"}, testTime).Variant == "on"
}

// A change at one replica is live at the others, by notice: polling is too
// slow here to help.
func TestChangeReachesEveryReplica(t *testing.T) {
	redistest.Each(t, func(t *testing.T, c *redis.Client) {
		store := NewStore(c, testClock)
		var replicas []*Watcher
		for range 3 {
			w, _, _ := watch(t, WatcherOptions{Store: store, Bootstrap: bootstrap(t), Poll: time.Hour})
			if !isOn(w, "boot") {
				t.Error("the bootstrap flags are not in force at once")
			}
			replicas = append(replicas, w)
		}
		for _, w := range replicas {
			polltest.Until(t, "first synchronisation", func() bool { return w.Current().Version() == 1 })
		}
		changed := replicas[0].Changed()
		put(t, store, onOff(t, "new", 100), 0)
		for _, w := range replicas {
			polltest.Until(t, "the new flag", func() bool { return isOn(w, "new") })
		}
		<-changed
		put(t, store, onOff(t, "new", 0), 1)
		replicas[0].Wake() // as the API does for its own replica
		for _, w := range replicas {
			polltest.Until(t, "the flag turned off, by notice alone", func() bool { return !isOn(w, "new") })
		}
	})
}

// Notices can be lost; polling finds the change, which nothing tells of here.
func TestPollingFindsWhatNoticesMissed(t *testing.T) {
	redistest.Each(t, func(t *testing.T, c *redis.Client) {
		store := NewStore(c, testClock)
		put(t, store, onOff(t, "a", 0), 0)
		w, _, _ := watch(t, WatcherOptions{Store: store})
		polltest.Until(t, "the flag", func() bool { return w.Current().Version() == 1 })
		before := c.HGet(t.Context(), keyRoot+"definitions", "a").Val()
		after := strings.Replace(before, `"percentage":0`, `"percentage":100`, 1)
		if before == after || isOn(w, "a") {
			t.Fatal(before)
		}
		if err := errors.Join(c.HSet(t.Context(), keyRoot+"definitions", "a", after).Err(), c.Incr(t.Context(), keyRoot+"version").Err()); err != nil {
			t.Fatal(err)
		}
		polltest.Until(t, "the change", func() bool { return isOn(w, "a") })
	})
}

// Redis away at start and in between: the bootstrap, then the last known.
func TestLastKnownGood(t *testing.T) {
	server := redistest.NewProcess(t)
	c := redis.NewClient(&redis.Options{Addr: server.Addr(), MaxRetries: -1, DialTimeout: 200 * time.Millisecond, ReadTimeout: 200 * time.Millisecond})
	t.Cleanup(func() { _ = c.Close() })
	server.Kill()
	store := NewStore(c, testClock)
	var looks atomic.Int64
	later := func() time.Time { return testTime.Add(time.Duration(looks.Add(1)) * outage.Calm) }
	w, log, stop := watch(t, WatcherOptions{Store: store, Bootstrap: bootstrap(t), Now: later})
	polltest.Until(t, "a warning", func() bool { return log.Count("flag store is away") == 1 })
	if !isOn(w, "boot") {
		t.Error("no bootstrap flags without Redis")
	}
	server.Start()
	polltest.Until(t, "Redis to be back", func() bool { return log.Count("flag store is back") == 1 && w.Current().Version() == 1 })
	put(t, store, onOff(t, "boot", 0), 1)
	put(t, store, onOff(t, "later", 100), 0)
	polltest.Until(t, "the change", func() bool { return !isOn(w, "boot") && isOn(w, "later") })

	server.Kill()
	polltest.Until(t, "a second warning", func() bool { return log.Count("flag store is away") == 2 })
	if isOn(w, "boot") || !isOn(w, "later") {
		t.Error("the last known flags were lost with Redis")
	}
	// It comes back empty. What this replica knows is put back, not what the
	// file says, and versions go on counting.
	server.Start()
	polltest.Until(t, "the flags to be written back", func() bool {
		r, err := store.Get(t.Context(), "boot")
		return err == nil && r.Version == 2 && r.Definition.Extension.Rollout.Percentage == 0
	})
	polltest.Until(t, "the flags in force", func() bool { return !isOn(w, "boot") && isOn(w, "later") })

	// A replica that starts now takes Redis's word over its file's.
	stop()
	restarted, _, _ := watch(t, WatcherOptions{Store: store, Bootstrap: bootstrap(t)})
	polltest.Until(t, "the stored flags", func() bool { return !isOn(restarted, "boot") && isOn(restarted, "later") })
}

func TestBadFlagsInTheStore(t *testing.T) {
	redistest.Each(t, func(t *testing.T, c *redis.Client) {
		store, ctx := NewStore(c, testClock), context.Background()
		put(t, store, onOff(t, "a", 100), 0)
		w, log, _ := watch(t, WatcherOptions{Store: store})
		polltest.Until(t, "the flag", func() bool { return isOn(w, "a") })
		// What a newer release might write: unknown operators, then prerequisites
		// that are not there.
		write := func(key, text string) {
			if err := c.HSet(ctx, keyRoot+"definitions", key, text).Err(); err != nil {
				t.Fatal(err)
			}
			if err := c.Incr(ctx, keyRoot+"version").Err(); err != nil {
				t.Fatal(err)
			}
		}
		write("a", `{"version":2,"definition":{"targeting":{"future":[]}}}`)
		polltest.Until(t, "a complaint", func() bool { return log.Count("not understood") == 1 && log.Count("kept=true") == 1 })
		if !isOn(w, "a") {
			t.Error("the last known definition was dropped")
		}
		write("b", `{"version":1,"definition":{"defaultVariant":"true","tollgate":{"prerequisites":[{"flag":"none","variants":["x"]}]}}}`)
		polltest.Until(t, "a refusal", func() bool { return log.Count("stored flags are refused") == 1 })
		if !isOn(w, "a") || w.Current().Version() != 2 {
			t.Error("refused flags changed the set")
		}
	})
}

// A flag that is not understood, and of which nothing is known from before, takes
// with it what depends on it, and nothing else: at the start as while running.
func TestBrokenPrerequisite(t *testing.T) {
	redistest.Each(t, func(t *testing.T, c *redis.Client) {
		store := NewStore(c, testClock)
		put(t, store, onOff(t, "good", 100), 0)
		running, runningLog, _ := watch(t, WatcherOptions{Store: store, Bootstrap: bootstrap(t)})
		polltest.Until(t, "the flags", func() bool { return isOn(running, "good") && running.Current().Version() == 2 })
		const needs = `{"version":1,"definition":{"variants":{"on":true,"off":false},"defaultVariant":"on","tollgate":{"prerequisites":[{"flag":%q,"variants":["on"]}]}}}`
		documents := map[string]versioned.Write{
			"base":   {Version: 1, Document: []byte(`{"version":1,"definition":{"targeting":{"future":[]}}}`)},
			"middle": {Version: 1, Document: fmt.Appendf(nil, needs, "base")}, "atop": {Version: 1, Document: fmt.Appendf(nil, needs, "middle")},
			"beside": {Version: 1, Document: fmt.Appendf(nil, needs, "good")},
		}
		if written, err := store.documents.Write(t.Context(), 2, documents); err != nil || !written {
			t.Fatal(written, err)
		}
		starting, startingLog, _ := watch(t, WatcherOptions{Store: store, Bootstrap: bootstrap(t)})
		for what, w := range map[string]*Watcher{"running": running, "starting": starting} {
			polltest.Until(t, what+": the stored flags", func() bool { return w.Current().Version() == 6 })
			if !isOn(w, "good") || !isOn(w, "beside") || !isOn(w, "boot") {
				t.Errorf("%s: more is left out: %v", what, w.Current().Keys())
			}
			for key := range strings.FieldsSeq("base middle atop") {
				if r := w.Current().Evaluate(key, &Subject{Key: "u"}, testTime); r.Reason != ReasonError || r.Variant != "" {
					t.Errorf("%s: %s is %+v", what, key, r)
				}
			}
		}
		// It is told of once.
		put(t, store, onOff(t, "later", 100), 0)
		for _, w := range []*Watcher{running, starting} {
			polltest.Until(t, "a later change", func() bool { return isOn(w, "later") })
		}
		for _, log := range []*logtest.Buffer{runningLog, startingLog} {
			if log.Count("stored flag is not understood") != 1 || log.Count("flags are left out") != 1 || log.Count("refused") != 0 {
				t.Errorf("log:\n%s", log)
			}
		}
	})
}

// What was known of a broken flag stays, unless others have come to need more of
// it than there was.
func TestBrokenPrerequisiteThatIsKept(t *testing.T) {
	redistest.Each(t, func(t *testing.T, c *redis.Client) {
		store := NewStore(c, testClock)
		put(t, store, onOff(t, "base", 100), 0)
		put(t, store, onOff(t, "good", 100), 0)
		w, _, _ := watch(t, WatcherOptions{Store: store})
		polltest.Until(t, "the flags", func() bool { return isOn(w, "base") && isOn(w, "good") })
		for i, variant := range []string{"on", "later"} {
			documents := map[string]versioned.Write{
				"base":  {Version: 2, Document: []byte(`{"version":2,"definition":{"targeting":{"future":[]}}}`)},
				"needs": {Version: 1, Document: fmt.Appendf(nil, `{"version":1,"definition":{"variants":{"on":true,"off":false},"defaultVariant":"on","tollgate":{"prerequisites":[{"flag":"base","variants":[%q]}]}}}`, variant)},
			}
			at := int64(2 + 2*i)
			if written, err := store.documents.Write(t.Context(), at, documents); err != nil || !written {
				t.Fatal(written, err)
			}
			polltest.Until(t, "the stored flags", func() bool { return w.Current().Version() == at+2 })
			fits := variant == "on"
			if !isOn(w, "good") || isOn(w, "base") != fits || isOn(w, "needs") != fits {
				t.Errorf("%s: in force: %v", variant, w.Current().Keys())
			}
		}
	})
}

func TestWatcherOptions(t *testing.T) {
	bad := onOff(t, "a", 1)
	bad.Extension.Prerequisites = []Prerequisite{{Flag: "none", Variants: []string{"on"}}}
	if _, err := NewWatcher(WatcherOptions{Bootstrap: &Definitions{Flags: map[string]Definition{"a": bad}}}); err == nil {
		t.Error("bad bootstrap flags were taken")
	}
	registry := prometheus.NewPedanticRegistry()
	old := onOff(t, "old", 1)
	old.Extension.Expires = testTime
	o := WatcherOptions{Bootstrap: &Definitions{Flags: map[string]Definition{"old": old, "new": onOff(t, "new", 1)}}, Metrics: registry, Now: testClock}
	if _, err := NewWatcher(o); err != nil {
		t.Fatal(err)
	}
	if err := testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP tollgate_flag_definitions Number of flags in force.
# TYPE tollgate_flag_definitions gauge
tollgate_flag_definitions 2
# HELP tollgate_flag_expired Number of flags in force past their expiry date.
# TYPE tollgate_flag_expired gauge
tollgate_flag_expired 1
`), "tollgate_flag_definitions", "tollgate_flag_expired"); err != nil {
		t.Error(err)
	}
	if _, err := NewWatcher(o); err == nil {
		t.Error("metrics were registered twice")
	}
}

// A replica that restarts in the middle of a roll-out deals everyone as the
// others do, and as it did itself.
func TestRestartDuringRollout(t *testing.T) {
	redistest.Each(t, func(t *testing.T, c *redis.Client) {
		store := NewStore(c, testClock)
		w, _, stop := watch(t, WatcherOptions{Store: store, Bootstrap: bootstrap(t)})
		def := onOff(t, "half", 50)
		def.Extension.Rollout.Progressive = &Progressive{From: testTime.Add(-time.Hour), Until: testTime.Add(time.Hour), End: Everyone}
		put(t, store, def, 0)
		polltest.Until(t, "the roll-out", func() bool { return w.Current().Version() == 2 })
		deal := func(w *Watcher) (variants [1000]string) {
			for i := range variants {
				variants[i] = w.Current().Evaluate("half", &Subject{Key: strconv.Itoa(i)}, testTime).Variant
			}
			return variants
		}
		before := deal(w)
		stop()
		again, _, _ := watch(t, WatcherOptions{Store: store, Bootstrap: bootstrap(t)})
		polltest.Until(t, "the roll-out again", func() bool { return again.Current().Version() == 2 })
		if deal(again) != before {
			t.Error("a restart moved users")
		}
	})
}

// killer kills Redis when the first script that writes is on its way to it or,
// without a server, loses the answer.
type killer struct {
	server *redistest.Process
	done   bool
}

func (k *killer) DialHook(next redis.DialHook) redis.DialHook { return next }

func (k *killer) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (k *killer) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		// Of the two scripts, the one that writes has four keys.
		if strings.HasPrefix(cmd.Name(), "eval") && cmd.Args()[2] == 4 && !k.done {
			k.done = true
			if k.server == nil {
				return errors.Join(next(ctx, cmd), io.ErrUnexpectedEOF)
			}
			k.server.Kill()
		}
		return next(ctx, cmd)
	}
}

// Redis lost in the middle of a change: the change fails, nothing is half
// written, and it can be made again.
func TestRedisLostMidChange(t *testing.T) {
	server := redistest.NewProcess(t)
	c := redis.NewClient(&redis.Options{Addr: server.Addr(), MaxRetries: -1})
	t.Cleanup(func() { _ = c.Close() })
	c.AddHook(&killer{server: server})
	store := NewStore(c, testClock)
	if _, err := store.Put(t.Context(), onOff(t, "a", 1), Change{Expect: 0}); err == nil || errors.Is(err, ErrConflict) || errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
	server.Start()
	if snapshot, err := store.List(t.Context()); err != nil || snapshot.Version != 0 || len(snapshot.Records) != 0 {
		t.Errorf("got %+v, %v", snapshot, err)
	}
	put(t, store, onOff(t, "a", 1), 0)
}

// A change whose answer was lost has been made, whole, and who tries again with
// the version that it was to change is told that something has changed.
func TestAnswerLostMidChange(t *testing.T) {
	redistest.Each(t, func(t *testing.T, c *redis.Client) {
		store := NewStore(c, testClock)
		put(t, store, onOff(t, "a", 1), 0)
		c.AddHook(&killer{})
		if _, err := store.Put(t.Context(), onOff(t, "a", 50), Change{Expect: 1}); !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, ErrConflict) {
			t.Errorf("got %v", err)
		}
		if r, err := store.Get(t.Context(), "a"); err != nil || r.Version != 2 || r.Definition.Extension.Rollout.Percentage != 50*Percent {
			t.Errorf("got %+v, %v", r, err)
		}
		if _, err := store.Put(t.Context(), onOff(t, "a", 50), Change{Expect: 1}); !errors.Is(err, ErrConflict) {
			t.Errorf("got %v", err)
		}
		if entries, err := store.History(t.Context(), "a", MaxHistory); err != nil || len(entries) != 2 {
			t.Errorf("got %+v, %v", entries, err)
		}
	})
}

// A store that comes and goes is told of once.
func TestFlappingStoreIsToldOfOnce(t *testing.T) {
	server := redistest.NewProcess(t)
	c := redis.NewClient(&redis.Options{Addr: server.Addr(), MaxRetries: -1, DialTimeout: 200 * time.Millisecond})
	t.Cleanup(func() { _ = c.Close() })
	log := &logtest.Buffer{}
	now := testTime
	w, err := NewWatcher(WatcherOptions{Store: NewStore(c, testClock), Log: log.Logger(), Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		server.Kill()
		w.sync(t.Context())
		server.Start()
		w.sync(t.Context())
	}
	if log.Count("store is away") != 1 || log.Count("store is back") != 0 {
		t.Errorf("log:\n%s", log)
	}
	now = now.Add(outage.Calm)
	w.sync(t.Context())
	if log.Count("store is away") != 1 || log.Count("store is back") != 1 {
		t.Errorf("log:\n%s", log)
	}
}

// A Redis that takes no writes is read all the same.
func TestReadOnlyStore(t *testing.T) {
	server := redistest.NewProcess(t)
	c := redistest.Client(t, server.Addr())
	store := NewStore(c, testClock)
	put(t, store, onOff(t, "a", 100), 0)
	if err := c.ConfigSet(t.Context(), "maxmemory", "1").Err(); err != nil {
		t.Fatal(err)
	}
	w, log, _ := watch(t, WatcherOptions{Store: store, Bootstrap: bootstrap(t)})
	polltest.Until(t, "the stored flag", func() bool { return isOn(w, "a") })
	polltest.Until(t, "a warning", func() bool { return log.Count("flag store is away") == 1 })
	if err := c.ConfigSet(t.Context(), "maxmemory", "0").Err(); err != nil {
		t.Fatal(err)
	}
	polltest.Until(t, "the bootstrap flag beside it", func() bool { return isOn(w, "a") && isOn(w, "boot") })
}

func TestStoreOfAnotherKind(t *testing.T) {
	c := redistest.Client(t, redistest.Embedded(t))
	if err := c.Set(t.Context(), keyRoot+"definitions", "text", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if _, err := NewStore(c, testClock).List(t.Context()); err == nil {
		t.Error("a string was read as flags")
	}
}
