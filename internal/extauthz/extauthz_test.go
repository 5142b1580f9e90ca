package extauthz

import (
	"context"
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/tollgate-proxy/tollgate/internal/anomaly"
	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/config"
	"github.com/tollgate-proxy/tollgate/internal/flag"
	"github.com/tollgate-proxy/tollgate/internal/gate"
	"github.com/tollgate-proxy/tollgate/internal/policy"
	"github.com/tollgate-proxy/tollgate/internal/problem"
)

// decide is a Decider that answers with a function.
type decide func(r *gate.Request) gate.Outcome

func (d decide) Decide(_ context.Context, r *gate.Request) gate.Outcome { return d(r) }

func flagSet(t testing.TB) *flag.Set {
	t.Helper()
	d, err := flag.Parse("flags.yaml", []byte(`
flags:
  ml-v2: {state: ENABLED, variants: {on: true, off: false}, defaultVariant: "on"}
  checkout: {state: ENABLED, variants: {blue: b, red: r}, defaultVariant: blue}
`))
	if err != nil {
		t.Fatal(err)
	}
	s, err := flag.Compile(d)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func route(t testing.TB, yaml string) *policy.Route {
	t.Helper()
	cfg, err := config.Decode("r.yaml", []byte("endpoints: [{name: ml, cost: 5}]\nroutes: [{name: r, endpoint: ml"+yaml+"}]"), policy.Default())
	if err != nil {
		t.Fatal(err)
	}
	s, err := policy.Compile(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s.Routes()[0]
}

func allowedOutcome(t testing.TB) gate.Outcome {
	p := &authn.Principal{Subject: "ada", Tier: "premium", Session: "s-1", RolesHeader: "a,b"}
	return gate.Outcome{
		Allowed: true, Principal: p, Tier: "premium", Route: route(t, ""), FlagSet: flagSet(t),
		Subject: flag.Subject{Key: "ada", Tier: "premium"}, Address: netip.MustParseAddr("192.0.2.7"), Now: time.Unix(1_800_000_000, 0),
	}
}

func check(t testing.TB, s *Server, req *authv3.CheckRequest) *authv3.CheckResponse {
	t.Helper()
	data, err := proto.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	return checkWire(t, s, data)
}

func checkWire(t testing.TB, s *Server, data []byte) *authv3.CheckResponse {
	t.Helper()
	var r checkRequest
	if err := r.UnmarshalWire(data); err != nil {
		t.Fatal(err)
	}
	answer, err := s.check(context.Background(), &r)
	if err != nil {
		t.Fatalf("an error is a failure for Envoy, not an answer: %v", err)
	}
	a, ok := answer.(*authv3.CheckResponse)
	if e, isEncoded := answer.(encoded); isEncoded {
		a, ok = decoded(t, e), true
	}
	if !ok || a.GetStatus() == nil || a.GetHttpResponse() == nil {
		t.Fatalf("Envoy lets an answer without status or HTTP part pass: %v", answer)
	}
	if ok := a.GetOkResponse() != nil; ok != (a.GetStatus().GetCode() == int32(codes.OK)) {
		t.Fatalf("status and HTTP part disagree: %v", a)
	}
	return a
}

// decoded reads a hand-written answer through the generated code.
func decoded(t interface{ Fatalf(string, ...any) }, e encoded) *authv3.CheckResponse {
	a := &authv3.CheckResponse{}
	if err := proto.Unmarshal(e, a); err != nil {
		t.Fatalf("the answer is no CheckResponse: %v", err)
	}
	if unknown := a.ProtoReflect().GetUnknown(); len(unknown) > 0 {
		t.Fatalf("the answer has fields that a CheckResponse has not: %x", unknown)
	}
	return a
}

func headersOf(a *authv3.CheckResponse) map[string]string {
	out := map[string]string{}
	for _, h := range append(a.GetOkResponse().GetHeaders(), a.GetDeniedResponse().GetHeaders()...) {
		out[h.GetHeader().GetKey()] = h.GetHeader().GetValue()
	}
	return out
}

func TestAllowed(t *testing.T) {
	o := allowedOutcome(t)
	s := New(Options{Decider: decide(func(*gate.Request) gate.Outcome { return o }), Headers: DefaultHeaders()})
	a := check(t, s, &authv3.CheckRequest{})
	want := map[string]string{
		"x-user-id": "ada", "x-user-tier": "premium", "x-user-roles": "a,b", "x-session-id": "s-1",
		"x-feature-flags": "checkout=blue,ml-v2=on",
	}
	got := headersOf(a)
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s is %q, want %q", k, got[k], v)
		}
	}
	if len(got) != len(want) {
		t.Errorf("more than wanted: %v", got)
	}
	if removed := a.GetOkResponse().GetHeadersToRemove(); !slices.Equal(removed, []string{"x-consent", "x-risk-score", "x-risk-reasons"}) {
		t.Errorf("removed %v", removed)
	}
	m := a.GetDynamicMetadata().AsMap()
	for k, v := range map[string]any{"user": "ada", "tier": "premium", "endpoint": "ml", "cost": 5.0, "session": "s-1", "flags": "checkout=blue,ml-v2=on"} {
		if m[k] != v {
			t.Errorf("metadata %s is %v, want %v", k, m[k], v)
		}
	}
	if id, _ := m["decision_id"].(string); len(id) != 32 {
		t.Errorf("decision_id %v", m["decision_id"])
	}
	if _, ok := m["remote_address"]; ok {
		t.Error("a user's limit is not the address's")
	}
}

// Whatever a name is set to, it is not removed too: Envoy would lose it.
func TestNothingIsBothSetAndRemoved(t *testing.T) {
	o := allowedOutcome(t)
	o.Principal, o.Tier = nil, "anonymous"
	for _, principal := range []*authn.Principal{nil, {Subject: "a"}, {Subject: "a", RolesHeader: "r", ConsentHeader: "c", Session: "s"}} {
		o.Principal = principal
		s := New(Options{Decider: decide(func(*gate.Request) gate.Outcome { return o }), Headers: DefaultHeaders()})
		ok := check(t, s, &authv3.CheckRequest{}).GetOkResponse()
		for _, h := range ok.GetHeaders() {
			if slices.Contains(ok.GetHeadersToRemove(), h.GetHeader().GetKey()) || h.GetHeader().GetValue() == "" {
				t.Errorf("%s is set to %q and removed: %v", h.GetHeader().GetKey(), h.GetHeader().GetValue(), ok.GetHeadersToRemove())
			}
		}
		if n := len(ok.GetHeaders()) + len(ok.GetHeadersToRemove()); n != 8 {
			t.Errorf("%d of the eight names are dealt with", n)
		}
	}
}

func TestRiskHeaders(t *testing.T) {
	o := allowedOutcome(t)
	s := New(Options{Decider: decide(func(*gate.Request) gate.Outcome { return o }), Headers: DefaultHeaders()})
	for _, c := range []struct {
		risk           anomaly.Assessment
		score, reasons string
	}{
		{anomaly.Assessment{Score: 40, Reasons: "impossible_travel,new_device", Action: anomaly.Header}, "40", "impossible_travel,new_device"},
		{anomaly.Assessment{Score: 40, Reasons: "impossible_travel", Action: anomaly.Log}, "", ""}, // audit mode tells nobody
		{anomaly.Assessment{}, "", ""},
	} {
		o.Risk = c.risk
		if got := headersOf(check(t, s, &authv3.CheckRequest{})); got["x-risk-score"] != c.score || got["x-risk-reasons"] != c.reasons {
			t.Errorf("%+v: %v", c.risk, got)
		}
	}
}

func TestFlagHeaders(t *testing.T) {
	names := DefaultHeaders()
	names.FlagPrefix = "x-feature-"
	o := allowedOutcome(t)
	s := New(Options{Decider: decide(func(*gate.Request) gate.Outcome { return o }), Headers: names})
	if got := headersOf(check(t, s, &authv3.CheckRequest{})); got["x-feature-ml-v2"] != "on" || got["x-feature-checkout"] != "blue" {
		t.Errorf("got %v", got)
	}
	o.Route = route(t, ", flags: [ml-v2]")
	if got := headersOf(check(t, s, &authv3.CheckRequest{})); got["x-feature-flags"] != "ml-v2=on" || got["x-feature-checkout"] != "" {
		t.Errorf("one flag asked for: %v", got)
	}
	o.Route = route(t, ", no_flags: true")
	a := check(t, s, &authv3.CheckRequest{})
	if got := headersOf(a); got["x-feature-flags"] != "" || !slices.Contains(a.GetOkResponse().GetHeadersToRemove(), "x-feature-flags") {
		t.Errorf("no flag asked for: %v", got)
	}
}

// The rate limit's descriptors survive every allowed answer.
func TestMetadataNeverLosesTheLimit(t *testing.T) {
	o := allowedOutcome(t)
	o.Principal, o.Tier = nil, "anonymous"
	for _, c := range []struct {
		address netip.Addr
		want    string
	}{{netip.MustParseAddr("2001:db8::1"), "2001:db8::1"}, {netip.Addr{}, "unknown"}} {
		o.Address = c.address
		s := New(Options{Decider: decide(func(*gate.Request) gate.Outcome { return o }), Headers: DefaultHeaders()})
		f := check(t, s, &authv3.CheckRequest{}).GetDynamicMetadata().GetFields()
		for _, key := range []string{"tier", "endpoint", "remote_address"} {
			if v, ok := f[key].GetKind().(*structpb.Value_StringValue); !ok || v.StringValue == "" {
				t.Errorf("%s is %v", key, f[key])
			}
		}
		if f["remote_address"].GetStringValue() != c.want {
			t.Errorf("remote_address %v", f["remote_address"])
		}
		if cost := f["cost"].GetNumberValue(); cost != 5 {
			t.Errorf("cost %v", f["cost"])
		}
	}
}

func TestDenied(t *testing.T) {
	for _, c := range []struct {
		status    int
		code      string
		want      int32
		grpc      codes.Code
		challenge string
	}{
		{401, "token_missing", 401, codes.Unauthenticated, `Bearer realm="tollgate"`},
		{403, "role_required", 403, codes.PermissionDenied, `Bearer realm="tollgate", error="insufficient_scope"`},
		{403, "address_denied", 403, codes.PermissionDenied, ""},
		{503, "dependency_unavailable", 503, codes.PermissionDenied, ""},
		{200, "a mistake of ours", 403, codes.PermissionDenied, ""}, // a refusal never looks like a success
		{0, "", 403, codes.PermissionDenied, ""},
	} {
		s := New(Options{Headers: DefaultHeaders(), Decider: decide(func(*gate.Request) gate.Outcome {
			return gate.Outcome{Status: c.status, Code: c.code, Detail: "why", Tier: "anonymous"}
		})})
		a := check(t, s, &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{
			Http: &authv3.AttributeContext_HttpRequest{Headers: map[string]string{"x-request-id": "r-1"}},
		}}})
		d := a.GetDeniedResponse()
		if int32(d.GetStatus().GetCode()) != c.want || a.GetStatus().GetCode() != int32(c.grpc) {
			t.Errorf("%s: status %v, code %v", c.code, d.GetStatus(), a.GetStatus())
		}
		h := headersOf(a)
		if h["www-authenticate"] != c.challenge || h["content-type"] != problem.ContentType || h["cache-control"] != "no-store" {
			t.Errorf("%s: headers %v", c.code, h)
		}
		var body problem.Problem
		if err := json.Unmarshal([]byte(d.GetBody()), &body); err != nil || body.Code != c.code || body.RequestID != "r-1" || body.Status != int(c.want) {
			t.Errorf("%s: body %s, %v", c.code, d.GetBody(), err)
		}
		if f := a.GetDynamicMetadata().GetFields(); f["code"].GetStringValue() != c.code || f["decision_id"].GetStringValue() == "" {
			t.Errorf("%s: metadata %v", c.code, f)
		}
	}
}

func envoyRequest(headers map[string]string, peer string) *authv3.CheckRequest {
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Source: &authv3.AttributeContext_Peer{Address: &corev3.Address{Address: &corev3.Address_SocketAddress{
			SocketAddress: &corev3.SocketAddress{Address: peer},
		}}},
		Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
			Method: "GET", Path: "/x?y=1", Host: "api.example.com", Headers: headers,
		}},
	}}
}

// The headers that say where the client is may change; the others stay.
func TestPlaceHeadersAreReplaced(t *testing.T) {
	var got gate.Request
	s := New(Options{Headers: DefaultHeaders(), TokenHeader: "x-token", Decider: decide(func(r *gate.Request) gate.Outcome {
		got = *r
		return gate.Outcome{}
	})})
	r := envoyRequest(map[string]string{"x-token": "t", "x-country": "DE", "x-land": "FR"}, "")
	for country, c := range map[string]anomaly.PlaceHeadersConfig{"": {}, "DE": {Country: "x-country"}, "FR": {Country: "x-land"}} {
		s.UsePlaceHeaders(c)
		if check(t, s, r); got.Place.Country != country || got.Header != "t" {
			t.Errorf("%+v: %+v", c, got)
		}
		if described := s.Request("GET", "h", "/", map[string]string{"x-token": "t", "x-country": "DE", "x-land": "FR"}); described.Place.Country != country || described.Header != "t" {
			t.Errorf("described, %+v: %+v", c, described)
		}
	}
}

func TestHeadersConfig(t *testing.T) {
	if _, err := config.Decode("x.yaml", []byte("user_id: x-uid\nflag_prefix: x-ff-"), DefaultHeaders()); err != nil {
		t.Error(err)
	}
	for text, want := range map[string]string{
		"user_id: X-User":         "user_id",
		"user_id: x_user":         "user_id",
		"user_id: x-user.id":      "user_id",
		"user_id: host":           "user_id",
		"user_id: x-user-tier":    "user_tier",
		"flag_prefix: x-feature":  "flag_prefix",
		"flag_prefix: X-Feature-": "flag_prefix",
	} {
		if _, err := config.Decode("x.yaml", []byte(text), DefaultHeaders()); err == nil || !strings.Contains(err.Error(), ": "+want+": ") {
			t.Errorf("%s: got %v", text, err)
		}
	}
}

// Lengths around one and two bytes of length.
func TestAnswersOfEverySize(t *testing.T) {
	o := allowedOutcome(t)
	for n := range 400 {
		long := strings.Repeat("r", n*n/8)
		o.Principal = &authn.Principal{Subject: "a", RolesHeader: long}
		s := New(Options{Decider: decide(func(*gate.Request) gate.Outcome { return o }), Headers: DefaultHeaders()})
		a := check(t, s, &authv3.CheckRequest{})
		if got := headersOf(a); got["x-user-roles"] != long || got["x-feature-flags"] == "" || a.GetDynamicMetadata().GetFields()["user"].GetStringValue() != "a" {
			t.Fatalf("%d bytes: %v", len(long), a)
		}
	}
	short := end([]byte{0x1a, 0, 0, 'x'}, 3)
	if string(short) != "\x1a\x01x" {
		t.Errorf("a short message: %x", short)
	}
}

func BenchmarkCheck(b *testing.B) {
	o := allowedOutcome(b)
	s := New(Options{Decider: decide(func(*gate.Request) gate.Outcome { return o }), Headers: DefaultHeaders()})
	data, err := proto.Marshal(envoyRequest(map[string]string{"authorization": "Bearer a", ExternalAddressHeader: "192.0.2.1"}, "198.51.100.1"))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		var r checkRequest
		if err := r.UnmarshalWire(data); err != nil {
			b.Fatal(err)
		}
		if _, err := s.check(context.Background(), &r); err != nil {
			b.Fatal(err)
		}
	}
}
