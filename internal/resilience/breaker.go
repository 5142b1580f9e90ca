package resilience

import (
	"fmt"
	"sync"
	"time"
)

// State is what a breaker does with the next call.
type State uint8

// The three states, in the order of the metric's value.
const (
	Closed   State = iota // calls pass
	HalfOpen              // a few probes pass
	Open                  // nothing passes
)

// String returns "closed", "half_open" or "open".
func (s State) String() string {
	switch s {
	case Closed:
		return "closed"
	case HalfOpen:
		return "half_open"
	case Open:
		return "open"
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// Outcome is what a finished call says about its upstream.
type Outcome uint8

// A call that the client gave up says nothing: it is neither success nor failure.
const (
	Ignored Outcome = iota
	Success
	Failure
)

// BreakerConfig is the behaviour of one breaker. Every field but SlowCall must be positive.
type BreakerConfig struct {
	FailureRate  float64       // share of failed calls, in (0, 1], that opens
	SlowCall     time.Duration // a call that took longer is slow; 0 counts none as slow
	SlowRate     float64       // share of slow calls, in (0, 1], that opens
	MinimumCalls int           // finished calls in the window before a share counts
	Window       time.Duration // how far back calls are counted
	Reset        time.Duration // how long open lasts
	Probes       int           // successes that close a half-open breaker; also the most probes at once
	ProbeTimeout time.Duration // a probe without a result after this long gives its place back
}

// Transition is one change of a breaker's state.
type Transition struct {
	From, To State
	Cause    string // one of a fixed set: failures, slow_calls, reset_elapsed, health_recovered, health_failed, probes_passed, probe_failed, tripped, reset
}

// OpenError is returned while a breaker lets no call through.
type OpenError struct {
	State      State
	RetryAfter time.Duration // when the next call may pass; never below one second
}

// Error names the state and the wait.
func (e *OpenError) Error() string {
	return fmt.Sprintf("circuit %s, retry after %s", e.State, e.RetryAfter)
}

// phase is one state of the machine. Its methods are called with the breaker's
// lock held; those that return a phase return the receiver to stay.
type phase interface {
	state() State
	// elapse applies the passing of time alone.
	elapse(c *BreakerConfig, now time.Time) (phase, string)
	// admit asks for one call; the number identifies a probe.
	admit(c *BreakerConfig, now time.Time) (probe uint64, ok bool)
	// record takes the result of an admitted call.
	record(c *BreakerConfig, now time.Time, probe uint64, o Outcome, slow bool) (phase, string)
	// health takes the result of one round of health checks.
	health(c *BreakerConfig, now time.Time, ok bool) (phase, string)
	// wait is the time until a call may pass.
	wait(c *BreakerConfig, now time.Time) time.Duration
}

// Breaker stops calls to an upstream that mostly fails, and finds out by itself
// when it is back: by a few probes among the clients' calls, or by health checks
// where there are none.
type Breaker struct {
	config BreakerConfig
	now    func() time.Time
	notify func(Transition)

	mu         sync.Mutex
	phase      phase
	generation uint64 // counts transitions; results of an older one are void
	unwell     bool   // the last round of health checks failed
	pending    []Transition
}

// NewBreaker returns a closed breaker. notify, if not nil, is called after every
// transition, outside the lock, by the goroutine that caused or noticed it.
func NewBreaker(c BreakerConfig, now func() time.Time, notify func(Transition)) *Breaker {
	return &Breaker{config: c, now: now, notify: notify, phase: newClosed(&c)}
}

// Permit is the leave to make one call. Exactly one of its Done must be called.
type Permit struct {
	b          *Breaker
	generation uint64
	probe      uint64
}

// Acquire asks for one call. The error is an *OpenError.
func (b *Breaker) Acquire() (Permit, error) {
	now := b.now()
	b.mu.Lock()
	b.elapse(now)
	probe, ok := b.phase.admit(&b.config, now)
	p := Permit{b: b, generation: b.generation, probe: probe}
	var err error
	if !ok {
		err = &OpenError{State: b.phase.state(), RetryAfter: b.waitLocked(now)}
	}
	b.unlock()
	return p, err
}

// Done reports how the call went, and how long its answer took to begin. A
// result that arrives after a transition, or after the probe's time-out, changes
// nothing.
func (p Permit) Done(o Outcome, took time.Duration) {
	if p.b == nil {
		return
	}
	b, now := p.b, p.b.now()
	b.mu.Lock()
	b.elapse(now)
	if p.generation == b.generation {
		slow := b.config.SlowCall > 0 && took > b.config.SlowCall && o != Ignored
		b.become(b.phase.record(&b.config, now, p.probe, o, slow))
	}
	b.unlock()
}

// Health reports one round of health checks over all the upstream's addresses:
// ok if any of them answered well. It never opens a closed breaker. It ends open
// early only if a check has failed while it was open or just before, so that a service
// whose health page works while its calls fail is left alone for the whole reset
// time; and it counts as a probe of a half-open one.
func (b *Breaker) Health(ok bool) {
	now := b.now()
	b.mu.Lock()
	b.unwell = !ok
	b.elapse(now)
	b.become(b.phase.health(&b.config, now, ok))
	b.unlock()
}

// Trip opens the breaker for its reset time, whatever it was.
func (b *Breaker) Trip() {
	now := b.now()
	b.mu.Lock()
	b.become(&open{until: now.Add(b.config.Reset)}, "tripped")
	b.unlock()
}

// Reset closes the breaker and forgets what it counted.
func (b *Breaker) Reset() {
	b.mu.Lock()
	b.become(newClosed(&b.config), "reset")
	b.unlock()
}

// State is the state at this moment, with or without traffic, and, unless
// closed, the time until a call may pass.
func (b *Breaker) State() (State, time.Duration) {
	now := b.now()
	b.mu.Lock()
	b.elapse(now)
	s := b.phase.state()
	var wait time.Duration
	if s != Closed {
		wait = b.waitLocked(now)
	}
	b.unlock()
	return s, wait
}

func (b *Breaker) waitLocked(now time.Time) time.Duration {
	return max(b.phase.wait(&b.config, now), time.Second)
}

func (b *Breaker) elapse(now time.Time) { b.become(b.phase.elapse(&b.config, now)) }

func (b *Breaker) become(next phase, cause string) {
	if next == b.phase {
		return
	}
	t := Transition{From: b.phase.state(), To: next.state(), Cause: cause}
	if o, ok := next.(*open); ok {
		o.seenDown = b.unwell
	}
	b.phase = next
	b.generation++
	if b.notify != nil && t.From != t.To {
		b.pending = append(b.pending, t)
	}
}

// unlock releases the lock, then tells of the transitions made under it.
func (b *Breaker) unlock() {
	if b.pending == nil {
		b.mu.Unlock()
		return
	}
	pending := b.pending
	b.pending = nil
	b.mu.Unlock()
	for _, t := range pending {
		b.notify(t)
	}
}
