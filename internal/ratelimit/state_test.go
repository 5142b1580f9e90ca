package ratelimit

import (
	"errors"
	"testing"
	"time"
)

func TestStateAndReset(t *testing.T) {
	l, store := newDenyingLab(t)
	alice := []Entry{{"tier", "free"}, {"user", "alice"}}
	l.decide(request(of("free", "alice", "ml")))
	l.decide(request(of("free", "alice", "ml")))
	l.decide(request(of("free", "alice", "ml"))) // denied, and remembered
	for range 2 {                                // asking charges nothing
		got, err := l.State(t.Context(), "tollgate", alice)
		if err != nil || len(got) != 3 {
			t.Fatalf("%+v, %v", got, err)
		}
		if m, h, s := got[0], got[1], got[2]; m.Remaining != 0 || m.Full != time.Minute || h.Remaining != 90 || h.Limit.Unit != Hour || !s.System || s.Remaining != 9990 {
			t.Errorf("%+v", got)
		}
	}
	if err := l.Reset(t.Context(), "tollgate", alice); err != nil {
		t.Fatal(err)
	}
	got, err := l.State(t.Context(), "tollgate", alice)
	if err != nil || got[0].Remaining != 10 || got[1].Remaining != 100 || got[2].Remaining != 9990 {
		t.Errorf("after a reset: %+v, %v", got, err)
	}
	if !l.decide(request(of("free", "alice", "ml"))).Allowed {
		t.Error("denied after a reset")
	}
	for _, c := range []struct {
		domain  string
		entries []Entry
	}{{"other", alice}, {"tollgate", []Entry{{"colour", "red"}}}} {
		if _, err := l.State(t.Context(), c.domain, c.entries); !errors.Is(err, ErrUnknown) {
			t.Errorf("%+v: %v", c, err)
		}
		if err := l.Reset(t.Context(), c.domain, c.entries); !errors.Is(err, ErrUnknown) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	store.set(errors.New("gone"))
	if _, err := l.State(t.Context(), "tollgate", alice); err == nil {
		t.Error("no error without a store")
	}
	if err := l.Reset(t.Context(), "tollgate", alice); err == nil {
		t.Error("no error without a store")
	}
	unlimited := newLab(t, mustParse(t, "domain: d\ndescriptors: [{key: k, rate_limit: {unlimited: true}}]"))
	if _, err := unlimited.State(t.Context(), "d", []Entry{{"k", "v"}}); !errors.Is(err, ErrUnknown) {
		t.Errorf("%v", err)
	}
}
