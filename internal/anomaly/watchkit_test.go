package anomaly

import (
	"context"
	"crypto/sha256"
	"errors"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/tollgate-proxy/tollgate/internal/logtest"
	"github.com/tollgate-proxy/tollgate/internal/polltest"
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

type watchTest struct {
	*Watch

	config Config
	t      testing.TB
	store  *flaky
	log    *logtest.Buffer
	ended  chan string
}

// newWatch starts a watch on a store, which waits for assessments unless changed.
func newWatch(t testing.TB, s Store, change func(*Config), options ...func(*Options)) *watchTest {
	t.Helper()
	c := DefaultConfig()
	c.Actions = []ActionConfig{{1, "header"}, {50, "step_up"}, {80, "revoke_session"}, {95, "deny"}}
	c.Wait, c.Timeout = polltest.Patience, polltest.Patience
	c.Places = testPlaces()
	if change != nil {
		change(&c)
	}
	w := &watchTest{config: c, t: t, store: &flaky{Store: s}, log: &logtest.Buffer{}, ended: make(chan string, 100)}
	o := Options{
		Store: w.store, Places: openPlaces(t, c.Places), Log: w.log.Logger(), Metrics: prometheus.NewRegistry(),
		EndSession: func(_ context.Context, user, session, _ string) error { w.ended <- user + "/" + session; return nil },
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
	polltest.Until(w.t, "all is judged", func() bool {
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

// reconfigure puts a changed configuration into force.
func (w *watchTest) reconfigure(change func(*Config)) {
	w.t.Helper()
	change(&w.config)
	use, err := w.Prepare(w.config)
	if err != nil {
		w.t.Fatal(err)
	}
	use()
}
