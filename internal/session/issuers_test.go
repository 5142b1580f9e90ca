package session

import (
	"errors"
	"slices"
	"testing"
	"time"
)

// Ids are their issuers' own: the same id of another issuer is another session.
func TestIssuersAreApart(t *testing.T) {
	onEach(t, func(t *testing.T, s Store) {
		ctx, l := t.Context(), limits()
		mustRegister(t, s, "u", "x/1", l, at(0))
		mustRegister(t, s, "u", "y/1", l, at(1))
		end := func(w Which, sessions, ended, owed string) {
			t.Helper()
			o, err := s.End(ctx, "u", w, l, at(time.Second))
			if err != nil {
				t.Fatal(err)
			}
			expect(t, o, sessions, ended, owed)
		}
		end(Which{Issuer: "x", Only: "1"}, "[y/1]", "[x/1]", "[x/1]")
		end(Which{Issuer: "x"}, "[y/1]", "[]", "[x/1]")
		if _, err := s.Register(ctx, Session{User: "u", Ref: ref("x/1")}, l, at(time.Minute)); !errors.Is(err, ErrEnded) {
			t.Errorf("x's comes back: %v", err)
		}
		// Registered without an issuer: it is the one that is live, and then none.
		expect(t, mustRegister(t, s, "u", "1", l, at(time.Minute)), "[y/1]", "[]", "[x/1]")
		end(Which{Only: "1"}, "[]", "[y/1]", "[x/1 y/1]")
		if _, err := s.Register(ctx, Session{User: "u", Ref: ref("1")}, l, at(time.Minute)); !errors.Is(err, ErrEnded) {
			t.Errorf("of an unknown issuer: %v", err)
		}
	})
}

// A session that was registered without its issuer takes that of its first token, and is no second session.
func TestIssuerIsLearned(t *testing.T) {
	onEach(t, func(t *testing.T, s Store) {
		ctx, l := t.Context(), limits()
		told := Session{User: "u", Ref: ref("1"), Device: Device{Name: "told"}}
		if _, err := s.Register(ctx, told, l, at(0)); err != nil {
			t.Fatal(err)
		}
		seen := Session{User: "u", Ref: ref("x/1"), Device: Device{Name: "seen"}, Inferred: true}
		o, err := s.Register(ctx, seen, l, at(time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		expect(t, o, "[x/1]", "[]", "[]")
		if got := o.Sessions[0]; got.Device.Name != "told" || !got.Created.Equal(at(0)) || !got.LastSeen.Equal(at(time.Minute)) {
			t.Errorf("%+v", got)
		}
		if users, err := s.Owners(ctx, ref("x/1")); err != nil || !slices.Equal(users, []string{"u"}) {
			t.Errorf("owners: %v, %v", users, err)
		}
		// Ended by its issuer before any token was seen, it is that issuer's alone that dies.
		mustRegister(t, s, "v", "2", l, at(0))
		o, err = s.End(ctx, "v", Which{Issuer: "x", Only: "2"}, l, at(time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		expect(t, o, "[]", "[x/2]", "[x/2]")
	})
}
