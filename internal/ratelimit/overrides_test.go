package ratelimit

import (
	"context"
	"errors"
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
			if n := client.HLen(t.Context(), overridesKey).Val(); n != 2+1 { // and the version
				t.Errorf("%d fields are kept", n)
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

// TestOverridesAreReadWhereTheyChanged: all of them, once after each change, and
// otherwise not, neither as they end; what takes the place of an ended one stays,
// and there is no place for more than so many.
func TestOverridesAreReadWhereTheyChanged(t *testing.T) {
	for name, start := range servers {
		t.Run(name, func(t *testing.T) {
			addr, c := start(t), clocktest.New(time.Now())
			open := func() (*Overrides, *commands) {
				client, seen := redis.NewClient(&redis.Options{Addr: addr}), &commands{}
				t.Cleanup(func() { _ = client.Close() })
				client.AddHook(seen)
				o := NewOverrides(client, time.Second, c.Now, slog.New(slog.DiscardHandler))
				o.most = 3
				return o, seen
			}
			writer, _ := open()
			reader, seen := open()
			poll := func(what string, reads, knows int) {
				t.Helper()
				seen.names = nil
				if err := reader.Poll(t.Context()); err != nil {
					t.Fatal(err)
				}
				if n := seen.count("hgetall"); n != reads {
					t.Errorf("%s: all are read %d times, want %d", what, n, reads)
				}
				if n := len(reader.current.Load().tiers); n != knows {
					t.Errorf("%s: %d are known, want %d", what, n, knows)
				}
			}
			set := func(user string, d time.Duration) error {
				return writer.Set(t.Context(), TierOverride{Domain: "tollgate", Subject: Entry{"user", user}, Tier: "premium", Until: c.Now().Add(d)})
			}
			must := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			poll("none yet", 1, 0)
			must(set("a", time.Minute))
			must(set("b", time.Hour))
			must(set("c", time.Hour))
			poll("a change", 1, 3)
			poll("no change", 0, 3)
			if err := set("d", time.Hour); !errors.Is(err, ErrTooManyOverrides) {
				t.Errorf("one too many: %v", err)
			}
			must(set("b", 2*time.Hour))
			poll("in place of another", 1, 3)

			// The writer puts a new one in place of the one that has ended before
			// the reader forgets that.
			c.Advance(time.Minute)
			must(set("a", time.Hour))
			must(reader.forgetEnded(t.Context(), reader.current.Load()))
			poll("a new one in place of the ended", 1, 3)

			c.Advance(time.Hour)
			poll("two have ended", 0, 1)
			if n := len(seen.names); n != 2 {
				t.Errorf("%v", seen.names)
			}
			poll("they have ended", 0, 1)
			if n := len(seen.names); n != 1 {
				t.Errorf("%v", seen.names)
			}
			must(set("d", time.Hour)) // There is place again.
			poll("another", 1, 2)
			must(writer.Clear(t.Context(), "tollgate", Entry{"user", "nobody"}))
			poll("nothing was cleared", 0, 2)
			must(writer.Clear(t.Context(), "tollgate", Entry{"user", "d"}))
			poll("one was cleared", 1, 1)

			// What Redis lost, and what begins again, is a change.
			must(reader.client.Del(t.Context(), overridesKey).Err())
			poll("lost", 1, 0)
			must(set("e", time.Hour))
			poll("begun again", 1, 1)
		})
	}
}

// commands notes the names of commands.
type commands struct{ names []string }

func (c *commands) count(name string) (n int) {
	for _, seen := range c.names {
		if seen == name {
			n++
		}
	}
	return n
}

func (c *commands) DialHook(next redis.DialHook) redis.DialHook { return next }

func (c *commands) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		c.names = append(c.names, cmd.Name())
		return next(ctx, cmd)
	}
}

func (c *commands) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
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
