package experiment

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/polltest"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

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
