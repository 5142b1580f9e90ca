package account

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/redisconn"
	"github.com/tollgate-proxy/tollgate/internal/revocation"
)

// RedisReplays keeps the identifiers of statements where every process sees
// them.
type RedisReplays struct{ rdb redis.UniversalClient }

// NewRedisReplays returns replays on rdb.
func NewRedisReplays(rdb redis.UniversalClient) *RedisReplays { return &RedisReplays{rdb} }

// Seen implements Replays. The error wraps revocation.ErrUnavailable.
func (r *RedisReplays) Seen(ctx context.Context, issuer, id string) (bool, error) {
	n, err := r.rdb.Exists(ctx, redisconn.Key("signal", issuer, id)).Result()
	if err != nil {
		return false, fmt.Errorf("%w: look for a statement: %w", revocation.ErrUnavailable, err)
	}
	return n > 0, nil
}

// First implements Replays, and authn.Replays. The error wraps
// revocation.ErrUnavailable.
func (r *RedisReplays) First(ctx context.Context, keep time.Duration, id string) (bool, error) {
	// Once: a second run would take its own first one for a replay.
	err := redisconn.Once(ctx, r.rdb, redis.NewStatusCmd(ctx, "set", redisconn.Key("replay", id), 1, "px", max(keep, time.Second).Milliseconds(), "nx"))
	switch {
	case errors.Is(err, redis.Nil):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("%w: note a proof: %w", revocation.ErrUnavailable, err)
	}
	return true, nil
}

// Note implements Replays. The error wraps revocation.ErrUnavailable.
func (r *RedisReplays) Note(ctx context.Context, issuer, id string, keep time.Duration) error {
	if err := r.rdb.Set(ctx, redisconn.Key("signal", issuer, id), 1, max(keep, time.Second)).Err(); err != nil {
		return fmt.Errorf("%w: note a statement: %w", revocation.ErrUnavailable, err)
	}
	return nil
}
