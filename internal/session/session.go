package session

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
)

// Ref names a session of a user. An id is its issuer's own: the same id of another issuer is another session.
type Ref struct {
	// Issuer is who issues the session's tokens; empty where that is unknown. Such a session, which a login service
	// registered without saying, takes the issuer of the first token that is seen in it.
	Issuer string
	// ID is the token's sid, or its jti.
	ID string
}

// Session is one login of a user.
type Session struct {
	// User is the token's subject.
	User string
	Ref
	Device Device
	// Address is the client's address at registration, as text; it may be empty.
	Address string
	Place   Place
	// Inferred is set on registration where the description is only what a request told: it does not replace another.
	// It is not stored.
	Inferred bool
	// Created and LastSeen are kept to the millisecond. LastSeen is written behind.
	Created, LastSeen time.Time
}

// Device is what is known of the device.
type Device struct {
	// ID is the device_id claim or what the login service gave; it may be empty.
	ID string `json:"id,omitempty"`
	// Name is for people: "Firefox on Linux", or what the login service gave.
	Name string `json:"name,omitempty"`
	// UserAgent is the header as sent, cut to MaxUserAgent bytes.
	UserAgent string `json:"user_agent,omitempty"`
	// Browser, System and Model were read from UserAgent; each may be empty.
	Browser string `json:"browser,omitempty"`
	System  string `json:"system,omitempty"`
	Model   string `json:"model,omitempty"`
}

// Place is where the address is thought to be; each may be empty.
type Place struct {
	Country string `json:"country,omitempty"` // ISO 3166-1 alpha-2
	City    string `json:"city,omitempty"`
}

// Policy says what happens to a login beyond the cap.
type Policy string

// The policies.
const (
	EvictOldest Policy = "evict_oldest" // end the session that was created first
	RefuseNew   Policy = "refuse_new"   // refuse the login
)

// Limits are what a user's sessions are held to.
type Limits struct {
	// Max is how many sessions a user may have at a time, 1 to MaxSessions.
	Max    int
	Policy Policy
	// Idle ends a session that was not seen for so long; Absolute one that is so old. At least a second each.
	Idle, Absolute time.Duration
	// Tombstone is how long an ended session is remembered, so that it cannot be registered again: at least the longest
	// lifetime of a token.
	Tombstone time.Duration
}

// MaxSessions bounds what Limits.Max may be.
const MaxSessions = 1000

// Bounds on what a caller may put into a session, in bytes.
const (
	maxName      = 256
	MaxUserAgent = 512
)

// Validate says what is wrong with the limits.
func (l Limits) Validate() error {
	switch {
	case l.Max < 1 || l.Max > MaxSessions:
		return fmt.Errorf("session limit %d: want from 1 to %d", l.Max, MaxSessions)
	case l.Policy != EvictOldest && l.Policy != RefuseNew:
		return fmt.Errorf("session policy %q: want evict_oldest or refuse_new", l.Policy)
	case l.Idle < time.Second:
		return fmt.Errorf("session idle timeout %s: want at least 1s", l.Idle)
	case l.Absolute < l.Idle:
		return fmt.Errorf("session absolute timeout %s: want at least the idle timeout %s", l.Absolute, l.Idle)
	case l.Tombstone < time.Second:
		return fmt.Errorf("session tombstone %s: want at least 1s", l.Tombstone)
	}
	return nil
}

// keep is how long a user's state is kept after the last change.
func (l Limits) keep() time.Duration { return l.Absolute + l.Tombstone + time.Hour }

// Errors that callers tell apart.
var (
	// ErrTooMany is returned where a user has as many sessions as allowed, and the policy is RefuseNew.
	ErrTooMany = errors.New("too many sessions")
	// ErrEnded is returned for a session that has ended.
	ErrEnded = errors.New("session has ended")
	// ErrNotFound is returned for a session that the user does not have.
	ErrNotFound = errors.New("no such session")
	// ErrInvalid is wrapped where a session cannot be what it says.
	ErrInvalid = errors.New("invalid session")
	// ErrUnavailable is wrapped where a store or the killer did not answer.
	ErrUnavailable = errors.New("session store unavailable")
)

// Validate says what is wrong with a session to register; the error wraps ErrInvalid.
func (s *Session) Validate() error {
	for _, field := range []struct {
		name, value string
		required    bool
		most        int
	}{
		{"id", s.ID, true, maxName},
		{"user", s.User, true, maxName},
		{"issuer", s.Issuer, false, maxName},
		{"device id", s.Device.ID, false, maxName},
		{"device name", s.Device.Name, false, maxName},
		{"user agent", s.Device.UserAgent, false, MaxUserAgent},
		{"address", s.Address, false, maxName},
		{"country", s.Place.Country, false, maxName},
		{"city", s.Place.City, false, maxName},
	} {
		if field.required && field.value == "" {
			return fmt.Errorf("%w: %s is missing", ErrInvalid, field.name)
		}
		if len(field.value) > field.most {
			return fmt.Errorf("%w: %s is longer than %d bytes", ErrInvalid, field.name, field.most)
		}
	}
	if strings.ContainsFunc(s.Issuer, unicode.IsControl) { // stores set it apart from the id by one
		return fmt.Errorf("%w: issuer has control characters", ErrInvalid)
	}
	return nil
}

// Which names sessions of a user to end.
type Which struct {
	// Issuer leaves the sessions of other issuers alone; empty means whichever. A session of an unknown issuer may be any
	// one's.
	Issuer string
	// Only ends the session of this id; Except ends all but that; neither ends all.
	Only, Except string
}

func (w Which) covers(r Ref) bool {
	return (w.Issuer == "" || r.Issuer == "" || w.Issuer == r.Issuer) &&
		(w.Only == "" || w.Only == r.ID) && (w.Except == "" || w.Except != r.ID)
}

// Outcome is what a store's operation leaves behind.
type Outcome struct {
	// Sessions are the user's, oldest first; Created breaks ties by ID.
	Sessions []Session
	// Ended are the sessions that this operation ended on demand or to make room; idle and old ones are not counted.
	Ended []Ref
	// Owed are sessions that have ended and whose tokens are still to be revoked, in no order.
	Owed []Ref
}

// Seen says that a session was seen.
type Seen struct {
	User string
	Ref
	At time.Time
}

// Store keeps sessions. Each operation on a user is atomic: it first ends what is idle or too old at now, then does its
// part. Safe for concurrent use. Errors other than those named wrap ErrUnavailable.
type Store interface {
	// Register adds a session created at now, making room by the limits. A session that is there already is kept, seen
	// now, and is not counted twice; its description is replaced unless s is Inferred. It returns ErrTooMany or ErrEnded;
	// the outcome's Owed holds even then. A known session of an unknown issuer takes the issuer of s; where s names none,
	// it is the oldest session of that id.
	Register(ctx context.Context, s Session, l Limits, now time.Time) (Outcome, error)
	// List returns the user's sessions.
	List(ctx context.Context, user string, l Limits, now time.Time) (Outcome, error)
	// End ends some of the user's sessions. A session named by Which.Only that the user does not have, and that has left
	// no tombstone, makes one, of the issuer that Which names: it cannot be registered afterwards, and is owed a kill.
	End(ctx context.Context, user string, which Which, l Limits, now time.Time) (Outcome, error)
	// Touch moves LastSeen of sessions forward; what is not there is passed over. There is an outcome for each.
	Touch(ctx context.Context, seen []Seen, l Limits, now time.Time) ([]Outcome, error)
	// Settle notes that sessions' tokens were revoked.
	Settle(ctx context.Context, user string, refs []Ref) error
	// Owners returns users who may have the session; none is missing who has, unless that user lately had another of
	// the same id and r names no issuer. A session of an unknown issuer may be any one's.
	Owners(ctx context.Context, r Ref) ([]string, error)
	// Due returns some of the users with something to end or to settle by now, and puts them off until the claim. A user
	// is due a while after each Register and End, and then as Defer says.
	Due(ctx context.Context, now time.Time) (users []string, claim time.Time, err error)
	// Defer says when a user is due next, unless a Register or an End came after the claim; the zero time is never.
	Defer(ctx context.Context, user string, claim, next time.Time) error
}

const (
	// putOff is how long a user is put off by Due, Register and End.
	putOff = 30 * time.Second
	// dueBatch bounds what one Due returns.
	dueBatch = 64
)
