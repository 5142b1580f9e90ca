package extauthz

import (
	"math"
	"net/http"
	"strconv"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/tollgate-proxy/tollgate/internal/gate"
	"github.com/tollgate-proxy/tollgate/internal/problem"
	"github.com/tollgate-proxy/tollgate/internal/ratelimit"
)

// encoded is a CheckResponse on the wire.
type encoded []byte

// MarshalWire implements wirecodec.Marshaler.
func (e encoded) MarshalWire() ([]byte, error) { return e, nil }

// overwrite is OVERWRITE_IF_EXISTS_OR_ADD of HeaderValueOption.append_action,
// field 3.
const overwrite = "\x18\x02"

// allowed lets the request pass with what the backend is told: a CheckResponse
// with status OK, an OkHttpResponse and dynamic metadata.
func (s *Server) allowed(o *gate.Outcome, id, baggage string) encoded {
	f := s.facts(o)
	// An OkHttpResponse and a Struct are written behind one another, and moved
	// apart by the length that comes before each.
	b := make([]byte, 0, 1024)
	b = append(b, 0x0a, 0x00) // 1: status, empty: OK

	b, at := open(b, 3) // ok_response
	for _, h := range [...]struct{ name, value string }{
		{s.names.UserID, f.user},
		{s.names.UserTier, o.Tier},
		{s.names.UserRoles, f.roles},
		{s.names.SessionID, f.session},
		{s.names.Consent, f.consent},
		{s.names.Flags, f.flags},
		{s.names.RiskScore, f.riskScore},
		{s.names.RiskReasons, f.riskReasons},
	} {
		b = appendHeader(b, h.name, h.value)
	}
	if s.names.FlagPrefix != "" {
		for key, value := range o.FlagSet.Each(&o.Subject, f.only, o.Now) {
			b = appendHeader(b, s.names.FlagPrefix+key, value)
		}
	}
	if s.names.Baggage.on() {
		var buf [1024]byte
		b = appendHeader(b, baggageHeader, string(s.names.Baggage.append(buf[:0], baggage, f.flags, f.experiments)))
	}
	b = s.appendLimits(b, o.Limits, 6) // response_headers_to_add
	b = appendNonce(b, o, 6)
	b = end(b, at)

	b, at = open(b, 4) // dynamic_metadata
	b = appendAlways(b, o, id)
	if f.experiments != "" {
		b = appendMetadata(b, "experiments", f.experiments)
	}
	if f.experiments != "" || s.measureAll() {
		b = appendMetadata(b, "measured", "true") // Envoy's access log asks for it
		if o.Subject.Visitor {
			b = appendMetadata(b, "visitor", o.Subject.Key)
		}
	}
	if f.session != "" {
		b = appendMetadata(b, "session", f.session)
	}
	if f.flags != "" {
		b = appendMetadata(b, "flags", f.flags)
	}
	return end(b, at)
}

// appendAlways adds what rate-limit actions and access logs read. Envoy drops a
// descriptor whose key is missing or whose cost is no whole number, and asks no
// limit when none is left: tier, endpoint, cost and user or remote_address are
// always there, and never empty.
func appendAlways(b []byte, o *gate.Outcome, id string) []byte {
	b = appendMetadata(b, "tier", o.Tier)
	b = appendMetadata(b, "endpoint", o.Endpoint())
	b = appendCost(b, o.Cost())
	b = appendMetadata(b, "decision_id", id)
	key, value := o.Limited()
	return appendMetadata(b, key, value)
}

// facts are what a backend is told of the caller.
type facts struct {
	user, roles, session, consent, flags, experiments, riskScore, riskReasons string
	// only are the flags that the route asks for; nil asks for all.
	only []string
}

func (s *Server) facts(o *gate.Outcome) facts {
	var f facts
	if p := o.Principal; p != nil {
		f.user, f.roles, f.session, f.consent = p.Subject, p.RolesHeader, p.Session, p.ConsentHeader
	}
	if o.Risk.Told() {
		f.riskScore, f.riskReasons = strconv.Itoa(o.Risk.Score), o.Risk.Reasons
	}
	if !o.Route.AllFlags {
		f.only = o.Route.Flags
		if f.only == nil {
			f.only = []string{}
		}
	}
	var buf [512]byte
	f.flags = string(o.FlagSet.AppendHeader(buf[:0], &o.Subject, f.only, o.Now))
	f.experiments = string(o.FlagSet.AppendAssignments(buf[:0], &o.Subject, f.only, o.Now))
	return f
}

// open begins a nested message with two bytes for its length, of which end may
// need fewer or more.
func open(b []byte, number protowire.Number) ([]byte, int) {
	b = protowire.AppendTag(b, number, protowire.BytesType)
	return append(b, 0, 0), len(b) + 2
}

// end writes the length of the message that begins at a place.
func end(b []byte, at int) []byte {
	n := len(b) - at
	size := protowire.SizeVarint(uint64(n)) //nolint:gosec // a length
	switch {
	case size < 2:
		copy(b[at-1:], b[at:])
		b = b[:len(b)-1]
	case size > 2:
		b = append(b, make([]byte, size-2)...)
		copy(b[at+size-2:], b[at:at+n])
	}
	protowire.AppendVarint(b[:at-2], uint64(n)) //nolint:gosec // a length
	return b
}

// appendHeader sets a header (OkHttpResponse.headers), or removes it where the
// value is empty (headers_to_remove), so that no copy of the client's passes
// where Envoy did not strip it. Never both: Envoy would lose it.
func appendHeader(b []byte, name, value string) []byte {
	if value == "" {
		b = protowire.AppendTag(b, 5, protowire.BytesType)
		return protowire.AppendString(b, name)
	}
	return appendOption(b, 2, name, value)
}

// appendOption adds a HeaderValueOption that replaces every header of the name.
func appendOption[V string | []byte](b []byte, number protowire.Number, name string, value V) []byte {
	inner := protowire.SizeTag(1) + protowire.SizeBytes(len(name)) + protowire.SizeTag(2) + protowire.SizeBytes(len(value))
	b = protowire.AppendTag(b, number, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(protowire.SizeTag(1)+protowire.SizeBytes(inner)+len(overwrite))) //nolint:gosec // a length
	b = protowire.AppendTag(b, 1, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(inner)) //nolint:gosec // a length
	b = protowire.AppendTag(b, 1, protowire.BytesType)
	b = protowire.AppendString(b, name)
	b = protowire.AppendTag(b, 2, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(len(value)))
	b = append(b, value...)
	return append(b, overwrite...)
}

// appendLimits tells the client of its limits, in headers of its answer, where
// they were asked and are to be told.
func (s *Server) appendLimits(b []byte, d *ratelimit.Decision, number protowire.Number) []byte {
	if d == nil || !s.limitHeaders {
		return b
	}
	var buf [96]byte
	d.VisitHeaders(buf[:0], func(name string, value []byte) { b = appendOption(b, number, name, value) })
	return b
}

// limited refuses a request that is over its limits, with a DeniedHttpResponse
// as the ratelimit filter would: the same headers and the same problem.
func (s *Server) limited(o *gate.Outcome, requestID, id string) encoded {
	body := problem.New(http.StatusTooManyRequests, o.Code, o.Detail).WithRequestID(requestID).JSON()
	b := make([]byte, 0, 1024)
	b, at := open(b, 1) // status
	b = protowire.AppendVarint(protowire.AppendTag(b, 1, protowire.VarintType), uint64(codes.ResourceExhausted))
	b = end(b, at)

	b, at = open(b, 2) // denied_response
	var status int
	b, status = open(b, 1)
	b = protowire.AppendVarint(protowire.AppendTag(b, 1, protowire.VarintType), http.StatusTooManyRequests)
	b = end(b, status)
	b = appendOption(b, 2, "content-type", problem.ContentType)
	b = s.appendLimits(b, o.Limits, 2)
	b = appendNonce(b, o, 2)
	b = protowire.AppendBytes(protowire.AppendTag(b, 3, protowire.BytesType), body)
	b = end(b, at)

	b, at = open(b, 4) // dynamic_metadata
	b = appendAlways(b, o, id)
	b = appendMetadata(b, "code", o.Code)
	return end(b, at)
}

// appendMetadata adds a text to the Struct of dynamic metadata.
func appendMetadata(b []byte, key, value string) []byte {
	inner := protowire.SizeTag(3) + protowire.SizeBytes(len(value))
	b = appendEntry(b, key, inner)
	b = protowire.AppendTag(b, 3, protowire.BytesType) // Value.string_value
	return protowire.AppendString(b, value)
}

// appendCost adds the cost, a whole number.
func appendCost(b []byte, cost uint32) []byte {
	b = appendEntry(b, "cost", protowire.SizeTag(2)+8)
	b = protowire.AppendTag(b, 2, protowire.Fixed64Type) // Value.number_value
	return protowire.AppendFixed64(b, math.Float64bits(float64(cost)))
}

// appendEntry begins an entry of Struct.fields whose Value is size bytes long.
func appendEntry(b []byte, key string, size int) []byte {
	b = protowire.AppendTag(b, 1, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(protowire.SizeTag(1)+protowire.SizeBytes(len(key))+protowire.SizeTag(2)+protowire.SizeBytes(size))) //nolint:gosec // a length
	b = protowire.AppendTag(b, 1, protowire.BytesType)
	b = protowire.AppendString(b, key)
	b = protowire.AppendTag(b, 2, protowire.BytesType)
	return protowire.AppendVarint(b, uint64(size)) //nolint:gosec // a length
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
	if c := challenge(status, o); c != "" {
		headers = append(headers, header("www-authenticate", c))
	}
	if o.Nonce != "" {
		headers = append(headers, header(nonceHeader, o.Nonce))
	}
	grpcCode := codes.PermissionDenied
	if status == http.StatusUnauthorized {
		grpcCode = codes.Unauthenticated
	}
	key, value := o.Limited()
	return &authv3.CheckResponse{
		Status: &rpcstatus.Status{Code: int32(grpcCode)}, //nolint:gosec // 7 or 16
		HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
			Status:  &typev3.HttpStatus{Code: typev3.StatusCode(status)}, //nolint:gosec // 400 to 599
			Headers: headers,
			Body:    string(body),
		}},
		DynamicMetadata: &structpb.Struct{Fields: map[string]*structpb.Value{
			"tier":        structpb.NewStringValue(o.Tier),
			"endpoint":    structpb.NewStringValue(o.Endpoint()),
			"cost":        structpb.NewNumberValue(float64(o.Cost())),
			"decision_id": structpb.NewStringValue(id),
			"code":        structpb.NewStringValue(o.Code),
			key:           structpb.NewStringValue(value),
		}},
	}
}

func header(key, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: key, Value: value}}
}
