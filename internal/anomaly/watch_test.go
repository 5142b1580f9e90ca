package anomaly

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

// flaky is a store that can be away, or hang.
type flaky struct {
	Store

	away  atomic.Bool
	hang  chan struct{} // where not nil, calls wait for it or for their context
	calls atomic.Int64
}

func (f *flaky) Record(ctx context.Context, user string, facts []Fact, keep time.Duration) (History, error) {
	f.calls.Add(1)
	if f.hang != nil {
		select {
		case <-f.hang:
		case <-ctx.Done():
			return History{}, unavailable("record", ctx.Err())
		}
	}
	if f.away.Load() {
		return History{}, unavailable("record", errors.New("connection refused"))
	}
	return f.Store.Record(ctx, user, facts, keep)
}

// lockedBuffer is a log that goroutines share.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

type watchTest struct {
	*Watch

	t     testing.TB
	store *flaky
	log   *lockedBuffer
	ended chan string
}

// newWatch starts a watch on a store, which waits for assessments unless changed.
func newWatch(t testing.TB, s Store, change func(*Config), options ...func(*Options)) *watchTest {
	t.Helper()
	c := DefaultConfig()
	c.Actions = []ActionConfig{{1, "header"}, {50, "step_up"}, {80, "revoke_session"}, {95, "deny"}}
	c.Wait, c.Timeout = time.Second, 10*time.Second
	c.Places = testPlaces()
	if change != nil {
		change(&c)
	}
	w := &watchTest{t: t, store: &flaky{Store: s}, log: &lockedBuffer{}, ended: make(chan string, 100)}
	o := Options{
		Store: w.store, Places: openPlaces(t, c.Places), Log: slog.New(slog.NewTextHandler(w.log, nil)), Metrics: prometheus.NewRegistry(),
		EndSession: func(_ context.Context, user, session string) error { w.ended <- user + "/" + session; return nil },
		Now:        func() time.Time { return start },
	}
	for _, f := range options {
		f(&o)
	}
	var err error
	if w.Watch, err = NewWatch(c, o); err != nil {
		t.Fatal(err)
	}
	w.run()
	return w
}

func (w *watchTest) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	})
}

func sighting(after time.Duration, address string, change ...func(*Sighting)) *Sighting {
	s := &Sighting{
		User: "ada", Session: "s1", Token: sha256.Sum256([]byte("t1")), Address: netip.MustParseAddr(address),
		Agent: "Mozilla/5.0 (X11; Linux x86_64; rv:130.0) Gecko/20100101 Firefox/130.0", Device: "laptop", At: at(after),
	}
	for _, c := range change {
		c(s)
	}
	return s
}

func token(name string) func(*Sighting) {
	return func(s *Sighting) { s.Token, s.Session = sha256.Sum256([]byte(name)), "of-"+name }
}

func phone(s *Sighting) { s.Agent, s.Device = "Mozilla/5.0 (iPhone) Safari/605.1", "phone" }

func (w *watchTest) expect(what string, s *Sighting, reasons string, action Action) {
	w.t.Helper()
	if a := w.Observe(w.t.Context(), s); a.Reasons != reasons || a.Action != action {
		w.t.Errorf("%s: %+v, want %q, %s", what, a, reasons, action)
	}
}

// idle waits until nothing is being judged.
func (w *watchTest) idle() {
	w.t.Helper()
	eventually(w.t, "all is judged", func() bool {
		for i := range w.shards {
			s := &w.shards[i]
			s.mu.RLock()
			for _, e := range s.entries {
				if e.judging.Load() {
					s.mu.RUnlock()
					return false
				}
			}
			s.mu.RUnlock()
		}
		return true
	})
}

func (w *watchTest) counted(result int) float64 {
	return testutil.ToFloat64(w.metrics.evaluations[result])
}

// One story, over every store: a user at home, a new phone, a thief overseas.
func TestWatch(t *testing.T) {
	onEach(t, func(t *testing.T, s Store) {
		w := newWatch(t, s, nil)
		w.expect("the first day", sighting(-3*day, berlin), "", None)
		w.expect("another version of the browser", sighting(-day, berlin2, func(s *Sighting) {
			s.Agent = strings.ReplaceAll(s.Agent, "130.0", "131.0")
		}), "", None)
		w.expect("a new phone", sighting(-time.Hour, berlin, token("t2"), phone), "new_device", Header)
		w.expect("the thief", sighting(-30*time.Minute, newYork), "impossible_travel,new_country,new_network", RevokeSession)
		if got := <-w.ended; got != "ada/s1" {
			t.Errorf("ended %s", got)
		}
		w.expect("the user meanwhile", sighting(-29*time.Minute, berlin, token("t3")), "", None)
		w.expect("the thief again", sighting(-20*time.Minute, newYork), "impossible_travel,new_country,new_network", RevokeSession)
		<-w.ended // ended once more: the first time may not have been enough
		w.idle()

		// What was refused has taught nothing, and a year of trying will not make it familiar.
		h := mustHistory(t, s, "ada")
		if h.find(KindCountry, "US") != nil || h.find(KindNetwork, strconv.Itoa(asNY)) != nil {
			t.Errorf("learned %+v", h)
		}

		// The user travels in earnest, is challenged, and authenticates.
		w.expect("away", sighting(-10*time.Minute, sydney, token("t4"), phone), "impossible_travel,new_country,new_device,new_network", Deny)
		w.expect("after the challenge", sighting(-5*time.Minute, sydney, token("t5"), phone, func(s *Sighting) {
			s.Authenticated = s.At.Add(-10 * time.Second)
		}), "", None)
		w.expect("next token", sighting(-time.Minute, sydney, token("t6"), phone), "", None)

		events, err := w.Events(t.Context(), "ada")
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range events {
			got = append(got, e.Action.String()+" "+e.Session+" "+e.Country+" "+e.Range+" "+strconv.FormatBool(e.Settled))
		}
		want := []string{
			"none of-t5 AU 2001:db8:1::/48 true", "deny of-t4 AU 2001:db8:1::/48 false",
			"revoke_session s1 US 198.51.100.0/24 false", "header of-t2 DE 192.0.2.0/24 false",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if n := strings.Count(w.log.String(), "suspicious activity"); n != len(want) {
			t.Errorf("logged %d times: %s", n, w.log)
		}
		if err := w.Erase(t.Context(), "ada"); err != nil {
			t.Fatal(err)
		}
		if events, err := w.Events(t.Context(), "ada"); err != nil || len(events) > 0 {
			t.Errorf("after erasure: %+v, %v", events, err)
		}
		for result, want := range map[int]float64{clean: 4, suspicious: 4, settled: 1, failed: 0, late: 0} {
			if w.counted(result) != want {
				t.Errorf("result %d: %v, want %v", result, w.counted(result), want)
			}
		}
	})
}

func TestObserveAsksOnlyWhereSomethingChanged(t *testing.T) {
	w := newWatch(t, NewMemory(), nil)
	for i := range 1000 {
		w.expect("steady", sighting(time.Duration(i)*100*time.Millisecond, berlin), "", None)
	}
	if n := w.store.calls.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
	for what, change := range map[string]func(*Sighting){
		"address": func(s *Sighting) { s.Address = netip.MustParseAddr(berlin2) },
		"agent":   func(s *Sighting) { s.Agent = "curl/8" },
		"device":  func(s *Sighting) { s.Device = "tablet" },
		"token":   token("t2"),
		"user":    func(s *Sighting) { s.User, s.Token = "bob", [32]byte{} },
		"session": func(s *Sighting) { s.Session, s.Token = "s2", [32]byte{} },
	} {
		before := w.store.calls.Load()
		w.Observe(t.Context(), sighting(2*time.Minute, berlin, change))
		w.Observe(t.Context(), sighting(2*time.Minute, berlin, change))
		if n := w.store.calls.Load() - before; n != 1 {
			t.Errorf("another %s: asked %d times", what, n)
		}
	}
	before := w.store.calls.Load()
	w.Observe(t.Context(), sighting(5*time.Minute, berlin))
	eventually(t, "a steady token is looked at again", func() bool { return w.store.calls.Load() == before+1 })

	if a := w.Observe(t.Context(), &Sighting{At: start}); a != (Assessment{}) || w.store.calls.Load() != before+1 {
		t.Errorf("without a user: %+v", a)
	}
	off := newWatch(t, NewMemory(), func(c *Config) { c.Enabled = false })
	off.Failed(netip.MustParseAddr(berlin), start)
	if a := off.Observe(t.Context(), sighting(0, berlin)); a != (Assessment{}) || off.store.calls.Load() != 0 || off.failures.len() != 0 {
		t.Errorf("switched off: %+v", a)
	}
}

// Without a wait the assessment holds for the next request.
func TestObserveDoesNotWait(t *testing.T) {
	w := newWatch(t, NewMemory(), func(c *Config) { c.Wait = 0 })
	w.Observe(t.Context(), sighting(-3*day, berlin))
	eventually(t, "home is known", func() bool { return w.counted(clean) == 1 })
	w.store.hang = make(chan struct{})
	thief := sighting(0, newYork, token("t2"))
	w.expect("at first", thief, "", None)
	close(w.store.hang)
	eventually(t, "an assessment", func() bool { return w.Observe(t.Context(), thief).Reasons == "new_country,new_network" })
}

func TestObserveWaitsNoLongerThanAllowed(t *testing.T) {
	w := newWatch(t, NewMemory(), func(c *Config) { c.Wait = time.Millisecond })
	w.store.hang = make(chan struct{})
	w.expect("late", sighting(0, berlin), "", None)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w.rules.config.Wait = time.Hour
	if a := w.Observe(ctx, sighting(0, berlin)); a != (Assessment{}) {
		t.Errorf("%+v", a)
	}
	if w.counted(late) != 2 {
		t.Errorf("%v late", w.counted(late))
	}
	close(w.store.hang)
}

func TestStoreAway(t *testing.T) {
	w := newWatch(t, NewMemory(), nil)
	w.Observe(t.Context(), sighting(-3*day, berlin))
	suspect := sighting(0, berlin, phone)
	w.expect("known", suspect, "new_device", Header)

	w.store.away.Store(true)
	for i := range 10 {
		w.expect("no signal", sighting(0, berlin, token("a"+strconv.Itoa(i)), phone), "", None)
	}
	suspect.At = at(6 * time.Minute)
	w.expect("what is known stays", suspect, "new_device", Header)
	eventually(t, "it was tried", func() bool { return w.counted(failed) == 11 })
	if n := strings.Count(w.log.String(), "no new signals"); n != 1 {
		t.Errorf("told %d times: %s", n, w.log)
	}
	asked := w.store.calls.Load()
	w.expect("not asked again at once", sighting(time.Second, berlin, token("a1"), phone), "", None)
	if w.store.calls.Load() != asked {
		t.Error("asked again at once")
	}

	w.store.away.Store(false)
	again := sighting(6*time.Second, berlin, token("a1"), phone)
	eventually(t, "it is judged again", func() bool { return w.Observe(t.Context(), again).Reasons == "new_device" })
	eventually(t, "it is told", func() bool { return strings.Contains(w.log.String(), "judged again") })
}

// A hanging Redis costs the wait, never more; and its metric says so.
func TestRedisHangs(t *testing.T) {
	p := redistest.NewProcess(t)
	c := redis.NewClient(&redis.Options{Addr: p.Addr(), ContextTimeoutEnabled: true, MaxRetries: -1}) // as redisconn has it
	defer c.Close()
	w := newWatch(t, NewRedis(c), func(c *Config) { c.Wait, c.Timeout = 5*time.Millisecond, 20*time.Millisecond })
	p.Pause()
	defer p.Resume()
	w.expect("hanging", sighting(0, berlin), "", None)
	eventually(t, "it failed", func() bool { return w.counted(failed) == 1 })
	if w.counted(late) != 1 {
		t.Errorf("%v late", w.counted(late))
	}
}

func TestSessionThatCannotBeEnded(t *testing.T) {
	var fail atomic.Bool
	fail.Store(true)
	ends := make(chan bool, 10)
	w := newWatch(t, NewMemory(), nil, func(o *Options) {
		o.EndSession = func(context.Context, string, string) error {
			ends <- true
			if fail.Load() {
				return errors.New("away")
			}
			return nil
		}
	})
	w.expect("home", sighting(-3*day, berlin), "", None)
	w.expect("home", sighting(-time.Hour, berlin), "", None)
	w.idle()
	w.expect("thief", sighting(0, newYork), "impossible_travel,new_country,new_network", RevokeSession)
	<-ends
	w.idle()
	eventually(t, "it is counted", func() bool { return testutil.ToFloat64(w.metrics.endFailures) == 1 && w.counted(failed) == 1 })
	fail.Store(false)
	w.expect("refused meanwhile", sighting(time.Second, newYork), "impossible_travel,new_country,new_network", RevokeSession)
	w.expect("refused, and tried again", sighting(6*time.Second, newYork), "impossible_travel,new_country,new_network", RevokeSession)
	<-ends
	w.idle()
	w.expect("no session to end", sighting(7*time.Second, newYork, func(s *Sighting) { s.Session = "" }), "impossible_travel,new_country,new_network", RevokeSession)
	if len(ends) != 0 {
		t.Error("ended no session")
	}
}

func TestFailedVerifications(t *testing.T) {
	w := newWatch(t, NewMemory(), nil)
	for range 20 {
		w.Failed(netip.MustParseAddr("2001:db8:1:0:a::1"), start)
		w.Failed(netip.Addr{}, start)
	}
	w.expect("next address of the network", sighting(time.Second, "2001:db8:1::b"), "failed_verifications", Header)
	w.expect("another network", sighting(time.Second, "2001:db8:1:1::b"), "", None)
	w.expect("later", sighting(3*time.Minute, "2001:db8:1::c"), "", None)
}

func TestTrustedAndAnonymisers(t *testing.T) {
	w := newWatch(t, NewMemory(), func(c *Config) {
		c.Trusted = NetworksConfig{Ranges: []string{"198.51.100.0/24"}, ASNs: []uint32{65000}}
		c.Anonymiser = NetworksConfig{Ranges: []string{"2001:db8:1::/48"}}
		c.Weights = []WeightConfig{{"anonymiser", 7}}
	})
	w.expect("home", sighting(-3*day, berlin), "", None)
	w.expect("home", sighting(-time.Minute, berlin), "", None)
	w.idle()
	w.expect("the office's egress in New York", sighting(0, newYork), "", None)
	w.expect("an anonymiser in Sydney", sighting(0, sydney), "anonymiser", Header)
	w.expect("an office by its network", sighting(0, nowhere, func(s *Sighting) {
		s.Place = PlaceText{Country: "US", Network: "65000", Latitude: "40", Longitude: "-100"}
	}), "", None)
	w.expect("headers go before files", sighting(0, berlin2, func(s *Sighting) { s.Place = PlaceText{Country: "FR"} }), "new_country", Header)
}

func TestDetect(t *testing.T) {
	w := newWatch(t, NewMemory(), nil)
	w.expect("home", sighting(-3*day, berlin), "", None)
	w.expect("home", sighting(-2*day, berlin), "", None)
	w.idle()
	before := mustHistory(t, w.store.Store, "ada")
	for range 30 {
		w.Failed(netip.MustParseAddr(newYork), start)
	}
	for what, c := range map[string]struct {
		s    *Sighting
		want string
	}{
		"now":               {sighting(0, newYork), "new_country,new_network,failed_verifications"},
		"then":              {sighting(-2*day+time.Hour, newYork), "impossible_travel,new_country,new_network"},
		"before it all":     {sighting(-4*day, newYork), ""},
		"at home":           {sighting(-2*day+time.Hour, berlin), ""},
		"without a session": {sighting(0, berlin, phone, func(s *Sighting) { s.Token, s.Session = [32]byte{}, "" }), "new_device"},
		"without anything":  {&Sighting{User: "ada", At: start}, ""},
	} {
		v, err := w.Detect(t.Context(), c.s)
		if err != nil || v.Reasons != c.want {
			t.Errorf("%s: %+v, %v", what, v, err)
		}
	}
	if diff := cmp.Diff(before, mustHistory(t, w.store.Store, "ada")); diff != "" {
		t.Errorf("detecting taught something:\n%s", diff)
	}
	away, err := NewWatch(DefaultConfig(), Options{Store: NewRedis(redistest.Client(t, redistest.FreeAddr(t)))})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := away.Detect(t.Context(), sighting(0, berlin)); !errors.Is(err, ErrUnavailable) {
		t.Error(err)
	}
}

// Memory is bounded, whatever comes.
func TestWatchIsBounded(t *testing.T) {
	w := newWatch(t, NewMemory(), func(c *Config) { c.Tracked, c.Failures.Tracked, c.Wait = 640, 640, 0 })
	for i := range 3000 {
		w.Observe(t.Context(), sighting(0, berlin, token(strconv.Itoa(i))))
		w.Failed(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), start)
	}
	if n := w.len(); n > 640 || n < 400 {
		t.Errorf("%d tracked", n)
	}
	if n := w.failures.len(); n > 640 || n < 400 {
		t.Errorf("%d failing addresses", n)
	}
	eventually(t, "all are judged", func() bool {
		w.sweep(at(day))
		return w.len() == 0 && w.failures.len() == 0
	})
}

func TestQueueFull(t *testing.T) {
	c := DefaultConfig()
	w, err := NewWatch(c, Options{Store: NewMemory()}) // nobody judges
	if err != nil {
		t.Fatal(err)
	}
	for i := range queueLength + 10 {
		w.Observe(t.Context(), sighting(0, berlin, token(strconv.Itoa(i))))
	}
	if got := testutil.ToFloat64(w.metrics.evaluations[dropped]); got != 10 {
		t.Errorf("%v dropped", got)
	}
}

func TestNewWatchRefuses(t *testing.T) {
	revoke, unknown, trusted, hidden := DefaultConfig(), DefaultConfig(), DefaultConfig(), DefaultConfig()
	revoke.Actions = []ActionConfig{{90, "revoke_session"}}
	unknown.Actions = []ActionConfig{{90, "shrug"}}
	trusted.Trusted.Ranges = []string{"x"}
	hidden.Anonymiser.Ranges = []string{"x"}
	for want, c := range map[string]Config{"ends sessions": revoke, "shrug": unknown, "trusted": trusted, "anonymisers": hidden} {
		if _, err := NewWatch(c, Options{Store: NewMemory()}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	if _, err := NewWatch(DefaultConfig(), Options{}); err == nil {
		t.Error("without a store")
	}
	registry := prometheus.NewRegistry()
	for i := range 2 {
		if _, err := NewWatch(DefaultConfig(), Options{Store: NewMemory(), Metrics: registry}); (err != nil) != (i == 1) {
			t.Errorf("registered %d times: %v", i+1, err)
		}
	}
	problems, err := testutil.GatherAndLint(registry)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}

// Two tokens whose hashes collide are two tokens.
func TestCollision(t *testing.T) {
	w := newWatch(t, NewMemory(), nil)
	shard := w.shard(watchKey{})
	a := w.meet(shard, watchKey{token: [16]byte{1}})
	b := w.meet(shard, watchKey{token: [16]byte{2}})
	if a == b || w.meet(shard, watchKey{token: [16]byte{2}}) != b || w.len() != 1 {
		t.Error("one of them, or both kept")
	}
}

func TestObserveDoesNotAllocate(t *testing.T) {
	w := newWatch(t, NewMemory(), nil)
	s := sighting(0, berlin)
	w.Observe(t.Context(), s)
	ctx := t.Context()
	if n := testing.AllocsPerRun(1000, func() { w.Observe(ctx, s) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkObserveSteady(b *testing.B) {
	w := newWatch(b, NewMemory(), nil)
	s := sighting(0, berlin)
	w.Observe(b.Context(), s)
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		w.Observe(ctx, s)
	}
}

func BenchmarkObserveAmongMany(b *testing.B) {
	w := newWatch(b, NewMemory(), func(c *Config) { c.Wait = 0 })
	sightings := make([]*Sighting, 10_000)
	for i := range sightings {
		n := strconv.Itoa(i)
		sightings[i] = sighting(0, berlin, token(n), func(s *Sighting) { s.User = "user-" + n })
	}
	ctx := b.Context()
	eventually(b, "all are judged", func() bool {
		for _, s := range sightings {
			w.Observe(ctx, s)
		}
		return w.counted(clean) == float64(len(sightings))
	})
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		w.Observe(ctx, sightings[i%len(sightings)])
		i++
	}
}

func BenchmarkJudge(b *testing.B) {
	rules := mustCompile(b, nil)
	var list []*Observation
	for i := range 300 {
		list = append(list, seen(-time.Duration(300-i)*time.Hour, in(placeBerlin, "a"+strconv.Itoa(i%30)), with("t"+strconv.Itoa(i%20), "d"+strconv.Itoa(i%5), "g"+strconv.Itoa(i%5))))
	}
	h, now := learn(b, list...), seen(0)
	b.ReportAllocs()
	for b.Loop() {
		rules.Judge(h, now)
	}
}
