// Package extauthz answers Envoy's ext_authz v3 calls
// (https://www.envoyproxy.io/docs/envoy/latest/api-v3/service/auth/v3/external_auth.proto)
// with the decisions of a gate.
//
// What it relies on in Envoy was observed (docs/guide/envoy.md): a header that
// is both removed and set is lost, so only those are removed that are not set;
// an answer without a status is taken for a pass, so every answer has one, and
// an HTTP part; a rate-limit descriptor whose metadata is missing vanishes, so
// tier, endpoint, cost and user or remote_address are on every answer. Headers
// for the client travel in response_headers_to_add, where the default of
// append_action is to add: each is sent to overwrite.
//
// Requests are read, and answers that let pass are written, by hand
// (request.go, answer.go); tests hold both equal to the generated code.
package extauthz

import (
	"context"
	"encoding/hex"
	"math/rand/v2"
	"net/http"
	"sync/atomic"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"

	"github.com/tollgate-proxy/tollgate/internal/anomaly"
	"github.com/tollgate-proxy/tollgate/internal/gate"
	"github.com/tollgate-proxy/tollgate/internal/wirecodec"
)

// ExternalAddressHeader is where Envoy says who the client is: with
// use_remote_address it replaces whatever the client sent.
const ExternalAddressHeader = "x-envoy-external-address"

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
	// LimitHeaders tells clients of their limits, where the Decider asks them.
	LimitHeaders bool
	// PlaceHeaders are the headers that say where the client is.
	PlaceHeaders anomaly.PlaceHeadersConfig
	// PayloadKey is what Envoy's jwt_authn filter has as payload_in_metadata; ""
	// reads nothing of it.
	PayloadKey string
	// MeasureAll, where it is set, says whether the access log is to tell of every
	// request, and not of those alone that an experiment deals a variant.
	MeasureAll func() bool
}

// Server answers Check calls. It is safe for concurrent use.
type Server struct {
	decider    Decider
	names      HeadersConfig
	wanted     atomic.Pointer[headerNames]
	payloadKey string

	limitHeaders bool
	measureAll   func() bool
}

// New makes a server.
func New(o Options) *Server {
	s := &Server{
		decider: o.Decider, names: o.Headers, payloadKey: o.PayloadKey,
		limitHeaders: o.LimitHeaders, measureAll: o.MeasureAll,
	}
	s.wanted.Store(newHeaderNames(o.TokenHeader, o.PlaceHeaders, o.Headers))
	if s.measureAll == nil {
		s.measureAll = func() bool { return false }
	}
	return s
}

// UsePlaceHeaders changes the headers that say where the client is.
func (s *Server) UsePlaceHeaders(c anomaly.PlaceHeadersConfig) {
	next := *s.wanted.Load()
	next.place = c
	next.any = next.some()
	s.wanted.Store(&next)
}

const service = "envoy.service.auth.v3.Authorization"

// Register adds the Authorization service to a gRPC server that was made with
// ServerOptions.
func (s *Server) Register(g *grpc.Server) {
	g.RegisterService(&grpc.ServiceDesc{
		ServiceName: service,
		HandlerType: (*any)(nil),
		Methods:     []grpc.MethodDesc{wirecodec.Method(service, "Check", (*Server).check)},
	}, s)
}

// ServerOptions are what Register needs of the gRPC server.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{grpc.ForceServerCodecV2(wirecodec.New())}
}

// check answers one call. It returns no error: Envoy treats one as a failure of
// the server, which is not a denial.
func (s *Server) check(ctx context.Context, req *checkRequest) (any, error) {
	var a attributes
	var r gate.Request // a message that cannot be read is a request without parts
	if a.parse(req.data, s.wanted.Load()) {
		r = s.request(&a)
	}
	o := s.decider.Decide(ctx, &r)
	id := decisionID()
	if span := trace.SpanFromContext(ctx); span.IsRecording() {
		annotate(span, &o, id)
	}
	switch {
	case o.Allowed:
		return s.allowed(&o, id, a.baggage), nil
	case o.Status == http.StatusTooManyRequests:
		return s.limited(&o, r.ID, id), nil
	default:
		return denied(&o, r.ID, id), nil
	}
}

func (s *Server) request(a *attributes) gate.Request {
	r := a.request()
	r.Payload = a.payload(s.payloadKey)
	r.Visitor = s.names.Visitor.key(a)
	return r
}

// Request is what a check would make of a request, for explanations. Names of
// headers are lower case.
func (s *Server) Request(method, host, path string, headers map[string]string) gate.Request {
	a := attributes{method: method, host: host, path: path}
	p := parser{attributes: &a, names: s.wanted.Load()}
	for name, value := range headers {
		if to := p.header(name); to != nil {
			*to = value
		}
	}
	return s.request(&a)
}

// decisionID names a decision in access logs and traces. It is no secret.
func decisionID() string {
	var b [16]byte
	for i, n := range [2]uint64{rand.Uint64(), rand.Uint64()} { //nolint:gosec // an identifier, not a secret
		for j := range 8 {
			b[8*i+j] = byte(n >> (8 * j))
		}
	}
	var text [32]byte
	hex.Encode(text[:], b[:])
	return string(text[:])
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
