package revocation

import (
	"context"
	"crypto/sha256"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/polltest"
)

// exampleToken is a token of user's with every claim set.
func exampleToken(user string) *Token {
	now := time.Now()
	return &Token{
		Digest:    sha256.Sum256([]byte("header.payload of " + user)),
		Issuer:    "https://issuer.example",
		TokenID:   "jti-" + user,
		Session:   "sid-" + user,
		Subject:   user,
		ClientID:  "web",
		IssuedAt:  now.Add(-time.Minute).Truncate(time.Second),
		ExpiresAt: now.Add(time.Hour).Truncate(time.Second),
	}
}

func prepared(t *Token) *Token {
	t.Prepare()
	return t
}

// testOptions are quick: staleness shows within a second.
func testOptions() Options {
	return Options{Heartbeat: 20 * time.Millisecond, MaxStaleness: 400 * time.Millisecond, Sweep: time.Hour}
}

func newClient(t testing.TB, addr string) redis.UniversalClient {
	t.Helper()
	rdb := redis.NewClient(&redis.Options{
		Addr: addr, DialTimeout: polltest.Patience, ReadTimeout: polltest.Patience, WriteTimeout: polltest.Patience,
		MaxRetries: -1, ContextTimeoutEnabled: true,
	})
	t.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

func newTestReplica(t testing.TB, rdb redis.UniversalClient) *Replica {
	t.Helper()
	r, err := NewReplica(rdb, testOptions())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func newTestStore(t testing.TB, rdb redis.UniversalClient, local *Replica) *Store {
	t.Helper()
	s, err := NewStore(rdb, local, testOptions())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// run runs the replica until the test ends, or until the returned function is called.
func run(t testing.TB, r *Replica) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		if err := r.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	stop = func() { cancel(); done.Wait() }
	t.Cleanup(stop)
	return stop
}

// startReplica runs a replica with a client of its own and waits until it is ready.
func startReplica(t testing.TB, addr string) *Replica {
	t.Helper()
	r := newTestReplica(t, newClient(t, addr))
	run(t, r)
	polltest.Until(t, "the replica is ready", r.Ready)
	return r
}

func revoke(t testing.TB, s *Store, rs ...Revocation) Receipt {
	t.Helper()
	receipt, err := s.Revoke(t.Context(), rs...)
	if err != nil {
		t.Fatalf("revoke: %v", err)
	}
	return receipt
}

func isOrNil(err, want error) bool {
	if want == nil {
		return err == nil
	}
	return errors.Is(err, want)
}
