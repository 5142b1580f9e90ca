package anomaly

import (
	"net/netip"
	"strconv"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
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
	eventually(t, "all are judged", func() bool {
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
	shard := w.shard(watchKey{})
	a := w.meet(shard, watchKey{token: [16]byte{1}}, 8)
	b := w.meet(shard, watchKey{token: [16]byte{2}}, 8)
	if a == b || w.meet(shard, watchKey{token: [16]byte{2}}, 8) != b || w.len() != 1 {
		t.Error("one of them, or both kept")
	}
}
