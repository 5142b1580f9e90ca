package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestTiers(t *testing.T) {
	for tier, limit := range map[string]int{"anonymous": 5, "free": 10, "premium": 50, "enterprise": 500, "": 5, "gold": 5} {
		l := newLab(t, mustLoad(t, shipped))
		for i := range limit + 1 {
			dec := l.decide(request(of(tier, "u", "default")))
			if want := i < limit; dec.Allowed != want {
				t.Fatalf("tier %q, request %d: allowed %v", tier, i+1, dec.Allowed)
			}
			s := dec.Statuses[0]
			if dec.Allowed && int(s.Remaining) != limit-i-1 {
				t.Fatalf("tier %q, request %d: %d remain", tier, i+1, s.Remaining)
			}
			if !dec.Allowed && (s.Limit.Unit != Minute || s.Reset != time.Minute/time.Duration(limit) || !s.Retry) {
				t.Errorf("tier %q denied: %+v", tier, s)
			}
		}
		// Exactly at the time told, and not before, the same request passes.
		wait := time.Minute / time.Duration(limit)
		l.clock.Advance(wait - time.Microsecond)
		if l.decide(request(of(tier, "u", "default"))).Allowed {
			t.Errorf("tier %q: allowed too early", tier)
		}
		l.clock.Advance(time.Microsecond)
		if !l.decide(request(of(tier, "u", "default"))).Allowed {
			t.Errorf("tier %q: denied at the time told", tier)
		}
	}
}

func TestHourWindowDeniesLongest(t *testing.T) {
	l := newLab(t, mustLoad(t, shipped))
	allowed := 0
	for range 200 {
		if l.decide(request(of("free", "u", "x"))).Allowed {
			allowed++
		}
		l.clock.Advance(6 * time.Second)
	}
	// 200 times 6 s: the minute refills each time; the hour gives 100 and a
	// third of 100 back.
	if allowed != 133 {
		t.Errorf("allowed %d", allowed)
	}
	dec := l.decide(request(of("free", "u", "x").with(10)))
	if s := dec.Statuses[0]; dec.Allowed || s.Limit.Unit != Hour || s.Reset < 5*time.Minute {
		t.Errorf("%+v", s)
	}
}

func TestStatusShowsTheWindowWithTheLeast(t *testing.T) {
	l := newLab(t, mustParse(t, "domain: tollgate\ntiers: {entry: tier, subjects: [user], default: a, table: [{name: a, limits: [{unit: second, requests_per_unit: 8}, {unit: hour, requests_per_unit: 10}]}]}"))
	for _, want := range []struct {
		unit Unit
		left uint32
	}{{Second, 4}, {Hour, 2}} {
		s := l.decide(request(of("a", "u", "x").with(4))).Statuses[0]
		if s.Limit.Unit != want.unit || s.Remaining != want.left {
			t.Errorf("%s with %d left, want %s with %d", s.Limit.Unit, s.Remaining, want.unit, want.left)
		}
		l.clock.Advance(time.Second)
	}
}

func TestCosts(t *testing.T) {
	l := newLab(t, mustLoad(t, shipped))
	left := func(d Descriptor, hits uint32) uint32 {
		t.Helper()
		req := request(d)
		req.Hits = hits
		dec := l.decide(req)
		if !dec.Allowed {
			t.Fatalf("denied: %+v", dec.Statuses)
		}
		return dec.Statuses[0].Remaining
	}
	for _, c := range []struct {
		name string
		d    Descriptor
		hits uint32
		want uint32
	}{
		{"ml", of("premium", "1", "ml"), 0, 45},
		{"blockchain", of("premium", "2", "blockchain"), 0, 40},
		{"fraud", of("premium", "3", "fraud"), 0, 48},
		{"other", of("premium", "4", "nlp"), 0, 49},
		{"request hits win over the table", of("premium", "5", "ml"), 7, 43},
		{"descriptor hits win over the request's", of("premium", "6", "ml").with(3), 7, 47},
		{"0 on a descriptor asks", of("premium", "7", "ml").with(0), 7, 50},
	} {
		if got := left(c.d, c.hits); got != c.want {
			t.Errorf("%s: %d left, want %d", c.name, got, c.want)
		}
	}
	// One pair of buckets, whatever the endpoint.
	left(of("premium", "8", "ml"), 0)
	if got := left(of("premium", "8", "fraud"), 0); got != 43 {
		t.Errorf("%d left after ml and fraud", got)
	}
	// A refund never fills above the size.
	refund := of("premium", "8", "ml").with(4)
	refund.Refund = true
	if got := left(refund, 0); got != 47 {
		t.Errorf("%d left after a refund of 4", got)
	}
	refund.Hits = 1 << 60
	if got := left(refund, 0); got != 50 {
		t.Errorf("%d left after a refund of everything", got)
	}
}

func TestQuestionToAnEmptyBucket(t *testing.T) {
	l := newLab(t, mustLoad(t, shipped))
	l.decide(request(of("free", "u", "x").with(10)))
	dec := l.decide(request(of("free", "u", "x").with(0)))
	if s := dec.Statuses[0]; dec.Allowed || s.Remaining != 0 || s.Reset != 6*time.Second {
		t.Errorf("allowed %v, %+v", dec.Allowed, s)
	}
}

func TestCostAboveTheSizeIsAlwaysDenied(t *testing.T) {
	l := newLab(t, mustLoad(t, shipped))
	for _, hits := range []uint64{11, 1 << 32, 1<<64 - 1} {
		dec := l.decide(request(of("free", "u", "x").with(hits)))
		if s := dec.Statuses[0]; dec.Allowed || s.Retry || s.Reset != time.Minute && s.Reset != time.Hour {
			t.Errorf("%d hits: %+v", hits, dec)
		}
	}
	if got := l.decide(request(of("free", "u", "x").with(0))).Statuses[0].Remaining; got != 10 {
		t.Errorf("%d left: denied requests take nothing", got)
	}
}

func TestSeveralDescriptors(t *testing.T) {
	l := newLab(t, mustLoad(t, shipped))
	dec := l.decide(request(of("free", "u", "x"), of("free", "u", "x"), of("free", "v", "x"), Descriptor{Entries: []Entry{{"generic_key", "floor"}}}))
	if !dec.Allowed || dec.Statuses[0].Remaining != 8 || dec.Statuses[1].Remaining != 8 || dec.Statuses[2].Remaining != 9 {
		t.Errorf("%+v", dec.Statuses)
	}
	if s := dec.Statuses[3]; s.Limit != nil || s.Denied || dec.Shown != 0 {
		t.Errorf("floor %+v, shown %d", s, dec.Shown)
	}
	// One that is denied takes nothing from the others.
	dec = l.decide(request(of("free", "v", "x"), of("free", "u", "x").with(9)))
	if dec.Allowed || dec.Statuses[0].Denied || !dec.Statuses[1].Denied || dec.Statuses[0].Remaining != 9 || dec.Shown != 1 {
		t.Errorf("%+v", dec)
	}
	// A user of two tiers in one request meets the smaller bucket.
	dec = l.decide(request(of("free", "w", "x").with(1), of("premium", "w", "x").with(1)))
	if !dec.Allowed || dec.Statuses[0].Remaining >= 10 {
		t.Errorf("%+v", dec)
	}
}

func TestSystemWideLimit(t *testing.T) {
	rules := mustParse(t, `domain: tollgate
system: [{unit: second, requests_per_unit: 20}]
tiers: {entry: tier, subjects: [user], default: a, table: [{name: a, limits: [{unit: minute, requests_per_unit: 8}]}]}`)
	l := newLab(t, rules)
	floor := Descriptor{Entries: []Entry{{"generic_key", "floor"}}}
	for i := range 3 {
		dec := l.decide(request(of("a", fmt.Sprint(i), "x").with(8), floor))
		if want := i < 2; dec.Allowed != want {
			t.Fatalf("request %d: %+v", i, dec)
		}
		if s := dec.Statuses[0]; i == 2 && (s.Limit.Name != "system-second" || s.Reset != 200*time.Millisecond || s.Remaining != 4) {
			t.Errorf("%+v", s)
		}
	}
	// What the system denied took nothing from the user.
	if got := l.decide(request(of("a", "2", "x").with(0))).Statuses[0].Remaining; got != 4 {
		t.Errorf("the system has %d left", got)
	}
	l.clock.Advance(time.Second)
	if got := l.decide(request(of("a", "2", "x").with(0))).Statuses[0].Remaining; got != 8 {
		t.Errorf("the user has %d left", got)
	}
	// A request without any rule is held by the system's limit only.
	for i := range 21 {
		dec := l.decide(request(floor))
		if want := i < 20; dec.Allowed != want || dec.Statuses[0].Denied == want {
			t.Fatalf("floor %d: %+v", i, dec)
		}
	}
}

func TestNothingToLimit(t *testing.T) {
	l := newLab(t, mustLoad(t, "testdata/envoyproxy.yaml"))
	for _, req := range []Request{
		{Domain: "other", Descriptors: []Descriptor{of("free", "u", "x")}},
		{Domain: "edge", Descriptors: []Descriptor{of("free", "u", "x")}},
		{Domain: "edge", Descriptors: []Descriptor{{Entries: []Entry{{"database", "default"}}}}},
	} {
		dec := l.decide(req)
		if !dec.Allowed || len(dec.Statuses) != 1 || dec.Statuses[0].Limit != nil || dec.Status() != nil || dec.Path != PathNone {
			t.Errorf("%+v", dec)
		}
	}
	expectMetric(t, l, `
tollgate_ratelimit_decisions_total{domain="edge",outcome="allowed",path="none",rule="database_default"} 1
tollgate_ratelimit_decisions_total{domain="edge",outcome="allowed",path="none",rule="none"} 1
tollgate_ratelimit_decisions_total{domain="unknown",outcome="allowed",path="none",rule="none"} 1
`)
}

func TestInvalidRequests(t *testing.T) {
	l := newLab(t, mustLoad(t, shipped))
	many := make([]Descriptor, MaxDescriptors+1)
	for _, req := range []Request{
		{}, {Domain: "tollgate"}, {Descriptors: many[:1]}, {Domain: "tollgate", Descriptors: many},
		request(Descriptor{}), request(Descriptor{Entries: make([]Entry, MaxEntries+1)}),
	} {
		var dec Decision
		if err := l.Decide(context.Background(), &req, &dec); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v", req, err)
		}
	}
}

func TestReload(t *testing.T) {
	l := newLab(t, mustLoad(t, shipped))
	l.decide(request(of("free", "u", "x").with(5)))
	l.SetRules(mustParse(t, "domain: tollgate\ntiers: {entry: tier, subjects: [user], default: free, table: [{name: free, limits: [{unit: minute, requests_per_unit: 100}]}]}"))
	// The bucket goes on: half of it is used, in time.
	if got := l.decide(request(of("free", "u", "x").with(0))).Statuses[0].Remaining; got != 50 {
		t.Errorf("%d left", got)
	}
	l.RulesRefused()
	if got := testutil.ToFloat64(l.metrics.reloads.WithLabelValues("refused")); got != 1 {
		t.Errorf("refused %v", got)
	}
	if _, err := NewLimiter(Options{Rules: l.Rules(), Store: l.store, Metrics: l.registry, Log: slog.New(slog.DiscardHandler)}); err == nil {
		t.Error("metrics were registered twice")
	}
}
