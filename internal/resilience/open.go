package resilience

import "time"

// open lets nothing through until its time is over, or until health checks that
// had seen the fault see it gone.
type open struct {
	until    time.Time
	seenDown bool
}

func (*open) state() State { return Open }

func (s *open) elapse(_ *BreakerConfig, now time.Time) (phase, string) {
	if now.Before(s.until) {
		return s, ""
	}
	return &halfOpen{}, "reset_elapsed"
}

func (*open) admit(*BreakerConfig, time.Time) (uint64, bool) { return 0, false }

func (s *open) wait(_ *BreakerConfig, now time.Time) time.Duration { return s.until.Sub(now) }

// record cannot be reached: no call is admitted, and older results are void.
func (s *open) record(*BreakerConfig, time.Time, uint64, Outcome, bool) (phase, string) {
	return s, ""
}

func (s *open) health(_ *BreakerConfig, _ time.Time, ok bool) (phase, string) {
	if !ok {
		s.seenDown = true
		return s, ""
	}
	if !s.seenDown {
		return s, ""
	}
	return &halfOpen{}, "health_recovered"
}
