package session

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

var start = time.UnixMilli(1_800_000_000_123)

func at(after time.Duration) time.Time { return start.Add(after) }

func limits() Limits {
	return Limits{Max: 5, Policy: EvictOldest, Idle: time.Hour, Absolute: 12 * time.Hour, Tombstone: 24 * time.Hour}
}

// onEach runs f over every store.
func onEach(t *testing.T, f func(t *testing.T, s Store)) {
	t.Run("memory", func(t *testing.T) { f(t, NewMemory()) })
	t.Run("redis-server", func(t *testing.T) { t.Parallel(); f(t, NewRedis(redistest.Client(t, redistest.Server(t)))) })
	t.Run("embedded", func(t *testing.T) { t.Parallel(); f(t, NewRedis(redistest.Client(t, redistest.Embedded(t)))) })
}

// ref reads "id" or "issuer/id".
func ref(text string) Ref {
	issuer, id, ok := strings.Cut(text, "/")
	if !ok {
		return Ref{ID: text}
	}
	return Ref{issuer, id}
}

func texts(refs []Ref) []string {
	list := []string{}
	for _, r := range refs {
		list = append(list, strings.TrimPrefix(r.Issuer+"/"+r.ID, "/"))
	}
	return list
}

func ids(sessions []Session) []string {
	refs := make([]Ref, len(sessions))
	for i, s := range sessions {
		refs[i] = s.Ref
	}
	return texts(refs)
}

// expect compares an outcome with ids: the sessions oldest first, what the operation ended, what is owed.
func expect(t *testing.T, o Outcome, sessions, ended, owed string) {
	t.Helper()
	owes := texts(o.Owed)
	slices.Sort(owes)
	got := [3]string{fmt.Sprint(ids(o.Sessions)), fmt.Sprint(texts(o.Ended)), fmt.Sprint(owes)}
	if diff := cmp.Diff([3]string{sessions, ended, owed}, got); diff != "" {
		t.Errorf("sessions, ended, owed (-want +got):\n%s", diff)
	}
}

func mustRegister(t *testing.T, s Store, user, id string, l Limits, now time.Time) Outcome {
	t.Helper()
	o, err := s.Register(t.Context(), Session{User: user, Ref: ref(id)}, l, now)
	if err != nil {
		t.Fatalf("register %s: %v", id, err)
	}
	return o
}

func TestDescriptionIsKept(t *testing.T) {
	onEach(t, func(t *testing.T, s Store) {
		want := Session{
			User: "ali:ce{}", Ref: Ref{"https://issuer.example", "s:1\n{}%"}, Address: "2001:db8::1",
			Device: Device{ID: "d", Name: "Ä phone", UserAgent: "curl/8", Browser: "curl 8", System: "Linux", Model: "X"},
			Place:  Place{Country: "DE", City: "Köln"}, Created: start, LastSeen: start,
		}
		o, err := s.Register(t.Context(), want, limits(), start)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]Session{want}, o.Sessions); diff != "" {
			t.Errorf("registered (-want +got):\n%s", diff)
		}
		want.Address, want.LastSeen = "192.0.2.1", at(time.Minute)
		if _, err := s.Register(t.Context(), want, limits(), at(time.Minute)); err != nil {
			t.Fatal(err)
		}
		o, err = s.List(t.Context(), want.User, limits(), at(time.Minute))
		if diff := cmp.Diff([]Session{want}, o.Sessions); diff != "" || err != nil {
			t.Errorf("registered again: %v (-want +got):\n%s", err, diff)
		}
		// What a request tells replaces nothing that the login service told.
		seen := Session{Ref: want.Ref, User: want.User, Address: "198.51.100.1", Inferred: true}
		want.LastSeen = at(2 * time.Minute)
		o, err = s.Register(t.Context(), seen, limits(), at(2*time.Minute))
		if diff := cmp.Diff([]Session{want}, o.Sessions); diff != "" || err != nil {
			t.Errorf("seen: %v (-want +got):\n%s", err, diff)
		}
		seen.ID = "new"
		o, err = s.Register(t.Context(), seen, limits(), at(3*time.Minute))
		if err != nil || len(o.Sessions) != 2 || o.Sessions[1].Address != seen.Address || o.Sessions[1].Inferred {
			t.Errorf("a new one, seen: %+v, %v", o.Sessions, err)
		}
	})
}

func TestEvictOldest(t *testing.T) {
	onEach(t, func(t *testing.T, s Store) {
		for i := range 5 {
			mustRegister(t, s, "u", strconv.Itoa(i), limits(), at(time.Duration(i)*time.Second))
		}
		mustRegister(t, s, "another", "0", limits(), at(5*time.Second))
		o := mustRegister(t, s, "u", "5", limits(), at(6*time.Second))
		expect(t, o, "[1 2 3 4 5]", "[0]", "[0]")

		// Seen lately is not created lately, and a session that is registered again is not new.
		o = mustRegister(t, s, "u", "1", limits(), at(7*time.Second))
		expect(t, o, "[1 2 3 4 5]", "[]", "[0]")
		o = mustRegister(t, s, "u", "6", limits(), at(8*time.Second))
		expect(t, o, "[2 3 4 5 6]", "[1]", "[0 1]")

		// A lower cap ends as many as it takes.
		fewer := limits()
		fewer.Max = 2
		o = mustRegister(t, s, "u", "7", fewer, at(9*time.Second))
		expect(t, o, "[6 7]", "[2 3 4 5]", "[0 1 2 3 4 5]")
	})
}

func TestRefuseNew(t *testing.T) {
	onEach(t, func(t *testing.T, s Store) {
		l := limits()
		l.Max, l.Policy = 2, RefuseNew
		mustRegister(t, s, "u", "a", l, at(0))
		mustRegister(t, s, "u", "b", l, at(1))
		o, err := s.Register(t.Context(), Session{User: "u", Ref: ref("c")}, l, at(2))
		if !errors.Is(err, ErrTooMany) {
			t.Errorf("third: %v, want ErrTooMany", err)
		}
		expect(t, o, "[a b]", "[]", "[]")
		mustRegister(t, s, "u", "a", l, at(30*time.Minute))
		// b is idle by now and makes room.
		o, err = s.Register(t.Context(), Session{User: "u", Ref: ref("c")}, l, at(61*time.Minute))
		if err != nil {
			t.Errorf("after b went idle: %v", err)
		}
		expect(t, o, "[a c]", "[]", "[b]")
	})
}

func TestTimeouts(t *testing.T) {
	onEach(t, func(t *testing.T, s Store) {
		l := limits()
		l.Idle, l.Absolute = 10*time.Second, 25*time.Second
		mustRegister(t, s, "u", "idle", l, at(0))
		mustRegister(t, s, "u", "used", l, at(0))
		for _, after := range []time.Duration{9 * time.Second, 18 * time.Second} {
			if _, err := s.Touch(t.Context(), []Seen{{"u", ref("used"), at(after)}}, l, at(after)); err != nil {
				t.Fatal(err)
			}
		}
		for _, c := range []struct {
			after          time.Duration
			sessions, owed string
		}{
			{24999 * time.Millisecond, "[used]", "[idle]"},
			{25 * time.Second, "[]", "[idle used]"},
		} {
			o, err := s.List(t.Context(), "u", l, at(c.after))
			if err != nil {
				t.Fatal(err)
			}
			expect(t, o, c.sessions, "[]", c.owed)
		}
	})
}

func TestTouchMovesForwardOnly(t *testing.T) {
	onEach(t, func(t *testing.T, s Store) {
		mustRegister(t, s, "u", "a", limits(), at(0))
		mustRegister(t, s, "v", "a", limits(), at(0))
		touches := []Seen{
			{"u", ref("a"), at(5 * time.Second)},
			{"u", ref("a"), at(3 * time.Second)},
			{"v", ref("a"), at(-time.Second)},
			{"u", ref("unknown"), at(9 * time.Second)},
			{"w", ref("a"), at(9 * time.Second)},
		}
		outcomes, err := s.Touch(t.Context(), touches, limits(), at(9*time.Second))
		if err != nil || len(outcomes) != len(touches) {
			t.Fatalf("%d outcomes, %v", len(outcomes), err)
		}
		if got := outcomes[3].Sessions; len(got) != 1 || !got[0].LastSeen.Equal(at(5*time.Second)) {
			t.Errorf("u: %+v, want one session, last seen after 5 s", got)
		}
		if got := outcomes[2].Sessions; len(got) != 1 || !got[0].LastSeen.Equal(at(0)) {
			t.Errorf("v: %+v, want one session, last seen at its creation", got)
		}
		if got := outcomes[4].Sessions; len(got) != 0 {
			t.Errorf("w: %+v, want none", got)
		}
		if outcomes, err := s.Touch(t.Context(), nil, limits(), at(0)); len(outcomes) != 0 || err != nil {
			t.Errorf("no touches: %v, %v", outcomes, err)
		}
	})
}

func TestEnd(t *testing.T) {
	onEach(t, func(t *testing.T, s Store) {
		for i, id := range []string{"a", "b", "c", "d"} {
			mustRegister(t, s, "u", id, limits(), at(time.Duration(i)))
		}
		end := func(w Which) Outcome {
			t.Helper()
			o, err := s.End(t.Context(), "u", w, limits(), at(time.Second))
			if err != nil {
				t.Fatal(err)
			}
			return o
		}
		expect(t, end(Which{Only: "b"}), "[a c d]", "[b]", "[b]")
		expect(t, end(Which{Only: "b"}), "[a c d]", "[]", "[b]")
		expect(t, end(Which{Only: "x"}), "[a c d]", "[]", "[b x]")
		if err := s.Settle(t.Context(), "u", []Ref{ref("b"), ref("x")}); err != nil {
			t.Fatal(err)
		}
		expect(t, end(Which{Except: "c"}), "[c]", "[a d]", "[a d]")
		expect(t, end(Which{}), "[]", "[c]", "[a c d]")
		expect(t, end(Which{}), "[]", "[]", "[a c d]")
		if err := s.Settle(t.Context(), "u", nil); err != nil {
			t.Errorf("settling nothing: %v", err)
		}
	})
}

// What has ended does not come back while its tokens could live, and is forgotten afterwards, but never while a kill is
// owed.
func TestTombstones(t *testing.T) {
	onEach(t, func(t *testing.T, s Store) {
		ctx, l := t.Context(), limits()
		mustRegister(t, s, "u", "a", l, at(0))
		mustRegister(t, s, "u", "b", l, at(0))
		if _, err := s.End(ctx, "u", Which{}, l, at(0)); err != nil {
			t.Fatal(err)
		}
		if err := s.Settle(ctx, "u", []Ref{ref("a")}); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			id    string
			after time.Duration
			want  error
		}{
			{"a", l.Tombstone - time.Millisecond, ErrEnded},
			{"a", l.Tombstone, nil},
			{"b", l.Tombstone, ErrEnded},
		} {
			_, err := s.Register(ctx, Session{User: "u", Ref: ref(c.id)}, l, at(c.after))
			if !errors.Is(err, c.want) {
				t.Errorf("%s after %s: %v, want %v", c.id, c.after, err, c.want)
			}
		}
	})
}

// Twenty logins at once, from twenty goroutines: never more sessions than the cap, and each login that was evicted is
// owed a kill.
func TestRaceOfLogins(t *testing.T) {
	for _, policy := range []Policy{EvictOldest, RefuseNew} {
		t.Run(string(policy), func(t *testing.T) {
			onEach(t, func(t *testing.T, s Store) {
				l := limits()
				l.Policy = policy
				const logins = 20
				var wg sync.WaitGroup
				var mu sync.Mutex
				refused := 0
				for i := range logins {
					wg.Go(func() {
						o, err := s.Register(context.Background(), Session{User: "u", Ref: ref(strconv.Itoa(i))}, l, start)
						mu.Lock()
						defer mu.Unlock()
						switch {
						case errors.Is(err, ErrTooMany):
							refused++
						case err != nil:
							t.Errorf("login %d: %v", i, err)
						}
						if len(o.Sessions) > l.Max {
							t.Errorf("login %d sees %d sessions", i, len(o.Sessions))
						}
					})
				}
				wg.Wait()
				o, err := s.List(t.Context(), "u", l, start)
				if err != nil || len(o.Sessions) != l.Max || len(o.Owed)+refused != logins-l.Max {
					t.Errorf("%d sessions, %d owed, %d refused, %v: want %d, and the rest refused or owed",
						len(o.Sessions), len(o.Owed), refused, err, l.Max)
				}
			})
		})
	}
}

func TestEverythingExpires(t *testing.T) {
	ctx := t.Context()
	rdb := redistest.Client(t, redistest.Server(t))
	s := NewRedis(rdb)
	mustRegister(t, s, "u", "a", limits(), start)
	mustRegister(t, s, "u", "b", limits(), start)
	if _, err := s.End(ctx, "u", Which{Only: "a"}, limits(), start); err != nil {
		t.Fatal(err)
	}
	found := rdb.Keys(ctx, "*").Val()
	if len(found) != 10 {
		t.Errorf("keys %v: want five of the user, two of each session, and when who is due", found)
	}
	for _, key := range found {
		if ttl := rdb.TTL(ctx, key).Val(); ttl <= 0 || ttl > limits().keep() {
			t.Errorf("%s lives for %s", key, ttl)
		}
	}
}

func TestRedisTroubles(t *testing.T) {
	away := NewRedis(redistest.Client(t, redistest.FreeAddr(t)))
	ctx := t.Context()
	for name, err := range map[string]error{
		"register": second(away.Register(ctx, Session{User: "u", Ref: ref("a")}, limits(), start)),
		"list":     second(away.List(ctx, "u", limits(), start)),
		"end":      second(away.End(ctx, "u", Which{}, limits(), start)),
		"touch":    second(away.Touch(ctx, []Seen{{"u", ref("a"), start}}, limits(), start)),
		"due":      third(away.Due(ctx, start)),
		"defer":    away.Defer(ctx, "u", start, start),
		"owners":   second(away.Owners(ctx, ref("a"))),
		"settle":   away.Settle(ctx, "u", []Ref{ref("a")}),
	} {
		if !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: %v, want ErrUnavailable", name, err)
		}
	}
	rdb := redistest.Client(t, redistest.Server(t))
	s := NewRedis(rdb)
	mustRegister(t, s, "u", "a", limits(), start)
	if err := rdb.HSet(ctx, keys("u")[2], ref("a").member(), "not json").Err(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.List(ctx, "u", limits(), start); !errors.Is(err, ErrUnavailable) {
		t.Errorf("an unreadable description: %v, want ErrUnavailable", err)
	}
	for name, reply := range map[string][]any{
		"short":         {"ok"},
		"odd":           {"ok", []any{}, []any{}, "id"},
		"no status":     {1, []any{}, []any{}},
		"ended":         {"ok", "x", []any{}},
		"owed":          {"ok", []any{}, []any{1}},
		"a name":        {"ok", []any{"id"}, []any{}},
		"session":       {"ok", []any{}, []any{}, "\nid", nil, "1", "{}"},
		"session name":  {"ok", []any{}, []any{}, "id", "1", "1", "{}"},
		"session times": {"ok", []any{}, []any{}, "\nid", "x", "1", "{}"},
	} {
		if _, _, err := readReply(reply, "u"); err == nil {
			t.Errorf("%s: the reply was read", name)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func third[T, U any](_ T, _ U, err error) error { return err }
