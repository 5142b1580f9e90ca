package experiment

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/polltest"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
	"github.com/tollgate-proxy/tollgate/internal/versioned"
)

var catalogTime = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func fixedNow() time.Time { return catalogTime }

func anyone(reason string) Change {
	return Change{Actor: "ada", Reason: reason, Expect: AnyRevision}
}

func put(t *testing.T, c *Catalog, d *Definition) Record {
	t.Helper()
	r, err := c.Put(t.Context(), *d, anyone("test"))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func started(t *testing.T, c *Catalog, d *Definition) *Record {
	t.Helper()
	put(t, c, d)
	r, err := c.Start(t.Context(), d.Key, anyone("go"))
	if err != nil {
		t.Fatal(err)
	}
	return &r
}

func TestCatalogLife(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rdb *redis.Client) {
		c, d := NewCatalog(rdb, fixedNow), valid()
		first := put(t, c, d)
		if first.Revision != 1 || first.Definition.Version != 1 || first.Definition.State != Draft || first.UpdatedBy != "ada" {
			t.Errorf("got %+v", first)
		}
		r, err := c.Start(t.Context(), d.Key, anyone("go"))
		if err != nil || r.Definition.State != Started || !r.Definition.Start.Equal(catalogTime) || r.Definition.Version != 1 {
			t.Fatalf("got %+v, %v", r, err)
		}
		if _, err := c.Start(t.Context(), d.Key, anyone("")); !errors.Is(err, ErrInvalid) {
			t.Errorf("started twice: %v", err)
		}
		if err := c.Delete(t.Context(), d.Key, anyone("")); !errors.Is(err, ErrInvalid) {
			t.Errorf("deleted while running: %v", err)
		}
		// More traffic is the same experiment, other weights are another.
		d.Traffic = 0.5
		if r = put(t, c, d); r.Definition.Version != 1 || r.Definition.State != Started {
			t.Errorf("got %+v", r)
		}
		d.Variants[1].Weight = 3
		if r = put(t, c, d); r.Definition.Version != 4 || r.Revision != 4 {
			t.Errorf("got %+v", r)
		}
		c.now = func() time.Time { return catalogTime.Add(time.Hour) }
		if r, err = c.Stop(t.Context(), d.Key, anyone("enough")); err != nil || r.Definition.State != Stopped || r.Definition.Stop.IsZero() {
			t.Errorf("got %+v, %v", r, err)
		}
		if _, err := c.Stop(t.Context(), d.Key, anyone("")); !errors.Is(err, ErrInvalid) {
			t.Errorf("stopped twice: %v", err)
		}
		if err := c.Delete(t.Context(), d.Key, anyone("done")); err != nil {
			t.Error(err)
		}
		// Made anew, it does not inherit what was measured.
		if r = put(t, c, d); r.Revision != 7 || r.Definition.Version != 7 {
			t.Errorf("got %+v", r)
		}
		entries, err := c.History(t.Context(), d.Key, MaxHistory)
		var actions []string
		for _, e := range entries {
			actions = append(actions, e.Action)
		}
		if diff := cmp.Diff([]string{"create", "delete", "stop", "update", "update", "start", "create"}, actions); err != nil || diff != "" {
			t.Errorf("%v, %s", err, diff)
		}
		if entries[1].Definition != nil || entries[2].Definition == nil || entries[2].Reason != "enough" {
			t.Errorf("got %+v", entries[1:3])
		}
		for _, err := range []error{
			func() error { _, err := c.Get(t.Context(), "none"); return err }(),
			c.Delete(t.Context(), "none", anyone("")),
			func() error { _, err := c.Start(t.Context(), "none", anyone("")); return err }(),
		} {
			if !errors.Is(err, ErrNotFound) {
				t.Errorf("got %v", err)
			}
		}
	})
}

// An earlier definition comes back without the life that it had.
func TestCatalogReverts(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rdb *redis.Client) {
		c, d := NewCatalog(rdb, fixedNow), valid()
		d.Stop = catalogTime.Add(time.Hour)
		put(t, c, d)
		if _, err := c.Start(t.Context(), d.Key, anyone("go")); err != nil {
			t.Fatal(err)
		}
		d.Traffic, d.Stop = 0.25, time.Time{}
		put(t, c, d)
		r, err := c.Revert(t.Context(), d.Key, 1, Change{Actor: "ada", Reason: "back", Expect: 3})
		if x := &r.Definition; err != nil || r.Revision != 4 || x.Traffic != 1 || x.Version != 1 || x.State != Started || !x.Start.Equal(catalogTime) || !x.Stop.IsZero() {
			t.Errorf("got %+v, %v", r, err)
		}
		for revision, want := range map[int64]error{1: ErrConflict, 9: ErrNotFound} {
			if _, err := c.Revert(t.Context(), d.Key, revision, Change{Expect: 3}); !errors.Is(err, want) {
				t.Errorf("to %d: got %v", revision, err)
			}
		}
		// What a newer release has written does not come back without what is new.
		newer := versioned.Write{Version: 5, Entry: []byte(`{"revision":5,"definition":{"key":"checkout","weather":"rain"}}`)}
		if written, err := c.documents.Write(t.Context(), 4, map[string]versioned.Write{d.Key: newer}); err != nil || !written {
			t.Fatal(written, err)
		}
		if _, err := c.Revert(t.Context(), d.Key, 5, anyone("")); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "weather") {
			t.Errorf("got %v", err)
		}
		if r, err := c.Revert(t.Context(), d.Key, 4, anyone("")); err != nil || r.State != Draft || !r.Definition.Start.IsZero() || r.Definition.Version != 6 {
			t.Errorf("got %+v, %v", r, err)
		}
		entries, err := c.History(t.Context(), d.Key, 1)
		if err != nil || entries[0].Action != "revert" {
			t.Errorf("got %+v, %v", entries, err)
		}
	})
}

func TestCatalogRefuses(t *testing.T) {
	c := NewCatalog(redistest.Client(t, redistest.Embedded(t)), fixedNow)
	started(t, c, valid())
	layered := func(key string, from, until float64) *Definition {
		d := valid()
		d.Key, d.Layer = key, &Layer{"page", from, until}
		return d
	}
	put(t, c, layered("one", 0, 0.5))
	put(t, c, layered("two", 0.5, 1))
	twin := valid()
	twin.Key, twin.Flag = "twin", "checkout"
	broken := valid()
	broken.Key, broken.Variants[1].Name = "broken", "a=b\r\nx-user-tier: admin"
	huge := valid()
	huge.Key, huge.Description = "huge", strings.Repeat("x", maxDescription+1)
	for name, d := range map[string]*Definition{
		"the same flag": twin, "overlapping slices": layered("three", 0.4, 0.6), "a variant that forges headers": broken, "a gigantic one": huge,
	} {
		if _, err := c.Put(t.Context(), *d, anyone("")); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	for revision, d := range map[int64]*Definition{0: valid(), 1: valid(), 3: valid()} {
		if _, err := c.Put(t.Context(), *d, Change{Actor: "bob", Expect: revision}); !errors.Is(err, ErrConflict) {
			t.Errorf("at revision %d: got %v", revision, err)
		}
	}
	if _, err := c.Put(t.Context(), *valid(), Change{Actor: "bob", Expect: 2}); err != nil {
		t.Error(err)
	}
}

// Many at once: every change is made once, or told apart.
func TestCatalogConcurrently(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rdb *redis.Client) {
		var running sync.WaitGroup
		for i := range 6 {
			running.Go(func() {
				d := valid()
				d.Key = fmt.Sprintf("e-%d", i)
				if _, err := NewCatalog(rdb, fixedNow).Put(t.Context(), *d, anyone("")); err != nil {
					t.Error(err)
				}
			})
		}
		running.Wait()
		s, err := NewCatalog(rdb, fixedNow).List(t.Context())
		if err != nil || len(s.Records) != 6 || s.Version != 6 {
			t.Errorf("got %+v, %v", s, err)
		}
	})
}

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

// What a newer release has written is not read without what is new in it, and
// not written back without it either: an operator may only replace it.
func TestCatalogUnknownMembers(t *testing.T) {
	rdb := redistest.Client(t, redistest.Embedded(t))
	c := NewCatalog(rdb, fixedNow)
	started(t, c, valid())
	document := rdb.HGet(t.Context(), catalogRoot+"definitions", "checkout").Val()
	newer := strings.Replace(document, `"traffic":1`, `"traffic":1,"weather":"rain"`, 1)
	if newer == document {
		t.Fatal(document)
	}
	if err := rdb.HSet(t.Context(), catalogRoot+"definitions", "checkout", newer).Err(); err != nil {
		t.Fatal(err)
	}
	_, getErr := c.Get(t.Context(), "checkout")
	_, stopErr := c.Stop(t.Context(), "checkout", anyone("stop"))
	_, updateErr := c.Update(t.Context(), "checkout", anyone("update"), func(*Definition) error { return nil })
	for _, err := range []error{getErr, stopErr, updateErr} {
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), `unknown field "weather"`) {
			t.Errorf("got %v", err)
		}
	}
	if got := rdb.HGet(t.Context(), catalogRoot+"definitions", "checkout").Val(); got != newer {
		t.Errorf("now %s", got)
	}
	put(t, c, valid())
	if err := c.Delete(t.Context(), "checkout", anyone("gone")); err != nil {
		t.Error(err)
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

// A Redis whose memory is full takes nothing more and can still be read, by a
// client that has never asked it before too.
func TestFullRedis(t *testing.T) {
	rdb := redistest.Client(t, redistest.Server(t))
	d := &started(t, NewCatalog(rdb, fixedNow), valid()).Definition
	b := newBatch(t, d)
	observe(t, b, "ann", 0, "latency", 1)
	write(t, NewStore(rdb), b)
	if err := rdb.ConfigSet(t.Context(), "maxmemory", "1").Err(); err != nil {
		t.Fatal(err)
	}
	if _, err := NewCatalog(rdb, fixedNow).Stop(t.Context(), d.Key, anyone("")); err == nil {
		t.Error("a full Redis was written to")
	}
	if s, err := NewCatalog(rdb, fixedNow).List(t.Context()); err != nil || len(s.Records) != 1 {
		t.Errorf("got %+v, %v", s, err)
	}
	if data := read(t, NewStore(rdb), d); data[0].Users != 1 {
		t.Errorf("got %+v", data)
	}
}

// newMeter is a meter over a watched catalog at a fixed time.
func newMeter(t *testing.T, rdb redis.UniversalClient, w *Watcher, now func() time.Time) (*Meter, *Recorder) {
	t.Helper()
	recorder, _ := newRecorder(t, rdb)
	m, err := NewMeter(w, recorder, prometheus.NewRegistry(), now)
	if err != nil {
		t.Fatal(err)
	}
	return m, recorder
}

func TestMeter(t *testing.T) {
	rdb := redistest.Client(t, redistest.Embedded(t))
	c, d := NewCatalog(rdb, fixedNow), valid()
	d.Tiers = []string{"premium"}
	d.Guardrails = nil
	for _, m := range []Source{Latency, Failures, Abandoned, Requests, RequestBytes, ResponseBytes} {
		d.Guardrails = append(d.Guardrails, Metric{Name: string(m), Kind: Mean, Source: m, LowerIsBetter: true})
	}
	d = &started(t, c, d).Definition
	w := watch(t, WatcherOptions{Catalog: c, Now: fixedNow})
	polltest.Until(t, "a live experiment", func() bool { return len(w.Current().Live()) == 1 })
	m, recorder := newMeter(t, rdb, w, fixedNow)
	registry := prometheus.NewRegistry()
	for i := range 2 {
		if _, err := NewMeter(w, recorder, registry, fixedNow); (err != nil) != (i == 1) {
			t.Errorf("meter %d: %v", i, err)
		}
	}
	dealt := recorder.Dealt(d)
	users := int64(0)
	for i := range 40 {
		user := fmt.Sprintf("user-%d", i)
		arm, _ := d.Assign(user)
		dealt(arm)
		m.Measure(&Request{
			User: user, Tier: "premium", Duration: 250 * time.Millisecond, Status: 500,
			Assignments: "a:1=on," + d.Mark(arm), RequestBytes: 10, ResponseBytes: 20,
		})
		users++
	}
	if got := testutil.ToFloat64(m.unknown); got != 40 {
		t.Errorf("%v of an experiment that nobody knows", got)
	}
	// What must not count: another version, no such variant, nothing dealt, no user,
	// and what the gateway refused after all, which has arrived all the same.
	for _, r := range []Request{
		{User: "x", Assignments: "checkout:99=control"}, {User: "x", Assignments: "checkout:1=green"}, {User: "x", Assignments: ",:=,checkout,"},
		{User: "x", Tier: "premium"}, {Assignments: d.Mark(0)}, {User: "refused", Assignments: d.Mark(0), Refused: true},
	} {
		m.Measure(&r)
	}
	recorder.flush(t.Context())
	data := read(t, NewStore(rdb), d)
	if data[0].Users+data[1].Users != users || data[0].Dealt+data[1].Dealt != users || data[0].Seen+data[1].Seen != users+1 {
		t.Errorf("got %+v", data)
	}
	for _, v := range data {
		got := map[string]float64{}
		for name, m := range v.Metrics {
			got[name] = m.Users.Mean
		}
		want := map[string]float64{"conversion": 0, "latency": 0.25, "errors": 1, "abandoned": 0, "requests": 1, "request_bytes": 10, "response_bytes": 20}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
}

// A request counts for what it was dealt, whatever has become of the experiment
// when the access log tells of it: an entry comes seconds later.
func TestMeterAfterTheStop(t *testing.T) {
	rdb := redistest.Client(t, redistest.Embedded(t))
	c := NewCatalog(rdb, fixedNow)
	d := &started(t, c, valid()).Definition
	w := watch(t, WatcherOptions{Catalog: c, Now: fixedNow})
	if _, err := c.Stop(t.Context(), d.Key, anyone("enough")); err != nil {
		t.Fatal(err)
	}
	polltest.Until(t, "the stopped experiment", func() bool {
		r := w.Current().Find(d.Key)
		return r != nil && r.State == Stopped && len(w.Current().Live()) == 0
	})
	m, recorder := newMeter(t, rdb, w, fixedNow)
	arm, _ := d.Assign("late")
	m.Measure(&Request{User: "late", Assignments: d.Mark(arm)})
	recorder.flush(t.Context())
	if data := read(t, NewStore(rdb), d); data[arm].Users != 1 {
		t.Errorf("got %+v", data)
	}
}

// What is reported counts once the user has met the variant, before or after.
func TestReportsWaitForExposure(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rdb *redis.Client) {
		d, s := valid(), NewStore(rdb)
		batches := make([]*Batch, 4)
		for i := range batches {
			batches[i] = newBatch(t, d)
		}
		report := func(b *Batch, user string) {
			if err := b.Report(user, 0, Value{"conversion", 1}); err != nil {
				t.Fatal(err)
			}
		}
		expose := func(b *Batch, user string, variant int) {
			if err := b.Expose(user, variant); err != nil {
				t.Fatal(err)
			}
		}
		report(batches[0], "early")
		report(batches[0], "never")
		expose(batches[1], "early", 0)
		expose(batches[1], "late", 0)
		expose(batches[1], "silent", 0)
		expose(batches[1], "astray", 1)
		report(batches[2], "late")
		report(batches[2], "astray")
		report(batches[3], "both")
		expose(batches[3], "both", 0)
		strays := int64(0)
		for _, b := range batches {
			strays += write(t, s, b)
		}
		data := read(t, s, d)
		conversion := data[0].Metrics["conversion"].Users
		if strays != 1 || data[0].Users != 4 || data[1].Users != 1 || conversion.N != 4 || !near(conversion.Mean, 0.75, 1e-9) {
			t.Errorf("%d strays, got %+v, %+v", strays, data[0], conversion)
		}
		if data[1].Metrics["conversion"].Users.Mean != 0 {
			t.Errorf("the stray counts: %+v", data[1])
		}
	})
}

func TestGuard(t *testing.T) {
	rdb := redistest.Client(t, redistest.Embedded(t))
	c, s := NewCatalog(rdb, fixedNow), NewStore(rdb)
	bad, tolerated := valid(), valid()
	bad.AutoStop = true
	tolerated.Key = "tolerated"
	w := watch(t, WatcherOptions{Catalog: c})
	for _, d := range []*Definition{&started(t, c, bad).Definition, &started(t, c, tolerated).Definition} {
		recorder, _ := newRecorder(t, rdb)
		for i := range 800 {
			user := fmt.Sprintf("user-%d", i)
			arm, _ := d.Assign(user)
			recorder.Observe(d, user, arm, "latency", 0.1+0.1*float64(arm)+float64(i%7)/1000)
		}
		recorder.flush(t.Context())
	}
	polltest.Until(t, "both running", func() bool { return len(w.Current().Live()) == 2 })
	c.now = func() time.Time { return catalogTime.Add(time.Hour) }
	stopped := make(chan string, 10)
	guards := make([]*Guard, 2)
	for i := range guards {
		guards[i] = NewGuard(GuardOptions{
			Catalog: c, Store: s, Watcher: w, Every: 50 * time.Millisecond, Log: slog.New(slog.DiscardHandler),
			Stopped: func(_ context.Context, key, verdict string) { stopped <- key + ": " + verdict },
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for _, g := range guards {
		running.Go(func() { _ = g.Run(ctx) })
	}
	got := <-stopped
	cancel()
	running.Wait()
	if !strings.HasPrefix(got, "checkout: guardrail breached") || len(stopped) != 0 {
		t.Errorf("got %q and %d more", got, len(stopped))
	}
	r, err := c.Get(t.Context(), "checkout")
	if err != nil || r.Definition.State != Stopped || r.UpdatedBy != guardActor {
		t.Errorf("got %+v, %v", r, err)
	}
	if r, err := c.Get(t.Context(), "tolerated"); err != nil || r.Definition.State != Started {
		t.Errorf("got %+v, %v", r, err)
	}
}

// One replica judges in a period, and not what another has changed meanwhile.
func TestGuardLease(t *testing.T) {
	rdb := redistest.Client(t, redistest.Embedded(t))
	g := NewGuard(GuardOptions{Catalog: NewCatalog(rdb, fixedNow), Store: NewStore(rdb), Watcher: watch(t, WatcherOptions{Catalog: NewCatalog(rdb, fixedNow)})})
	if err := rdb.Set(t.Context(), keyLease, "1", time.Minute).Err(); err != nil {
		t.Fatal(err)
	}
	if err := g.round(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestAssignDoesNotAllocate(t *testing.T) {
	d := valid()
	d.Layer, d.Tiers = &Layer{"l", 0, 1}, []string{"free", "premium"}
	a := NewAssigner(d)
	if n := testing.AllocsPerRun(100, func() { a.At("user", "premium", 1) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestAssignerAt(t *testing.T) {
	d := valid()
	d.Start, d.Stop, d.Tiers = catalogTime.Add(time.Nanosecond), catalogTime.Add(time.Minute), []string{"premium"}
	a, from := NewAssigner(d), catalogTime.Unix()
	for at, want := range map[int64]bool{from: false, from + 1: true, from + 59: true, from + 60: false} {
		if _, got := a.At("user", "premium", at); got != want {
			t.Errorf("at %d: got %v", at-from, got)
		}
	}
	if _, ok := a.At("user", "free", from+1); ok {
		t.Error("another tier takes part")
	}
	d.State = Stopped
	if _, ok := NewAssigner(d).At("user", "premium", from+1); ok {
		t.Error("a stopped experiment assigns")
	}
}
