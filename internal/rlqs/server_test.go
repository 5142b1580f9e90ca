package rlqs

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	quotav3 "github.com/envoyproxy/go-control-plane/envoy/service/rate_limit_quota/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/tollgate-proxy/tollgate/internal/clocktest"
	"github.com/tollgate-proxy/tollgate/internal/ratelimit"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

// failing makes the limiter fail while it is set, after it charged so many.
type failing struct {
	Limiter
	mu      sync.Mutex
	err     error
	charges int
}

func (f *failing) set(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *failing) Spend(ctx context.Context, domain string, usages []ratelimit.Usage) ([]ratelimit.Quota, error) {
	f.mu.Lock()
	fails, charges := f.err, f.charges
	f.mu.Unlock()
	if fails == nil {
		charges = len(usages)
	}
	quotas, err := f.Limiter.Spend(ctx, domain, usages[:charges])
	return quotas, errors.Join(err, fails)
}

type bench struct {
	clock   *clocktest.Clock
	limiter *failing
	real    *ratelimit.Limiter
	done    chan struct{}
	client  quotav3.RateLimitQuotaServiceClient
	server  *Server
}

const rules = `
domain: d
tiers:
  entry: tier
  subjects: [user]
  default: t
  table:
  - {name: t, limits: [{unit: second, requests_per_unit: 100}]}
  - {name: slow, limits: [{unit: day, requests_per_unit: 10}]}
  - {name: none, limits: [{unit: day, requests_per_unit: 0}]}
costs: {entry: endpoint, default: 1, table: [{value: ml, cost: 5}]}
descriptors: [{key: watched, shadow_mode: true, rate_limit: {unit: day, requests_per_unit: 1}}]
`

func newBench(t *testing.T, redis string, buckets int) *bench {
	t.Helper()
	file := filepath.Join(t.TempDir(), "rules.yaml")
	if err := os.WriteFile(file, []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	loaded, err := ratelimit.LoadRules(file)
	if err != nil {
		t.Fatal(err)
	}
	conn := redistest.Client(t, redis)
	b := &bench{clock: clocktest.New(time.Now()), done: make(chan struct{})}
	b.real, err = ratelimit.NewLimiter(ratelimit.Options{
		Rules: loaded, Store: ratelimit.NewRedis(conn, false), Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(), Timeout: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	b.limiter = &failing{Limiter: b.real}
	b.server, err = New(Options{
		Limiter: b.limiter, Sharers: ratelimit.NewSharers(conn, b.clock.Now), Life: 15 * time.Second, Idle: time.Minute,
		Buckets: buckets, Timeout: 10 * time.Second, Done: b.done, Now: b.clock.Now, Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	b.server.Register(g)
	go func() { _ = g.Serve(l) }()
	t.Cleanup(g.Stop)
	c, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	b.client = quotav3.NewRateLimitQuotaServiceClient(c)
	return b
}

// peer is one Envoy.
type peer struct {
	t      *testing.T
	stream quotav3.RateLimitQuotaService_StreamRateLimitQuotasClient
	end    func()
}

func (b *bench) open(t *testing.T) *peer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	stream, err := b.client.StreamRateLimitQuotas(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return &peer{t: t, stream: stream, end: cancel}
}

func (p *peer) send(allowed, denied uint64, id ...string) {
	p.t.Helper()
	bucket := map[string]string{}
	for i := 0; i < len(id); i += 2 {
		bucket[id[i]] = id[i+1]
	}
	err := p.stream.Send(&quotav3.RateLimitQuotaUsageReports{Domain: "d", BucketQuotaUsages: []*quotav3.RateLimitQuotaUsageReports_BucketQuotaUsage{{
		BucketId: &quotav3.BucketId{Bucket: bucket}, NumRequestsAllowed: allowed, NumRequestsDenied: denied,
	}}})
	if err != nil {
		p.t.Fatal(err)
	}
}

// ask reports and returns the answer.
func (p *peer) ask(allowed, denied uint64, id ...string) *quotav3.RateLimitQuotaResponse_BucketAction {
	p.t.Helper()
	p.send(allowed, denied, id...)
	r, err := p.stream.Recv()
	if err != nil {
		p.t.Fatal(err)
	}
	return r.GetBucketAction()[0]
}

// rate is what an action allows, a second.
func rate(t *testing.T, a *quotav3.RateLimitQuotaResponse_BucketAction) float64 {
	t.Helper()
	q := a.GetQuotaAssignmentAction()
	if q.GetAssignmentTimeToLive().AsDuration() != 15*time.Second {
		t.Errorf("holds for %v", q.GetAssignmentTimeToLive())
	}
	b := q.GetRateLimitStrategy().GetTokenBucket()
	if b == nil || b.GetFillInterval().GetSeconds() < 1 || b.GetFillInterval().GetNanos() != 0 || b.GetMaxTokens() < 1 {
		t.Fatalf("no bucket that Envoy can keep: %v", a)
	}
	return float64(b.GetTokensPerFill().GetValue()) / float64(b.GetFillInterval().GetSeconds())
}

// Two Envoys that want unequally much share the limit; what is not wanted by one
// is the other's, and what one leaves too.
func TestTwoEnvoys(t *testing.T) {
	b := newBench(t, redistest.Server(t), 100)
	one, two := b.open(t), b.open(t)
	id := []string{"user", "ada", "tier", "t"}
	if got := rate(t, one.ask(1, 0, id...)); got != 100 {
		t.Errorf("alone: %g", got)
	}
	if got := rate(t, two.ask(1, 0, id...)); got != 50 {
		t.Errorf("the second: %g", got)
	}
	var parts [2]float64
	for range 8 {
		b.clock.Advance(5 * time.Second)
		parts[0] = rate(t, one.ask(350, 200, id...)) // wants 110 a second
		parts[1] = rate(t, two.ask(100, 0, id...))   // wants 20
	}
	if sum := parts[0] + parts[1]; sum > 103 || sum < 95 || parts[1] < 20 || parts[1] > 25 {
		t.Errorf("parts %v", parts)
	}
	// Steady demand keeps the assignment: Envoy would start a changed one full.
	before := b.changed(t)
	b.clock.Advance(5 * time.Second)
	two.ask(100, 0, id...)
	if after := b.changed(t); after != before {
		t.Errorf("%g changes for nothing", after-before)
	}
	one.end()
	deadline := time.Now().Add(20 * time.Second)
	for got := 0.0; got < 99; {
		b.clock.Advance(time.Second)
		if got = rate(t, two.ask(20, 5, id...)); time.Now().After(deadline) {
			t.Fatalf("the part of one that left is not given back: %g", got)
		}
	}
}

func (b *bench) changed(t *testing.T) float64 {
	t.Helper()
	return value(t, b.server, "changed")
}

// What is reported is taken from the buckets that others ask about one by one.
func TestReportsAreCharged(t *testing.T) {
	b := newBench(t, redistest.Server(t), 100)
	p := b.open(t)
	if got := rate(t, p.ask(4, 0, "user", "ada", "tier", "slow")); got > 10.0/86400*1.001 {
		t.Errorf("%g a second of 10 a day", got)
	}
	states, err := b.real.State(t.Context(), "d", []ratelimit.Entry{{Key: "tier", Value: "slow"}, {Key: "user", Value: "ada"}})
	if err != nil || len(states) != 1 || states[0].Remaining != 6 {
		t.Errorf("%+v, %v", states, err)
	}
	// Another Envoy gets no more at once than is left, divided.
	a := b.open(t).ask(0, 1, "user", "ada", "tier", "slow")
	if got := a.GetQuotaAssignmentAction().GetRateLimitStrategy().GetTokenBucket().GetMaxTokens(); got != 3 {
		t.Errorf("%d at once", got)
	}
}

func TestStrategies(t *testing.T) {
	b := newBench(t, redistest.Server(t), 100)
	p := b.open(t)
	blanket := func(id ...string) typev3.RateLimitStrategy_BlanketRule {
		rule, ok := p.ask(1, 0, id...).GetQuotaAssignmentAction().GetRateLimitStrategy().GetStrategy().(*typev3.RateLimitStrategy_BlanketRule_)
		if !ok {
			t.Fatalf("%v: no blanket rule", id)
		}
		return rule.BlanketRule
	}
	if blanket("nobody", "x") != typev3.RateLimitStrategy_ALLOW_ALL || blanket("watched", "x") != typev3.RateLimitStrategy_ALLOW_ALL {
		t.Error("what nothing limits is limited")
	}
	if blanket("user", "ada", "tier", "none") != typev3.RateLimitStrategy_DENY_ALL {
		t.Error("a limit of nothing allows")
	}
	if got := rate(t, p.ask(1, 0, "user", "eve", "tier", "t", "endpoint", "ml")); got != 20 {
		t.Errorf("requests that cost 5: %g a second of 100 tokens", got)
	}
}

// A bucket that nobody uses is forgotten on both sides; one that comes back is
// new.
func TestAbandon(t *testing.T) {
	b := newBench(t, redistest.Server(t), 1)
	p := b.open(t)
	p.ask(1, 0, "user", "ada")
	b.clock.Advance(30 * time.Second)
	rate(t, p.ask(0, 0, "user", "ada"))
	b.clock.Advance(30 * time.Second)
	if a := p.ask(0, 0, "user", "ada"); a.GetAbandonAction() == nil {
		t.Errorf("got %v", a)
	}
	// There is room for another now, and for that one only.
	rate(t, p.ask(1, 0, "user", "eve"))
	p.send(1, 0, "user", "ada")
	p.send(1, 0)
	p.send(1, 0, "user", strings.Repeat("x", maxID))
	rate(t, p.ask(1, 0, "user", "eve"))
	if got := value(t, b.server, "refused"); got != 3 {
		t.Errorf("%g refused", got)
	}
}

// Without Redis an Envoy keeps what it has, and a new bucket gets nothing.
func TestWithoutRedis(t *testing.T) {
	b := newBench(t, redistest.Server(t), 100)
	p := b.open(t)
	was := p.ask(1, 0, "user", "ada")
	b.limiter.set(errors.New("gone"))
	b.clock.Advance(5 * time.Second)
	p.send(9, 0, "user", "new")
	if d := cmp.Diff(was.String(), p.ask(500, 0, "user", "ada").String()); d != "" {
		t.Error(d)
	}
	b.limiter.set(nil)
	rate(t, p.ask(9, 0, "user", "new"))
}

// What was let through while Redis was gone is charged when it is back.
func TestUsageWithoutRedisIsOwed(t *testing.T) {
	b := newBench(t, redistest.Server(t), 100)
	p := b.open(t)
	ada := []string{"user", "ada", "tier", "slow"}
	p.ask(1, 0, ada...)
	b.limiter.set(errors.New("gone"))
	for range 2 {
		b.clock.Advance(5 * time.Second)
		p.ask(2, 0, ada...)
	}
	b.limiter.set(nil)
	b.clock.Advance(5 * time.Second)
	p.ask(1, 0, ada...)
	p.ask(1, 0, ada...)
	states, err := b.real.State(t.Context(), "d", []ratelimit.Entry{{Key: "tier", Value: "slow"}, {Key: "user", Value: "ada"}})
	if err != nil || len(states) != 1 || states[0].Remaining != 3 {
		t.Errorf("%+v, %v", states, err)
	}
}

// What was charged before Redis went is not charged again.
func TestUsageIsChargedOnce(t *testing.T) {
	b := newBench(t, redistest.Server(t), 100)
	e := &envoy{server: b.server, name: "e", buckets: map[string]*bucket{}}
	users := []string{"ada", "bob"}
	report := func(allowed uint64) {
		t.Helper()
		r := &quotav3.RateLimitQuotaUsageReports{Domain: "d"}
		for _, user := range users {
			r.BucketQuotaUsages = append(r.BucketQuotaUsages, &quotav3.RateLimitQuotaUsageReports_BucketQuotaUsage{
				BucketId: &quotav3.BucketId{Bucket: map[string]string{"user": user, "tier": "slow"}}, NumRequestsAllowed: allowed,
			})
		}
		if _, err := e.report(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		b.clock.Advance(5 * time.Second)
	}
	b.limiter.charges = 1
	b.limiter.set(errors.New("gone"))
	report(3)
	b.limiter.set(nil)
	report(1)
	for _, user := range users {
		states, err := b.real.State(t.Context(), "d", []ratelimit.Entry{{Key: "tier", Value: "slow"}, {Key: "user", Value: user}})
		if err != nil || len(states) != 1 || states[0].Remaining != 6 {
			t.Errorf("%s: %+v, %v", user, states, err)
		}
	}
}

func TestStreamEnds(t *testing.T) {
	b := newBench(t, redistest.Server(t), 100)
	expect := func(p *peer, want codes.Code) {
		t.Helper()
		for {
			if _, err := p.stream.Recv(); err != nil {
				if status.Code(err) != want {
					t.Errorf("got %v, want %s", err, want)
				}
				return
			}
		}
	}
	p := b.open(t)
	if err := p.stream.Send(&quotav3.RateLimitQuotaUsageReports{}); err != nil {
		t.Fatal(err)
	}
	expect(p, codes.InvalidArgument)
	p = b.open(t)
	p.ask(1, 0, "user", "ada")
	if err := p.stream.Send(&quotav3.RateLimitQuotaUsageReports{Domain: "other"}); err != nil {
		t.Fatal(err)
	}
	expect(p, codes.InvalidArgument)
	p = b.open(t)
	p.ask(1, 0, "user", "ada")
	close(b.done)
	expect(p, codes.Unavailable)
}

func TestRead(t *testing.T) {
	entries, _, ok := read(&quotav3.BucketId{Bucket: map[string]string{"z": "1", "endpoint": "ml", "user": "ada", "tier": "t", "a": "2"}})
	want := []ratelimit.Entry{{Key: "tier", Value: "t"}, {Key: "user", Value: "ada"}, {Key: "endpoint", Value: "ml"}, {Key: "a", Value: "2"}, {Key: "z", Value: "1"}}
	if d := cmp.Diff(want, entries); d != "" || !ok {
		t.Error(d)
	}
}

func value(t *testing.T, s *Server, action string) float64 {
	t.Helper()
	reg := prometheus.NewRegistry()
	reg.MustRegister(s.actions)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if m.GetLabel()[0].GetValue() == action {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

// counting counts calls that give parts back.
type counting struct {
	Sharers
	calls, parts int
}

func (c *counting) Leave(ctx context.Context, parts []ratelimit.Part) error {
	c.calls, c.parts = c.calls+1, c.parts+len(parts)
	return c.Sharers.Leave(ctx, parts)
}

// TestManyAreAbandonedInOneCall: on a network a call for each of the buckets of
// a report, or of an Envoy that ends, would hold up the others.
func TestManyAreAbandonedInOneCall(t *testing.T) {
	b := newBench(t, redistest.Server(t), 1000)
	sharers := &counting{Sharers: b.server.o.Sharers}
	b.server.o.Sharers = sharers
	e := &envoy{server: b.server, name: "e", buckets: map[string]*bucket{}}
	report := func(from, to int, allowed uint64) int {
		t.Helper()
		r := &quotav3.RateLimitQuotaUsageReports{Domain: "d"}
		for i := from; i < to; i++ {
			r.BucketQuotaUsages = append(r.BucketQuotaUsages, &quotav3.RateLimitQuotaUsageReports_BucketQuotaUsage{
				BucketId: &quotav3.BucketId{Bucket: map[string]string{"user": strconv.Itoa(i)}}, NumRequestsAllowed: allowed,
			})
		}
		response, err := e.report(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		return len(response.GetBucketAction())
	}
	report(0, 300, 1)
	b.clock.Advance(time.Minute)
	if n := report(0, 200, 0); n != 200 || sharers.calls != 1 || sharers.parts != 200 {
		t.Errorf("%d answers; %d parts went back in %d calls", n, sharers.parts, sharers.calls)
	}
	if e.leave(); sharers.calls != 2 || sharers.parts != 300 || b.server.buckets.Load() != 0 {
		t.Errorf("%d parts went back in %d calls, %d buckets stay", sharers.parts, sharers.calls, b.server.buckets.Load())
	}
	if short, long := b.server.timeout(10), b.server.timeout(100_000); long < 50*short {
		t.Errorf("%s for 10 buckets, %s for 100,000", short, long)
	}
}
