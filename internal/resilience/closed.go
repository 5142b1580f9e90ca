package resilience

import "time"

// buckets divides the window: counts leave it a tenth at a time.
const buckets = 10

// tally counts finished calls. Calls in flight are not in it, so a burst of
// slow ones cannot dilute the share of failures.
type tally struct{ calls, failures, slow int }

// closed lets every call through and counts the results of a sliding window.
type closed struct {
	width time.Duration
	last  int64 // the newest slice of time that was counted in
	slots [buckets]tally
	total tally
}

func newClosed(c *BreakerConfig) *closed {
	return &closed{width: max(c.Window/buckets, 1)}
}

func (*closed) state() State { return Closed }

func (s *closed) elapse(*BreakerConfig, time.Time) (phase, string) { return s, "" }

func (*closed) admit(*BreakerConfig, time.Time) (uint64, bool) { return 0, true }

func (*closed) wait(*BreakerConfig, time.Time) time.Duration { return 0 }

func (s *closed) health(*BreakerConfig, time.Time, bool) (phase, string) { return s, "" }

func (s *closed) record(c *BreakerConfig, now time.Time, _ uint64, o Outcome, slow bool) (phase, string) {
	if o == Ignored {
		return s, ""
	}
	one := tally{calls: 1}
	if o == Failure {
		one.failures = 1
	}
	if slow {
		one.slow = 1
	}
	s.roll(now)
	s.slots[s.last%buckets].add(one)
	s.total.add(one)
	if s.total.calls < c.MinimumCalls {
		return s, ""
	}
	calls := float64(s.total.calls)
	if float64(s.total.failures) >= c.FailureRate*calls {
		return &open{until: now.Add(c.Reset)}, "failures"
	}
	if c.SlowCall > 0 && float64(s.total.slow) >= c.SlowRate*calls {
		return &open{until: now.Add(c.Reset)}, "slow_calls"
	}
	return s, ""
}

// roll forgets the slices that have left the window. A clock that steps back
// counts into the newest slice.
func (s *closed) roll(now time.Time) {
	at := now.UnixNano() / int64(s.width)
	if at <= s.last {
		return
	}
	if at-s.last >= buckets {
		s.slots, s.total = [buckets]tally{}, tally{}
		s.last = at
		return
	}
	for s.last < at {
		s.last++
		old := &s.slots[s.last%buckets]
		s.total.calls -= old.calls
		s.total.failures -= old.failures
		s.total.slow -= old.slow
		*old = tally{}
	}
}

func (t *tally) add(o tally) {
	t.calls += o.calls
	t.failures += o.failures
	t.slow += o.slow
}
