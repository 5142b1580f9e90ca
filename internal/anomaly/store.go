package anomaly

import (
	"context"
	"errors"
	"time"
)

// Event is something suspicious, as it is kept for people. It holds no agent, and of the address the network only.
type Event struct {
	At      time.Time `json:"at"`
	Session string    `json:"session,omitempty"`
	// Issuer is who issued the token; it may be empty.
	Issuer  string   `json:"iss,omitempty"`
	Score   int      `json:"score"`
	Action  Action   `json:"action"`
	Signals []Signal `json:"signals"`
	// Settled is true where the user had just proved who they are, so that nothing was done.
	Settled bool   `json:"settled,omitempty"`
	Country string `json:"country,omitempty"`
	ASN     uint32 `json:"asn,omitempty"`
	// Range is the address's /24, or /48 for IPv6.
	Range string `json:"range,omitempty"`

	// key tells repetitions apart from news. It holds no space.
	key string
}

// maxEvents is how many events of a user are kept; the oldest go first.
const maxEvents = 100

// recentEvents is how many of the newest events are searched for the same one.
const recentEvents = 16

// Amendment corrects what an observation added.
type Amendment struct {
	// At is the observation's time.
	At time.Time
	// Withdraw are facts to forget if they were first seen At and not since: a refused request teaches nothing.
	Withdraw []Fact
	// Vouch are facts to date back to Since, as if they had been known for so long.
	Vouch []Fact
	Since time.Time
}

// Store keeps what is known of users. Operations on one user are atomic. Times are kept to the millisecond. Safe for
// concurrent use; every error wraps ErrUnavailable.
type Store interface {
	// Record adds facts that were all seen at the same time, and returns what was known before. What was not seen for
	// keep before that time is neither kept nor returned.
	Record(ctx context.Context, user string, facts []Fact, keep time.Duration) (History, error)
	// Amend corrects facts. Those that are not there are passed over.
	Amend(ctx context.Context, user string, a Amendment) error
	// Append adds an event, unless one with its key came within the time before it. It reports whether it did.
	Append(ctx context.Context, user string, e Event, within, keep time.Duration) (bool, error)
	// History returns what is known and was seen since.
	History(ctx context.Context, user string, since time.Time) (History, error)
	// Events returns the events since, newest first.
	Events(ctx context.Context, user string, since time.Time) ([]Event, error)
	// Erase forgets the user.
	Erase(ctx context.Context, user string) error
}

// ErrUnavailable is wrapped where a store does not answer.
var ErrUnavailable = errors.New("anomaly store unavailable")

func millis(t time.Time) time.Time { return time.UnixMilli(t.UnixMilli()) }
