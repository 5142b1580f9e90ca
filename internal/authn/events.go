package authn

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4/json"
)

// Causes of a refused Statement, for receivers that must tell them apart.
var (
	// ErrIssuer: the statement's issuer is none of ours, or we have no keys to
	// verify it with.
	ErrIssuer = errors.New("issuer is none of ours")
	// ErrAudience: the statement is for somebody else.
	ErrAudience = errors.New("audience is not us")
	// ErrSignature: header, key or signature are not the issuer's.
	ErrSignature = errors.New("header or signature is not the issuer's")
)

// Statement is what an issuer says in a signed token that lets nobody in: a
// security event token (RFC 8417), a logout token, a caller's assertion.
type Statement struct {
	// Issuer is one of the configuration.
	Issuer string
	// ID is the jti, never empty.
	ID string
	// IssuedAt is never zero, ExpiresAt zero where the statement does not expire.
	IssuedAt, ExpiresAt time.Time

	claims  map[string]any
	payload []byte
}

// Has reports whether the statement has the claim, null included.
func (s *Statement) Has(claim string) bool {
	_, ok := s.claims[claim]
	return ok
}

// Decode decodes the claims into v, as encoding/json would, but with the case of
// names kept. The times of the registered claims were checked already.
func (s *Statement) Decode(v any) error { return json.Unmarshal(s.payload, v) }

// StatementRules say what a statement must be.
type StatementRules struct {
	// Types are the accepted typ headers, lower case and without "application/";
	// "absent" is for a token without one. Never list the types of access tokens
	// alone: what is accepted here is not accepted there only where they differ.
	Types []string
	// Audiences gives the values of aud that mean us, in what an issuer says.
	Audiences func(issuer string) []string
	// MaxLifetime bounds a statement that expires; 0 does not.
	MaxLifetime time.Duration
	// Expires demands an exp claim.
	Expires bool
}

// VerifyStatement verifies a token that is not an access token by the keys and
// algorithms of its issuer. It must have iss, aud, iat and jti, must not be
// issued in the future, and where it expires must not have. Whether its jti was
// seen before, and what its other claims must be, is the caller's to check. The
// error is an *Error, and wraps one of ErrIssuer, ErrAudience and ErrSignature
// where that is the cause. Safe for concurrent use.
func (v *Verifier) VerifyStatement(token string, rules StatementRules, now time.Time) (*Statement, error) {
	if len(token) > v.maxSize {
		return nil, errTooLong
	}
	c, err := parseCompact(token)
	if err != nil {
		return nil, malformed(err)
	}
	iss, _ := c.payload["iss"].(string)
	is := v.issuers[iss]
	if is == nil || is.unsigned != nil {
		return nil, invalid(ErrIssuer)
	}
	if _, e := is.verifySignatureOf(&c, rules.Types); e != nil {
		if e.Code == CodeInvalid {
			return nil, invalid(fmt.Errorf("%w: %w", ErrSignature, e.Cause))
		}
		return nil, e
	}
	aud, err := audienceOf(c.payload["aud"])
	if err != nil {
		return nil, invalid(fmt.Errorf("%w: %w", ErrAudience, err))
	}
	meansUs := rules.Audiences(iss)
	if !slices.ContainsFunc(aud, func(a string) bool { return slices.Contains(meansUs, a) }) {
		return nil, invalid(ErrAudience)
	}
	return is.statement(&c, rules, now)
}

// statement reads the claims of a statement whose signature is good.
func (is *issuer) statement(c *compact, rules StatementRules, now time.Time) (*Statement, error) {
	r := &reader{claims: c.payload}
	s := &Statement{Issuer: is.url, ID: r.text(path{"jti"}), IssuedAt: r.date("iat", false), ExpiresAt: r.date("exp", false), claims: c.payload}
	notBefore := r.date("nbf", true)
	switch {
	case r.err != nil:
		return nil, invalid(r.err)
	case s.ID == "":
		return nil, invalid(errors.New("claim jti is missing"))
	case s.IssuedAt.IsZero():
		return nil, invalid(errors.New("claim iat is missing"))
	case s.ExpiresAt.IsZero() && (rules.Expires || c.payload["exp"] != nil):
		return nil, invalid(errors.New("claim exp is missing"))
	case s.IssuedAt.After(now.Add(is.leeway)), notBefore.After(now.Add(is.leeway)):
		return nil, errNotYet
	case !s.ExpiresAt.IsZero() && !now.Before(s.ExpiresAt.Add(is.leeway)):
		return nil, errExpired
	case !s.ExpiresAt.IsZero() && rules.MaxLifetime > 0 && s.ExpiresAt.Sub(s.IssuedAt) > rules.MaxLifetime:
		return nil, invalid(errors.New("lives longer than it may"))
	}
	payload, err := decodeSegment(c.input[strings.LastIndexByte(c.input, '.')+1:])
	if err != nil {
		return nil, malformed(err)
	}
	s.payload = payload
	return s, nil
}
