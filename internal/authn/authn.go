// Package authn says who is calling: it takes a JSON Web Token out of a
// request's headers and verifies it against the issuers of the configuration.
//
// What is trusted comes from the configuration alone. The issuer's entry names
// the algorithms, audiences and types it may use and where its keys are; a
// token chooses among them and can add nothing (RFC 8725): a key, a key
// address or an unknown critical header inside a token refuses it.
//
// Nothing on the request path waits for the network. Key sets of a URL are
// fetched in the background, and a set that cannot be refreshed goes on being
// served while a metric shows its age. A signature that was verified once is
// remembered by the whole token, bounded in bytes; times are checked on every
// call, and a key that left its set takes its remembered signatures with it.
//
// Revocation, sessions and what a route requires are decided elsewhere, from
// the Principal.
package authn

import (
	"crypto/sha256"
	"time"
)

// The codes of an Error, as clients see them.
const (
	// CodeMissing: the request has no token.
	CodeMissing = "token_missing"
	// CodeMalformed: what stands where a token should is not one, or there are
	// two.
	CodeMalformed = "token_malformed"
	// CodeInvalid: a token that no configured issuer vouches for, here and now.
	CodeInvalid = "token_invalid"
	// CodeExpired: a token that was good, and is past its expiry.
	CodeExpired = "token_expired"
	// CodeNonce: the proof beside a token lacks a nonce of ours that is good;
	// Request.FreshNonce is one to try again with.
	CodeNonce = "dpop_nonce_required"
	// CodeUnavailable: the token cannot be judged, because its issuer's keys
	// have never been fetched. It is answered with 503.
	CodeUnavailable = "dependency_unavailable"
)

// Error says why there is no Principal. Errors are shared values: do not
// modify one.
type Error struct {
	// Code is one of the Code constants.
	Code string
	// Public is one sentence that the caller may see. It has no byte of the
	// token in it.
	Public string
	// Cause is for logs alone; it may be nil.
	Cause error
}

// Error returns the code and the cause.
func (e *Error) Error() string {
	if e.Cause == nil {
		return e.Code + ": " + e.Public
	}
	return e.Code + ": " + e.Cause.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// Principal is who a verified token speaks for. It is shared between requests
// and must not be modified; its strings do not alias the token.
//
// Every string in it is printable ASCII without surrounding spaces, bounded in
// length, and so safe as the value of a header.
type Principal struct {
	// Subject is the user, never empty.
	Subject string
	// Issuer is the token's issuer, as configured.
	Issuer string
	// Session is the session, or the token's id where the token names no
	// session; empty where it has neither.
	Session string
	// TokenID is the token's id, unique for its issuer; it may be empty.
	TokenID string
	// Tier is one of free, premium, enterprise and admin, or what the issuer's
	// tier mapping made of the claim.
	Tier string
	// Device and ClientID may be empty.
	Device, ClientID string
	// Roles, Scopes and Consents are sorted and hold no duplicate, no empty
	// element and no comma.
	Roles, Scopes, Consents []string
	// RolesHeader and ConsentHeader are Roles and Consents joined by commas.
	RolesHeader, ConsentHeader string
	// IssuedAt and NotBefore are zero where the token does not say.
	// ExpiresAt is never zero.
	IssuedAt, NotBefore, ExpiresAt time.Time
	// Version is the user's token version, 0 where the token has none.
	Version int64
	// SigningInput is the SHA-256 of the token's header.payload: the name of
	// this token that no other spelling of its signature changes. For an opaque
	// token it is the SHA-256 of the token.
	SigningInput [sha256.Size]byte
	// KeyThumbprint and CertificateThumbprint are what the token is bound to, as in
	// cnf: jkt of RFC 9449 and x5t#S256 of RFC 8705; empty where it is not.
	KeyThumbprint, CertificateThumbprint string
	// Claims are all of the token's, numbers as float64, for feature flags that
	// look at them. They hold what the issuer put in, personal data included: not
	// for headers, logs or metrics.
	Claims map[string]any
	// Annotation is what Options.Annotate made of the principal; nil for one that
	// is not remembered, such as that of an opaque token.
	Annotation any
}
