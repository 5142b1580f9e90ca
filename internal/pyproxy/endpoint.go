package pyproxy

import (
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"
)

// endpoint is one address of an upstream. It outlives look-ups that return the
// same address, so that what is known of it is kept.
type endpoint struct {
	address string // host:port to connect to
	host    string // as configured: the Host header

	inFlight  atomic.Int64
	unhealthy atomic.Bool // by health checks
	failures  atomic.Int32
	ejections atomic.Int32
	until     atomic.Int64 // ejected until this time, Unix nanoseconds
	suspect   atomic.Int64 // the last choice until this time, Unix nanoseconds

	// Owned by the upstream's health checker.
	bad, good int
}

func (e *endpoint) ejected(now time.Time) bool { return e.until.Load() > now.UnixNano() }

func (e *endpoint) available(now time.Time) bool {
	return !e.unhealthy.Load() && !e.ejected(now)
}

// suspicion is how long an endpoint that failed a call is the last choice, for
// each failure in a row. Without it an endpoint that fails fast looks idle,
// draws the calls, and opens the circuit of a service whose other endpoints work.
const suspicion = time.Second

// pick returns the available endpoint with the fewest calls in flight that has
// not been tried and has not just failed, ties broken at random; else one that
// has; else any available one; else, since a
// wrong health check must not take a whole service away, any at all. There is
// always one: a name that was never found stands for itself.
func pick(all []*endpoint, tried []*endpoint, now time.Time) *endpoint {
	first := 0
	if len(all) > 1 {
		first = rand.IntN(len(all)) //nolint:gosec // spreads load, guards nothing
	}
	var best *endpoint
	bestRank, bestLoad := -1, int64(0)
	for i := range all {
		e := all[(first+i)%len(all)]
		rank := 0
		if e.available(now) {
			rank = 4
		}
		if !slices.Contains(tried, e) {
			rank += 2
		}
		if e.suspect.Load() <= now.UnixNano() {
			rank++
		}
		load := e.inFlight.Load()
		if rank > bestRank || rank == bestRank && load < bestLoad {
			best, bestRank, bestLoad = e, rank, load
		}
	}
	return best
}

// succeeded and failed are passive health: enough failures in a row eject the
// endpoint for a while. failed says for how long, or 0.
func (e *endpoint) succeeded() {
	if e.failures.Load() != 0 {
		e.failures.Store(0)
		e.suspect.Store(0)
	}
}

func (e *endpoint) failed(c EjectionConfig, all []*endpoint, now time.Time) time.Duration {
	n := e.failures.Add(1)
	e.suspect.Store(now.Add(min(suspicion*time.Duration(n), c.Base)).UnixNano())
	if int(n) < c.Failures || e.ejected(now) {
		return 0
	}
	out := 1
	for _, other := range all {
		if other != e && other.ejected(now) {
			out++
		}
	}
	if out*2 > len(all) {
		return 0
	}
	d := min(c.Base*time.Duration(e.ejections.Add(1)), c.Max)
	e.failures.Store(0)
	e.until.Store(now.Add(d).UnixNano())
	return d
}
