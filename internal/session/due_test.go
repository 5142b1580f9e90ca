package session

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// Who has something to end is due for it, once for each claim, until nothing is left; and a change in between is not
// overlooked.
func TestDue(t *testing.T) {
	onEach(t, func(t *testing.T, s Store) {
		ctx := t.Context()
		due := func(after time.Duration, want string) time.Time {
			t.Helper()
			users, claim, err := s.Due(ctx, at(after))
			if slices.Sort(users); err != nil || fmt.Sprint(users) != want {
				t.Errorf("due after %s: %v, %v, want %s", after, users, err, want)
			}
			return claim
		}
		put := func(user string, claim, next time.Time) {
			t.Helper()
			if err := s.Defer(ctx, user, claim, next); err != nil {
				t.Fatal(err)
			}
		}
		mustRegister(t, s, "u", "a", limits(), at(0))
		mustRegister(t, s, "v", "a", limits(), at(time.Second))
		due(putOff-time.Millisecond, "[]")
		claim := due(putOff, "[u]")
		due(putOff, "[]") // claimed
		put("u", claim, at(time.Hour))
		put("v", claim, time.Time{}) // which was not claimed
		put("w", claim, at(0))       // nor this, which nobody knows
		due(time.Minute, "[v]")
		claim = due(time.Hour, "[u v]") // whoever claimed v did not come back
		put("v", claim, time.Time{})
		mustRegister(t, s, "u", "b", limits(), at(time.Hour+time.Second))
		put("u", claim, time.Time{}) // too late
		claim = due(time.Hour+time.Second+putOff, "[u]")
		put("u", claim, time.Time{})
		due(20*time.Hour, "[]")
		if _, err := s.End(ctx, "v", Which{}, limits(), at(20*time.Hour)); err != nil {
			t.Fatal(err)
		}
		due(20*time.Hour+putOff, "[v]")
	})
}
