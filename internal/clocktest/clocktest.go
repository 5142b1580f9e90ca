// Package clocktest is a clock that stands still until a test moves it.
package clocktest

import (
	"sync"
	"time"
)

// Clock is a settable time. It is safe for concurrent use.
type Clock struct {
	mu sync.Mutex
	at time.Time
}

// New is a clock that shows the time at.
func New(at time.Time) *Clock { return &Clock{at: at} }

// Now is the time that the clock shows, for whatever takes a func() time.Time.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

// Advance moves the clock by d, back where d is negative.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}
