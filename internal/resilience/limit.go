package resilience

import (
	"math"
	"sync"
	"time"
)

// LimitConfig is the behaviour of one adaptive concurrency limit.
type LimitConfig struct {
	Initial   int     // calls at once before anything is known
	Min       int     // the limit never falls below; at least 1
	Max       int     // nor rises above
	Tolerance float64 // how many times its usual latency a call may take before the limit falls; at least 1
}

// The smoothing of the limit, the weight of one call in the usual latency (its
// memory is some 500 calls), and what one failure takes from the limit.
const (
	limitSmoothing = 0.2
	latencyWeight  = 1.0 / 500
	failureFactor  = 0.95
)

// Limit bounds the calls in flight to what the upstream handles without its
// latency growing, after the gradient algorithm of Netflix's concurrency-limits:
// the limit is multiplied by usual over present latency, plus room for a queue
// of its square root.
type Limit struct {
	config LimitConfig

	mu       sync.Mutex
	limit    float64
	inFlight int
	usual    float64 // seconds; 0 before the first call
}

// NewLimit returns a limit at its initial value.
func NewLimit(c LimitConfig) *Limit {
	return &Limit{config: c, limit: float64(c.Initial)}
}

// Acquire asks to make one call; true obliges to one Release.
func (l *Limit) Acquire() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.inFlight >= int(l.limit) {
		return false
	}
	l.inFlight++
	return true
}

// Release ends a call that took the given time to its answer. Ignored leaves
// the limit alone.
func (l *Limit) Release(took time.Duration, o Outcome) {
	l.mu.Lock()
	defer l.mu.Unlock()
	busy := float64(l.inFlight)*2 >= l.limit
	l.inFlight--
	switch o {
	case Ignored:
	case Failure:
		l.set(l.limit * failureFactor)
	case Success:
		l.learn(max(took.Seconds(), 1e-6), busy)
	}
}

func (l *Limit) learn(present float64, busy bool) {
	if l.usual == 0 {
		l.usual = present
	}
	l.usual += (present - l.usual) * latencyWeight
	if present < l.usual/2 { // a recovered upstream: forget slow days quickly
		l.usual *= 0.95
	}
	gradient := min(max(l.config.Tolerance*l.usual/present, 0.5), 1)
	next := l.limit*gradient + math.Sqrt(l.limit)
	if next > l.limit && !busy {
		return // a limit that nothing presses against has not been shown to hold
	}
	l.set(l.limit + (next-l.limit)*limitSmoothing)
}

func (l *Limit) set(v float64) {
	l.limit = min(max(v, float64(l.config.Min)), float64(l.config.Max))
}

// Now is the present limit and the calls in flight.
func (l *Limit) Now() (limit, inFlight int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return int(l.limit), l.inFlight
}
