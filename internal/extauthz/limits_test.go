package extauthz

import (
	"encoding/json"
	"net/http"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/google/go-cmp/cmp"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/structpb"
	"pgregory.net/rapid"

	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/gate"
	"github.com/tollgate-proxy/tollgate/internal/problem"
	"github.com/tollgate-proxy/tollgate/internal/ratelimit"
)

// options are the headers of a decision as the generated code has them.
func options(d *ratelimit.Decision) []*corev3.HeaderValueOption {
	var all []*corev3.HeaderValueOption
	for _, h := range d.AppendHeaders(nil) {
		all = append(all, &corev3.HeaderValueOption{
			Header:       &corev3.HeaderValue{Key: h.Name, Value: h.Value},
			AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		})
	}
	return all
}

// overLimit is the refusal as the generated code has it.
func overLimit(o *gate.Outcome, requestID, id string, headers bool) *authv3.CheckResponse {
	all := []*corev3.HeaderValueOption{{
		Header:       &corev3.HeaderValue{Key: "content-type", Value: problem.ContentType},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}}
	if headers {
		all = append(all, options(o.Limits)...)
	}
	key, value := o.Limited()
	return &authv3.CheckResponse{
		Status: &rpcstatus.Status{Code: int32(codes.ResourceExhausted)},
		HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
			Status: &typev3.HttpStatus{Code: typev3.StatusCode_TooManyRequests}, Headers: all,
			Body: string(problem.New(http.StatusTooManyRequests, o.Code, o.Detail).WithRequestID(requestID).JSON()),
		}},
		DynamicMetadata: &structpb.Struct{Fields: map[string]*structpb.Value{
			"tier": structpb.NewStringValue(o.Tier), "endpoint": structpb.NewStringValue(o.Endpoint()),
			"cost": structpb.NewNumberValue(float64(o.Cost())), "decision_id": structpb.NewStringValue(id),
			"code": structpb.NewStringValue(o.Code), key: structpb.NewStringValue(value),
		}},
	}
}

// What is written of limits is what the generated code writes, whatever the
// limits are.
func TestLimitsOracle(t *testing.T) {
	base := allowedOutcome(t)
	rapid.Check(t, func(t *rapid.T) {
		limit, err := ratelimit.NewLimit(rapid.StringMatching(`[a-z]{0,200}`).Draw(t, "name"), rapid.Uint32Range(1, 1e6).Draw(t, "tokens"), ratelimit.Minute, 1, 0, ratelimit.TokenBucket)
		if err != nil {
			t.Fatal(err)
		}
		o := base
		o.Principal = &authn.Principal{Subject: rapid.StringMatching(`[a-z]{1,300}`).Draw(t, "user"), Tier: "premium"}
		o.Limits = &ratelimit.Decision{Allowed: rapid.Bool().Draw(t, "allowed"), Shown: rapid.IntRange(-1, 0).Draw(t, "shown"), Statuses: []ratelimit.Status{{
			Limit: &limit, Remaining: rapid.Uint32().Draw(t, "remaining"), Reset: time.Duration(rapid.Int64Range(0, 1e15).Draw(t, "reset")),
		}}}
		headers := rapid.Bool().Draw(t, "headers")
		s := New(Options{Headers: DefaultHeaders(), LimitHeaders: headers})
		if o.Limits.Allowed {
			got := decoded(t, s.allowed(&o, "id", ""))
			var want []*corev3.HeaderValueOption
			if headers {
				want = options(o.Limits)
			}
			if d := cmp.Diff(want, got.GetOkResponse().GetResponseHeadersToAdd(), protocmp.Transform()); d != "" {
				t.Error(d)
			}
			return
		}
		o.Allowed, o.Status, o.Code, o.Detail = false, http.StatusTooManyRequests, ratelimit.DeniedCode, ratelimit.DeniedDetail
		id := rapid.StringMatching(`[a-f0-9-]{0,60}`).Draw(t, "request id")
		if d := cmp.Diff(overLimit(&o, id, "id", headers), decoded(t, s.limited(&o, id, "id")), protocmp.Transform()); d != "" {
			t.Error(d)
		}
	})
}

// A request over its limits is refused as the ratelimit filter refuses it, with
// the request's id in the problem.
func TestOverLimit(t *testing.T) {
	limit, err := ratelimit.NewLimit("minute", 10, ratelimit.Minute, 1, 0, ratelimit.TokenBucket)
	if err != nil {
		t.Fatal(err)
	}
	s := New(Options{Headers: DefaultHeaders(), LimitHeaders: true, Decider: decide(func(*gate.Request) gate.Outcome {
		o := allowedOutcome(t)
		o.Allowed, o.Status, o.Code, o.Detail = false, http.StatusTooManyRequests, ratelimit.DeniedCode, ratelimit.DeniedDetail
		o.Limits = &ratelimit.Decision{Statuses: []ratelimit.Status{{Denied: true, Limit: &limit, Reset: 5500 * time.Millisecond}}}
		return o
	})})
	a := check(t, s, envoyRequest(map[string]string{"x-request-id": "r-1"}, "192.0.2.1"))
	if got := a.GetDeniedResponse().GetStatus().GetCode(); got != typev3.StatusCode_TooManyRequests {
		t.Errorf("status %v", got)
	}
	want := map[string]string{
		"content-type": problem.ContentType, "ratelimit-policy": `"minute";q=10;w=60`, "ratelimit": `"minute";r=0;t=6`,
		"x-ratelimit-limit": "10", "x-ratelimit-remaining": "0", "x-ratelimit-reset": "6", "retry-after": "6",
	}
	if d := cmp.Diff(want, headersOf(a)); d != "" {
		t.Error(d)
	}
	var body problem.Problem
	if err := json.Unmarshal([]byte(a.GetDeniedResponse().GetBody()), &body); err != nil || body.Code != ratelimit.DeniedCode || body.RequestID != "r-1" {
		t.Errorf("body %s, %v", a.GetDeniedResponse().GetBody(), err)
	}
}
