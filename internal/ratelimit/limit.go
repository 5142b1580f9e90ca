package ratelimit

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// Algorithm names how a limit counts.
type Algorithm uint8

// The algorithms of a limit.
const (
	// TokenBucket refills continuously and allows bursts up to its size.
	TokenBucket Algorithm = iota
	// FixedWindow counts afresh at every multiple of its window since the epoch.
	FixedWindow
	// SlidingWindow counts what the window that ends now holds: all of the
	// fixed window that runs, and of the one before the part that is covered
	// still, as if its requests had come evenly. It is the counter of "How we
	// built rate limiting capable of scaling to millions of domains"
	// (Cloudflare, 2017).
	SlidingWindow
)

// algorithmNames is indexed by Algorithm.
var algorithmNames = [...]string{"token_bucket", "fixed_window", "sliding_window"}

// String returns the name used in rule files.
func (a Algorithm) String() string {
	if int(a) < len(algorithmNames) {
		return algorithmNames[a]
	}
	return "unknown"
}

// ParseAlgorithm returns the algorithm of that name, the default for an empty
// one, and whether there is one.
func ParseAlgorithm(name string) (Algorithm, bool) {
	at := slices.Index(algorithmNames[:], name)
	if name == "" || at < 0 {
		return TokenBucket, name == ""
	}
	return Algorithm(at), true //nolint:gosec // at is below len(algorithmNames).
}

// Unit is the unit of time of a limit. The values are those of the rate
// limit service protocol.
type Unit uint8

// The units of time.
const (
	UnknownUnit Unit = iota
	Second
	Minute
	Hour
	Day
	Month
	Year
	Week
)

// unitNames is indexed by Unit.
var unitNames = [...]string{"unknown", "second", "minute", "hour", "day", "month", "year", "week"}

// String returns the name used in rule files.
func (u Unit) String() string {
	if int(u) < len(unitNames) {
		return unitNames[u]
	}
	return unitNames[UnknownUnit]
}

// Window returns the length of the unit: a month is 30 days, a year 365.
// An unknown unit has no length.
func (u Unit) Window() time.Duration {
	const day = 24 * time.Hour
	switch u {
	case Second:
		return time.Second
	case Minute:
		return time.Minute
	case Hour:
		return time.Hour
	case Day:
		return day
	case Week:
		return 7 * day
	case Month:
		return 30 * day
	case Year:
		return 365 * day
	default:
		return 0
	}
}

// ParseUnit returns the unit of that name and whether there is one.
func ParseUnit(name string) (Unit, bool) {
	for i, n := range unitNames {
		if i > 0 && n == name {
			return Unit(i), true //nolint:gosec // i is below len(unitNames).
		}
	}
	return UnknownUnit, false
}

// maxCapacity bounds a bucket, in microseconds, so that every sum with the
// present time stays an integer that a Lua number holds exactly (2^53).
const maxCapacity = int64(1) << 50

// Limit is a number of tokens in a window of time, ready to be decided on.
// Make one with [NewLimit].
type Limit struct {
	Name      string // identifies the policy to clients, such as "minute"
	Tokens    uint32 // refilled each window; 0 denies everything
	Unit      Unit
	Multiple  uint32 // the window is this many units
	Burst     uint32 // the size of the bucket in tokens
	Algorithm Algorithm
	// Exact forbids, and Leased allows, tokens to be taken in advance. Where
	// neither is set the size of the bucket decides.
	Exact, Leased bool

	interval int64 // microseconds that one token is worth
	capacity int64 // microseconds of a whole bucket
	period   int64 // microseconds of a window, negative for a sliding one; 0 for a token bucket
	suffix   string
}

// NewLimit returns a limit of that many tokens in each window of multiple
// units. Burst 0 makes the bucket as large as one window. The error names
// what cannot be represented: a window of more than one token a
// microsecond, or a bucket that takes more than some 35 years to fill. A token
// bucket refills by one token a microsecond at most, whatever tokens says.
func NewLimit(name string, tokens uint32, unit Unit, multiple, burst uint32, algorithm Algorithm) (Limit, error) {
	if multiple == 0 {
		multiple = 1
	}
	window := unit.Window().Microseconds() * int64(multiple)
	if window <= 0 || window > maxCapacity {
		return Limit{}, fmt.Errorf("window of %d %s is not within 1 second and 35 years", multiple, unit)
	}
	if algorithm == FixedWindow && int64(tokens) > window || algorithm == SlidingWindow && int64(tokens) >= window {
		return Limit{}, fmt.Errorf("%d tokens in %s are more than one a microsecond", tokens, time.Duration(window)*time.Microsecond)
	}
	if burst == 0 {
		burst = tokens
	}
	if algorithm != TokenBucket && burst != tokens {
		return Limit{}, fmt.Errorf("burst %d has no meaning with algorithm %s", burst, algorithm)
	}
	if name == "" {
		name = unit.String()
		if multiple != 1 {
			name = fmt.Sprintf("%d-%ss", multiple, unit)
		}
	}
	l := Limit{Name: name, Tokens: tokens, Unit: unit, Multiple: multiple, Burst: burst, Algorithm: algorithm}
	l.suffix = fmt.Sprintf(":%d", window/1e6)
	switch {
	case tokens == 0:
		l.interval, l.Burst = window, 0
	case algorithm == TokenBucket:
		// Rounded up: never more tokens than the limit says.
		l.interval = (window + int64(tokens) - 1) / int64(tokens)
	case algorithm == SlidingWindow:
		// A full window is less than its length, so that a level tells its window.
		l.interval = (window - 1) / int64(tokens)
	default:
		l.interval = window / int64(tokens)
	}
	switch algorithm {
	case FixedWindow:
		l.period = window
		l.suffix += "f"
	case SlidingWindow:
		l.period = -window
		l.suffix += "s"
	case TokenBucket:
	}
	if l.Burst > 0 && l.interval > maxCapacity/int64(l.Burst) {
		return Limit{}, fmt.Errorf("burst of %d tokens takes more than 35 years to fill", burst)
	}
	l.capacity = int64(l.Burst) * l.interval
	return l, nil
}

// Window is the time in which Tokens tokens are refilled.
func (l *Limit) Window() time.Duration { return l.Unit.Window() * time.Duration(l.Multiple) }

// leaseBurst is the size of a bucket, in tokens, from which it may be leased
// where the configuration does not say.
const leaseBurst = 2000

// leased returns what a token is worth where the bucket may be leased, else 0.
func (l *Limit) leased() int64 {
	if l.period != 0 || l.Exact || l.Burst < leaseBurst && !l.Leased {
		return 0
	}
	return l.interval
}

// worth returns what hits tokens are worth in this limit: microseconds, or
// more than the bucket holds where they can never be had.
func (l *Limit) worth(hits uint64) int64 {
	if hits > uint64(l.Burst) || hits > math.MaxInt64 {
		return l.capacity + 1
	}
	return int64(hits) * l.interval //nolint:gosec // hits is at most Burst.
}
