package ratelimit

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/clocktest"
	"github.com/tollgate-proxy/tollgate/internal/logtest"
	"github.com/tollgate-proxy/tollgate/internal/polltest"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

func TestOverrides(t *testing.T) {
	for name, start := range servers {
		t.Run(name, func(t *testing.T) {
			client := redis.NewClient(&redis.Options{Addr: start(t)})
			defer client.Close()
			// The real clock begins it: Redis ends keys by its own.
			c := clocktest.New(time.Now())
			writer := NewOverrides(client, time.Second, c.Now, slog.New(slog.DiscardHandler))
			reader := NewOverrides(client, time.Second, c.Now, slog.New(slog.DiscardHandler))
			l := newLab(t, mustLoad(t, shipped), func(o *Options) { o.Overrides = reader })
			size := func(user string) uint32 {
				return l.decide(request(of("free", user, "x").with(0))).Statuses[0].Limit.Tokens
			}
			set := func(user, tier string, d time.Duration) {
				t.Helper()
				if err := writer.Set(t.Context(), TierOverride{Domain: "tollgate", Subject: Entry{"user", user}, Tier: tier, Until: c.Now().Add(d)}); err != nil {
					t.Fatal(err)
				}
				if err := reader.Poll(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if got := size("a"); got != 10 {
				t.Errorf("before: %d", got)
			}
			set("a", "premium", time.Hour)
			set("b", "enterprise", time.Minute)
			set("c", "no such tier", time.Hour)
			for user, want := range map[string]uint32{"a": 50, "b": 500, "c": 10, "d": 10} {
				if got := size(user); got != want {
					t.Errorf("%s: %d, want %d", user, got, want)
				}
			}
			if list := reader.List(); len(list) != 3 || list[0].Subject.Value != "b" {
				t.Errorf("%+v", list)
			}
			if ttl := client.PTTL(t.Context(), overridesKey).Val(); ttl < 59*time.Minute || ttl > time.Hour+2*time.Second {
				t.Errorf("the key lives for %s", ttl)
			}
			// An end is seen at once, without a poll; the next one forgets it.
			c.Advance(time.Minute)
			if got := size("b"); got != 10 {
				t.Errorf("after its end: %d", got)
			}
			if err := reader.Poll(t.Context()); err != nil {
				t.Fatal(err)
			}
			if n := client.HLen(t.Context(), overridesKey).Val(); n != 2 {
				t.Errorf("%d are kept", n)
			}
			if err := writer.Clear(t.Context(), "tollgate", Entry{"user", "a"}); err != nil {
				t.Fatal(err)
			}
			if err := reader.Poll(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := size("a"); got != 10 {
				t.Errorf("after it was ended: %d", got)
			}
		})
	}
}

func TestOverridesRefused(t *testing.T) {
	o := NewOverrides(nil, time.Second, time.Now, slog.New(slog.DiscardHandler))
	later := time.Now().Add(time.Hour)
	for _, c := range []TierOverride{
		{},
		{Domain: "d", Subject: Entry{"user", "u"}, Tier: "t", Until: time.Now().Add(-time.Second)},
		{Domain: "d", Subject: Entry{"user", ""}, Tier: "t", Until: later},
		{Domain: "d", Subject: Entry{"user", strings.Repeat("u", 2000)}, Tier: "t", Until: later},
	} {
		if err := o.Set(t.Context(), c); err == nil {
			t.Errorf("%+v was taken", c)
		}
	}
}

func TestOverridesWithoutRedis(t *testing.T) {
	server := redistest.NewProcess(t)
	client := redis.NewClient(&redis.Options{Addr: server.Addr(), MaxRetries: -1})
	defer client.Close()
	var log logtest.Buffer
	o := NewOverrides(client, 10*time.Millisecond, time.Now, log.Logger())
	if err := o.Set(t.Context(), TierOverride{Domain: "tollgate", Subject: Entry{"user", "u"}, Tier: "premium", Until: time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- o.Run(ctx) }()
	server.Kill()
	polltest.Until(t, "it says so", func() bool { return strings.Contains(log.String(), "cannot be read") })
	if tier, ok := o.tier("tollgate", Entry{"user", "u"}); !ok || tier != "premium" {
		t.Error("the copy is gone")
	}
	if o.Set(t.Context(), TierOverride{Domain: "d", Subject: Entry{"k", "v"}, Tier: "t", Until: time.Now().Add(time.Hour)}) == nil || o.Clear(t.Context(), "d", Entry{"k", "v"}) == nil {
		t.Error("a change without Redis was taken")
	}
	server.Start()
	polltest.Until(t, "it says so", func() bool { return strings.Contains(log.String(), "read again") })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
