package replica

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/redisconn"
)

// Cache keeps answers and purges for all replicas: an httpcache.Store.
type Cache struct{ client redis.UniversalClient }

// NewCache returns a store on a connection that its caller closes.
func NewCache(client redis.UniversalClient) *Cache { return &Cache{client} }

// epochTTL is how long a purge is remembered: longer than any entry lives.
const epochTTL = 30 * 24 * time.Hour

func entryKey(key string) string { return redisconn.Key("cache", "entry", key) }
func epochsKey() string          { return redisconn.Key("cache", "epochs") }

// Get returns an entry.
func (c *Cache) Get(ctx context.Context, key string) ([]byte, error) {
	b, err := c.client.Get(ctx, entryKey(key)).Bytes()
	if errors.Is(err, redis.Nil) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cache get: %w", err)
	}
	return b, nil
}

// Set keeps an entry for the given time.
func (c *Cache) Set(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	if err := c.client.Set(ctx, entryKey(key), value, ttl).Err(); err != nil {
		return fmt.Errorf("cache set: %w", err)
	}
	return nil
}

// Epochs returns the purges.
func (c *Cache) Epochs(ctx context.Context) (map[string]string, error) {
	m, err := c.client.HGetAll(ctx, epochsKey()).Result()
	if err != nil {
		return nil, fmt.Errorf("cache epochs: %w", err)
	}
	return m, nil
}

// SetEpoch records a purge.
func (c *Cache) SetEpoch(ctx context.Context, name, value string) error {
	_, err := c.client.TxPipelined(ctx, func(p redis.Pipeliner) error {
		p.HSet(ctx, epochsKey(), name, value)
		p.Expire(ctx, epochsKey(), epochTTL)
		return nil
	})
	if err != nil {
		return fmt.Errorf("cache epoch of %q: %w", name, err)
	}
	return nil
}
