package rls

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"math"
	"strings"
	"testing"
	"time"

	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tollgate-proxy/tollgate/internal/ratelimit"
)

func limiter(t testing.TB, files ...string) *ratelimit.Limiter {
	t.Helper()
	if len(files) == 0 {
		files = []string{"../../config/limits/tollgate.yaml"}
	}
	rules, err := ratelimit.LoadRules(files...)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Unix(1_800_000_000, 0)
	now := func() time.Time { return at }
	l, err := ratelimit.NewLimiter(ratelimit.Options{
		Rules: rules, Store: ratelimit.NewMemory(1e6, now), Now: now,
		Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func descriptor(pairs ...string) *commonv3.RateLimitDescriptor {
	d := &commonv3.RateLimitDescriptor{}
	for i := 0; i+1 < len(pairs); i += 2 {
		d.Entries = append(d.Entries, &commonv3.RateLimitDescriptor_Entry{Key: pairs[i], Value: pairs[i+1]})
	}
	return d
}

func message(hits uint32, d ...*commonv3.RateLimitDescriptor) *rlsv3.RateLimitRequest {
	return &rlsv3.RateLimitRequest{Domain: "tollgate", Descriptors: d, HitsAddend: hits}
}

func call(t *testing.T, s *Server, in *rlsv3.RateLimitRequest) *rlsv3.RateLimitResponse {
	t.Helper()
	out, err := exchangeMessages(t, s, in)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// exchangeMessages calls the service as grpc does, with generated messages on
// the client's side.
func exchangeMessages(t testing.TB, s *Server, in *rlsv3.RateLimitRequest) (*rlsv3.RateLimitResponse, error) {
	t.Helper()
	data, err := proto.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	reply, err := handle(s, t.Context(), func(v any) error { return codec{}.Unmarshal(mem.BufferSlice{mem.SliceBuffer(data)}, v) }, nil)
	if err != nil {
		return nil, err
	}
	b, err := codec{}.Marshal(reply)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Free()
	out := &rlsv3.RateLimitResponse{}
	if err := proto.Unmarshal(b.Materialize(), out); err != nil {
		t.Fatal(err)
	}
	return out, nil
}

func headers(out *rlsv3.RateLimitResponse) map[string]string {
	h := map[string]string{}
	for _, x := range out.GetResponseHeadersToAdd() {
		h[x.GetKey()] = x.GetValue()
	}
	return h
}

func TestAllowedAndDenied(t *testing.T) {
	s := New(Options{Decider: limiter(t), Headers: true})
	in := message(0, descriptor("tier", "free", "user", "u", "endpoint", "ml"))
	out := call(t, s, in)
	want := &rlsv3.RateLimitResponse_DescriptorStatus{
		Code: rlsv3.RateLimitResponse_OK,
		CurrentLimit: &rlsv3.RateLimitResponse_RateLimit{
			Name: "minute", RequestsPerUnit: 10, Unit: rlsv3.RateLimitResponse_RateLimit_MINUTE,
		},
		LimitRemaining: 5, DurationUntilReset: durationpb.New(30 * time.Second),
	}
	if diff := cmp.Diff(want, out.GetStatuses()[0], protocmp.Transform()); diff != "" || out.GetOverallCode() != rlsv3.RateLimitResponse_OK || out.GetRawBody() != nil {
		t.Errorf("%s %v", diff, out)
	}
	if h := headers(out); h["ratelimit"] != `"minute";r=5;t=30` || h["retry-after"] != "" || h["content-type"] != "" {
		t.Errorf("headers %v", h)
	}

	call(t, s, in)
	out = call(t, s, in)
	if out.GetOverallCode() != rlsv3.RateLimitResponse_OVER_LIMIT || out.GetStatuses()[0].GetCode() != rlsv3.RateLimitResponse_OVER_LIMIT {
		t.Fatalf("%v", out)
	}
	if d := out.GetStatuses()[0].GetDurationUntilReset().AsDuration(); d != 30*time.Second {
		t.Errorf("reset %s", d)
	}
	if h := headers(out); h["retry-after"] != "30" || h["content-type"] != "application/problem+json" || h["x-ratelimit-remaining"] != "0" {
		t.Errorf("headers %v", h)
	}
	var body struct {
		Code   string
		Status int
	}
	if err := json.Unmarshal(out.GetRawBody(), &body); err != nil || body.Code != "rate_limited" || body.Status != 429 {
		t.Errorf("body %s: %v", out.GetRawBody(), err)
	}
}

func TestHits(t *testing.T) {
	s := New(Options{Decider: limiter(t), Headers: true})
	of := func(user string, hits *wrapperspb.UInt64Value) *commonv3.RateLimitDescriptor {
		d := descriptor("tier", "premium", "user", user, "endpoint", "ml")
		d.HitsAddend = hits
		return d
	}
	refund := of("a", wrapperspb.UInt64(2))
	refund.IsNegativeHits = true
	for _, c := range []struct {
		in   *rlsv3.RateLimitRequest
		want uint32
	}{
		{message(0, of("a", nil)), 45},
		{message(7, of("a", nil)), 38},
		{message(7, of("a", wrapperspb.UInt64(3))), 35},
		{message(7, of("a", wrapperspb.UInt64(0))), 35},
		{message(0, refund), 37},
	} {
		if got := call(t, s, c.in).GetStatuses()[0].GetLimitRemaining(); got != c.want {
			t.Errorf("%v: %d remain, want %d", c.in, got, c.want)
		}
	}
}

func TestOverrideFromTheRequest(t *testing.T) {
	s := New(Options{Decider: limiter(t)})
	d := descriptor("user", "o")
	d.Limit = &commonv3.RateLimitDescriptor_RateLimitOverride{RequestsPerUnit: 3, Unit: typev3.RateLimitUnit_HOUR, UnitMultiplier: wrapperspb.UInt32(2)}
	out := call(t, s, message(0, d))
	l := out.GetStatuses()[0].GetCurrentLimit()
	if l.GetRequestsPerUnit() != 3 || l.GetUnit() != rlsv3.RateLimitResponse_RateLimit_HOUR || l.GetUnitMultiplier().GetValue() != 2 || len(headers(out)) != 0 {
		t.Errorf("%v", out)
	}
	d.Limit.Unit = 99
	if l := call(t, s, message(0, d)).GetStatuses()[0].GetCurrentLimit(); l.GetRequestsPerUnit() != 5 {
		t.Errorf("%v", l)
	}
}

func TestQuotaAndUnlimited(t *testing.T) {
	s := New(Options{Decider: limiter(t, "../ratelimit/testdata/envoyproxy.yaml")})
	in := message(0, descriptor("database", "default"), descriptor("quota", "q"))
	in.Domain = "edge"
	out := call(t, s, in)
	if out.GetStatuses()[0].GetLimitRemaining() != math.MaxUint32 || out.GetDynamicMetadata() != nil {
		t.Errorf("%v", out)
	}
	out = call(t, s, in)
	list := out.GetDynamicMetadata().GetFields()["quotaModeViolations"].GetListValue().GetValues()
	if out.GetOverallCode() != rlsv3.RateLimitResponse_OK || len(list) != 1 || list[0].GetNumberValue() != 1 {
		t.Errorf("%v", out)
	}
	second := out.GetDynamicMetadata().GetFields()["descriptors"].GetListValue().GetValues()[1].GetStructValue().AsMap()
	want := map[string]any{"entries": []any{"quota=q"}, "metadata": map[string]any{"service": map[string]any{"name": "service_1"}}}
	if diff := cmp.Diff(want, second); diff != "" {
		t.Error(diff)
	}
}

// failing is a decider that fails in a way nobody foresaw.
type failing struct{}

func (failing) Decide(context.Context, *ratelimit.Request, *ratelimit.Decision) error {
	return errors.New("secret cause")
}

func TestErrors(t *testing.T) {
	s := New(Options{Decider: limiter(t)})
	wide := descriptor()
	for range 1000 {
		wide.Entries = append(wide.Entries, &commonv3.RateLimitDescriptor_Entry{Key: "k"})
	}
	many := message(0)
	for range 10_000 {
		many.Descriptors = append(many.Descriptors, descriptor("k", "v"))
	}
	for _, in := range []*rlsv3.RateLimitRequest{
		nil, {}, {Domain: "tollgate"}, {Descriptors: many.GetDescriptors()[:1]}, message(0, descriptor()), message(0, wide), many,
	} {
		if _, err := exchangeMessages(t, s, in); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%.80s: %v", in.String(), err)
		}
	}
	_, err := exchangeMessages(t, New(Options{Decider: failing{}}), message(0, descriptor("k", "v")))
	if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "secret") {
		t.Errorf("%v", err)
	}
	// A megabyte is decided as anything else; its key is a digest.
	if out := call(t, s, message(0, descriptor("user", strings.Repeat("u", 1<<20)))); out.GetStatuses()[0].GetLimitRemaining() != 4 {
		t.Errorf("%v", out.GetStatuses())
	}
}
