package experiment

import (
	"testing"
	"time"
)

func TestAssignDoesNotAllocate(t *testing.T) {
	d := valid()
	d.Layer, d.Tiers = &Layer{"l", 0, 1}, []string{"free", "premium"}
	a := NewAssigner(d)
	if n := testing.AllocsPerRun(100, func() { a.At("user", "premium", 1) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestAssignerAt(t *testing.T) {
	d := valid()
	d.Start, d.Stop, d.Tiers = catalogTime.Add(time.Nanosecond), catalogTime.Add(time.Minute), []string{"premium"}
	a, from := NewAssigner(d), catalogTime.Unix()
	for at, want := range map[int64]bool{from: false, from + 1: true, from + 59: true, from + 60: false} {
		if _, got := a.At("user", "premium", at); got != want {
			t.Errorf("at %d: got %v", at-from, got)
		}
	}
	if _, ok := a.At("user", "free", from+1); ok {
		t.Error("another tier takes part")
	}
	d.State = Stopped
	if _, ok := NewAssigner(d).At("user", "premium", from+1); ok {
		t.Error("a stopped experiment assigns")
	}
}
