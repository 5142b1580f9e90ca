package outage_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/outage"
)

func TestOutage(t *testing.T) {
	var o outage.Outage
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for i, step := range []struct {
		after   time.Duration
		failed  bool
		changes bool
	}{
		{0, false, false},
		{0, true, true},
		{time.Second, false, false},
		{time.Second, true, false},
		{outage.Calm - time.Nanosecond, false, false},
		{time.Nanosecond, false, true},
		{0, false, false},
		{0, true, true},
		{outage.Calm, true, false},
		{outage.Calm, false, true},
	} {
		now = now.Add(step.after)
		tell := o.Answered
		if step.failed {
			tell = o.Failed
		}
		if got := tell(now); got != step.changes {
			t.Errorf("step %d: got %v", i, got)
		}
	}
}

// Run with -race: of many who see the same, one tells.
func TestOutageIsToldOfOnce(t *testing.T) {
	var o outage.Outage
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, tell := range []func(time.Time) bool{o.Failed, o.Answered} {
		var told atomic.Int32
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				if tell(now) {
					told.Add(1)
				}
			})
		}
		all.Wait()
		if told.Load() != 1 {
			t.Errorf("told %d times", told.Load())
		}
		now = now.Add(outage.Calm)
	}
}
