package revocation

import "time"

// Token is what revocation needs to know of a verified token. It must not be changed after Prepare.
type Token struct {
	// Digest is the SHA-256 of the signing input, header.payload as received; never of the whole token, since other
	// strings verify just as well (a flipped ECDSA s, padding bits).
	Digest   [32]byte
	Issuer   string
	TokenID  string // jti
	Session  string // sid, else derived from jti
	Subject  string
	ClientID string
	// IssuedAt is the iat claim. A token without one is taken to be older than any mark.
	IssuedAt  time.Time
	ExpiresAt time.Time
	Version   int64 // the ver claim; 0 where absent

	prints   [maxPrints]fingerprint
	prepared bool
}
