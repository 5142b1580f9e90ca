package extauthz

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tollgate-proxy/tollgate/internal/experiment"
	"github.com/tollgate-proxy/tollgate/internal/flag"
)

// enrol lays n experiments over the flags, in all of which the user takes part.
func (w *whole) enrol(t testing.TB, n int) {
	t.Helper()
	recorder, err := experiment.NewRecorder(experiment.RecorderOptions{Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	var all []flag.Experiment
	for i := range n {
		d := &experiment.Definition{
			Key: fmt.Sprint("experiment-", i), Version: 1, Traffic: 1, MinimumUsers: 100, Tiers: []string{"premium"},
			Variants: []experiment.Variant{{Name: "control", Weight: 1}, {Name: "treatment", Weight: 1}},
			Primary:  experiment.Metric{Name: "latency", Kind: experiment.Mean, Source: experiment.Latency},
		}
		if err := d.Validate(); err != nil {
			t.Fatal(err)
		}
		all = append(all, flag.Experiment{
			Name: d.ID(), Flag: d.Key, Variants: []string{"control", "treatment"}, Marks: []string{d.Mark(0), d.Mark(1)},
			Assign: experiment.NewAssigner(d).At, Dealt: recorder.Dealt(d),
		})
	}
	if err := w.flags.Experiments(all); err != nil {
		t.Fatal(err)
	}
}

// Experiments cost a Check little, and no more pieces of memory than what they
// write.
func TestWholeCheckWithExperiments(t *testing.T) {
	w := newWhole(t)
	plain := w.allocations(t)
	w.enrol(t, 5)
	a := decoded(t, w.check(t))
	if marks, _ := a.GetDynamicMetadata().AsMap()["experiments"].(string); strings.Count(marks, ":1=") != 5 {
		t.Errorf("dealt %q", marks)
	}
	if n := w.allocations(t); n > plain+2 {
		t.Errorf("%v allocations, without experiments %v", n, plain)
	}
}

// BenchmarkWholeCheckWithExperiments is to be read beside its first line.
func BenchmarkWholeCheckWithExperiments(b *testing.B) {
	w := newWhole(b)
	for _, n := range []int{0, 1, 10, 64} {
		w.enrol(b, n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				w.check(b)
			}
		})
	}
}
