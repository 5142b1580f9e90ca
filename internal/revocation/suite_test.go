package revocation

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/polltest"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

// onEach runs f over a real redis-server and over the embedded one.
func onEach(t *testing.T, f func(t *testing.T, addr string)) {
	t.Run("redis-server", func(t *testing.T) { t.Parallel(); f(t, redistest.Server(t)) })
	t.Run("embedded", func(t *testing.T) { t.Parallel(); f(t, redistest.Embedded(t)) })
}

// refused fails the test unless Redis, the writer's replica and the other replica agree that the token is refused, and
// why.
type answers struct {
	store           *Store
	writer, another *Replica
}

func (a answers) expect(t *testing.T, token *Token, want Kind) {
	t.Helper()
	ctx := t.Context()
	if v := a.writer.Check(token, time.Now()); v.Why != want || v.Revoked != (want != KindNone) {
		t.Errorf("the writer's replica says %+v, want %s", v, want)
	}
	v, err := a.store.Check(ctx, token)
	if err != nil || v.Why != want || !v.Fresh {
		t.Errorf("Redis says %+v, %v, want %s, fresh", v, err, want)
	}
	polltest.Until(t, "another replica says "+want.String(), func() bool {
		return a.another.Check(token, time.Now()).Why == want
	})
}

func newAnswers(t *testing.T, addr string) answers {
	t.Helper()
	writer, another := startReplica(t, addr), startReplica(t, addr)
	return answers{store: newTestStore(t, newClient(t, addr), writer), writer: writer, another: another}
}

func TestEveryKindIsRefusedEverywhere(t *testing.T) {
	onEach(t, func(t *testing.T, addr string) {
		a := newAnswers(t, addr)
		alice := prepared(exampleToken("alice"))
		byAnother := exampleToken("alice")
		byAnother.Issuer = "https://another.example"
		for _, c := range []struct {
			name    string
			revoke  Revocation
			refused func(*Token) // makes another user's token one that is covered
			spared  func(*Token) // makes it one that is just not covered
			code    Code
		}{
			{
				"token", Revocation{Kind: KindToken, Digest: [32]byte{1}},
				func(t *Token) { t.Digest = [32]byte{1} }, func(t *Token) { t.Digest = [32]byte{2} }, CodeTokenRevoked,
			}, {
				"token id", Revocation{Kind: KindTokenID, Issuer: "iss", ID: "1"},
				func(t *Token) { t.Issuer, t.TokenID = "iss", "1" }, func(t *Token) { t.TokenID = "1" }, CodeTokenRevoked,
			}, {
				"session", Revocation{Kind: KindSession, ID: "s1"},
				func(t *Token) { t.Session = "s1" }, func(t *Token) { t.Session = "s2" }, CodeSessionEnded,
			}, {
				"session of an issuer", Revocation{Kind: KindSession, Issuer: "iss", ID: "s3"},
				func(t *Token) { t.Issuer, t.Session = "iss", "s3" }, func(t *Token) { t.Session = "s3" }, CodeSessionEnded,
			}, {
				"user", Revocation{Kind: KindUser, ID: "u1"},
				func(t *Token) { t.Subject = "u1" }, func(t *Token) { t.Subject = "u2" }, CodeTokenRevoked,
			}, {
				"user of an issuer", Revocation{Kind: KindUser, Issuer: "iss", ID: "u3"},
				func(t *Token) { t.Issuer, t.Subject = "iss", "u3" }, func(t *Token) { t.Subject = "u3" }, CodeTokenRevoked,
			}, {
				"client", Revocation{Kind: KindClient, ID: "c1"},
				func(t *Token) { t.ClientID = "c1" }, func(t *Token) { t.ClientID = "c2" }, CodeTokenRevoked,
			}, {
				"client of an issuer", Revocation{Kind: KindClient, Issuer: "iss", ID: "c3"},
				func(t *Token) { t.Issuer, t.ClientID = "iss", "c3" }, func(t *Token) { t.ClientID = "c3" }, CodeTokenRevoked,
			}, {
				"issuer", Revocation{Kind: KindIssuer, Issuer: "i1"},
				func(t *Token) { t.Issuer = "i1" }, func(t *Token) { t.Issuer = "i2" }, CodeTokenRevoked,
			},
		} {
			t.Run(c.name, func(t *testing.T) {
				refused, spared := exampleToken("bob"), exampleToken("bob")
				c.refused(refused)
				c.spared(spared)
				a.expect(t, refused, KindNone)
				if receipt := revoke(t, a.store, c.revoke); receipt.Changed != 1 {
					t.Errorf("receipt %+v: want one change", receipt)
				}
				a.expect(t, refused, c.revoke.Kind)
				a.expect(t, spared, KindNone)
				if v := a.writer.Check(refused, time.Now()); v.Code != c.code {
					t.Errorf("code %q, want %q", v.Code, c.code)
				}
			})
		}
		a.expect(t, alice, KindNone)
		revoke(t, a.store, Revocation{Kind: KindEverything})
		a.expect(t, alice, KindEverything)
		a.expect(t, byAnother, KindEverything)
		fresh := exampleToken("alice")
		fresh.IssuedAt = time.Now().Add(2 * time.Second)
		a.expect(t, fresh, KindNone)
	})
}

func TestTokenIsRevokedInEveryWayItCanBeNamed(t *testing.T) {
	onEach(t, func(t *testing.T, addr string) {
		a := newAnswers(t, addr)
		token := exampleToken("alice")
		revoke(t, a.store, token.Revocations()...)
		a.expect(t, token, KindToken)
		resigned := exampleToken("alice")
		resigned.Digest = [32]byte{9}
		a.expect(t, resigned, KindTokenID)

		bare := exampleToken("bob")
		bare.TokenID = ""
		revoke(t, a.store, bare.Revocations()...)
		a.expect(t, bare, KindToken)
	})
}

// Emergency revocation: what was issued before dies, a login in the same second lives.
func TestLoginInTheSameSecondAsAnEmergencyRevocation(t *testing.T) {
	onEach(t, func(t *testing.T, addr string) {
		a := newAnswers(t, addr)
		receipt := revoke(t, a.store, Revocation{Kind: KindUser, ID: "alice"})
		old, login := exampleToken("alice"), exampleToken("alice")
		old.IssuedAt, login.IssuedAt = receipt.NotBefore, receipt.NotBefore
		old.Version, login.Version = receipt.Version-1, receipt.Version
		a.expect(t, old, KindUser)
		a.expect(t, login, KindNone)

		// A second emergency, even within the same millisecond, kills that login too and admits the next.
		second := revoke(t, a.store, Revocation{Kind: KindUser, ID: "alice"})
		if second.Version <= receipt.Version {
			t.Errorf("version %d after %d: want a larger one", second.Version, receipt.Version)
		}
		a.expect(t, login, KindUser)
		next := exampleToken("alice")
		next.IssuedAt, next.Version = second.NotBefore, second.Version
		a.expect(t, next, KindNone)
	})
}

func TestUserVersionNamedByTheLoginService(t *testing.T) {
	onEach(t, func(t *testing.T, addr string) {
		a := newAnswers(t, addr)
		receipt := revoke(t, a.store, Revocation{Kind: KindUser, ID: "alice", Version: 7})
		if receipt.Version != 7 {
			t.Errorf("version %d, want 7", receipt.Version)
		}
		token := func(after time.Duration, version int64) *Token {
			token := exampleToken("alice")
			token.IssuedAt, token.Version = receipt.NotBefore.Add(after), version
			return token
		}
		a.expect(t, token(0, 7), KindNone)
		a.expect(t, token(0, 6), KindUser)
		a.expect(t, token(time.Second, 6), KindUser) // refreshed by a server that had not heard
		a.expect(t, token(time.Second, 0), KindNone)
		a.expect(t, token(-time.Second, 7), KindUser)

		// An operator who knows no version comes later: 7 is then as dead as 6, in that second and before.
		later := revoke(t, a.store, Revocation{Kind: KindUser, ID: "alice", NotBefore: receipt.NotBefore.Add(time.Second)})
		if later.Version != 0 {
			t.Errorf("version %d: want none to be admitted for a time that was given", later.Version)
		}
		a.expect(t, token(time.Second, 7), KindUser)
		a.expect(t, token(2*time.Second, 6), KindUser)
		a.expect(t, token(2*time.Second, 7), KindNone)
	})
}

func TestRevokingAgainChangesNothing(t *testing.T) {
	onEach(t, func(t *testing.T, addr string) {
		s := newTestStore(t, newClient(t, addr), nil)
		r := Revocation{Kind: KindSession, ID: "s", ExpiresAt: time.Now().Add(time.Hour)}
		mark := Revocation{Kind: KindIssuer, Issuer: "i", NotBefore: time.Now().Add(-time.Minute)}
		first := revoke(t, s, r, mark)
		second := revoke(t, s, r, mark)
		if first.Changed != 2 || second.Changed != 0 || second.Sequence != first.Sequence {
			t.Errorf("first %+v, second %+v: want two changes, then none at the same sequence", first, second)
		}
		shorter := r
		shorter.ExpiresAt = time.Now()
		if third := revoke(t, s, shorter); third.Changed != 0 {
			t.Errorf("%+v: a shorter expiry shortened the entry", third)
		}
		if fourth := revoke(t, s, Revocation{Kind: KindSession, ID: "s"}); fourth.Changed != 1 {
			t.Errorf("%+v: a longer expiry did not lengthen the entry", fourth)
		}
	})
}

func TestBatchesLargerThanOneScript(t *testing.T) {
	onEach(t, func(t *testing.T, addr string) {
		a := newAnswers(t, addr)
		rs := make([]Revocation, 3*batchSize+1)
		for i := range rs {
			rs[i] = Revocation{Kind: KindToken, Digest: [32]byte{1, byte(i), byte(i >> 8)}}
		}
		if receipt := revoke(t, a.store, rs...); receipt.Changed != len(rs) || receipt.Sequence != 4 {
			t.Errorf("receipt %+v: want %d changes in 4 batches", receipt, len(rs))
		}
		last := exampleToken("alice")
		last.Digest = rs[len(rs)-1].Digest
		a.expect(t, last, KindToken)
	})
}

// Nothing in Redis lives for ever, and no name or token is in it.
func TestEverythingInRedisExpires(t *testing.T) {
	onEach(t, func(t *testing.T, addr string) {
		rdb := newClient(t, addr)
		s := newTestStore(t, rdb, nil)
		token := exampleToken("alice")
		revoke(t, s, append(token.Revocations(), Revocation{Kind: KindUser, ID: "alice"})...)
		keys, err := rdb.Keys(t.Context(), "*").Result()
		if err != nil || len(keys) != 4 {
			t.Fatalf("keys %v, %v: want four", keys, err)
		}
		for _, key := range keys {
			ttl, err := rdb.TTL(t.Context(), key).Result()
			if err != nil || ttl < 24*time.Hour || ttl > 26*time.Hour {
				t.Errorf("%s lives for %v, %v: want between 24 and 26 hours", key, ttl, err)
			}
		}
	})
}

func TestPruneRemovesWhatHasExpired(t *testing.T) {
	onEach(t, func(t *testing.T, addr string) {
		rdb := newClient(t, addr)
		s := newTestStore(t, rdb, nil)
		past := time.Now().Add(-2 * time.Minute)
		old, err := NewStore(rdb, nil, Options{
			MaxLifetime: time.Minute, Leeway: time.Nanosecond, Now: func() time.Time { return past },
		})
		if err != nil {
			t.Fatal(err)
		}
		revoke(t, old, Revocation{Kind: KindSession, ID: "gone"}, Revocation{Kind: KindUser, ID: "gone"})
		revoke(t, s, Revocation{Kind: KindSession, ID: "kept"}, Revocation{Kind: KindUser, ID: "kept"})

		if n, err := s.backend.pruneSome(t.Context(), past.Unix()); n != 0 || err != nil {
			t.Errorf("pruned %d, %v by a clock that is behind: want none", n, err)
		}
		ahead := time.Now().Add(1000 * time.Hour).Unix()
		if n, err := s.backend.pruneSome(t.Context(), ahead); n != 2 || err != nil {
			t.Errorf("pruned %d, %v by a clock that is ahead of Redis's: want the 2 that expired", n, err)
		}
		if n := rdb.ZCard(t.Context(), keyEntries).Val(); n != 2 {
			t.Errorf("%d entries are left, want 2", n)
		}
		if n := rdb.HLen(t.Context(), keyMarks).Val(); n != 1 {
			t.Errorf("%d marks are left, want 1", n)
		}
	})
}

func TestRevokeRefusesWhatMakesNoSense(t *testing.T) {
	s := newTestStore(t, newClient(t, redistest.FreeAddr(t)), nil)
	long := string(make([]byte, maxName+1))
	for name, r := range map[string]Revocation{
		"no kind":                  {},
		"unknown kind":             {Kind: 99},
		"token without digest":     {Kind: KindToken},
		"token with id":            {Kind: KindToken, Digest: [32]byte{1}, ID: "x"},
		"token id without issuer":  {Kind: KindTokenID, ID: "x"},
		"token id without id":      {Kind: KindTokenID, Issuer: "x"},
		"session without id":       {Kind: KindSession},
		"session with not-before":  {Kind: KindSession, ID: "x", NotBefore: time.Now()},
		"session with version":     {Kind: KindSession, ID: "x", Version: 1},
		"user without id":          {Kind: KindUser},
		"user with long id":        {Kind: KindUser, ID: long},
		"user with expiry":         {Kind: KindUser, ID: "x", ExpiresAt: time.Now()},
		"user, negative version":   {Kind: KindUser, ID: "x", Version: -1},
		"user, too large version":  {Kind: KindUser, ID: "x", Version: maxVersion + 1},
		"user, in the future":      {Kind: KindUser, ID: "x", NotBefore: time.Now().Add(time.Hour)},
		"user, before 1970":        {Kind: KindUser, ID: "x", NotBefore: time.Unix(-1, 0)},
		"client without id":        {Kind: KindClient},
		"issuer without issuer":    {Kind: KindIssuer},
		"issuer with id":           {Kind: KindIssuer, Issuer: "x", ID: "x"},
		"everything with issuer":   {Kind: KindEverything, Issuer: "x"},
		"everything with id":       {Kind: KindEverything, ID: "x"},
		"everything with a digest": {Kind: KindEverything, Digest: [32]byte{1}},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := s.Revoke(t.Context(), r); !errors.Is(err, ErrInvalid) {
				t.Errorf("error %v, want one that wraps ErrInvalid", err)
			}
		})
	}
}

func TestRedisAway(t *testing.T) {
	rdb := newClient(t, redistest.FreeAddr(t))
	s := newTestStore(t, rdb, nil)
	if _, err := s.Revoke(t.Context(), Revocation{Kind: KindEverything}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Revoke: %v, want ErrUnavailable", err)
	}
	if _, err := s.Check(t.Context(), exampleToken("alice")); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Check: %v, want ErrUnavailable", err)
	}
	b := newBackend(rdb)
	for name, call := range map[string]func(context.Context) error{
		"prune":    func(ctx context.Context) error { _, err := b.pruneSome(ctx, 0); return err },
		"scan":     func(ctx context.Context) error { _, err := b.scan(ctx, func(change) {}); return err },
		"standing": func(ctx context.Context) error { _, err := b.standing(ctx); return err },
		"tail":     func(ctx context.Context) error { _, _, err := b.tail(ctx, position{}, noBlock); return err },
		"begin":    func(ctx context.Context) error { _, err := b.begin(ctx); return err },
		"forget":   b.forget,
	} {
		if err := call(t.Context()); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: %v, want ErrUnavailable", name, err)
		}
	}
}

// What somebody else put under our keys is an error or is counted, never a panic or a silent "not revoked".
func TestGarbageInRedis(t *testing.T) {
	onEach(t, func(t *testing.T, addr string) {
		ctx := t.Context()
		rdb := newClient(t, addr)
		s := newTestStore(t, rdb, nil)
		user := prepared(exampleToken("alice"))
		good := member(user.prepared[atUser], true)
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		must(rdb.HSet(ctx, keyMarks, good, "garbage", "short", "1:2:3:4").Err())
		if _, err := s.Check(ctx, user); !errors.Is(err, ErrUnavailable) {
			t.Errorf("Check on an unreadable mark: %v, want ErrUnavailable", err)
		}
		must(rdb.ZAdd(ctx, keyEntries, redis.Z{Score: 1.5, Member: member(fingerprint{hi: 1}, false)}).Err())
		if bad, err := s.backend.scan(ctx, func(change) {}); bad != 3 || err != nil {
			t.Errorf("scan: %d unreadable, %v, want 3", bad, err)
		}
		must(rdb.HSet(ctx, keyMeta, fieldSeq, "x", fieldUntil, "1", fieldMarked, "1").Err())
		if _, err := s.backend.standing(ctx); !errors.Is(err, ErrUnavailable) {
			t.Errorf("standing on an unreadable sequence: %v, want ErrUnavailable", err)
		}
		must(rdb.XAdd(ctx, &redis.XAddArgs{Stream: keyFeed, ID: "1-0", Values: []any{"prev", "", "link", "l", "what", "1"}}).Err())
		messages, bad, err := s.backend.tail(ctx, position{}, noBlock)
		if err != nil || bad != 1 || len(messages) != 1 || messages[0].at != (position{1, "l"}) {
			t.Errorf("tail: %+v, %d unreadable, %v: want one message and one unreadable", messages, bad, err)
		}
		must(rdb.XAdd(ctx, &redis.XAddArgs{Stream: keyFeed, ID: "2-7", Values: []any{"a", "b"}}).Err())
		if _, _, err := s.backend.tail(ctx, position{}, noBlock); !errors.Is(err, ErrUnavailable) {
			t.Errorf("tail on a foreign id: %v, want ErrUnavailable", err)
		}
	})
}
