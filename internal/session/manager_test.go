package session

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/tollgate-proxy/tollgate/internal/clocktest"
	"github.com/tollgate-proxy/tollgate/internal/config"
	"github.com/tollgate-proxy/tollgate/internal/polltest"
)

// killer remembers whom it killed, and fails on demand.
type killer struct {
	mu     sync.Mutex
	killed []string
	err    error
}

func (k *killer) Kill(_ context.Context, sessions []Ref) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err != nil {
		return k.err
	}
	k.killed = append(k.killed, texts(sessions)...)
	slices.Sort(k.killed)
	k.killed = slices.Compact(k.killed)
	return nil
}

func (k *killer) fail(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.err = err
}

func (k *killer) all() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.killed)
}

type rig struct {
	*Manager
	killer *killer
	clock  *clocktest.Clock
}

func newManager(t *testing.T, store Store, c Config) rig {
	t.Helper()
	b := rig{killer: &killer{}, clock: clocktest.New(start)}
	m, err := NewManager(store, c, Options{Killer: b.killer, Now: b.clock.Now, Metrics: prometheus.NewPedanticRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	b.Manager = m
	return b
}

func (b rig) login(t *testing.T, user, id, tier string) {
	t.Helper()
	b.clock.Advance(time.Second)
	if _, err := b.Register(t.Context(), Session{User: user, Ref: ref(id)}, tier); err != nil {
		t.Fatalf("register %s: %v", id, err)
	}
}

func (b rig) expect(t *testing.T, user, live, killed string) {
	t.Helper()
	sessions, err := b.List(t.Context(), user)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(ids(sessions), " "); got != live {
		t.Errorf("sessions %q, want %q", got, live)
	}
	if got := strings.Join(b.killer.all(), " "); got != killed {
		t.Errorf("killed %q, want %q", got, killed)
	}
}

func tiers() Config {
	c := DefaultConfig()
	c.Max, c.Tiers = 2, []TierConfig{{Tier: "enterprise", Max: 3}}
	return c
}

func TestManagerKillsWhatEnds(t *testing.T) {
	onEach(t, func(t *testing.T, s Store) {
		b := newManager(t, s, tiers())
		for _, id := range []string{"a", "b", "c"} {
			b.login(t, "u", id, "free")
		}
		b.expect(t, "u", "b c", "a")
		b.login(t, "u", "d", "enterprise")
		b.expect(t, "u", "b c d", "a")
		ctx := t.Context()
		if err := b.End(ctx, "u", ref("c")); err != nil {
			t.Error(err)
		}
		b.expect(t, "u", "b d", "a c")
		if n, err := b.EndOthers(ctx, "u", ref("d")); n != 1 || err != nil {
			t.Errorf("end others: %d, %v", n, err)
		}
		b.expect(t, "u", "d", "a b c")
		if n, err := b.EndAll(ctx, "u", ""); n != 1 || err != nil {
			t.Errorf("end all: %d, %v", n, err)
		}
		b.expect(t, "u", "", "a b c d")

		// A session that was never registered dies all the same.
		if err := b.End(ctx, "u", ref("x")); !errors.Is(err, ErrNotFound) {
			t.Errorf("end an unknown session: %v, want ErrNotFound", err)
		}
		b.expect(t, "u", "", "a b c d x")
		if _, err := b.Register(ctx, Session{User: "u", Ref: ref("x")}, ""); !errors.Is(err, ErrEnded) {
			t.Errorf("register what has ended: %v, want ErrEnded", err)
		}
		b.login(t, "u", "y", "")
		b.clock.Advance(b.config.Idle)
		b.expect(t, "u", "", "a b c d x y")
	})
}

// Where the denylist is away, the caller is told, and the debt is paid later.
func TestDebtsArePaidLater(t *testing.T) {
	onEach(t, func(t *testing.T, s Store) {
		ctx := t.Context()
		b := newManager(t, s, tiers())
		for _, id := range []string{"a", "b"} {
			b.login(t, "u", id, "")
		}
		b.killer.fail(errors.New("away"))
		if _, err := b.Register(ctx, Session{User: "u", Ref: ref("c")}, ""); !errors.Is(err, ErrUnavailable) {
			t.Errorf("register: %v, want ErrUnavailable", err)
		}
		if err := b.End(ctx, "u", ref("b")); !errors.Is(err, ErrUnavailable) {
			t.Errorf("end: %v, want ErrUnavailable", err)
		}
		b.expect(t, "u", "c", "")
		b.killer.fail(nil)
		b.expect(t, "u", "c", "a b")
		// Settled: not killed over and over.
		b.killer.killed = nil
		b.expect(t, "u", "c", "")
	})
}

func TestManagerRefuses(t *testing.T) {
	b := newManager(t, NewMemory(), tiers())
	ctx, long := t.Context(), strings.Repeat("x", 300)
	for name, s := range map[string]Session{
		"no id":           {User: "u"},
		"no user":         {Ref: ref("s")},
		"long issuer":     {User: "u", Ref: Ref{long, "s"}},
		"issuer controls": {User: "u", Ref: Ref{"x\n", "s"}},
		"long id":         {User: "u", Ref: ref(long)},
		"long user":       {User: long, Ref: ref("s")},
		"long user agent": {User: "u", Ref: ref("s"), Device: Device{UserAgent: strings.Repeat("x", 600)}},
		"long city":       {User: "u", Ref: ref("s"), Place: Place{City: long}},
	} {
		if _, err := b.Register(ctx, s, ""); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
	for name, err := range map[string]error{
		"end nothing":      b.End(ctx, "u", ref("")),
		"end of nobody":    b.End(ctx, "", ref("s")),
		"end, long":        b.End(ctx, "u", ref(long)),
		"end, controls":    b.End(ctx, "u", Ref{"\x01", "s"}),
		"whosever nothing": second(b.EndWhosever(ctx, Ref{})),
		"keep nothing":     second(b.EndOthers(ctx, "u", ref(""))),
		"end all, nobody":  second(b.EndAll(ctx, "", "")),
		"end others, long": second(b.EndOthers(ctx, "u", ref(long))),
	} {
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
	if _, err := NewManager(NewMemory(), DefaultConfig(), Options{}); err == nil {
		t.Error("a manager without a killer")
	}
	if _, err := NewManager(NewMemory(), Config{}, Options{Killer: b.killer}); err == nil {
		t.Error("a manager without limits")
	}
	registry := prometheus.NewRegistry()
	for i, wantErr := range []bool{false, true} {
		if _, err := NewManager(NewMemory(), DefaultConfig(), Options{Killer: b.killer, Metrics: registry}); (err != nil) != wantErr {
			t.Errorf("manager %d on one registry: %v", i, err)
		}
	}
}

func TestManagerDescribesDevices(t *testing.T) {
	devices, err := NewDevices()
	if err != nil {
		t.Fatal(err)
	}
	m, err := NewManager(NewMemory(), DefaultConfig(), Options{Killer: &killer{}, Devices: devices})
	if err != nil {
		t.Fatal(err)
	}
	s, err := m.Register(t.Context(), Session{User: "u", Ref: ref("s"), Device: Device{UserAgent: "curl/8.5.0"}}, "")
	if err != nil || s.Device.Name != "curl 8" || s.Created.IsZero() {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestLimitsAreChecked(t *testing.T) {
	for name, spoil := range map[string]func(*Limits){
		"no sessions": func(l *Limits) { l.Max = 0 },
		"too many":    func(l *Limits) { l.Max = MaxSessions + 1 },
		"policy":      func(l *Limits) { l.Policy = "evict" },
		"idle":        func(l *Limits) { l.Idle = time.Millisecond },
		"absolute":    func(l *Limits) { l.Absolute = l.Idle - 1 },
		"tombstone":   func(l *Limits) { l.Tombstone = 0 },
	} {
		l := limits()
		spoil(&l)
		if l.Validate() == nil {
			t.Errorf("%s: %+v is accepted", name, l)
		}
	}
}

func TestConfig(t *testing.T) {
	if _, err := config.Decode("sessions.yaml", []byte("tiers: [{tier: free, max: 1}]\n"), DefaultConfig()); err != nil {
		t.Errorf("a good one: %v", err)
	}
	for _, body := range []string{
		"max: 0", "max: 1001", "policy: oldest", "idle: 1s", "idle: 9000h", "absolute: 1h", "absolute: 9000h", "flush: 1ms",
		"flush: 1m", "tracked: 1", "tiers: [{tier: '', max: 1}]", "tiers: [{tier: a, max: 0}]",
		"tiers: [{tier: a, max: 1}, {tier: a, max: 2}]", "unknown: 1",
	} {
		if _, err := config.Decode("sessions.yaml", []byte(body+"\n"), DefaultConfig()); err == nil {
			t.Errorf("%s: accepted", body)
		}
	}
	l := tiers().For("enterprise", time.Hour)
	want := Limits{Max: 3, Policy: EvictOldest, Idle: 12 * time.Hour, Absolute: 720 * time.Hour, Tombstone: time.Hour}
	if diff := cmp.Diff(want, l); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// atlas knows two addresses.
type atlas struct{}

func (atlas) Place(a netip.Addr) Place {
	return map[string]Place{"192.0.2.1": {"DE", "Ulm"}, "2001:db8::1": {Country: "FR"}}[a.String()]
}

func TestPlaces(t *testing.T) {
	m, err := NewManager(NewMemory(), DefaultConfig(), Options{Killer: &killer{}, Places: atlas{}})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		address    string
		told, want Place
	}{
		"looked up":            {"192.0.2.1", Place{}, Place{"DE", "Ulm"}},
		"country alone":        {"2001:db8::1", Place{}, Place{Country: "FR"}},
		"unknown":              {"198.51.100.1", Place{}, Place{}},
		"no address":           {"", Place{}, Place{}},
		"told":                 {"192.0.2.1", Place{"AT", "Linz"}, Place{"AT", "Linz"}},
		"told, city looked up": {"192.0.2.1", Place{Country: "DE"}, Place{"DE", "Ulm"}},
		"told another country": {"192.0.2.1", Place{Country: "AT"}, Place{Country: "AT"}},
	} {
		s, err := m.Register(t.Context(), Session{User: name, Ref: ref("s"), Address: c.address, Place: c.told}, "")
		if err != nil || s.Place != c.want {
			t.Errorf("%s: %+v, %v, want %+v", name, s.Place, err, c.want)
		}
	}
	// At first sight it is the registrar that looks, not Observe.
	tr, _ := track(t, rig{Manager: m})
	for country, want := range map[string]Place{"": {"DE", "Ulm"}, "de": {"DE", "Ulm"}, "AT": {Country: "AT"}, "XX": {"DE", "Ulm"}, "T1": {"DE", "Ulm"}} {
		user := "of " + country
		tr.Observe(&Sighting{User: user, Session: "s", Address: "192.0.2.1", Country: country, At: time.Now()})
		polltest.Until(t, user, func() bool {
			all, err := m.List(t.Context(), user)
			return err == nil && len(all) == 1 && all[0].Place == want
		})
	}
}

// A session whose user is not known ends by its issuer's name for it.
func TestEndWhosever(t *testing.T) {
	onEach(t, func(t *testing.T, s Store) {
		b := newManager(t, s, tiers())
		b.login(t, "u", "x/1", "")
		b.login(t, "v", "y/1", "")
		b.login(t, "w", "1", "") // by whichever issuer
		if n, err := b.EndWhosever(t.Context(), ref("x/1")); n != 2 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		b.expect(t, "u", "", "x/1")
		b.expect(t, "v", "y/1", "x/1")
		b.expect(t, "w", "", "x/1")
		if n, err := b.EndWhosever(t.Context(), ref("x/none")); n != 0 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		b.expect(t, "v", "y/1", "x/1")
		if n, err := b.EndWhosever(t.Context(), ref("1")); n != 1 || err != nil {
			t.Errorf("of whichever issuer: %d, %v", n, err)
		}
		b.expect(t, "v", "", "x/1 y/1")
	})
}
