package ratelimit

import (
	"errors"
	"testing"
)

func TestPeek(t *testing.T) {
	l, store := newDenyingLab(t)
	ask := request(of("free", "alice", "ml")) // 5 of 10 a minute
	peek := func() Decision {
		t.Helper()
		var dec Decision
		if err := l.Peek(t.Context(), &ask, &dec); err != nil {
			t.Fatal(err)
		}
		return dec
	}
	for _, left := range []uint32{10, 5, 0} {
		for range 3 { // asking changes nothing
			dec := peek()
			if dec.Allowed != (left > 0) || dec.Status().Remaining != left {
				t.Errorf("with %d left: %t, %+v", left, dec.Allowed, dec.Status())
			}
		}
		if got := l.decide(ask); got.Allowed != (left > 0) {
			t.Errorf("with %d left decided %t, against what was said", left, got.Allowed)
		}
	}
	full := peek()
	if s := full.Status(); !s.Denied || !s.Retry || s.Reset <= 0 {
		t.Errorf("when it would pass: %+v", s)
	}
	var dec Decision
	if err := l.Peek(t.Context(), &Request{Domain: "other", Descriptors: ask.Descriptors}, &dec); err != nil || !dec.Allowed || len(dec.Statuses) != 1 || dec.Status() != nil {
		t.Errorf("a domain without rules: %+v, %v", dec, err)
	}
	if err := l.Peek(t.Context(), &Request{}, &dec); !errors.Is(err, ErrInvalid) {
		t.Errorf("got %v", err)
	}
	gone := errors.New("gone")
	store.set(gone)
	if err := l.Peek(t.Context(), &ask, &dec); !errors.Is(err, gone) {
		t.Errorf("without a store: %v", err)
	}
}
