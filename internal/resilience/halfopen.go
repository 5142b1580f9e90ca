package resilience

import (
	"slices"
	"time"
)

// halfOpen lets a few probes through. Enough successes close; one failure opens.
type halfOpen struct {
	last      uint64
	inFlight  []probe
	successes int
}

type probe struct {
	id       uint64
	deadline time.Time
}

func (*halfOpen) state() State { return HalfOpen }

// elapse takes back the places of lost probes, which say nothing either way.
func (s *halfOpen) elapse(_ *BreakerConfig, now time.Time) (phase, string) {
	s.inFlight = slices.DeleteFunc(s.inFlight, func(p probe) bool { return !now.Before(p.deadline) })
	return s, ""
}

func (s *halfOpen) admit(c *BreakerConfig, now time.Time) (uint64, bool) {
	if s.successes+len(s.inFlight) >= c.Probes {
		return 0, false
	}
	s.last++
	s.inFlight = append(s.inFlight, probe{id: s.last, deadline: now.Add(c.ProbeTimeout)})
	return s.last, true
}

// wait is the time until the oldest probe must have ended.
func (s *halfOpen) wait(_ *BreakerConfig, now time.Time) time.Duration {
	if len(s.inFlight) == 0 {
		return 0
	}
	return s.inFlight[0].deadline.Sub(now)
}

func (s *halfOpen) record(c *BreakerConfig, now time.Time, id uint64, o Outcome, slow bool) (phase, string) {
	at := slices.IndexFunc(s.inFlight, func(p probe) bool { return p.id == id })
	if at < 0 {
		return s, ""
	}
	s.inFlight = slices.Delete(s.inFlight, at, at+1)
	switch {
	case o == Ignored:
		return s, ""
	case o == Failure || slow:
		return &open{until: now.Add(c.Reset)}, "probe_failed"
	}
	return s.pass(c)
}

func (s *halfOpen) health(c *BreakerConfig, now time.Time, ok bool) (phase, string) {
	if !ok {
		return &open{until: now.Add(c.Reset)}, "health_failed"
	}
	return s.pass(c)
}

func (s *halfOpen) pass(c *BreakerConfig) (phase, string) {
	s.successes++
	if s.successes < c.Probes {
		return s, ""
	}
	return newClosed(c), "probes_passed"
}
