package extauthz

import (
	"net/netip"
	"strings"
	"unicode/utf8"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/tollgate-proxy/tollgate/internal/anomaly"
	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/gate"
	"github.com/tollgate-proxy/tollgate/internal/wirecodec"
)

// checkRequest is a CheckRequest as it came: one copy, of which everything that
// is read is a part.
type checkRequest struct{ data string }

// UnmarshalWire implements wirecodec.Unmarshaler.
func (r *checkRequest) UnmarshalWire(data []byte) error {
	r.data = string(data)
	return nil
}

// attributes are the fields of a CheckRequest that are looked at. Where the
// message repeats a field the last one counts, as protocol buffers have it.
type attributes struct {
	method, path, host string
	peer               string // source.address.socket_address.address
	certificate        string // source.certificate
	metadata           string // metadata_context, encoded

	// headers
	authorization, cookie, token, proof, requestID, external, userAgent, deviceID, baggage, visitorHeader string

	place anomaly.PlaceText
}

// parse reads the attributes. It reports false where data is no CheckRequest.
func (a *attributes) parse(data string, names *headerNames) bool {
	p := parser{attributes: a, names: names}
	if !p.each(data, (*parser).check) {
		return false
	}
	if !p.headers { // encode_raw_headers
		p.raw = true
		return p.each(data, (*parser).check)
	}
	return true
}

// request makes a gate's request of the attributes. A missing part leaves its
// field empty, which the gate refuses.
func (a *attributes) request() gate.Request {
	return gate.Request{
		Request: authn.Request{
			Host: a.host, Method: a.method, Path: a.path,
			Authorization: a.authorization, Cookie: a.cookie, Header: a.token,
			Proof: a.proof, Certificate: a.certificate,
		},
		ID: a.requestID, Address: address(a.external, a.peer), UserAgent: a.userAgent, DeviceID: a.deviceID, Place: a.place,
	}
}

const deviceHeader = "x-device-id"

// jwtNamespace is where Envoy's jwt_authn filter leaves its metadata.
const jwtNamespace = "envoy.filters.http.jwt_authn"

// payload is what Envoy's jwt_authn filter says the token holds, under the key
// that its payload_in_metadata names; nil where it says nothing. Only Envoy
// writes this metadata.
func (a *attributes) payload(key string) map[string]any {
	if key == "" || !strings.Contains(a.metadata, jwtNamespace) {
		return nil
	}
	var m corev3.Metadata
	if err := proto.Unmarshal([]byte(a.metadata), &m); err != nil {
		return nil
	}
	claims := m.GetFilterMetadata()[jwtNamespace].GetFields()[key].GetStructValue()
	if claims == nil {
		return nil
	}
	return claims.AsMap()
}

// address is the trusted client address, else the peer of Envoy's connection.
func address(external, peer string) netip.Addr {
	for _, text := range [2]string{external, peer} {
		if addr, err := netip.ParseAddr(text); err == nil {
			return addr.Unmap().WithZone("")
		}
	}
	return netip.Addr{}
}

// headerNames are the headers, lower case, that the configuration names; empty
// where it names none.
type headerNames struct {
	token, visitor, baggage string
	place                   anomaly.PlaceHeadersConfig
	any                     bool
}

func newHeaderNames(token string, place anomaly.PlaceHeadersConfig, h HeadersConfig) *headerNames {
	n := &headerNames{token: token, visitor: h.Visitor.Header, place: place}
	if h.Baggage.on() {
		n.baggage = baggageHeader
	}
	n.any = n.some()
	return n
}

// some says whether any header is named.
func (n *headerNames) some() bool {
	return n.token+n.visitor+n.baggage != "" || n.place != anomaly.PlaceHeadersConfig{}
}

// parser walks a CheckRequest. Each of its steps handles the fields of one
// message and leaves alone those it does not know.
type parser struct {
	*attributes
	names   *headerNames
	headers bool // the map of headers has an entry
	raw     bool // second pass: read the list of raw headers

	// of the map entry or raw header at hand
	key, value, rawValue string
}

// each calls step for every field of a message.
func (p *parser) each(message string, step func(p *parser, f field) bool) bool {
	for message != "" {
		f, rest, ok := wirecodec.Next(message)
		if !ok || !step(p, field{f}) {
			return false
		}
		message = rest
	}
	return true
}

// field is one of which only the bytes are of interest.
type field struct{ wirecodec.Field }

// is says whether the field has the number and holds bytes.
func (f field) is(number protowire.Number) bool { return f.Is(number, protowire.BytesType) }

// text takes a string field; it reports false for invalid UTF-8.
func (f field) text(to *string) bool {
	*to = f.Bytes
	return utf8.ValidString(f.Bytes)
}

func (p *parser) check(f field) bool {
	if f.is(1) {
		return p.each(f.Bytes, (*parser).attributeContext)
	}
	return true
}

func (p *parser) attributeContext(f field) bool {
	switch {
	case f.is(1):
		return p.each(f.Bytes, (*parser).source)
	case f.is(4):
		return p.each(f.Bytes, (*parser).requestPart)
	case f.is(11) && !p.raw:
		p.metadata += f.Bytes // messages behind one another are merged
	}
	return true
}

func (p *parser) source(f field) bool {
	switch {
	case f.is(1):
		return p.each(f.Bytes, (*parser).address)
	case f.is(5):
		return f.text(&p.certificate)
	}
	return true
}

// address is a oneof: a pipe or an internal address replaces a socket address.
func (p *parser) address(f field) bool {
	switch {
	case f.is(1):
		return p.each(f.Bytes, (*parser).socketAddress)
	case f.is(2), f.is(3):
		p.peer = ""
	}
	return true
}

func (p *parser) socketAddress(f field) bool {
	if f.is(2) {
		return f.text(&p.peer)
	}
	return true
}

func (p *parser) requestPart(f field) bool {
	if f.is(2) {
		return p.each(f.Bytes, (*parser).http)
	}
	return true
}

func (p *parser) http(f field) bool {
	switch {
	case f.is(2):
		return f.text(&p.method)
	case f.is(4):
		return f.text(&p.path)
	case f.is(5):
		return f.text(&p.host)
	case f.is(3) && !p.raw:
		p.headers = true
		p.key, p.value = "", ""
		if !p.each(f.Bytes, (*parser).entry) {
			return false
		}
		if to := p.header(p.key); to != nil {
			*to = p.value
		}
	case f.is(13) && p.raw:
		return p.each(f.Bytes, (*parser).headerMap)
	}
	return true
}

// entry is one of the map of headers.
func (p *parser) entry(f field) bool {
	switch {
	case f.is(1):
		return f.text(&p.key)
	case f.is(2):
		return f.text(&p.value)
	}
	return true
}

func (p *parser) headerMap(f field) bool {
	if !f.is(1) {
		return true
	}
	p.key, p.value, p.rawValue = "", "", ""
	if !p.each(f.Bytes, (*parser).headerValue) {
		return false
	}
	if p.rawValue != "" {
		p.value = p.rawValue
	}
	// Repeated headers are joined by commas, as Envoy does otherwise.
	if to := p.header(p.key); to != nil {
		if *to != "" {
			p.value = *to + "," + p.value
		}
		*to = p.value
	}
	return true
}

func (p *parser) headerValue(f field) bool {
	switch {
	case f.is(1):
		return f.text(&p.key)
	case f.is(2):
		return f.text(&p.value)
	case f.is(3):
		p.rawValue = f.Bytes
	}
	return true
}

// header says where the value of a header goes; nil for one that is not looked
// at.
func (p *parser) header(name string) *string {
	switch name {
	case "authorization":
		return &p.authorization
	case "cookie":
		return &p.cookie
	case "user-agent":
		return &p.userAgent
	case deviceHeader:
		return &p.deviceID
	case "dpop":
		return &p.proof
	case "x-request-id":
		return &p.requestID
	case ExternalAddressHeader:
		return &p.external
	}
	if name == "" || !p.names.any {
		return nil
	}
	switch name {
	case p.names.token:
		return &p.token
	case p.names.baggage:
		return &p.baggage
	case p.names.visitor:
		return &p.visitorHeader
	case p.names.place.Country:
		return &p.place.Country
	case p.names.place.Network:
		return &p.place.Network
	case p.names.place.Latitude:
		return &p.place.Latitude
	case p.names.place.Longitude:
		return &p.place.Longitude
	case p.names.place.Radius:
		return &p.place.Radius
	}
	return nil
}
