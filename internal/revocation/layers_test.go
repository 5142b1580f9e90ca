package revocation

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

// Not-before marks are layered: a token is accepted only if it is younger than the latest of the marks on everything,
// its issuer, its client and its user, whatever the order in which they were set and however often they arrive. The
// model is that sentence; checked against it are Redis, a replica that heard every change, and one that is told of them
// in another order.
func TestNotBeforeIsLayered(t *testing.T) {
	addr := redistest.Embedded(t)
	now := time.Unix(1_800_000_000, 0)
	rdb := newClient(t, addr)
	o := testOptions()
	o.Now = func() time.Time { return now }
	rapid.Check(t, func(rt *rapid.T) {
		if err := rdb.FlushAll(t.Context()).Err(); err != nil {
			rt.Fatal(err)
		}
		heard, err := NewReplica(nil, o)
		if err != nil {
			rt.Fatal(err)
		}
		s, err := NewStore(rdb, heard, o)
		if err != nil {
			rt.Fatal(err)
		}
		name := rapid.SampledFrom([]string{"a", "b"})
		second := rapid.Int64Range(-5, 0)
		revocations := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) Revocation {
			r := Revocation{
				Kind:      rapid.SampledFrom([]Kind{KindUser, KindClient, KindIssuer, KindEverything}).Draw(rt, "kind"),
				NotBefore: now.Add(time.Duration(second.Draw(rt, "not before")) * time.Second),
			}
			if r.Kind == KindUser || r.Kind == KindClient {
				r.ID = name.Draw(rt, "id")
			}
			if r.Kind == KindIssuer || (r.Kind != KindEverything && rapid.Bool().Draw(rt, "of one issuer")) {
				r.Issuer = name.Draw(rt, "issuer")
			}
			return r
		}), 0, 8).Draw(rt, "revocations")
		for _, r := range revocations {
			if _, err := s.Revoke(t.Context(), r); err != nil {
				rt.Fatal(err)
			}
		}
		shuffled, err := NewReplica(nil, o)
		if err != nil {
			rt.Fatal(err)
		}
		for _, r := range rapid.Permutation(append(revocations, revocations...)).Draw(rt, "order") {
			c, err := shuffled.options.plan(&r, now)
			if err != nil {
				rt.Fatal(err)
			}
			shuffled.learn([]change{c})
		}

		for range 10 {
			token := &Token{
				Issuer: name.Draw(rt, "iss"), Subject: name.Draw(rt, "sub"), ClientID: name.Draw(rt, "client"),
				IssuedAt: now.Add(time.Duration(second.Draw(rt, "iat")) * time.Second),
			}
			latest := time.Time{}
			for _, r := range revocations {
				if concerns(r, token) && r.NotBefore.After(latest) {
					latest = r.NotBefore
				}
			}
			want := !token.IssuedAt.After(latest)
			fromRedis, err := s.Check(t.Context(), token)
			if err != nil {
				rt.Fatal(err)
			}
			for where, got := range map[string]bool{
				"Redis":             fromRedis.Revoked,
				"replica":           heard.Check(token, now).Revoked,
				"in another order":  shuffled.Check(token, now).Revoked,
				"prepared, replica": heard.Check(prepared(token), now).Revoked,
			} {
				if got != want {
					rt.Errorf("%s: revoked = %v, want %v: issued %s, latest mark %s", where, got, want, token.IssuedAt, latest)
				}
			}
		}
	})
}

func concerns(r Revocation, t *Token) bool {
	if r.Issuer != "" && r.Issuer != t.Issuer {
		return false
	}
	switch r.Kind {
	case KindUser:
		return r.ID == t.Subject
	case KindClient:
		return r.ID == t.ClientID
	default:
		return true
	}
}
