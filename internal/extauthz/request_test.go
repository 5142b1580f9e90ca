package extauthz

import (
	"fmt"
	"net/netip"
	"reflect"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/tollgate-proxy/tollgate/internal/anomaly"
	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/gate"
)

func TestRequest(t *testing.T) {
	var got gate.Request
	s := New(Options{Headers: DefaultHeaders(), TokenHeader: "x-token", Decider: decide(func(r *gate.Request) gate.Outcome {
		got = *r
		return gate.Outcome{}
	})})
	headers := map[string]string{
		"authorization": "Bearer a", "cookie": "c=d", "x-token": "t", "x-request-id": "r-1", "dpop": "p", "user-agent": "u", "x-device-id": "d", ExternalAddressHeader: "::ffff:192.0.2.1",
	}
	want := gate.Request{
		Request: authn.Request{
			Host: "api.example.com", Method: "GET", Path: "/x?y=1", Authorization: "Bearer a", Cookie: "c=d", Header: "t", Proof: "p",
		},
		ID: "r-1", Address: netip.MustParseAddr("192.0.2.1"), UserAgent: "u", DeviceID: "d",
	}
	check(t, s, envoyRequest(headers, "198.51.100.1"))
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}

	raw := envoyRequest(nil, "198.51.100.1")
	m := &corev3.HeaderMap{}
	for k, v := range headers {
		m.Headers = append(m.Headers, &corev3.HeaderValue{Key: k, RawValue: []byte(v)})
	}
	raw.Attributes.Request.Http.HeaderMap = m
	check(t, s, raw)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("raw headers: got %+v", got)
	}
	m.Headers = append(m.Headers, &corev3.HeaderValue{Key: "authorization", Value: "Bearer b"})
	check(t, s, raw)
	if got.Authorization != "Bearer a,Bearer b" {
		t.Errorf("two tokens look like %q", got.Authorization)
	}

	for external, want := range map[string]string{"": "198.51.100.1", "garbage": "198.51.100.1", "fe80::1%eth0": "fe80::1"} {
		check(t, s, envoyRequest(map[string]string{ExternalAddressHeader: external}, "198.51.100.1"))
		if got.Address.String() != want {
			t.Errorf("%q: address %s, want %s", external, got.Address, want)
		}
	}
	check(t, s, envoyRequest(nil, ""))
	if got.Address.IsValid() {
		t.Errorf("an address out of nothing: %s", got.Address)
	}
}

// The request is read as the generated code reads it, whatever is sent, and
// every answer has a status and an HTTP part.
func FuzzRequest(f *testing.F) {
	pipe := envoyRequest(nil, "192.0.2.9")
	pipe.Attributes.Source.Address = &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: "/p"}}}
	raw := envoyRequest(nil, "")
	raw.Attributes.Request.Http.HeaderMap = &corev3.HeaderMap{Headers: []*corev3.HeaderValue{
		{Key: "authorization", Value: "a"}, {Key: "authorization", RawValue: []byte("b")}, {Key: "other"},
	}}
	vouched := envoyRequest(nil, "192.0.2.9")
	claims, err := structpb.NewStruct(map[string]any{"iss": "https://id", "exp": 12.0})
	if err != nil {
		f.Fatal(err)
	}
	vouched.Attributes.MetadataContext = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
		jwtNamespace: {Fields: map[string]*structpb.Value{"p": structpb.NewStructValue(claims)}},
	}}
	for _, r := range []*authv3.CheckRequest{
		{}, {Attributes: &authv3.AttributeContext{}}, pipe, raw, vouched,
		envoyRequest(map[string]string{"authorization": "Bearer x", "cookie": "a=b", "x-token": "t", "x-request-id": "r", ExternalAddressHeader: "::1"}, "192.0.2.9"),
	} {
		b, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	// Repeated messages, groups, wrong kinds.
	f.Add([]byte("\x0a\x04\x22\x02\x12\x00\x0a\x08\x22\x06\x12\x04\x12\x02\x41\x42"))
	f.Add([]byte("\x0b\x12\x01a\x0c"))
	f.Add([]byte("\x08\x01"))
	s := New(Options{Headers: DefaultHeaders(), Decider: decide(func(r *gate.Request) gate.Outcome {
		return gate.Outcome{Status: 403, Code: "route_denied", Tier: "anonymous", Address: r.Address}
	})})
	f.Fuzz(func(t *testing.T, data []byte) {
		checkWire(t, s, data)
		var a attributes
		ok := a.parse(string(data), newHeaderNames("x-token", anomaly.PlaceHeadersConfig{Country: "x-country"}, DefaultHeaders()))
		var r authv3.CheckRequest
		if proto.Unmarshal(data, &r) != nil {
			return // what the generated code refuses may be read or not: it is judged all the same
		}
		if !ok {
			t.Fatalf("the generated code reads %x", data)
		}
		claims := r.GetAttributes().GetMetadataContext().GetFilterMetadata()[jwtNamespace].GetFields()["p"].GetStructValue()
		if got, want := a.payload("p"), claims.AsMap(); len(got) != len(want) || len(want) > 0 && nanless(got) != nanless(want) {
			t.Errorf("claims %v, want %v", got, want)
		}
		a.metadata = "" // was joined only
		if want := generated(&r); a != want {
			t.Errorf("got  %+v\nwant %+v", a, want)
		}
	})
}

// nanless is a text of claims in which NaN equals itself.
func nanless(claims map[string]any) string { return fmt.Sprint(claims) }

// generated reads the attributes through the generated code.
func generated(r *authv3.CheckRequest) attributes {
	h := r.GetAttributes().GetRequest().GetHttp()
	headers := h.GetHeaders()
	if len(headers) == 0 {
		headers = map[string]string{}
		for _, v := range h.GetHeaderMap().GetHeaders() {
			value := v.GetValue()
			if len(v.GetRawValue()) > 0 {
				value = string(v.GetRawValue())
			}
			if before := headers[v.GetKey()]; before != "" {
				value = before + "," + value
			}
			headers[v.GetKey()] = value
		}
	}
	return attributes{
		method: h.GetMethod(), path: h.GetPath(), host: h.GetHost(),
		peer:          r.GetAttributes().GetSource().GetAddress().GetSocketAddress().GetAddress(),
		authorization: headers["authorization"], cookie: headers["cookie"], token: headers["x-token"],
		proof: headers["dpop"], userAgent: headers["user-agent"], deviceID: headers["x-device-id"],
		requestID: headers["x-request-id"], external: headers[ExternalAddressHeader],
		place:       anomaly.PlaceText{Country: headers["x-country"]},
		certificate: r.GetAttributes().GetSource().GetCertificate(),
	}
}

func TestPayload(t *testing.T) {
	claims, err := structpb.NewStruct(map[string]any{"iss": "https://id", "exp": 12.0})
	if err != nil {
		t.Fatal(err)
	}
	r := envoyRequest(nil, "192.0.2.9")
	r.Attributes.Source.Certificate = "pem"
	r.Attributes.MetadataContext = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
		jwtNamespace: {Fields: map[string]*structpb.Value{"jwt_payload": structpb.NewStructValue(claims)}},
	}}
	for key, want := range map[string]map[string]any{"": nil, "other": nil, "jwt_payload": {"iss": "https://id", "exp": 12.0}} {
		var got gate.Request
		s := New(Options{Headers: DefaultHeaders(), PayloadKey: key, Decider: decide(func(r *gate.Request) gate.Outcome {
			got = *r
			return gate.Outcome{}
		})})
		check(t, s, r)
		if !reflect.DeepEqual(got.Payload, want) || got.Certificate != "pem" {
			t.Errorf("%q: got %v, %s", key, got.Payload, got.Certificate)
		}
	}
	if p := (&attributes{metadata: "\xff" + jwtNamespace}).payload("jwt_payload"); p != nil {
		t.Errorf("garbage gives %v", p)
	}
}
