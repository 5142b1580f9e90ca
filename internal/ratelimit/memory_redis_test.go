package ratelimit

import (
	"fmt"
	"strconv"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/polltest"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

// TestRedisMemory holds what a bucket takes of Redis, beside its key, to the
// promise: by what MEMORY USAGE says of each, and, which counts the expiry and
// the server's tables too, by all that its memory grew. A sliding window keeps
// two numbers, for which Redis has no compact form: there the whole is more.
func TestRedisMemory(t *testing.T) {
	const (
		buckets = 50_000
		most    = 120 // bytes
		header  = 4   // bytes around a key's own
	)
	for name, c := range map[string]struct{ period, whole int64 }{
		"token bucket": {0, most}, "fixed window": {3600e6, most}, "sliding window": {-3600e6, most + 32},
	} {
		t.Run(name, func(t *testing.T) {
			client := redis.NewClient(&redis.Options{Addr: redistest.Server(t)})
			defer client.Close()
			s := NewRedis(client, false)
			charge := func(key string) *Demand {
				return &Demand{Charges: []Charge{{Key: key, Period: c.period, Capacity: 3599e6, Need: 36e5, Cost: 36e5}}}
			}
			key := func(i int) string { return fmt.Sprintf("tollgate:bucket:{tollgate~user=user-%06d}:3600", i) }
			take(t, s, charge("before")) // what the script and the connection take
			before, keys := usedMemory(t, client), 0
			batch := make([]*Demand, 0, MaxBatch)
			for i := range buckets {
				keys += len(key(i)) + header
				if batch = append(batch, charge(key(i))); len(batch) == cap(batch) || i == buckets-1 {
					take(t, s, batch...)
					batch = batch[:0]
				}
			}
			if n := client.DBSize(t.Context()).Val(); n != buckets+1 {
				t.Fatalf("%d keys", n)
			}
			for i := range 100 {
				usage, err := client.MemoryUsage(t.Context(), key(i)).Result()
				if usage -= int64(len(key(i))); err != nil || usage > most {
					t.Fatalf("%d bytes for %s: %v", usage, key(i), err)
				}
			}
			each := func() int64 { return (usedMemory(t, client) - before - int64(keys)) / buckets }
			// The server goes on to give up the smaller tables it had before.
			polltest.Until(t, fmt.Sprintf("at most %d bytes for each bucket", c.whole), func() bool { return each() <= c.whole })
			t.Logf("%d bytes for each bucket", each())
		})
	}
}

func usedMemory(t *testing.T, client *redis.Client) int64 {
	t.Helper()
	info, err := client.InfoMap(t.Context(), "memory").Result()
	if err != nil {
		t.Fatal(err)
	}
	used, err := strconv.ParseInt(info["Memory"]["used_memory"], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return used
}
