package revocation

import (
	"strconv"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/polltest"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

// Redis is killed and comes back empty: what the replicas know stays dead, and Redis learns it again.
func TestRedisComesBackEmpty(t *testing.T) {
	server := redistest.NewProcess(t)
	a := newAnswers(t, server.Addr())
	user := prepared(exampleToken("alice"))
	receipt := revoke(t, a.store, session("s"), Revocation{Kind: KindUser, ID: "bob", Version: 9})
	bob := exampleToken("bob")
	bob.IssuedAt, bob.Version = receipt.NotBefore.Add(time.Minute), 8
	a.expect(t, withSession("s"), KindSession)
	a.expect(t, bob, KindUser)

	server.Kill()
	polltest.Until(t, "stale without Redis", func() bool { return !fresh(a.another)() })
	if !refuses(a.another, withSession("s"))() {
		t.Error("forgotten while Redis was away")
	}
	server.Start()
	polltest.Until(t, "fresh again", fresh(a.another))
	if !refuses(a.another, withSession("s"))() || !refuses(a.another, bob)() {
		t.Error("forgotten when Redis came back empty")
	}
	polltest.Until(t, "Redis has it again", func() bool {
		v, err := a.store.Check(t.Context(), withSession("s"))
		w, err2 := a.store.Check(t.Context(), bob)
		return err == nil && err2 == nil && v.Revoked && w.Revoked
	})
	newcomer := startReplica(t, server.Addr())
	a.another = newcomer
	a.expect(t, withSession("s"), KindSession)
	a.expect(t, bob, KindUser)
	a.expect(t, user, KindNone)
}

func TestFlushAll(t *testing.T) {
	onEach(t, func(t *testing.T, addr string) {
		a := newAnswers(t, addr)
		rdb := newClient(t, addr)
		for i := range 20 {
			revoke(t, a.store, session(strconv.Itoa(i)))
		}
		polltest.Until(t, "the other replica has followed", refuses(a.another, withSession("19")))
		if err := rdb.FlushAll(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		// A write right after: its sequence starts over, far behind what the replicas have seen.
		revoke(t, a.store, session("after"))
		a.expect(t, withSession("after"), KindSession)
		for i := range 20 {
			token := withSession(strconv.Itoa(i))
			polltest.Until(t, "Redis has it again", func() bool {
				v, err := a.store.Check(t.Context(), token)
				return err == nil && v.Revoked
			})
			a.expect(t, token, KindSession)
		}
		polltest.Until(t, "fresh", fresh(a.another))
	})
}

// A server that had missed writes takes over, and is written to until its sequence has overtaken the replicas': only the
// links tell.
func TestFailoverToAServerThatLagged(t *testing.T) {
	onEach(t, func(t *testing.T, addr string) {
		ctx := t.Context()
		rdb := newClient(t, addr)
		s := newTestStore(t, rdb, nil)
		revoke(t, s, session("both"))
		meta := rdb.HGetAll(ctx, keyMeta).Val()
		entries := rdb.ZRangeWithScores(ctx, keyEntries, 0, -1).Val()
		feed := rdb.XRange(ctx, keyFeed, "-", "+").Val()

		r := newTestReplica(t, newClient(t, addr))
		stop := run(t, r)
		polltest.Until(t, "ready", r.Ready)
		revoke(t, s, session("lost 1"))
		revoke(t, s, session("lost 2"))
		polltest.Until(t, "followed", refuses(r, withSession("lost 2")))
		stop() // it hears nothing of what follows until it runs again

		// The lagging server: as it was after the first write, then three writes of its own.
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		must(rdb.FlushAll(ctx).Err())
		must(rdb.HSet(ctx, keyMeta, meta).Err())
		for _, z := range entries {
			must(rdb.ZAdd(ctx, keyEntries, z).Err())
		}
		for _, m := range feed {
			must(rdb.XAdd(ctx, &redis.XAddArgs{Stream: keyFeed, ID: m.ID, Values: m.Values}).Err())
		}
		for _, id := range []string{"new 1", "new 2", "new 3"} {
			revoke(t, s, session(id))
		}
		if own, there := r.position(), rdb.HGet(ctx, keyMeta, fieldSeq).Val(); there <= strconv.FormatInt(own.seq, 10) {
			t.Fatalf("sequence %s there, %d here: want it ahead", there, own.seq)
		}
		run(t, r)
		for _, id := range []string{"both", "lost 1", "lost 2", "new 1", "new 2", "new 3"} {
			polltest.Until(t, id+" is refused here", refuses(r, withSession(id)))
			polltest.Until(t, id+" is refused by Redis", func() bool {
				v, err := s.Check(ctx, withSession(id))
				return err == nil && v.Revoked
			})
		}
	})
}

// The feed was trimmed past what a replica had read.
func TestFeedTrimmed(t *testing.T) {
	onEach(t, func(t *testing.T, addr string) {
		rdb := newClient(t, addr)
		s := newTestStore(t, rdb, nil)
		r := newTestReplica(t, newClient(t, addr))
		stop := run(t, r)
		polltest.Until(t, "ready", r.Ready)
		stop()
		for i := range 10 {
			revoke(t, s, session(strconv.Itoa(i)))
		}
		if err := rdb.XTrimMaxLen(t.Context(), keyFeed, 1).Err(); err != nil {
			t.Fatal(err)
		}
		run(t, r)
		for i := range 10 {
			polltest.Until(t, "refused", refuses(r, withSession(strconv.Itoa(i))))
		}
		if n := testutil.ToFloat64(r.metrics.resyncs.WithLabelValues(dueGap)); n < 1 {
			t.Errorf("%v resyncs because of a gap, want some", n)
		}
		if err := rdb.Del(t.Context(), keyFeed).Err(); err != nil {
			t.Fatal(err)
		}
		revoke(t, s, session("after the feed was deleted"))
		polltest.Until(t, "refused", refuses(r, withSession("after the feed was deleted")))
	})
}

// Redis evicts a key under memory pressure: the replicas notice, and write it back.
func TestEvictedKeys(t *testing.T) {
	for _, key := range []string{keyEntries, keyMarks, keyMeta} {
		t.Run(key, func(t *testing.T) {
			onEach(t, func(t *testing.T, addr string) {
				a := newAnswers(t, addr)
				revoke(t, a.store, session("s"), Revocation{Kind: KindUser, ID: "alice"})
				alice := prepared(exampleToken("alice"))
				polltest.Until(t, "followed", refuses(a.another, alice))
				if err := newClient(t, addr).Del(t.Context(), key).Err(); err != nil {
					t.Fatal(err)
				}
				for _, token := range []*Token{withSession("s"), alice} {
					polltest.Until(t, "Redis has it again", func() bool {
						v, err := a.store.Check(t.Context(), token)
						return err == nil && v.Revoked
					})
				}
				late := startReplica(t, addr)
				polltest.Until(t, "a newcomer has it", func() bool { return refuses(late, alice)() && refuses(late, withSession("s"))() })
				polltest.Until(t, "fresh", fresh(a.another))
			})
		})
	}
}
