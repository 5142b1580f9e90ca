package revocation

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Policy says what to answer while the replica is stale beyond the bound.
type Policy uint8

// The policies. The zero value is the safe one.
const (
	FailClosed Policy = iota // refuse: Guard.Check returns ErrStale
	AskRedis                 // ask Redis for this token; ErrUnavailable where it does not answer
	ServeStale               // answer from what is known
)

var policyNames = [...]string{"fail_closed", "ask_redis", "serve_stale"}

// String gives the policy's name in configuration.
func (p Policy) String() string {
	if int(p) < len(policyNames) {
		return policyNames[p]
	}
	return fmt.Sprintf("policy(%d)", uint8(p))
}

// ParsePolicy reads a policy's name; the empty one is FailClosed.
func ParsePolicy(name string) (Policy, error) {
	if name == "" {
		return FailClosed, nil
	}
	for i, known := range policyNames {
		if name == known {
			return Policy(i), nil //nolint:gosec // an index into policyNames
		}
	}
	return FailClosed, fmt.Errorf("policy %q: want fail_closed, ask_redis or serve_stale", name)
}

// ErrStale is returned where the replica has not been synchronised yet, or is stale beyond the bound and the policy is
// FailClosed.
var ErrStale = errors.New("revocation state is stale")

// Guard answers from a replica, and applies a policy where that is stale. In strict mode it asks Redis on every check,
// after the replica: what this process knows to be revoked stays revoked even where Redis has lost it.
type Guard struct {
	store   *Store
	replica *Replica
	strict  bool
}

// NewGuard returns a guard on a store and a replica.
func NewGuard(s *Store, r *Replica, strict bool) *Guard {
	return &Guard{store: s, replica: r, strict: strict}
}

// Check decides about the token. With an error, which wraps ErrStale or ErrUnavailable, the token must be refused. It
// does not allocate unless it asks Redis.
func (g *Guard) Check(ctx context.Context, t *Token, now time.Time, p Policy) (Verdict, error) {
	v := g.replica.Check(t, now)
	switch {
	case v.Revoked:
		return v, nil
	case g.strict:
		return g.store.Check(ctx, t)
	case v.Fresh:
		return v, nil
	case p == AskRedis:
		return g.store.Check(ctx, t)
	case p == ServeStale && g.replica.Ready():
		return v, nil
	}
	return v, ErrStale
}
