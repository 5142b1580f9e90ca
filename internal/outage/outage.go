// Package outage says when to log that something a process asks, such as a store
// or another server, has gone away and is back: by state, and not by answer. One
// that answers now and then is away all the while.
package outage

import (
	"sync/atomic"
	"time"
)

// Calm is how long after its last failure what answers counts as back.
const Calm = 10 * time.Second

// Outage is whether one thing is away. The zero value is not. It is safe for
// concurrent use.
type Outage struct {
	// failedAt is when it failed for the last time, in nanoseconds since 1970; 0
	// once that is over.
	failedAt atomic.Int64
}

// Failed notes a failure, and reports whether an outage begins with it.
func (o *Outage) Failed(now time.Time) (begins bool) {
	return o.failedAt.Swap(now.UnixNano()) == 0
}

// Answered notes an answer, and reports whether an outage ends with it.
func (o *Outage) Answered(now time.Time) (ends bool) {
	at := o.failedAt.Load()
	return at != 0 && now.UnixNano()-at >= int64(Calm) && o.failedAt.CompareAndSwap(at, 0)
}
