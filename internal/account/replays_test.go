package account

import (
	"errors"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/redistest"
	"github.com/tollgate-proxy/tollgate/internal/revocation"
)

// The first to ask for an id is told so, one client or another; until it is
// forgotten.
func TestFirst(t *testing.T) {
	redistest.Each(t, func(t *testing.T, c *redis.Client) {
		r := NewRedisReplays(c)
		for i, want := range []bool{true, false, false} {
			if first, err := NewRedisReplays(c).First(t.Context(), time.Minute, "a:b"); first != want || err != nil {
				t.Errorf("question %d: %v, %v", i, first, err)
			}
		}
		if first, err := r.First(t.Context(), time.Minute, "a"); !first || err != nil {
			t.Errorf("another id: %v, %v", first, err)
		}
		keys := c.Keys(t.Context(), "tollgate:replay:*").Val()
		if len(keys) != 2 {
			t.Errorf("keys %v", keys)
		}
		for _, key := range keys {
			if ttl := c.TTL(t.Context(), key).Val(); ttl <= 50*time.Second || ttl > time.Minute {
				t.Errorf("%s is kept for %s", key, ttl)
			}
		}
		c.Close()
		if _, err := r.First(t.Context(), time.Minute, "b"); !errors.Is(err, revocation.ErrUnavailable) {
			t.Errorf("Redis away: %v", err)
		}
	})
}
