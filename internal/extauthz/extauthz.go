// Package extauthz answers Envoy's ext_authz v3 calls
// (https://www.envoyproxy.io/docs/envoy/latest/api-v3/service/auth/v3/external_auth.proto)
// with the decisions of a gate.
//
// What it relies on in Envoy was observed (docs/guide/envoy.md): a header that
// is both removed and set is lost, so only those are removed that are not set;
// an answer without a status is taken for a pass, so every answer has one, and
// an HTTP part; a rate-limit descriptor whose metadata is missing vanishes, so
// tier, endpoint, cost and user or remote_address are on every allowed answer.
package extauthz

import (
	"context"
	"encoding/hex"
	"math/rand/v2"
	"net/http"
	"net/netip"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/tollgate-proxy/tollgate/internal/gate"
	"github.com/tollgate-proxy/tollgate/internal/problem"
)

// ExternalAddressHeader is where Envoy says who the client is: with
// use_remote_address it replaces whatever the client sent.
const ExternalAddressHeader = "x-envoy-external-address"

// unknownAddress stands for a client whose address Envoy did not tell: all such
// clients share their rate limit rather than having none.
const unknownAddress = "unknown"

// Decider decides requests.
type Decider interface {
	Decide(ctx context.Context, r *gate.Request) gate.Outcome
}

// Options configure a Server.
type Options struct {
	Decider Decider
	Headers HeadersConfig
	// TokenHeader is the header, lower case, that may hold a token; "" for none.
	TokenHeader string
}

// Server implements the Authorization service. It is safe for concurrent use.
type Server struct {
	authv3.UnimplementedAuthorizationServer
	decider     Decider
	names       HeadersConfig
	tokenHeader string
}

// New makes a server.
func New(o Options) *Server {
	return &Server{decider: o.Decider, names: o.Headers, tokenHeader: o.TokenHeader}
}

// Check answers one call. It returns no error: Envoy treats one as a failure of
// the server, which is not a denial.
func (s *Server) Check(ctx context.Context, req *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	r := s.request(req)
	o := s.decider.Decide(ctx, &r)
	id := decisionID()
	if span := trace.SpanFromContext(ctx); span.IsRecording() {
		annotate(span, &o, id)
	}
	if !o.Allowed {
		return denied(&o, r.ID, id), nil
	}
	return s.allowed(&o, id), nil
}

// request reads what Envoy tells. A missing part leaves its field empty, which
// the gate refuses.
func (s *Server) request(req *authv3.CheckRequest) gate.Request {
	attributes := req.GetAttributes()
	h := attributes.GetRequest().GetHttp()
	headers := h.GetHeaders()
	if len(headers) == 0 {
		headers = rawHeaders(h.GetHeaderMap())
	}
	r := gate.Request{
		Host: h.GetHost(), Method: h.GetMethod(), Path: h.GetPath(),
		Authorization: headers["authorization"],
		Cookie:        headers["cookie"],
		ID:            headers["x-request-id"],
		Address:       address(headers[ExternalAddressHeader], attributes),
	}
	if s.tokenHeader != "" {
		r.TokenHeader = headers[s.tokenHeader]
	}
	return r
}

// rawHeaders reads headers where Envoy has encode_raw_headers set. Repeated
// ones are joined by commas, as Envoy does otherwise.
func rawHeaders(m *corev3.HeaderMap) map[string]string {
	list := m.GetHeaders()
	if len(list) == 0 {
		return nil
	}
	out := make(map[string]string, len(list))
	for _, h := range list {
		value := h.GetValue()
		if raw := h.GetRawValue(); len(raw) > 0 {
			value = string(raw)
		}
		if before, ok := out[h.GetKey()]; ok {
			value = before + "," + value
		}
		out[h.GetKey()] = value
	}
	return out
}

// address is the trusted client address, else the peer of Envoy's connection.
func address(external string, a *authv3.AttributeContext) netip.Addr {
	if addr, err := netip.ParseAddr(external); err == nil {
		return addr.Unmap().WithZone("")
	}
	addr, err := netip.ParseAddr(a.GetSource().GetAddress().GetSocketAddress().GetAddress())
	if err != nil {
		return netip.Addr{}
	}
	return addr.Unmap().WithZone("")
}

// decisionID names a decision in access logs and traces. It is no secret.
func decisionID() string {
	var b [16]byte
	for i, n := range [2]uint64{rand.Uint64(), rand.Uint64()} { //nolint:gosec // an identifier, not a secret
		for j := range 8 {
			b[8*i+j] = byte(n >> (8 * j))
		}
	}
	return hex.EncodeToString(b[:])
}

func annotate(span trace.Span, o *gate.Outcome, id string) {
	code := o.Code
	if o.Allowed {
		code = "ok"
	}
	span.SetAttributes(attribute.String("tollgate.decision_id", id), attribute.String("tollgate.code", code))
	if o.Route != nil {
		span.SetAttributes(attribute.String("tollgate.route", o.Route.Name), attribute.String("tollgate.endpoint", o.Route.Endpoint))
	}
}

var statusOK = &rpcstatus.Status{Code: int32(codes.OK)}

// allowed lets the request pass with what the backend is told.
func (s *Server) allowed(o *gate.Outcome, id string) *authv3.CheckResponse {
	ok := &authv3.OkHttpResponse{Headers: make([]*corev3.HeaderValueOption, 0, 8)}
	// An empty value is not sent: the name is removed instead, so that no copy of
	// the client's passes where Envoy did not strip it.
	set := func(name, value string) {
		if value == "" {
			ok.HeadersToRemove = append(ok.HeadersToRemove, name)
			return
		}
		ok.Headers = append(ok.Headers, &corev3.HeaderValueOption{
			Header:       &corev3.HeaderValue{Key: name, Value: value},
			AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		})
	}
	var user, roles, session, consent string
	if p := o.Principal; p != nil {
		user, roles, session, consent = p.Subject, p.RolesHeader, p.Session, p.ConsentHeader
	}
	var only []string
	if !o.Route.AllFlags {
		only = o.Route.Flags
		if only == nil {
			only = []string{}
		}
	}
	flags := string(o.FlagSet.AppendHeader(nil, &o.Subject, only, o.Now))
	set(s.names.UserID, user)
	set(s.names.UserTier, o.Tier)
	set(s.names.UserRoles, roles)
	set(s.names.SessionID, session)
	set(s.names.Consent, consent)
	set(s.names.Flags, flags)
	if s.names.FlagPrefix != "" {
		for key, value := range o.FlagSet.Each(&o.Subject, only, o.Now) {
			set(s.names.FlagPrefix+key, value)
		}
	}
	m := metadata(o, id)
	if session != "" {
		m["session"] = structpb.NewStringValue(session)
	}
	if flags != "" {
		m["flags"] = structpb.NewStringValue(flags)
	}
	return &authv3.CheckResponse{
		Status:          statusOK,
		HttpResponse:    &authv3.CheckResponse_OkResponse{OkResponse: ok},
		DynamicMetadata: &structpb.Struct{Fields: m},
	}
}

// metadata is what rate-limit actions and access logs read. Envoy drops a
// descriptor whose key is missing or whose cost is no integer, and asks no limit
// when none is left: tier, endpoint, cost and user or remote_address are always
// there, and never empty.
func metadata(o *gate.Outcome, id string) map[string]*structpb.Value {
	endpoint, cost := "none", uint32(1)
	if o.Route != nil {
		endpoint, cost = o.Route.Endpoint, max(1, o.Route.Cost)
	}
	m := make(map[string]*structpb.Value, 8)
	m["tier"] = structpb.NewStringValue(o.Tier)
	m["endpoint"] = structpb.NewStringValue(endpoint)
	m["cost"] = structpb.NewNumberValue(float64(cost))
	m["decision_id"] = structpb.NewStringValue(id)
	switch {
	case o.Principal != nil:
		m["user"] = structpb.NewStringValue(o.Principal.Subject)
	case o.Address.IsValid():
		m["remote_address"] = structpb.NewStringValue(o.Address.String())
	default:
		m["remote_address"] = structpb.NewStringValue(unknownAddress)
	}
	return m
}

// denied refuses the request with a problem.
func denied(o *gate.Outcome, requestID, id string) *authv3.CheckResponse {
	status := o.Status
	if status < 400 || status > 599 { // never a status that lets a client go on
		status = http.StatusForbidden
	}
	body := problem.New(status, o.Code, o.Detail).WithRequestID(requestID).JSON()
	headers := []*corev3.HeaderValueOption{
		header("content-type", problem.ContentType),
		header("cache-control", "no-store"),
	}
	if c := challenge(status, o.Code); c != "" {
		headers = append(headers, header("www-authenticate", c))
	}
	m := metadata(o, id)
	m["code"] = structpb.NewStringValue(o.Code)
	grpcCode := codes.PermissionDenied
	if status == http.StatusUnauthorized {
		grpcCode = codes.Unauthenticated
	}
	return &authv3.CheckResponse{
		Status: &rpcstatus.Status{Code: int32(grpcCode)},
		HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
			Status:  &typev3.HttpStatus{Code: typev3.StatusCode(status)},
			Headers: headers,
			Body:    string(body),
		}},
		DynamicMetadata: &structpb.Struct{Fields: m},
	}
}

func header(key, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: key, Value: value}}
}

// challenge is the WWW-Authenticate value of RFC 6750, section 3: no error for a
// request without a token, invalid_token for a bad one, insufficient_scope where
// another token would do.
func challenge(status int, code string) string {
	const realm = `Bearer realm="tollgate"`
	switch {
	case status == http.StatusUnauthorized && code == "token_missing":
		return realm
	case status == http.StatusUnauthorized:
		return realm + `, error="invalid_token", error_description="` + code + `"`
	case status == http.StatusForbidden && code == "role_required":
		return realm + `, error="insufficient_scope"`
	default:
		return ""
	}
}
