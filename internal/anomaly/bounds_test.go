package anomaly

import (
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/tollgate-proxy/tollgate/internal/polltest"
)

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
	if n := w.failures.Load().len(); n > 640 || n < 400 {
		t.Errorf("%d failing addresses", n)
	}
	polltest.Until(t, "all are judged", func() bool {
		w.sweep(at(day))
		return w.len() == 0 && w.failures.Load().len() == 0
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

// Two tokens whose hashes collide are two tokens.
func TestCollision(t *testing.T) {
	w := newWatch(t, NewMemory(), nil)
	a := w.meet(watchKey{token: [16]byte{1}}, start, 8)
	b := w.meet(watchKey{token: [16]byte{2}}, start, 8)
	if a == b || w.meet(watchKey{token: [16]byte{2}}, start, 8) != b || w.len() != 1 {
		t.Error("one of them, or both kept")
	}
}

// Who makes up an agent for every request busies neither the judges nor Redis, and pushes nobody else out; and what is
// known of the token holds for all of them.
func TestAgentsMadeUp(t *testing.T) {
	w := newWatch(t, NewMemory(), func(c *Config) { c.Actions = []ActionConfig{{25, "deny"}} })
	w.expect("somebody else", sighting(0, berlin, token("t2"), func(s *Sighting) { s.User = "bob" }), "", None)
	made := func(after time.Duration, i int) *Sighting {
		return sighting(after, berlin, func(s *Sighting) { s.Agent = strings.Repeat("x", i) })
	}
	for i := range 1000 {
		w.Observe(t.Context(), made(0, i))
	}
	w.idle()
	if n := w.store.calls.Load(); n > newcomersAMinute+5 {
		t.Errorf("Redis was asked %d times", n)
	}
	if n := w.len(); n != newcomersAMinute+2 { // the rest, and somebody else
		t.Errorf("%d are tracked", n)
	}
	asked := w.store.calls.Load()
	w.expect("one more", made(0, 2000), "new_device,many_agents", Deny)
	if w.store.calls.Load() != asked || w.counted(pool) == 0 {
		t.Error("it was asked about")
	}
	// The rest is looked at again after a few seconds, and a minute later new ones are met as ever.
	w.Observe(t.Context(), made(6*time.Second, 2001))
	polltest.Until(t, "the rest is judged again", func() bool { return w.store.calls.Load() == asked+1 })
	w.idle()
	before := w.len()
	w.expect("a minute later", made(time.Minute, 2002), "new_device,many_agents", Deny)
	if w.len() != before+1 {
		t.Error("it is not tracked")
	}
	w.expect("somebody else, as before", sighting(0, berlin, token("t2"), func(s *Sighting) { s.User = "bob" }), "", None)
}

// Hopping from network to network is one event, and not one for each network.
func TestHoppingIsToldOnce(t *testing.T) {
	w := newWatch(t, NewMemory(), nil)
	for i := range 25 {
		w.Observe(t.Context(), sighting(0, "10.0."+strconv.Itoa(i)+".1"))
	}
	w.idle()
	events, err := w.Events(t.Context(), "ada")
	if err != nil || len(events) != 1 || events[0].Signals[0].Code != ManyAddresses {
		t.Errorf("%+v, %v", events, err)
	}
}
