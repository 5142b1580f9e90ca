package resilience

import (
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Backoff is how long to wait before a retry.
type Backoff struct {
	Base time.Duration // bound of the first wait
	Max  time.Duration // bound of every wait
}

// Delay is the wait before the given retry (1 is the first), with full jitter:
// u, in [0, 1), chooses a point between nothing and a bound that doubles.
func (b Backoff) Delay(retry int, u float64) time.Duration {
	bound := b.Base
	for i := 1; i < retry && bound < b.Max; i++ {
		bound *= 2
	}
	return time.Duration(u * float64(min(bound, b.Max)))
}

// ParseRetryAfter reads a Retry-After value, seconds or an HTTP date, and
// returns how long from now that is, never negative.
func ParseRetryAfter(v string, now time.Time) (time.Duration, bool) {
	v = strings.TrimSpace(v)
	if v == "" {
		return 0, false
	}
	if isDigits(v) {
		s, err := strconv.ParseUint(v, 10, 31) // 68 years bound what fits a Duration
		if err != nil {
			return 0, false
		}
		return time.Duration(s) * time.Second, true
	}
	at, err := http.ParseTime(v)
	if err != nil {
		return 0, false
	}
	return max(at.Sub(now), 0), true
}

func isDigits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}

// BudgetConfig bounds retries as a share of calls plus a floor.
type BudgetConfig struct {
	Ratio     float64 // retries earned by each call, in [0, 1]
	PerSecond float64 // retries allowed each second whatever the traffic
}

// earnedMax bounds what quiet times save up, in retries: a burst of failures
// after a busy hour must not meet an hour's unused budget.
const earnedMax = 100

// rounding is what sums of shares may miss of a whole retry.
const rounding = 1e-9

// Budget keeps retries from multiplying the load on an upstream that is failing.
// Over any time t with n calls it allows at most Ratio*n + PerSecond*t retries,
// and what it had saved before: at most 100 and one second of the floor.
type Budget struct {
	config BudgetConfig
	now    func() time.Time

	mu     sync.Mutex
	earned float64 // from calls
	floor  float64 // from time
	last   time.Time
}

// NewBudget returns a budget that holds one second's floor.
func NewBudget(c BudgetConfig, now func() time.Time) *Budget {
	return &Budget{config: c, now: now, floor: c.PerSecond, last: now()}
}

// Deposit counts one call (not a retry).
func (b *Budget) Deposit() {
	b.mu.Lock()
	b.earned = min(b.earned+b.config.Ratio, earnedMax)
	b.mu.Unlock()
}

// Withdraw asks to retry once.
func (b *Budget) Withdraw() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fill()
	switch {
	case b.earned > 1-rounding:
		b.earned--
	case b.floor > 1-rounding:
		b.floor--
	default:
		return false
	}
	return true
}

// Left is how many retries the budget holds now.
func (b *Budget) Left() float64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fill()
	return b.earned + b.floor
}

func (b *Budget) fill() {
	now := b.now()
	if d := now.Sub(b.last); d > 0 {
		b.floor = min(b.floor+d.Seconds()*b.config.PerSecond, max(b.config.PerSecond, 1))
	}
	b.last = now
}
