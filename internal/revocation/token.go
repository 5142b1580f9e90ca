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

	prepared *prints
}

// The places where a token can be covered. Sessions, users and clients can be revoked for one issuer or for any.
const (
	atToken = iota
	atTokenID
	atSession
	atSessionOfIssuer
	atUser // the first mark
	atUserOfIssuer
	atClient
	atClientOfIssuer
	atIssuer
	atEverything
	places

	firstMark = atUser
)

var placeKind = [places]Kind{
	KindToken, KindTokenID, KindSession, KindSession,
	KindUser, KindUser, KindClient, KindClient, KindIssuer, KindEverything,
}

// prints holds the fingerprint for each place; zero where the token has no such claim.
type prints [places]fingerprint

// both fills in the places of a name that can be revoked for any issuer or for the token's own.
func (t *Token) both(p *prints, anyIssuer, ofIssuer int, id string) {
	if id == "" {
		return
	}
	p[anyIssuer] = printOf(placeKind[anyIssuer], "", id)
	if t.Issuer != "" {
		p[ofIssuer] = printOf(placeKind[anyIssuer], t.Issuer, id)
	}
}

// fillEntries fills in the places before firstMark.
func (t *Token) fillEntries(p *prints) {
	p[atToken] = fingerprintOf(t.Digest[:])
	if t.TokenID != "" {
		p[atTokenID] = printOf(KindTokenID, t.Issuer, t.TokenID)
	}
	t.both(p, atSession, atSessionOfIssuer, t.Session)
}

// fillMarks fills in the places from firstMark on.
func (t *Token) fillMarks(p *prints) {
	t.both(p, atUser, atUserOfIssuer, t.Subject)
	t.both(p, atClient, atClientOfIssuer, t.ClientID)
	if t.Issuer != "" {
		p[atIssuer] = printOf(KindIssuer, t.Issuer, "")
	}
	p[atEverything] = everything()
}

// Prepare computes what look-ups need, once, so that a cached token is checked again without hashing. Call it before
// the token is shared between goroutines; checks of a token that was not prepared hash every time.
func (t *Token) Prepare() {
	t.prepared = new(prints)
	t.fillEntries(t.prepared)
	t.fillMarks(t.prepared)
}

// Revocations names the token itself in every way it can be named: by signing input and, where it has a jti, by
// (issuer, jti).
func (t *Token) Revocations() []Revocation {
	rs := []Revocation{{Kind: KindToken, Digest: t.Digest, ExpiresAt: t.ExpiresAt}}
	if t.TokenID != "" && t.Issuer != "" {
		rs = append(rs, Revocation{Kind: KindTokenID, Issuer: t.Issuer, ID: t.TokenID, ExpiresAt: t.ExpiresAt})
	}
	return rs
}
