package session

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/tollgate-proxy/tollgate/internal/polltest"
)

// track runs a tracker until the test ends or stop is called.
func track(t *testing.T, b rig) (tracker *Tracker, stop func()) {
	t.Helper()
	tracker, err := NewTracker(b.Manager)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		if err := tracker.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	stop = func() { cancel(); done.Wait() }
	t.Cleanup(stop)
	return tracker, stop
}

func (b rig) see(tr *Tracker, user, id string) {
	tr.Observe(&Sighting{User: user, Session: id, At: b.clock.Now(), UserAgent: "curl/8", Address: "192.0.2.1"})
}

func (b rig) live(t *testing.T, user string) string {
	t.Helper()
	sessions, err := b.List(t.Context(), user)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(ids(sessions), " ")
}

func quick() Config {
	c := tiers()
	c.Flush = 5 * time.Millisecond
	return c
}

func TestFirstSightRegisters(t *testing.T) {
	onEach(t, func(t *testing.T, s Store) {
		b := newManager(t, s, quick())
		tr, _ := track(t, b)
		for range 10 {
			b.see(tr, "u", "a")
		}
		polltest.Until(t, "registered", func() bool { return b.live(t, "u") == "a" })
		sessions, err := b.List(t.Context(), "u")
		if err != nil || sessions[0].Address != "192.0.2.1" || sessions[0].Device.UserAgent != "curl/8" {
			t.Errorf("%+v, %v", sessions, err)
		}
		b.clock.Advance(time.Minute)
		b.see(tr, "u", "a")
		want := b.clock.Now()
		polltest.Until(t, "written behind", func() bool {
			sessions, err := b.List(t.Context(), "u")
			return err == nil && sessions[0].LastSeen.Equal(want)
		})
		tr.Observe(&Sighting{User: "u"})
		tr.Observe(&Sighting{Session: "x"})
		if tr.len() != 1 {
			t.Errorf("%d sessions are tracked, want 1", tr.len())
		}
	})
}

func TestOneTooManyIsKilled(t *testing.T) {
	c := quick()
	c.Policy = string(RefuseNew)
	b := newManager(t, NewMemory(), c)
	tr, _ := track(t, b)
	b.login(t, "u", "a", "")
	b.login(t, "u", "b", "")
	b.see(tr, "u", "c")
	polltest.Until(t, "killed", func() bool { return strings.Join(b.killer.all(), " ") == "c" })
	if got := b.live(t, "u"); got != "a b" {
		t.Errorf("sessions %q, want those that were first", got)
	}
	polltest.Until(t, "forgotten", func() bool { return tr.len() == 0 })
}

func TestEndedSessionInUseIsKilledAgain(t *testing.T) {
	b := newManager(t, NewMemory(), quick())
	tr, _ := track(t, b)
	b.login(t, "u", "a", "")
	if err := b.End(t.Context(), "u", ref("a")); err != nil {
		t.Fatal(err)
	}
	b.killer.mu.Lock()
	b.killer.killed = nil
	b.killer.mu.Unlock()
	b.see(tr, "u", "a")
	polltest.Until(t, "killed again", func() bool { return strings.Join(b.killer.all(), " ") == "a" })
}

func TestIdleSessionIsKilledAtItsNextRequest(t *testing.T) {
	onEach(t, func(t *testing.T, s Store) {
		b := newManager(t, s, quick())
		here, _ := track(t, b)
		b.see(here, "u", "idle")
		b.see(here, "u", "busy elsewhere")
		polltest.Until(t, "registered", func() bool { return len(strings.Split(b.live(t, "u"), " ")) == 3 })
		for range 4 {
			b.clock.Advance(b.config.Idle / 3)
			if _, err := s.Touch(t.Context(), []Seen{{"u", ref("busy elsewhere"), b.clock.Now()}}, b.limits(""), b.clock.Now()); err != nil {
				t.Fatal(err)
			}
		}
		b.see(here, "u", "idle")
		b.see(here, "u", "busy elsewhere")
		polltest.Until(t, "killed", func() bool { return strings.Join(b.killer.all(), " ") == "idle" })
		polltest.Until(t, "the other lives", func() bool { return b.live(t, "u") == "busy elsewhere" })
	})
}

// A busy session that reaches its absolute age is ended by the write behind.
func TestOldSessionIsKilledThoughBusy(t *testing.T) {
	c := quick()
	c.Absolute = c.Idle
	b := newManager(t, NewMemory(), c)
	tr, _ := track(t, b)
	b.see(tr, "u", "a")
	polltest.Until(t, "registered", func() bool { return b.live(t, "u") == "a" })
	b.clock.Advance(c.Idle - time.Second)
	b.see(tr, "u", "a")
	b.clock.Advance(2 * time.Second)
	b.see(tr, "u", "a")
	polltest.Until(t, "killed", func() bool { return strings.Join(b.killer.all(), " ") == "a" })
	polltest.Until(t, "forgotten", func() bool { return tr.len() == 0 })
}

// faulty is a store that can be away.
type faulty struct {
	*Memory
	mu  sync.Mutex
	err error
}

func (f *faulty) set(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *faulty) state() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

func (f *faulty) Register(ctx context.Context, s Session, l Limits, now time.Time) (Outcome, error) {
	if err := f.state(); err != nil {
		return Outcome{}, err
	}
	return f.Memory.Register(ctx, s, l, now)
}

func (f *faulty) Touch(ctx context.Context, seen []Seen, l Limits, now time.Time) ([]Outcome, error) {
	if err := f.state(); err != nil {
		return nil, err
	}
	return f.Memory.Touch(ctx, seen, l, now)
}

func TestStoreAway(t *testing.T) {
	s := &faulty{Memory: NewMemory()}
	b := newManager(t, s, quick())
	tr, _ := track(t, b)
	s.set(ErrUnavailable)
	b.see(tr, "u", "a")
	failed := tr.registered.WithLabelValues(outcomeFailed)
	polltest.Until(t, "tried", func() bool { return testutil.ToFloat64(failed) >= 1 && tr.len() == 0 })
	s.set(nil)
	b.see(tr, "u", "a")
	polltest.Until(t, "registered at the next sighting", func() bool { return b.live(t, "u") == "a" })

	s.set(ErrUnavailable)
	b.clock.Advance(time.Minute)
	b.see(tr, "u", "a")
	want := b.clock.Now()
	s.set(nil)
	polltest.Until(t, "written once the store is back", func() bool {
		sessions, err := b.List(t.Context(), "u")
		return err == nil && sessions[0].LastSeen.Equal(want)
	})
}

func TestWhatCannotBeASessionIsNotAskedAgain(t *testing.T) {
	b := newManager(t, NewMemory(), quick())
	tr, _ := track(t, b)
	long := strings.Repeat("x", 300)
	invalid := tr.registered.WithLabelValues(outcomeInvalid)
	b.see(tr, "u", long)
	polltest.Until(t, "refused", func() bool { return testutil.ToFloat64(invalid) == 1 })
	b.see(tr, "u", long)
	b.see(tr, "u", "a")
	polltest.Until(t, "registered", func() bool { return b.live(t, "u") == "a" })
	if n := testutil.ToFloat64(invalid); n != 1 {
		t.Errorf("asked %v times, want once", n)
	}
}

// The last sightings are written when the process ends.
func TestLastSightingsAreWrittenAtTheEnd(t *testing.T) {
	c := tiers()
	c.Flush = 30 * time.Second
	b := newManager(t, NewMemory(), c)
	tr, stop := track(t, b)
	b.see(tr, "u", "a")
	polltest.Until(t, "registered", func() bool { return b.live(t, "u") == "a" })
	polltest.Until(t, "known", func() bool {
		k := trackedSession{"u", ref("a")}
		sh := tr.shard(k)
		sh.mu.RLock()
		defer sh.mu.RUnlock()
		return sh.entries[k].known.Load()
	})
	b.clock.Advance(time.Minute)
	b.see(tr, "u", "a")
	stop()
	sessions, err := b.List(t.Context(), "u")
	if err != nil || !sessions[0].LastSeen.Equal(b.clock.Now()) {
		t.Errorf("%+v, %v: want it seen at %s", sessions, err, b.clock.Now())
	}
}

func TestTrackerIsBounded(t *testing.T) {
	c := quick()
	c.Tracked = 1000
	b := newManager(t, NewMemory(), c)
	tr, err := NewTracker(b.Manager) // not run: nothing leaves the queue
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 * queueLength {
		b.see(tr, strconv.Itoa(i), "s")
	}
	if tr.len() > 1000 || len(tr.queue) != queueLength {
		t.Errorf("%d tracked, %d queued, want at most 1000 and %d", tr.len(), len(tr.queue), queueLength)
	}
	if n := testutil.ToFloat64(tr.dropped); n != 2*queueLength {
		t.Errorf("%v dropped, want %d", n, 2*queueLength)
	}
	if _, err := NewTracker(b.Manager); err == nil {
		t.Error("a second tracker registered the same metrics")
	}
}

func TestObserveDoesNotAllocate(t *testing.T) {
	b := newManager(t, NewMemory(), quick())
	tr, err := NewTracker(b.Manager)
	if err != nil {
		t.Fatal(err)
	}
	s := &Sighting{User: "u", Session: "a", At: b.clock.Now()}
	tr.Observe(s)
	if n := testing.AllocsPerRun(100, func() {
		s.At = s.At.Add(time.Second)
		tr.Observe(s)
	}); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

func TestKillerFunc(t *testing.T) {
	want := errors.New("x")
	if err := KillerFunc(func(context.Context, []Ref) error { return want }).Kill(t.Context(), nil); !errors.Is(err, want) {
		t.Error(err)
	}
}

func BenchmarkObserve(b *testing.B) {
	m, err := NewManager(NewMemory(), DefaultConfig(), Options{Killer: &killer{}})
	if err != nil {
		b.Fatal(err)
	}
	tr, err := NewTracker(m)
	if err != nil {
		b.Fatal(err)
	}
	s := &Sighting{User: "alice", Session: "0b1f6f0e-1e9e-4a5c-9d0c-1f3a5b7c9d0e", At: time.Now()}
	tr.Observe(s)
	b.ReportAllocs()
	for b.Loop() {
		s.At = s.At.Add(time.Millisecond)
		tr.Observe(s)
	}
}

// A session ends when it has timed out, whether or not anybody asks: its next request is refused. And what a process
// owed when it went away is paid by another.
func TestSweep(t *testing.T) {
	onEach(t, func(t *testing.T, s Store) {
		crashed := newManager(t, s, quick())
		crashed.login(t, "u", "a", "")
		crashed.login(t, "v", "a", "")
		crashed.login(t, "v", "b", "")
		crashed.killer.fail(errors.New("away"))
		if err := crashed.End(t.Context(), "v", ref("b")); !errors.Is(err, ErrUnavailable) {
			t.Fatal(err)
		}
		b := newManager(t, s, quick())
		b.clock.Advance(time.Minute)
		track(t, b)
		polltest.Until(t, "paid", func() bool { return strings.Join(b.killer.all(), " ") == "b" })
		b.clock.Advance(b.config.Idle - 2*time.Minute)
		crashed.clock.Advance(b.config.Idle - 2*time.Minute)
		crashed.killer.fail(nil)
		crashed.login(t, "v", "c", "")
		b.clock.Advance(time.Minute + 10*time.Second)
		polltest.Until(t, "timed out", func() bool { return strings.Join(b.killer.all(), " ") == "a b" })
		b.expect(t, "v", "c", "a b")
		b.expect(t, "u", "", "a b")
	})
}

// What waits to be registered holds on to nothing of the request that it is of.
func TestSightingsAreBounded(t *testing.T) {
	b := newManager(t, NewMemory(), DefaultConfig())
	tr, err := NewTracker(b.Manager)
	if err != nil {
		t.Fatal(err)
	}
	request := "DE" + strings.Repeat("x", 1<<20)
	s := &Sighting{User: "u", Session: "a", At: b.clock.Now(), UserAgent: request, DeviceID: request[:10], Address: request[:10], Country: request[:2]}
	tr.Observe(s)
	got := <-tr.queue
	if len(got.UserAgent) > MaxUserAgent || got.DeviceID != s.DeviceID || got.Address != s.Address || got.Country != s.Country {
		t.Errorf("%d bytes of the agent, %+v", len(got.UserAgent), got.DeviceID)
	}
	for name, text := range map[string]string{"agent": got.UserAgent, "device": got.DeviceID, "address": got.Address, "country": got.Country} {
		if unsafe.StringData(text) == unsafe.StringData(request) {
			t.Errorf("the %s keeps the request", name)
		}
	}
}
