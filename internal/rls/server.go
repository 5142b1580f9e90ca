// Package rls adapts the rate limiter to Envoy's rate limit service protocol,
// version 3. It translates and nothing more: every decision is
// internal/ratelimit's.
package rls

import (
	"context"
	"errors"
	"math"
	"net/http"
	"sync"
	"unicode/utf8"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tollgate-proxy/tollgate/internal/problem"
	"github.com/tollgate-proxy/tollgate/internal/ratelimit"
)

// Decider decides requests; *ratelimit.Limiter is one.
type Decider interface {
	Decide(ctx context.Context, req *ratelimit.Request, dec *ratelimit.Decision) error
}

// Options are what a [Server] is made of.
type Options struct {
	Decider Decider
	// Headers adds the RateLimit headers to every answer.
	Headers bool
}

// Server is the rate limit service. It may be used by any number of
// goroutines.
type Server struct {
	rlsv3.UnimplementedRateLimitServiceServer
	decider Decider
	headers bool
	denied  []byte
	work    sync.Pool
}

// work is what one call needs, reused.
type work struct {
	req     ratelimit.Request
	dec     ratelimit.Decision
	headers []ratelimit.Header
}

// New returns a server.
func New(o Options) *Server {
	return &Server{
		decider: o.Decider, headers: o.Headers,
		denied: problem.New(http.StatusTooManyRequests, ratelimit.DeniedCode, ratelimit.DeniedDetail).JSON(),
		work:   sync.Pool{New: func() any { return new(work) }},
	}
}

// ShouldRateLimit implements the service.
func (s *Server) ShouldRateLimit(ctx context.Context, in *rlsv3.RateLimitRequest) (*rlsv3.RateLimitResponse, error) {
	w := s.work.Get().(*work) //nolint:forcetypeassert // The pool holds nothing else.
	defer s.work.Put(w)
	read(in, &w.req)
	if err := s.decider.Decide(ctx, &w.req, &w.dec); err != nil {
		if errors.Is(err, ratelimit.ErrInvalid) {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		return nil, status.Error(codes.Internal, "the request could not be decided")
	}
	return s.response(w, in), nil
}

// read fills req from the message, reusing what req holds.
func read(in *rlsv3.RateLimitRequest, req *ratelimit.Request) {
	req.Domain, req.Hits = in.GetDomain(), in.GetHitsAddend()
	descriptors := in.GetDescriptors()
	// One more than is allowed is enough to be refused.
	n := min(len(descriptors), ratelimit.MaxDescriptors+1)
	req.Descriptors = resize(req.Descriptors, n)
	for i, d := range descriptors[:n] {
		to := &req.Descriptors[i]
		entries := d.GetEntries()
		m := min(len(entries), ratelimit.MaxEntries+1)
		*to = ratelimit.Descriptor{Entries: resize(to.Entries, m), Refund: d.GetIsNegativeHits()}
		for j, e := range entries[:m] {
			to.Entries[j] = ratelimit.Entry{Key: e.GetKey(), Value: e.GetValue()}
		}
		if h := d.GetHitsAddend(); h != nil {
			to.Hits, to.HasHits = h.GetValue(), true
		}
		to.Override = override(d.GetLimit())
	}
}

func override(l *commonv3.RateLimitDescriptor_RateLimitOverride) *ratelimit.Override {
	if l == nil || l.GetUnit() <= 0 || int(l.GetUnit()) > int(ratelimit.Week) {
		return nil
	}
	o := &ratelimit.Override{Tokens: l.GetRequestsPerUnit(), Unit: ratelimit.Unit(l.GetUnit()), Multiple: 1} //nolint:gosec // Checked above.
	if m := l.GetUnitMultiplier(); m != nil {
		o.Multiple = m.GetValue()
	}
	return o
}

// resize returns s with n elements, keeping what it has room for.
func resize[T any](s []T, n int) []T {
	if cap(s) < n {
		return make([]T, n)
	}
	return s[:n]
}

func (s *Server) response(w *work, in *rlsv3.RateLimitRequest) *rlsv3.RateLimitResponse {
	dec := &w.dec
	out := &rlsv3.RateLimitResponse{
		OverallCode: code(!dec.Allowed),
		Statuses:    make([]*rlsv3.RateLimitResponse_DescriptorStatus, len(dec.Statuses)),
	}
	for i := range dec.Statuses {
		out.Statuses[i] = descriptorStatus(&dec.Statuses[i])
	}
	out.DynamicMetadata = quotaMetadata(dec, in)
	w.headers = w.headers[:0]
	if s.headers {
		w.headers = dec.AppendHeaders(w.headers)
	}
	if !dec.Allowed {
		w.headers = append(w.headers, ratelimit.Header{Name: "content-type", Value: problem.ContentType})
		out.RawBody = s.denied
	}
	for _, h := range w.headers {
		out.ResponseHeadersToAdd = append(out.ResponseHeadersToAdd, &corev3.HeaderValue{Key: h.Name, Value: h.Value})
	}
	return out
}

func code(denied bool) rlsv3.RateLimitResponse_Code {
	if denied {
		return rlsv3.RateLimitResponse_OVER_LIMIT
	}
	return rlsv3.RateLimitResponse_OK
}

func descriptorStatus(s *ratelimit.Status) *rlsv3.RateLimitResponse_DescriptorStatus {
	out := &rlsv3.RateLimitResponse_DescriptorStatus{Code: code(s.Denied)}
	switch {
	case s.Limit != nil:
		out.CurrentLimit = &rlsv3.RateLimitResponse_RateLimit{
			Name: s.Limit.Name, RequestsPerUnit: s.Limit.Tokens,
			Unit: rlsv3.RateLimitResponse_RateLimit_Unit(s.Limit.Unit),
		}
		if s.Limit.Multiple > 1 {
			out.CurrentLimit.UnitMultiplier = wrapperspb.UInt32(s.Limit.Multiple)
		}
		out.LimitRemaining = s.Remaining
		out.DurationUntilReset = durationpb.New(s.Reset)
	case s.Rule != nil && s.Rule.Unlimited:
		out.LimitRemaining = math.MaxUint32
	}
	return out
}

// quotaMetadata names the descriptors that are over a limit that only watches
// and says so: the indices under quotaModeViolations.
func quotaMetadata(dec *ratelimit.Decision, in *rlsv3.RateLimitRequest) *structpb.Struct {
	var over *structpb.ListValue
	for i := range dec.Statuses {
		if s := &dec.Statuses[i]; s.Over && s.Rule.Quota && i < len(in.GetDescriptors()) {
			if over == nil {
				over = &structpb.ListValue{}
			}
			over.Values = append(over.Values, structpb.NewNumberValue(float64(i)))
		}
	}
	if over == nil || !utf8.ValidString(in.GetDomain()) {
		return nil
	}
	return &structpb.Struct{Fields: map[string]*structpb.Value{
		"domain":              structpb.NewStringValue(in.GetDomain()),
		"quotaModeViolations": structpb.NewListValue(over),
	}}
}
