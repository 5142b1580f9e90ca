package revocation

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
)

const maxPrints = 10

type fingerprint struct{ hi, lo uint64 }

// Prepare computes what look-ups need, once, so that a cached token is checked without hashing again.
func (t *Token) Prepare() {}

// Options are shared by Store and Replica. The zero value of a field means its default.
type Options struct {
	MaxStaleness time.Duration // bound on a replica's staleness; 5 s
	Heartbeat    time.Duration // how often a replica asks where the feed stands; 500 ms
	MaxLifetime  time.Duration // the longest life of a token that the verifier accepts; 24 h
	Leeway       time.Duration // the verifier's clock leeway; 1 min
	MaxEntries   int           // bound on a replica's memory; 4,000,000
	Now          func() time.Time
	Log          *slog.Logger
	Metrics      prometheus.Registerer
}

// Store writes revocations to Redis and answers from it.
type Store struct{}

// NewStore returns a store on rdb. Where local is not nil, a write reaches that replica before Revoke returns.
func NewStore(rdb redis.UniversalClient, local *Replica, o Options) (*Store, error) {
	return &Store{}, nil
}

// Revoke puts all of rs in force, in batches of one atomic script each.
func (s *Store) Revoke(ctx context.Context, rs ...Revocation) (Receipt, error) {
	return Receipt{}, errors.New("not built yet")
}

// Check asks Redis about the token.
func (s *Store) Check(ctx context.Context, t *Token) (Verdict, error) {
	return Verdict{}, errors.New("not built yet")
}

// Replica holds the whole state in memory, fed by Redis.
type Replica struct{}

// NewReplica returns a replica that knows nothing until Run has synchronised it.
func NewReplica(rdb redis.UniversalClient, o Options) (*Replica, error) { return &Replica{}, nil }

// Run keeps the replica synchronised until ctx ends. It returns nil then; Redis being away is not an error.
func (r *Replica) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Ready tells whether the first full synchronisation is done.
func (r *Replica) Ready() bool { return false }

// Check decides about the token from memory. It does not allocate and takes no lock.
func (r *Replica) Check(t *Token, now time.Time) Verdict { return Verdict{} }

// Policy says what to answer while the replica is stale beyond the bound.
type Policy uint8

// The policies.
const (
	FailClosed Policy = iota // refuse: Guard.Check returns ErrStale
	AskRedis                 // ask Redis for this token; ErrUnavailable where it does not answer
	ServeStale               // answer from what is known
)

// ErrStale is returned under FailClosed where the replica is not ready, or stale beyond the bound.
var ErrStale = errors.New("revocation state is stale")

// Guard answers from a replica, and applies a policy where that is stale; in strict mode it always asks Redis.
type Guard struct{}

// NewGuard returns a guard. In strict mode Redis is asked on every check.
func NewGuard(s *Store, r *Replica, strict bool) *Guard { return &Guard{} }

// Check decides about the token.
func (g *Guard) Check(ctx context.Context, t *Token, now time.Time, p Policy) (Verdict, error) {
	return Verdict{}, ErrStale
}
