package revocation

import (
	"errors"
	"fmt"
	"time"
)

// Kind says what a revocation names, and afterwards why a token was refused.
type Kind uint8

// The kinds. Token, TokenID and Session are denylist entries; User, Client, Issuer and Everything are not-before marks.
const (
	KindNone       Kind = iota
	KindToken           // one token, by the SHA-256 of its signing input
	KindTokenID         // one token, by (iss, jti)
	KindSession         // a session, by sid
	KindUser            // all tokens of a user
	KindClient          // all tokens issued to a client
	KindIssuer          // all tokens of an issuer
	KindEverything      // all tokens
)

var kindNames = [...]string{"none", "token", "token_id", "session", "user", "client", "issuer", "everything"}

// String gives the kind's stable name, as used in metrics, logs and answers.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// IsMark tells whether the kind is a not-before mark rather than a denylist entry.
func (k Kind) IsMark() bool { return k >= KindUser && k <= KindEverything }

// Code is the machine-readable reason that a client is given.
type Code string

// The codes of the contract.
const (
	CodeTokenRevoked Code = "token_revoked"
	CodeSessionEnded Code = "session_ended"
)

// Revocation names what to kill. The fields that count depend on Kind.
type Revocation struct {
	Kind Kind

	// Digest is the SHA-256 of the token's signing input (header.payload). KindToken only.
	Digest [32]byte

	// Issuer is required for KindTokenID and KindIssuer. For sessions, users and clients it narrows the revocation to
	// one issuer's; empty means whichever issuer.
	Issuer string

	// ID is the jti, sid, subject or client id. Empty for KindToken, KindIssuer and KindEverything.
	ID string

	// ExpiresAt is when the token, or the session's last token, expires. Zero means unknown: the maximum lifetime is
	// assumed. Entries only; a mark lives for the maximum lifetime after it was set.
	ExpiresAt time.Time

	// NotBefore kills the tokens issued up to it, to the second. Zero means now. Marks only.
	NotBefore time.Time

	// Version, where positive, also kills every token of the user that carries a smaller version, whenever issued, and
	// admits tokens of that version or above that were issued in the very second of NotBefore. KindUser only.
	Version int64
}

// ErrInvalid is wrapped by the errors that describe a revocation which cannot be carried out as given.
var ErrInvalid = errors.New("invalid revocation")

// ErrUnavailable is wrapped where Redis could not be asked or told.
var ErrUnavailable = errors.New("revocation store unavailable")

// Receipt is what a successful write leaves behind.
type Receipt struct {
	// Sequence is the position of the feed after the write.
	Sequence int64
	// Changed counts the revocations that changed something; the others were in force already.
	Changed int
	// NotBefore is the second that the last mark written now stands at. Zero where there was no mark.
	NotBefore time.Time
	// Version admits a login made in that very second: a new token that carries at least this version is accepted.
	// Zero where there was no user mark.
	Version int64
}

// Verdict is the answer about one token.
type Verdict struct {
	// Revoked is true where some entry or mark covers the token.
	Revoked bool
	// Why names which kind of entry or mark did. KindNone where not revoked.
	Why Kind
	// Code is what to tell the client. Empty where not revoked.
	Code Code
	// Fresh is true where the answer is known to be no older than the staleness bound. A revoked token stays revoked
	// whether fresh or not; an answer that is neither revoked nor fresh must not be taken for "not revoked" unless the
	// route says so.
	Fresh bool
	// Staleness is how old the replica's knowledge is, measured. Zero where Redis was asked.
	Staleness time.Duration
}
