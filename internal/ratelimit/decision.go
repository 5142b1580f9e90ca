package ratelimit

import (
	"errors"
	"time"
)

// Entry is one key and value of a descriptor.
type Entry struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// Override is a limit that the request itself carries for a descriptor.
type Override struct {
	Tokens   uint32
	Unit     Unit
	Multiple uint32
}

// Descriptor is one thing that a request counts against.
type Descriptor struct {
	Entries []Entry
	// Hits replaces the configured cost where HasHits is set; 0 asks without
	// charging.
	Hits    uint64
	HasHits bool
	// Refund returns the hits instead of taking them.
	Refund bool
	// Override replaces the configured limits; nil leaves them.
	Override *Override
}

// Request is what a [Limiter] decides on.
type Request struct {
	Domain      string
	Descriptors []Descriptor
	// Hits is the cost of descriptors that have none of their own; 0 means
	// the configured cost.
	Hits uint32
}

// ErrInvalid is the error for a request that names no domain, no descriptor,
// or more than a request may hold. Its text may be shown to the caller.
var ErrInvalid = errors.New("invalid rate limit request")

// Bounds on one request.
const (
	// MaxDescriptors is the largest number of descriptors.
	MaxDescriptors = 32
	// MaxEntries is the largest number of entries of a descriptor.
	MaxEntries = 32
)

// Path tells how a decision was reached.
type Path uint8

// The paths of a decision, cheapest first.
const (
	PathNone     Path = iota // no rule matched
	PathDenied               // a denial remembered from before
	PathLeased               // tokens held by this process
	PathExact                // one call of the store
	PathLocal                // Redis was gone: decided in this process
	PathFallback             // Redis was gone: allowed or denied unseen
)

// String returns the label used in metrics.
func (p Path) String() string {
	return [...]string{"none", "deny_cache", "leased", "exact", "local", "fallback"}[p]
}

// Status is the answer for one descriptor.
type Status struct {
	// Denied is whether this descriptor's buckets, or the system's, do not
	// hold what was asked.
	Denied bool
	// Over is set instead where the rule only watches.
	Over bool
	// Limit is the window shown: the one with the least left, or the one that
	// denies longest. Nil where no rule matched or nothing is known.
	Limit *Limit
	// Rule is the rule the descriptor met; nil where there is none.
	Rule *Rule
	// Remaining is the number of whole tokens left in that window.
	Remaining uint32
	// Reset is the time until the same request would pass, on a denial, and
	// until the bucket is full otherwise. Where a request can never pass it is
	// the length of the window.
	Reset time.Duration
	// Retry is whether waiting for Reset helps.
	Retry bool
}

// Decision is the answer to a request.
type Decision struct {
	Allowed bool
	Path    Path
	// Statuses has one element for each descriptor, in order.
	Statuses []Status
	// Shown is the index in Statuses of the one to tell a client about, or -1
	// where no rule matched.
	Shown int
}

// Status returns the status to tell a client about, or nil.
func (d *Decision) Status() *Status {
	if d.Shown < 0 || d.Shown >= len(d.Statuses) {
		return nil
	}
	return &d.Statuses[d.Shown]
}
