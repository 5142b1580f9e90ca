package session

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

// Any sequence of operations gives the same on every store, and keeps the promises: never more than the cap, nothing that
// ended comes back, nothing ends unless it is owed a kill.
func TestStoresAgreeWithTheModel(t *testing.T) {
	stores := map[string]func() Store{"memory": func() Store { return NewMemory() }}
	for name, addr := range map[string]string{"redis-server": redistest.Server(t), "embedded": redistest.Embedded(t)} {
		rdb := redistest.Client(t, addr)
		stores[name] = func() Store {
			if err := rdb.FlushAll(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
			return NewRedis(rdb)
		}
	}
	rapid.Check(t, func(rt *rapid.T) {
		ctx := t.Context()
		compared := rapid.SampledFrom([]string{"redis-server", "embedded"}).Draw(rt, "compared")
		under := map[string]Store{"memory": stores["memory"](), compared: stores[compared]()}
		l := Limits{
			Max:    rapid.IntRange(1, 3).Draw(rt, "max"),
			Policy: rapid.SampledFrom([]Policy{EvictOldest, RefuseNew}).Draw(rt, "policy"),
			Idle:   20 * time.Second, Absolute: 60 * time.Second, Tombstone: 100 * time.Second,
		}
		now := start
		dead := map[Ref]time.Time{} // when a session was first seen to have ended
		issuers := rapid.SampledFrom([]string{"", "x", "y"})
		names := rapid.SampledFrom([]string{"a", "b", "c"})
		optional := rapid.SampledFrom([]string{"", "a", "b", "c"})
		draw := func(rt *rapid.T) Ref { return Ref{issuers.Draw(rt, "issuer"), names.Draw(rt, "id")} }
		order := func(x, y Ref) int { return strings.Compare(x.member(), y.member()) }

		// same runs an operation everywhere, compares, and returns the outcome.
		same := func(rt *rapid.T, op func(Store) (Outcome, error)) Outcome {
			want, wantErr := op(under["memory"])
			slices.SortFunc(want.Owed, order)
			for name, s := range under {
				if name == "memory" {
					continue
				}
				got, err := op(s)
				slices.SortFunc(got.Owed, order)
				if !errors.Is(err, wantErr) || (err == nil) != (wantErr == nil) {
					rt.Fatalf("%s: %v, memory: %v", name, err, wantErr)
				}
				if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
					rt.Fatalf("%s differs from memory (-memory +%s):\n%s", name, name, diff)
				}
			}
			if len(want.Sessions) > l.Max {
				rt.Fatalf("%d sessions, cap %d", len(want.Sessions), l.Max)
			}
			for _, s := range want.Sessions {
				for _, r := range []Ref{s.Ref, {ID: s.ID}} {
					if ended, is := dead[r]; is && now.Before(ended.Add(l.Tombstone)) {
						rt.Fatalf("%s came back", r)
					}
				}
				delete(dead, s.Ref)
				if !now.Before(s.LastSeen.Add(l.Idle)) || !now.Before(s.Created.Add(l.Absolute)) {
					rt.Fatalf("%+v should have timed out at %s", s, now)
				}
			}
			for _, r := range want.Ended {
				if !slices.Contains(want.Owed, r) {
					rt.Fatalf("%s ended and is not owed a kill", r)
				}
			}
			for _, r := range want.Owed {
				if _, is := dead[r]; !is {
					dead[r] = now
				}
			}
			return want
		}
		rt.Repeat(map[string]func(*rapid.T){
			"time": func(rt *rapid.T) {
				now = now.Add(time.Duration(rapid.Int64Range(0, 30_000).Draw(rt, "ms")) * time.Millisecond)
			},
			"register": func(rt *rapid.T) {
				r := draw(rt)
				o := same(rt, func(s Store) (Outcome, error) { return s.Register(ctx, Session{User: "u", Ref: r}, l, now) })
				for _, s := range o.Sessions {
					if s.ID != r.ID || r.Issuer != "" && s.Issuer != r.Issuer {
						continue
					}
					for name, store := range under {
						if users, err := store.Owners(ctx, s.Ref); !slices.Contains(users, "u") || err != nil {
							rt.Fatalf("%s: owners of %s: %v, %v", name, s.Ref, users, err)
						}
					}
				}
			},
			"end": func(rt *rapid.T) {
				w := Which{Issuer: issuers.Draw(rt, "issuer"), Only: optional.Draw(rt, "only")}
				if w.Only == "" {
					w.Except = optional.Draw(rt, "except")
				}
				before := same(rt, func(s Store) (Outcome, error) { return s.List(ctx, "u", l, now) })
				o := same(rt, func(s Store) (Outcome, error) { return s.End(ctx, "u", w, l, now) })
				for _, s := range before.Sessions {
					if w.Issuer != "" && s.Issuer != "" && s.Issuer != w.Issuer && !slices.Contains(ids(o.Sessions), ids([]Session{s})[0]) {
						rt.Fatalf("%+v ended %s, which is another issuer's", w, s.Ref)
					}
				}
			},
			"touch": func(rt *rapid.T) {
				seen := Seen{"u", draw(rt), now.Add(-time.Duration(rapid.Int64Range(0, 5000).Draw(rt, "ago")) * time.Millisecond)}
				same(rt, func(s Store) (Outcome, error) {
					outcomes, err := s.Touch(ctx, []Seen{seen}, l, now)
					if err != nil {
						return Outcome{}, err
					}
					return outcomes[0], nil
				})
			},
			"settle": func(rt *rapid.T) {
				o := same(rt, func(s Store) (Outcome, error) { return s.List(ctx, "u", l, now) })
				if len(o.Owed) == 0 {
					rt.Skip("nothing is owed")
				}
				paid := o.Owed[:rapid.IntRange(1, len(o.Owed)).Draw(rt, "paid")]
				for name, s := range under {
					if err := s.Settle(ctx, "u", paid); err != nil {
						rt.Fatalf("%s: %v", name, err)
					}
				}
			},
			"": func(rt *rapid.T) {
				same(rt, func(s Store) (Outcome, error) { return s.List(ctx, "u", l, now) })
			},
		})
	})
}
