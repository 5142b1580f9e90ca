package ratelimit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

// clock is a time that tests move.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func newClock() *clock { return &clock{at: time.Unix(1_800_000_000, 0)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// lab is a limiter over a store in memory and a clock of its own.
type lab struct {
	*Limiter
	t        testing.TB
	clock    *clock
	registry *prometheus.Registry
}

func newLab(t testing.TB, rules *Rules, change ...func(*Options)) *lab {
	t.Helper()
	c, reg := newClock(), prometheus.NewRegistry()
	o := Options{Rules: rules, Store: NewMemory(1e6, c.now), Now: c.now, Log: slog.New(slog.DiscardHandler), Metrics: reg}
	for _, f := range change {
		f(&o)
	}
	l, err := NewLimiter(o)
	if err != nil {
		t.Fatal(err)
	}
	return &lab{Limiter: l, t: t, clock: c, registry: reg}
}

func (l *lab) decide(req Request) *Decision {
	l.t.Helper()
	var dec Decision
	if err := l.Decide(context.Background(), &req, &dec); err != nil {
		l.t.Fatal(err)
	}
	return &dec
}

func of(tier, user, endpoint string) Descriptor {
	return Descriptor{Entries: []Entry{{"tier", tier}, {"user", user}, {"endpoint", endpoint}}}
}

func request(descriptors ...Descriptor) Request {
	return Request{Domain: "tollgate", Descriptors: descriptors}
}

func (d Descriptor) with(hits uint64) Descriptor {
	d.Hits, d.HasHits = hits, true
	return d
}

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
		l.clock.advance(wait - time.Microsecond)
		if l.decide(request(of(tier, "u", "default"))).Allowed {
			t.Errorf("tier %q: allowed too early", tier)
		}
		l.clock.advance(time.Microsecond)
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
		l.clock.advance(6 * time.Second)
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
		l.clock.advance(time.Second)
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
	l.clock.advance(time.Second)
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

func expectMetric(t *testing.T, l *lab, want string) {
	t.Helper()
	const name = "tollgate_ratelimit_decisions_total"
	want = "# HELP " + name + " Decisions about descriptors, by domain, rule, how they were reached, and outcome.\n# TYPE " + name + " counter" + want
	if err := testutil.GatherAndCompare(l.registry, strings.NewReader(want), name); err != nil {
		t.Error(err)
	}
}

func TestEnvoyproxyGrammar(t *testing.T) {
	l := newLab(t, mustLoad(t, "testdata/envoyproxy.yaml"))
	ask := func(key, value string) *Decision {
		t.Helper()
		return l.decide(Request{Domain: "edge", Descriptors: []Descriptor{{Entries: []Entry{{key, value}}}}})
	}
	for i := range 3 { // shadow_mode: counted, not enforced
		dec := ask("code", "10")
		if s := dec.Statuses[0]; !dec.Allowed || s.Denied || s.Over != (i > 0) {
			t.Errorf("shadow %d: %+v", i, dec)
		}
	}
	ask("quota", "a")
	if dec := ask("quota", "a"); !dec.Allowed || !dec.Statuses[0].Over || !dec.Statuses[0].Rule.Quota {
		t.Errorf("quota: %+v", dec)
	}
	for i := range 4 { // share_threshold: one bucket for all that match
		if dec := ask("path", fmt.Sprint("/files/", i)); dec.Allowed != (i < 3) {
			t.Errorf("shared %d: %+v", i, dec)
		}
	}
	for i := range 30 { // without it: one bucket each
		if dec := ask("path", fmt.Sprint("/api/", i)); !dec.Allowed {
			t.Errorf("wildcard %d: %+v", i, dec)
		}
	}
	number, vip := Descriptor{Entries: []Entry{{"to_number", "7"}}}, Descriptor{Entries: []Entry{{"vip", "7"}}}
	if dec := l.decide(Request{Domain: "edge", Hits: 200, Descriptors: []Descriptor{number}}); dec.Allowed {
		t.Error("200 of 100 were allowed")
	}
	if dec := l.decide(Request{Domain: "edge", Hits: 200, Descriptors: []Descriptor{number, vip}}); !dec.Allowed || dec.Statuses[0].Rule != nil {
		t.Errorf("the limit that replaces another did not: %+v", dec)
	}
	for _, c := range []struct {
		rule    string
		outcome outcome
		want    float64
	}{{"path_/api/7", outcomeAllowed, 1}, {"path_/files/3", outcomeDenied, 0}, {"path_/files/*", outcomeDenied, 1}, {"code_10", outcomeShadow, 2}} {
		if got := testutil.ToFloat64(l.metrics.decisions.WithLabelValues("edge", c.rule, "exact", c.outcome.String())); got != c.want {
			t.Errorf("%s %s: %v, want %v", c.rule, c.outcome, got, c.want)
		}
	}
}

func TestDetailedMetricsAreBounded(t *testing.T) {
	l := newLab(t, mustLoad(t, "testdata/envoyproxy.yaml"))
	for i := range 3 * maxDetailed {
		l.decide(Request{Domain: "edge", Descriptors: []Descriptor{{Entries: []Entry{{"path", fmt.Sprint("/api/\xff", i)}}}}})
	}
	if n := testutil.CollectAndCount(l.metrics.decisions); n > maxDetailed+10 {
		t.Errorf("%d series", n)
	}
}

func TestOverride(t *testing.T) {
	l := newLab(t, mustLoad(t, shipped))
	d := of("free", "u", "x")
	d.Override = &Override{Tokens: 2, Unit: Second, Multiple: 1}
	for i := range 3 {
		if dec := l.decide(request(d)); dec.Allowed != (i < 2) || dec.Statuses[0].Limit.Tokens != 2 {
			t.Errorf("request %d: %+v", i, dec)
		}
	}
	d.Override.Unit = UnknownUnit
	if dec := l.decide(request(d)); dec.Statuses[0].Limit.Tokens != 10 {
		t.Errorf("an impossible limit took the place of the configured one: %+v", dec)
	}
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

func TestHeaders(t *testing.T) {
	l := newLab(t, mustLoad(t, shipped))
	got := func(d Descriptor) map[string]string {
		h := map[string]string{}
		for _, x := range l.decide(request(d)).AppendHeaders(nil) {
			h[x.Name] = x.Value
		}
		return h
	}
	policy := `"minute";q=10;w=60, "hour";q=100;w=3600`
	if diff := cmp.Diff(map[string]string{
		HeaderPolicy: policy, HeaderState: `"minute";r=9;t=6`, HeaderLimit: "10", HeaderRemaining: "9", HeaderReset: "6",
	}, got(of("free", "u\r\nx: y", "x"))); diff != "" {
		t.Error(diff)
	}
	got(of("free", "u\r\nx: y", "x").with(9))
	l.clock.advance(time.Microsecond)
	if diff := cmp.Diff(map[string]string{
		HeaderPolicy: policy, HeaderState: `"minute";r=0;t=6`, HeaderLimit: "10", HeaderRemaining: "0", HeaderReset: "6", HeaderRetryAfter: "6",
	}, got(of("free", "u\r\nx: y", "x"))); diff != "" {
		t.Error(diff)
	}
	system := &Status{Rule: l.Rules().domains["tollgate"].tiers["free"], Limit: &l.Rules().domains["tollgate"].system[0]}
	if want := policy + `, "system-second";q=10000;w=1`; system.policy() != want {
		t.Errorf("got %s", system.policy())
	}
	system.Rule = nil
	if want := `"system-second";q=10000;w=1`; system.policy() != want {
		t.Errorf("got %s", system.policy())
	}
	if h := (&Decision{Shown: -1}).AppendHeaders(nil); len(h) != 1 || h[0] != (Header{HeaderRetryAfter, "1"}) {
		t.Errorf("a denial without a status: %v", h)
	}
}

// broken is a store that fails when told to.
type broken struct {
	Store
	mu    sync.Mutex
	err   error
	calls int
}

func (b *broken) Take(ctx context.Context, d []*Demand) error {
	b.mu.Lock()
	b.calls++
	err := b.err
	b.mu.Unlock()
	if err != nil {
		return err
	}
	return b.Store.Take(ctx, d)
}

func (b *broken) set(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
}

func (b *broken) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.calls
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	deadline, tick := time.After(30*time.Second), time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-deadline:
			t.Fatal("never: " + what)
		case <-tick.C:
		}
	}
}

func TestStoreGone(t *testing.T) {
	gone := errors.New("gone")
	for mode, want := range map[FailureMode][]bool{
		FailLocal: {true, true, true, true, true, false, false}, // half of 10, as there are two replicas
		FailAllow: {true, true, true, true, true, true, true},
		FailDeny:  {false, false, false, false, false, false, false},
	} {
		var log bytes.Buffer
		store := &broken{}
		l := newLab(t, mustLoad(t, shipped), func(o *Options) {
			store.Store = o.Store
			o.Store, o.OnFailure, o.Replicas, o.Failures = store, mode, 2, 3
			o.ProbeEvery = time.Millisecond
			o.Log = slog.New(slog.NewTextHandler(&log, nil))
		})
		store.set(gone)
		got := make([]bool, len(want))
		for i := range got {
			dec := l.decide(request(of("free", "u", "x")))
			got[i] = dec.Allowed
			if wantPath := map[bool]Path{true: PathLocal, false: PathFallback}[mode == FailLocal]; dec.Path != wantPath {
				t.Errorf("%s: path %s", mode, dec.Path)
			}
			if len(dec.Statuses) != 1 || dec.Statuses[0].Denied == dec.Allowed {
				t.Errorf("%s: %+v", mode, dec)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", mode, diff)
		}
		if n := store.count(); n != 3 {
			t.Errorf("%s: a store that is gone was asked %d times", mode, n)
		}
		if n := strings.Count(log.String(), "\n"); n != 1 {
			t.Errorf("%s: %d log lines: %s", mode, n, log.String())
		}
		if got := testutil.ToFloat64(l.metrics.degraded); got != 1 {
			t.Errorf("%s: degraded is %v", mode, got)
		}

		// When it is back, it learns what was granted: no burst.
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- l.Run(ctx) }()
		store.set(nil)
		eventually(t, "the store is used again", l.guard.allows)
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		s := l.decide(request(of("free", "u", "x").with(0))).Statuses[0]
		if wantLeft := map[bool]uint32{true: 5, false: 10}[mode == FailLocal]; s.Remaining != wantLeft {
			t.Errorf("%s: %d left after recovery, want %d", mode, s.Remaining, wantLeft)
		}
		if n := strings.Count(log.String(), "\n"); n != 2 {
			t.Errorf("%s: %d log lines: %s", mode, n, log.String())
		}
	}
}

// TestStoreGoneByRule shows that each descriptor fails as its rule says.
func TestStoreGoneByRule(t *testing.T) {
	rules := mustParse(t, "domain: d\nsystem: [{unit: hour, requests_per_unit: 3}]\ndescriptors:\n"+
		"- {key: open, on_failure: allow, rate_limit: {unit: hour, requests_per_unit: 1}}\n"+
		"- {key: shut, on_failure: deny, rate_limit: {unit: hour, requests_per_unit: 1}}\n"+
		"- {key: here, on_failure: local, rate_limit: {unit: hour, requests_per_unit: 2}}\n"+
		"- {key: seen, on_failure: deny, shadow_mode: true, rate_limit: {unit: hour, requests_per_unit: 1}}\n"+
		"- {key: own, rate_limit: {unit: hour, requests_per_unit: 1}}\n")
	for _, c := range []struct {
		keys   []string
		mode   FailureMode
		want   []bool
		path   Path
		denied []bool // of the last answer
	}{
		{[]string{"open"}, FailDeny, []bool{true, true, true, true}, PathFallback, []bool{false}},
		{[]string{"shut"}, FailAllow, []bool{false}, PathFallback, []bool{true}},
		{[]string{"here"}, FailDeny, []bool{true, true, false}, PathLocal, []bool{true}},
		{[]string{"seen"}, FailLocal, []bool{true, true}, PathFallback, []bool{false}},
		{[]string{"own"}, FailDeny, []bool{false}, PathFallback, []bool{true}},
		{[]string{"open", "here"}, FailAllow, []bool{true, true, false}, PathLocal, []bool{false, true}},
		{[]string{"shut", "here"}, FailLocal, []bool{false}, PathFallback, []bool{true, false}},
		{[]string{"unheard"}, FailLocal, []bool{true, true, true, false}, PathLocal, []bool{true}},
	} {
		store := &broken{err: errors.New("gone")}
		l := newLab(t, rules, func(o *Options) { store.Store, o.Store, o.OnFailure = o.Store, store, c.mode })
		req := Request{Domain: "d"}
		for _, key := range c.keys {
			req.Descriptors = append(req.Descriptors, Descriptor{Entries: []Entry{{key, "x"}}})
		}
		for i, want := range c.want {
			dec := l.decide(req)
			if dec.Allowed != want || dec.Path != c.path || len(dec.Statuses) != len(c.keys) {
				t.Errorf("%v, request %d: %+v", c.keys, i, dec)
			}
			if i == len(c.want)-1 {
				for j := range dec.Statuses {
					if dec.Statuses[j].Denied != c.denied[j] {
						t.Errorf("%v, descriptor %d: %+v", c.keys, j, dec.Statuses[j])
					}
				}
			}
		}
	}
}

func TestCallerWhoLeavesIsNotTheStoresFault(t *testing.T) {
	l := newLab(t, mustLoad(t, shipped))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var dec Decision
	req := request(of("free", "u", "x"))
	for range 10 {
		if err := l.Decide(ctx, &req, &dec); err != nil {
			t.Fatal(err)
		}
	}
	if !l.guard.allows() {
		t.Error("the breaker opened")
	}
}

func TestRecoveryThatFailsKeepsTheDebts(t *testing.T) {
	store := &broken{}
	l := newLab(t, mustLoad(t, shipped), func(o *Options) { store.Store = o.Store; o.Store = store; o.Failures = 1; o.Replicas = 2 })
	store.set(errors.New("gone"))
	l.decide(request(of("free", "u", "x").with(4)))
	if err := l.settle(t.Context()); err == nil {
		t.Fatal("no error")
	}
	if got := l.decide(request(of("free", "u", "x").with(2))); got.Allowed {
		t.Error("the local buckets forgot what they had granted")
	}
	if err := l.probe(t.Context()); err == nil {
		t.Error("the probe of a store that is gone")
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

// TestRedisKilledAndBack kills a real server under load and starts it again.
func TestRedisKilledAndBack(t *testing.T) {
	server := redistest.NewProcess(t)
	client := redis.NewClient(&redis.Options{Addr: server.Addr(), MaxRetries: -1, ContextTimeoutEnabled: true})
	defer client.Close()
	store := NewRedis(client, false)
	l := newLab(t, mustLoad(t, shipped), func(o *Options) {
		o.Store, o.Probe, o.ProbeEvery, o.Timeout, o.Now = store, store.Load, 20*time.Millisecond, 200*time.Millisecond, time.Now
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { _ = l.Run(ctx) }()

	path := func() Path { return l.decide(request(of("premium", "u", "x"))).Path }
	eventually(t, "decided in redis", func() bool { return path() == PathExact })
	server.Kill()
	eventually(t, "decided here", func() bool { return path() == PathLocal && !l.guard.allows() })
	used := l.decide(request(of("premium", "u", "x").with(0))).Statuses[0].Remaining
	server.Start()
	eventually(t, "decided in redis again", func() bool {
		return l.decide(request(of("premium", "u", "x").with(0))).Path == PathExact
	})
	// The new server has nothing of the old one, but what was granted without
	// it; a little has been refilled meanwhile.
	if left := l.decide(request(of("premium", "u", "x").with(0))).Statuses[0].Remaining; left > used+5 {
		t.Errorf("%d left after recovery, %d before", left, used)
	}
	server.Pause()
	eventually(t, "decided here while redis hangs", func() bool { return path() == PathLocal && !l.guard.allows() })
	server.Resume()
	eventually(t, "decided in redis again", func() bool { return path() == PathExact })
}
