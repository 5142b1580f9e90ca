package authn

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"

	jose "github.com/go-jose/go-jose/v4/json"
)

// Request is what a request brings along that says who sends it. Absent parts
// are empty.
type Request struct {
	// Authorization, Cookie and Header are values of headers, see
	// SourcesConfig.Extract.
	Authorization, Cookie, Header string
	// Proof is the value of the DPoP header.
	Proof string
	// Method, Scheme, Host and Path are the request's, for the proof; Path may
	// have a query. An empty Scheme is not compared: set it where it is known how
	// the client reached the outermost proxy.
	Method, Scheme, Host, Path string
	// Certificate is the client's certificate in PEM, plain or URL-encoded, as
	// Envoy has it in attributes.source.certificate. It must be one that the TLS
	// handshake proved.
	Certificate string
	// FreshNonce is set by Authenticate where the client should take another nonce
	// for its next proof: to be sent in the header DPoP-Nonce of the answer,
	// whatever that is.
	FreshNonce string
	// Challenge is set by Authenticate: how the client is to be challenged where
	// the request is refused, be it by somebody else.
	Challenge Challenge
	// Payload is what Envoy's jwt_authn filter put into the metadata
	// (payload_in_metadata): numbers are float64. Take it from the metadata of
	// the check alone, never from a header.
	Payload map[string]any
	// Dry asks what would become of the request: a proof is not used up, and
	// nothing counted.
	Dry bool
}

// Authenticate returns whom the request's token speaks for at now, whatever its
// kind: a JSON Web Token, one that Envoy has verified, an opaque one, plain or
// bound to a key or a certificate. The error is an *Error.
//
// Only an opaque token that is not remembered waits, for its introspection and
// no longer than ctx; and so does a proof where proofs are shared. It does not
// keep the strings of r, and sets no more of it than FreshNonce and Challenge.
func (v *Verifier) Authenticate(ctx context.Context, r *Request, now time.Time) (*Principal, error) {
	got, err := v.authenticate(ctx, r, now)
	if err != nil {
		if !r.Dry {
			v.metrics.refused(err)
		}
		return nil, err
	}
	if !r.Dry {
		v.metrics.accepted.Inc()
	}
	return got.principal, nil
}

func (v *Verifier) authenticate(ctx context.Context, r *Request, now time.Time) (*verified, *Error) {
	credential, missing := v.sources.extract(r.Authorization, r.Cookie, r.Header)
	r.Challenge = Challenge{Scheme: credential.Scheme}
	if credential.Scheme == DPoP {
		r.Challenge.Algorithms = v.proofs.names
	}
	if missing != nil && (missing.Code != CodeMissing || r.Payload == nil) {
		return nil, missing
	}
	got, err := v.recognise(ctx, credential.Token, r.Payload, now)
	if err == nil {
		err = v.holds(ctx, got, &credential, r, now)
	}
	if err != nil {
		return nil, err
	}
	return got, nil
}

// recognise verifies a token of any kind, but not that its holder may have it.
func (v *Verifier) recognise(ctx context.Context, token string, payload map[string]any, now time.Time) (*verified, *Error) {
	if payload != nil {
		iss, _ := payload["iss"].(string)
		if is := v.issuers[iss]; is != nil && is.unsigned != nil {
			return v.forwarded(is, token, payload, now)
		}
	}
	if v.opaque != nil && isOpaque(token) {
		if len(token) > v.maxSize {
			return nil, errTooLong
		}
		return v.opaque.verify(ctx, token, now)
	}
	return v.verify(token, now)
}

// isOpaque tells tokens that only their issuer can read from the others.
func isOpaque(token string) bool { return token != "" && strings.Count(token, ".") != 2 }

// forwarded takes Envoy's word for the signature, and for nothing else. Where
// the token is there too it must be the one that Envoy speaks of.
func (v *Verifier) forwarded(is *issuer, token string, payload map[string]any, now time.Time) (*verified, *Error) {
	c := compact{payload: make(map[string]any, len(payload))}
	for name, value := range payload {
		c.payload[name] = numbers(value)
	}
	if token != "" {
		if len(token) > v.maxSize {
			return nil, errTooLong
		}
		parsed, err := parseCompact(token)
		if err != nil {
			return nil, malformed(err)
		}
		if _, _, err := is.checkHeader(&parsed); err != nil {
			return nil, invalid(err)
		}
		if !reflect.DeepEqual(floats(parsed.payload), floats(c.payload)) {
			return nil, invalid(errors.New("not the token that Envoy has verified"))
		}
		c = parsed
	}
	got, err := is.principal(&c)
	if err != nil {
		return nil, invalid(err)
	}
	if token == "" {
		// Only the claims are there to name the token by; encoding sorts them.
		text, err := json.Marshal(payload)
		if err != nil {
			return nil, invalid(err)
		}
		got.principal.SigningInput = sha256.Sum256(text)
	}
	got.key = is.unsigned
	return &got, got.check(now)
}

// numbers turns the float64 of a decoded structure into json.Number.
func numbers(v any) any {
	switch v := v.(type) {
	case float64:
		return jose.Number(strconv.FormatFloat(v, 'f', -1, 64))
	case map[string]any:
		out := make(map[string]any, len(v))
		for name, e := range v {
			out[name] = numbers(e)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = numbers(e)
		}
		return out
	}
	return v
}

// floats turns every json.Number into the float64 that Envoy makes of it.
func floats(v any) any {
	switch v := v.(type) {
	case jose.Number:
		f, err := v.Float64()
		if err != nil {
			return v.String()
		}
		return f
	case map[string]any:
		out := make(map[string]any, len(v))
		for name, e := range v {
			out[name] = floats(e)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = floats(e)
		}
		return out
	}
	return v
}

// holds checks that a bound token comes with the proof that it asks for, and
// that a proof comes with a bound token.
func (v *Verifier) holds(ctx context.Context, got *verified, credential *Credential, r *Request, now time.Time) *Error {
	b := got.bound
	if b == nil {
		if credential.Scheme == DPoP {
			return invalid(errors.New("presented with the DPoP scheme, and bound to no key"))
		}
		return nil
	}
	if b.x5t != "" {
		if err := checkCertificate(r.Certificate, b.x5t); err != nil {
			return invalid(err)
		}
	}
	if b.jkt == "" {
		if credential.Scheme == DPoP {
			return invalid(errors.New("presented with the DPoP scheme, and bound to a certificate"))
		}
		return nil
	}
	if credential.Scheme != DPoP {
		r.Challenge.Algorithms = v.proofs.names
		return errBound
	}
	err := v.proofs.check(ctx, r, credential.Token, b.jkt, now)
	var refused *Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &refused):
		return refused
	case !errors.Is(err, errOtherKey):
		r.Challenge.BadProof = true
		return &Error{Code: CodeInvalid, Public: "The proof beside the token is not valid.", Cause: fmt.Errorf("proof: %w", err)}
	}
	return invalid(fmt.Errorf("proof: %w", err))
}
