package anomaly

import (
	"strconv"
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/polltest"
)

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
	polltest.Until(b, "all are judged", func() bool {
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
