package rls

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"pgregory.net/rapid"

	"github.com/tollgate-proxy/tollgate/internal/problem"
	"github.com/tollgate-proxy/tollgate/internal/ratelimit"
)

// read is decode over the generated message.
func read(in *rlsv3.RateLimitRequest) ratelimit.Request {
	req := ratelimit.Request{Domain: in.GetDomain(), Hits: in.GetHitsAddend()}
	for i, d := range in.GetDescriptors() {
		if i >= ratelimit.MaxDescriptors {
			d = in.GetDescriptors()[len(in.GetDescriptors())-1]
		}
		to := ratelimit.Descriptor{Refund: d.GetIsNegativeHits()}
		for j, e := range d.GetEntries() {
			if j >= ratelimit.MaxEntries {
				e = d.GetEntries()[len(d.GetEntries())-1]
			}
			to.Entries = append(to.Entries, ratelimit.Entry{Key: e.GetKey(), Value: e.GetValue()})
			if j >= ratelimit.MaxEntries {
				break
			}
		}
		if h := d.GetHitsAddend(); h != nil {
			to.Hits, to.HasHits = h.GetValue(), true
		}
		if l := d.GetLimit(); l != nil && l.GetUnit() > 0 && int(l.GetUnit()) <= int(ratelimit.Week) {
			to.Override = &ratelimit.Override{Tokens: l.GetRequestsPerUnit(), Unit: ratelimit.Unit(l.GetUnit()), Multiple: 1}
			if m := l.GetUnitMultiplier(); m != nil {
				to.Override.Multiple = m.GetValue()
			}
		}
		req.Descriptors = append(req.Descriptors, to)
		if i >= ratelimit.MaxDescriptors {
			break
		}
	}
	return req
}

// response is append over the generated message.
func response(s *Server, req *ratelimit.Request, dec *ratelimit.Decision) *rlsv3.RateLimitResponse {
	metadata, err := quotaMetadata(req, dec)
	if err != nil {
		panic(err)
	}
	out := &rlsv3.RateLimitResponse{OverallCode: rlsv3.RateLimitResponse_Code(code(!dec.Allowed)), DynamicMetadata: metadata}
	for i := range dec.Statuses {
		s := &dec.Statuses[i]
		status := &rlsv3.RateLimitResponse_DescriptorStatus{Code: rlsv3.RateLimitResponse_Code(code(s.Denied))}
		switch {
		case s.Limit != nil:
			status.CurrentLimit = &rlsv3.RateLimitResponse_RateLimit{
				Name: s.Limit.Name, RequestsPerUnit: s.Limit.Tokens,
				Unit: rlsv3.RateLimitResponse_RateLimit_Unit(s.Limit.Unit),
			}
			if s.Limit.Multiple > 1 {
				status.CurrentLimit.UnitMultiplier = wrapperspb.UInt32(s.Limit.Multiple)
			}
			status.LimitRemaining = s.Remaining
			status.DurationUntilReset = durationpb.New(s.Reset)
		case s.Rule != nil && s.Rule.Unlimited:
			status.LimitRemaining = math.MaxUint32
		}
		out.Statuses = append(out.Statuses, status)
	}
	var headers []ratelimit.Header
	if s.headers {
		headers = dec.AppendHeaders(nil)
	}
	if !dec.Allowed {
		headers = append(headers, ratelimit.Header{Name: "content-type", Value: problem.ContentType})
		out.RawBody = s.denied
	}
	for _, h := range headers {
		out.ResponseHeadersToAdd = append(out.ResponseHeadersToAdd, &corev3.HeaderValue{Key: h.Name, Value: h.Value})
	}
	return out
}

// FuzzDecode holds decode equal to the generated code on any bytes: both
// refuse, or both read the same.
func FuzzDecode(f *testing.F) {
	d := descriptor("tier", "free", "user", "u", "endpoint", "ml")
	d.HitsAddend = wrapperspb.UInt64(7)
	d.IsNegativeHits = true
	d.Limit = &commonv3.RateLimitDescriptor_RateLimitOverride{RequestsPerUnit: 3, Unit: typev3.RateLimitUnit_HOUR, UnitMultiplier: wrapperspb.UInt32(2)}
	for _, m := range []*rlsv3.RateLimitRequest{{}, message(3, d), message(1, d, descriptor(), d)} {
		seed, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(seed)
		f.Add(append(slices.Clone(seed), seed...))
		f.Add(append(slices.Clone(seed), 0x23, 0x24))       // an empty group
		f.Add(append(slices.Clone(seed), 0x18, 0xff, 0xff)) // cut off
		f.Add(append(slices.Clone(seed), 0x0a, 1, 0xff))    // not UTF-8
	}
	req := ratelimit.Request{} // reused, as in the server
	f.Fuzz(func(t *testing.T, data []byte) {
		in := &rlsv3.RateLimitRequest{}
		wantErr := proto.Unmarshal(data, in)
		gotErr := decode(string(data), &req)
		if (wantErr == nil) != (gotErr == nil) {
			t.Fatalf("generated code: %v; decode: %v", wantErr, gotErr)
		}
		if gotErr != nil {
			return
		}
		if diff := cmp.Diff(read(in), req, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("(-generated +decode)\n%s", diff)
		}
	})
}

// TestEncodeEqualsGeneratedCode draws answers and holds their encoding to the
// generated code's reading.
func TestEncodeEqualsGeneratedCode(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := New(Options{Headers: rapid.Bool().Draw(t, "headers")})
		x := s.exchange()
		x.req = ratelimit.Request{Domain: rapid.StringN(0, 10, 40).Draw(t, "domain")}
		x.dec = ratelimit.Decision{Allowed: rapid.Bool().Draw(t, "allowed"), Shown: -1}
		for i := range rapid.IntRange(0, 4).Draw(t, "statuses") {
			st := ratelimit.Status{
				Denied:    rapid.Bool().Draw(t, "denied"),
				Over:      rapid.Bool().Draw(t, "over"),
				Remaining: rapid.Uint32().Draw(t, "remaining"),
				Reset:     time.Duration(rapid.Int64Range(0, int64(40*365*24*time.Hour)).Draw(t, "reset")),
				Rule:      &ratelimit.Rule{Unlimited: rapid.Bool().Draw(t, "unlimited"), Quota: rapid.Bool().Draw(t, "quota")},
			}
			if rapid.Bool().Draw(t, "limited") {
				name := rapid.SampledFrom([]string{"", "minute", strings.Repeat("n", 64), strings.Repeat("n", 300)}).Draw(t, "name")
				limit, err := ratelimit.NewLimit(name, rapid.Uint32Range(0, 1e6).Draw(t, "tokens"), ratelimit.Minute, rapid.Uint32Range(0, 3).Draw(t, "multiple"), 0, ratelimit.TokenBucket)
				if err != nil {
					t.Fatal(err)
				}
				st.Limit, x.dec.Shown = &limit, i
			}
			x.dec.Statuses = append(x.dec.Statuses, st)
		}
		b, err := x.append(nil)
		if err != nil {
			t.Fatal(err)
		}
		got := &rlsv3.RateLimitResponse{}
		if err := proto.Unmarshal(b, got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(response(s, &x.req, &x.dec), got, protocmp.Transform()); diff != "" {
			t.Fatalf("(-generated +append)\n%s", diff)
		}
	})
}

// FuzzAnswer decides any request that parses: every answer is whole and holds
// nothing that could split a header.
func FuzzAnswer(f *testing.F) {
	seed, err := proto.Marshal(message(3, descriptor("tier", "free", "user", "u\r\nx: y", "endpoint", "ml")))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	s := New(Options{Decider: limiter(f), Headers: true})
	f.Fuzz(func(t *testing.T, data []byte) {
		in := &rlsv3.RateLimitRequest{}
		if proto.Unmarshal(data, in) != nil {
			return
		}
		out, err := exchangeMessages(t, s, in)
		if err != nil {
			return // InvalidArgument; see TestErrors.
		}
		if len(out.GetStatuses()) != len(in.GetDescriptors()) || out.GetOverallCode() == rlsv3.RateLimitResponse_UNKNOWN {
			t.Fatalf("%v", out)
		}
		for _, h := range out.GetResponseHeadersToAdd() {
			if strings.ContainsAny(h.GetValue(), "\r\n\x00") {
				t.Fatalf("header %q", h)
			}
		}
	})
}

// BenchmarkExchange is a call without grpc: decode, decide in memory, encode.
func BenchmarkExchange(b *testing.B) {
	s := New(Options{Decider: limiter(b), Headers: true})
	data, err := proto.Marshal(message(0, descriptor("tier", "premium", "user", "user-000001", "endpoint", "default")))
	if err != nil {
		b.Fatal(err)
	}
	text := string(data)
	b.ReportAllocs()
	var buf []byte
	for b.Loop() {
		x := s.exchange()
		if err := decode(text, &x.req); err != nil {
			b.Fatal(err)
		}
		if _, err := s.decide(b.Context(), x); err != nil {
			b.Fatal(err)
		}
		if buf, err = x.append(buf[:0]); err != nil {
			b.Fatal(err)
		}
		x.release()
	}
}
