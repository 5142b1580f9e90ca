package httpcache

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/redisconn"
)

// Store keeps entries and epochs for all replicas. Its methods end with their
// context, and are safe for concurrent use. A missing entry is nil without an
// error.
type Store interface {
	Get(ctx context.Context, key string) ([]byte, error)
	Set(ctx context.Context, key string, value []byte, ttl time.Duration) error
	// Epochs returns every name that was ever purged, with the value of its last purge.
	Epochs(ctx context.Context) (map[string]string, error)
	// SetEpoch records a purge.
	SetEpoch(ctx context.Context, name, value string) error
}

// Redis is a Store in Redis.
type Redis struct{ client redis.UniversalClient }

// NewRedis returns a store on a connection that its caller closes.
func NewRedis(client redis.UniversalClient) *Redis { return &Redis{client} }

// epochTTL is how long a purge is remembered: longer than any entry lives.
const epochTTL = 30 * 24 * time.Hour

func entryKey(key string) string { return redisconn.Key("cache", "entry", key) }
func epochsKey() string          { return redisconn.Key("cache", "epochs") }

// Get returns an entry.
func (r *Redis) Get(ctx context.Context, key string) ([]byte, error) {
	b, err := r.client.Get(ctx, entryKey(key)).Bytes()
	if errors.Is(err, redis.Nil) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cache get: %w", err)
	}
	return b, nil
}

// Set keeps an entry for the given time.
func (r *Redis) Set(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	if err := r.client.Set(ctx, entryKey(key), value, ttl).Err(); err != nil {
		return fmt.Errorf("cache set: %w", err)
	}
	return nil
}

// Epochs returns the purges.
func (r *Redis) Epochs(ctx context.Context) (map[string]string, error) {
	m, err := r.client.HGetAll(ctx, epochsKey()).Result()
	if err != nil {
		return nil, fmt.Errorf("cache epochs: %w", err)
	}
	return m, nil
}

// SetEpoch records a purge.
func (r *Redis) SetEpoch(ctx context.Context, name, value string) error {
	_, err := r.client.TxPipelined(ctx, func(p redis.Pipeliner) error {
		p.HSet(ctx, epochsKey(), name, value)
		p.Expire(ctx, epochsKey(), epochTTL)
		return nil
	})
	if err != nil {
		return fmt.Errorf("cache epoch of %q: %w", name, err)
	}
	return nil
}
