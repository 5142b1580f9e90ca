package replica_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/redistest"
	"github.com/tollgate-proxy/tollgate/internal/replica"
)

func TestStore(t *testing.T) {
	redistest.Each(t, func(t *testing.T, c *redis.Client) {
		s := replica.NewCache(c)
		ctx := t.Context()
		if b, err := s.Get(ctx, "none"); b != nil || err != nil {
			t.Fatal(b, err)
		}
		if err := s.Set(ctx, "k", []byte("v\x00"), time.Minute); err != nil {
			t.Fatal(err)
		}
		if b, err := s.Get(ctx, "k"); string(b) != "v\x00" || err != nil {
			t.Fatal(b, err)
		}
		if ttl := c.TTL(ctx, "tollgate:cache:entry:k").Val(); ttl <= 0 || ttl > time.Minute {
			t.Fatal(ttl)
		}
		if m, err := s.Epochs(ctx); len(m) != 0 || err != nil {
			t.Fatal(m, err)
		}
		for _, v := range []string{"1", "2"} {
			if err := s.SetEpoch(ctx, "name", v); err != nil {
				t.Fatal(err)
			}
		}
		m, err := s.Epochs(ctx)
		if d := cmp.Diff(map[string]string{"name": "2"}, m); d != "" || err != nil {
			t.Fatal(d, err)
		}
		c.Close()
		_, e1 := s.Get(ctx, "k")
		_, e2 := s.Epochs(ctx)
		for _, err := range []error{e1, e2, s.Set(ctx, "k", nil, time.Second), s.SetEpoch(ctx, "n", "v")} {
			if err == nil {
				t.Fatal("no error without a server")
			}
		}
	})
}
