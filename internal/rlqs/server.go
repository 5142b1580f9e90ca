// Package rlqs serves Envoy's rate limit quota service, version 3
// (https://www.envoyproxy.io/docs/envoy/latest/api-v3/service/rate_limit_quota/v3/rlqs.proto):
// Envoy tells every few seconds how many requests of each bucket it let pass,
// and is told how many it may let pass until it hears more, so that steady
// traffic makes no call at all.
//
// What Envoys report is charged to the buckets that the rate limit service
// decides on, and what those hold is divided among all Envoys that ask for them
// (share.go). Who they are stands in Redis, so that several processes divide
// alike. Between two reports an Envoy follows its assignment whatever others do:
// quotas are as exact as reports are frequent.
//
// What it relies on in Envoy 1.40 (docs/guide/rate-limit-quotas.md): a token
// bucket is filled evenly; an assignment that differs in burst or fill begins
// full, one that differs in the interval alone is ignored; intervals and times
// to live are whole seconds.
package rlqs

import (
	"context"
	"crypto/rand"
	"log/slog"
	"math"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	quotav3 "github.com/envoyproxy/go-control-plane/envoy/service/rate_limit_quota/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tollgate-proxy/tollgate/internal/ratelimit"
)

// Limiter charges buckets; *ratelimit.Limiter is one.
type Limiter interface {
	Spend(ctx context.Context, domain string, usages []ratelimit.Usage) ([]ratelimit.Quota, error)
}

// Sharers knows who shares a quota; *ratelimit.Sharers is one.
type Sharers interface {
	Join(ctx context.Context, parts []ratelimit.Part, life time.Duration) (others [][]float64, err error)
	Leave(ctx context.Context, parts []ratelimit.Part) error
}

// Options are what a [Server] is made of. All are required.
type Options struct {
	Limiter Limiter
	Sharers Sharers
	// Life is how long an assignment holds without another, in whole seconds;
	// longer than two of Envoy's reporting intervals.
	Life time.Duration
	// Idle is how long a bucket may go without a request until Envoy is told to
	// forget it.
	Idle time.Duration
	// Buckets bounds the buckets of all streams.
	Buckets int
	// Timeout bounds the work of Redis on each thousand buckets of a report.
	Timeout time.Duration
	// Done ends all streams.
	Done    <-chan struct{}
	Now     func() time.Time
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

// Server is the quota service. It may be used by any number of goroutines. Use
// [New].
type Server struct {
	quotav3.UnimplementedRateLimitQuotaServiceServer
	o       Options
	buckets atomic.Int64
	streams prometheus.Gauge
	actions *prometheus.CounterVec
}

// New returns a server.
func New(o Options) (*Server, error) {
	s := &Server{
		o: o,
		streams: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "tollgate_rlqs_streams", Help: "Envoys that report usage.",
		}),
		actions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tollgate_rlqs_actions_total",
			Help: "Reports of buckets by what came of them: changed, kept, abandoned, refused (too many buckets, or an id that is none) or failed (Redis).",
		}, []string{"action"}),
	}
	buckets := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tollgate_rlqs_buckets", Help: "Buckets that are assigned to Envoys.",
	}, func() float64 { return float64(s.buckets.Load()) })
	for _, c := range []prometheus.Collector{s.streams, s.actions, buckets} {
		if err := o.Metrics.Register(c); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Register adds the service to a gRPC server.
func (s *Server) Register(g grpc.ServiceRegistrar) {
	quotav3.RegisterRateLimitQuotaServiceServer(g, s)
}

// StreamRateLimitQuotas serves one Envoy.
func (s *Server) StreamRateLimitQuotas(stream grpc.BidiStreamingServer[quotav3.RateLimitQuotaUsageReports, quotav3.RateLimitQuotaResponse]) error {
	s.streams.Inc()
	defer s.streams.Dec()
	e := &envoy{server: s, name: rand.Text(), buckets: map[string]*bucket{}}
	defer e.leave()
	reports := make(chan *quotav3.RateLimitQuotaUsageReports)
	ended := make(chan error, 1)
	go func() {
		for {
			r, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case reports <- r:
			case <-stream.Context().Done():
				return
			}
		}
	}()
	for {
		select {
		case <-s.o.Done:
			return status.Error(codes.Unavailable, "the server is stopping")
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		case <-ended: //nolint:errcheck // however it ended, Envoy is gone, and nobody is left to tell
			return nil
		case r := <-reports:
			response, err := e.report(stream.Context(), r)
			if err != nil {
				return err
			}
			if len(response.GetBucketAction()) == 0 {
				continue
			}
			if err := stream.Send(response); err != nil {
				return err
			}
		}
	}
}

// envoy is one stream. Only its own goroutine uses it.
type envoy struct {
	server *Server
	name   string
	domain string
	// reports counts the messages.
	reports uint64
	// buckets are those of which the Envoy has reported, by their id.
	buckets map[string]*bucket
}

// bucket is one bucket of one Envoy.
type bucket struct {
	id     string
	key    string // of the quota it shares; empty where nothing limits it
	name   string // as a sharer
	demand float64
	seen   time.Time // of the last report
	used   time.Time // of the last report of a request
	given  assignment
	report uint64 // the last one that had it
	// owed is how many requests were reported and could not be charged.
	owed uint64
	// abandoned is whether the Envoy is told to forget it.
	abandoned bool
	// assigned is whether given holds; free is whether nothing limits the bucket.
	assigned, free bool
}

// The bounds on one bucket's id.
const (
	maxEntries = ratelimit.MaxEntries
	maxID      = 2048 // bytes
)

// report answers one message.
func (e *envoy) report(ctx context.Context, r *quotav3.RateLimitQuotaUsageReports) (*quotav3.RateLimitQuotaResponse, error) {
	if d := r.GetDomain(); d != "" {
		if e.domain != "" && e.domain != d {
			return nil, status.Error(codes.InvalidArgument, "the domain of a stream cannot change")
		}
		e.domain = d
	}
	if e.domain == "" {
		return nil, status.Error(codes.InvalidArgument, "the domain is empty")
	}
	e.reports++
	var idle []ratelimit.Part
	actions := make([]*quotav3.RateLimitQuotaResponse_BucketAction, 0, len(r.GetBucketQuotaUsages()))
	used := make([]usage, 0, len(r.GetBucketQuotaUsages()))
	for _, u := range r.GetBucketQuotaUsages() {
		entries, b := e.find(u)
		switch {
		case b == nil:
		case b.abandoned:
			idle = e.drop(idle, b)
			actions = append(actions, abandon(u.GetBucketId()))
		default:
			used = append(used, usage{u, b, entries})
		}
	}
	e.giveBack(idle)
	if len(used) > 0 {
		actions = append(actions, e.assignAll(ctx, used)...)
	}
	return &quotav3.RateLimitQuotaResponse{BucketAction: actions}, nil
}

// usage is what a report says of a bucket.
type usage struct {
	said    *quotav3.RateLimitQuotaUsageReports_BucketQuotaUsage
	bucket  *bucket
	entries []ratelimit.Entry
}

// find returns a reported bucket, made where it is new, and its descriptor. It
// returns nil for one that is refused: Envoy does then as it is configured to
// without an assignment.
func (e *envoy) find(u *quotav3.RateLimitQuotaUsageReports_BucketQuotaUsage) ([]ratelimit.Entry, *bucket) {
	s, now := e.server, e.server.o.Now()
	entries, id, ok := read(u.GetBucketId())
	b := e.buckets[id]
	if !ok || b != nil && b.report == e.reports {
		s.count("refused")
		return nil, nil
	}
	if b == nil {
		if s.buckets.Add(1) > int64(s.o.Buckets) {
			s.buckets.Add(-1)
			s.count("refused")
			return nil, nil
		}
		b = &bucket{id: id, name: e.name + "/" + rand.Text(), demand: unknown, used: now}
		e.buckets[id] = b
	}
	b.report = e.reports
	switch {
	case u.GetNumRequestsAllowed()+u.GetNumRequestsDenied() > 0:
		b.used = now
	case now.Sub(b.used) >= s.o.Idle:
		b.abandoned = true
		s.count("abandoned")
	}
	return entries, b
}

func abandon(id *quotav3.BucketId) *quotav3.RateLimitQuotaResponse_BucketAction {
	return &quotav3.RateLimitQuotaResponse_BucketAction{
		BucketId:     id,
		BucketAction: &quotav3.RateLimitQuotaResponse_BucketAction_AbandonAction_{AbandonAction: &quotav3.RateLimitQuotaResponse_BucketAction_AbandonAction{}},
	}
}

// assignAll takes what a report says of buckets in and returns what the Envoy is
// told. Redis is asked about many buckets at a time: a report names every bucket
// that the Envoy knows.
func (e *envoy) assignAll(ctx context.Context, used []usage) []*quotav3.RateLimitQuotaResponse_BucketAction {
	s := e.server
	ctx, cancel := context.WithTimeout(ctx, s.timeout(len(used)))
	defer cancel()
	quotas, others, err := e.spend(ctx, used)
	if err != nil {
		s.o.Log.Debug("a report of quotas could not be charged", slog.Any("error", err))
	}
	actions := make([]*quotav3.RateLimitQuotaResponse_BucketAction, 0, len(used))
	for i, u := range used {
		b := u.bucket
		switch {
		case err != nil:
			s.count("failed")
			if !b.assigned {
				continue // Envoy does as it is configured to without an assignment.
			}
		case b.assign(&quotas[i], others[i]):
			s.count("changed")
		default:
			s.count("kept")
		}
		actions = append(actions, s.action(u.said.GetBucketId(), b))
	}
	return actions
}

// spend charges what was used, and tells how the buckets stand and what the
// others want of them.
func (e *envoy) spend(ctx context.Context, used []usage) ([]ratelimit.Quota, [][]float64, error) {
	s := e.server
	now := s.o.Now()
	usages := make([]ratelimit.Usage, len(used))
	for i, u := range used {
		usages[i] = ratelimit.Usage{Entries: u.entries, Requests: min(u.said.GetNumRequestsAllowed(), math.MaxUint64-u.bucket.owed) + u.bucket.owed}
		if !u.bucket.seen.IsZero() {
			usages[i].Over = now.Sub(u.bucket.seen)
		}
	}
	quotas, err := s.o.Limiter.Spend(ctx, e.domain, usages)
	for i, u := range used {
		// What the call that failed may have charged is charged again: that grants
		// less, never more.
		if u.bucket.owed = 0; i >= len(quotas) {
			u.bucket.owed = usages[i].Requests
		}
	}
	var parts []ratelimit.Part
	for i := range quotas {
		q, u := &quotas[i], used[i]
		if q.Free {
			continue
		}
		u.bucket.observe((float64(usages[i].Requests)+float64(u.said.GetNumRequestsDenied()))*float64(max(q.Cost, 1)), now)
		u.bucket.key = q.Key
		parts = append(parts, ratelimit.Part{Key: q.Key, Name: u.bucket.name, Demand: u.bucket.demand})
	}
	if err != nil {
		return nil, nil, err
	}
	joined, err := s.o.Sharers.Join(ctx, parts, s.o.Life)
	if err != nil {
		return nil, nil, err
	}
	others := make([][]float64, len(quotas))
	for i := range quotas {
		if !quotas[i].Free {
			others[i], joined = joined[0], joined[1:]
		}
	}
	return quotas, others, nil
}

// assign decides what the Envoy may use, and says whether that is something
// else than before.
func (b *bucket) assign(q *ratelimit.Quota, others []float64) bool {
	if q.Free {
		changed := !b.assigned || !b.free
		b.assigned, b.free = true, true
		return changed
	}
	cost := float64(max(q.Cost, 1))
	demand := max(b.demand, 0)
	for _, d := range others {
		demand += max(d, 0)
	}
	rate, burst := worth(q.States, demand)
	part := share(rate, b.demand, others)
	next := assign(part/cost, max(burst*part/rate, part*jitter)/cost)
	if rate <= 0 {
		next = assignment{}
	}
	if b.assigned && !b.free && keeps(b.given, next) {
		return false
	}
	b.given, b.assigned, b.free = distinct(b.given, next), true, false
	return true
}

// jitter is for how many seconds of its rate an Envoy may save what comes
// unevenly, even where the buckets are empty. Each change of an assignment may
// give that much too much, and there is at most one in a report: 2.5 %.
const jitter = 0.125

// observe takes tokens that were wanted since the last report into the demand.
// The first report comes with the first request and says nothing of its rate.
func (b *bucket) observe(tokens float64, now time.Time) {
	if !b.seen.IsZero() {
		if elapsed := now.Sub(b.seen).Seconds(); elapsed >= 0.5 {
			rate := tokens / elapsed
			if b.demand == unknown {
				b.demand = rate
			} else {
				b.demand = (b.demand + rate) / 2
			}
		}
	}
	b.seen = now
}

func (s *Server) count(action string) { s.actions.WithLabelValues(action).Inc() }

// action tells an Envoy of its bucket's assignment.
func (s *Server) action(id *quotav3.BucketId, b *bucket) *quotav3.RateLimitQuotaResponse_BucketAction {
	strategy := &typev3.RateLimitStrategy{Strategy: &typev3.RateLimitStrategy_TokenBucket{TokenBucket: &typev3.TokenBucket{
		MaxTokens: b.given.burst, TokensPerFill: wrapperspb.UInt32(b.given.fill),
		FillInterval: &durationpb.Duration{Seconds: int64(b.given.interval)},
	}}}
	switch {
	case b.free:
		strategy.Strategy = &typev3.RateLimitStrategy_BlanketRule_{BlanketRule: typev3.RateLimitStrategy_ALLOW_ALL}
	case b.given.fill == 0:
		strategy.Strategy = &typev3.RateLimitStrategy_BlanketRule_{BlanketRule: typev3.RateLimitStrategy_DENY_ALL}
	}
	return &quotav3.RateLimitQuotaResponse_BucketAction{
		BucketId: id,
		BucketAction: &quotav3.RateLimitQuotaResponse_BucketAction_QuotaAssignmentAction_{
			QuotaAssignmentAction: &quotav3.RateLimitQuotaResponse_BucketAction_QuotaAssignmentAction{
				AssignmentTimeToLive: durationpb.New(s.o.Life), RateLimitStrategy: strategy,
			},
		},
	}
}

// timeout bounds the work of Redis on that many buckets.
func (s *Server) timeout(buckets int) time.Duration {
	return s.o.Timeout * time.Duration(1+buckets/1000)
}

// drop forgets a bucket, and appends its part to those that go back.
func (e *envoy) drop(parts []ratelimit.Part, b *bucket) []ratelimit.Part {
	delete(e.buckets, b.id)
	e.server.buckets.Add(-1)
	if b.key == "" {
		return parts
	}
	return append(parts, ratelimit.Part{Key: b.key, Name: b.name})
}

// giveBack gives parts back. Without Redis they expire.
func (e *envoy) giveBack(parts []ratelimit.Part) {
	if len(parts) == 0 {
		return
	}
	s := e.server
	ctx, cancel := context.WithTimeout(context.Background(), s.timeout(len(parts)))
	defer cancel()
	if err := s.o.Sharers.Leave(ctx, parts); err != nil {
		s.o.Log.Debug("parts of quotas are given back by their expiry", slog.Any("error", err))
	}
}

// leave gives everything back when the stream ends.
func (e *envoy) leave() {
	var parts []ratelimit.Part
	for _, b := range e.buckets {
		parts = e.drop(parts, b)
	}
	e.giveBack(parts)
}

// rank orders the entries of an id, which has no order, as descriptors have
// them; others follow by name.
var rank = map[string]int{"tier": 1, "user": 2, "remote_address": 3, "endpoint": 4} //nolint:gochecknoglobals // a constant

// read returns the descriptor of a bucket's id, and a text for it.
func read(id *quotav3.BucketId) (entries []ratelimit.Entry, text string, ok bool) {
	if n := len(id.GetBucket()); n == 0 || n > maxEntries {
		return nil, "", false
	}
	size := 0
	for k, v := range id.GetBucket() {
		size += len(k) + len(v)
		entries = append(entries, ratelimit.Entry{Key: k, Value: v})
	}
	if size > maxID {
		return nil, "", false
	}
	slices.SortFunc(entries, func(a, b ratelimit.Entry) int {
		x, y := rank[a.Key], rank[b.Key]
		switch {
		case x == y:
			return strings.Compare(a.Key, b.Key)
		case x == 0 || y != 0 && y < x:
			return 1
		default:
			return -1
		}
	})
	var b strings.Builder
	for _, e := range entries {
		b.WriteString(e.Key)
		b.WriteByte(0)
		b.WriteString(e.Value)
		b.WriteByte(0)
	}
	return entries, b.String(), true
}
