package ratelimit

import (
	"context"
	"time"
)

// confirmation is a question to the store, whether a demand is still denied
// as is remembered.
type confirmation struct {
	of     *denial
	demand Demand
	// returns is what was returned to its buckets before it is asked.
	returns uint64
}

const (
	// confirmEvery is how long confirmations gather for common calls.
	confirmEvery = 20 * time.Millisecond
	// confirmBuckets bounds the buckets of one: a full call holds no more than
	// maxBuckets.
	confirmBuckets = maxBuckets / MaxBatch
)

// ask puts a question about a demand that the memory denied to those that
// wait, unless too many do.
func (ds *denials) ask(n *denial, d *Demand) {
	if len(n.buckets) > confirmBuckets {
		return
	}
	c := &confirmation{of: n}
	c.demand.Charges = make([]Charge, 0, len(n.buckets))
	for i := range d.Charges {
		if b := &d.Charges[i]; !b.Shared {
			c.demand.Charges = append(c.demand.Charges, Charge{Key: b.Key, Interval: b.Interval, Period: b.Period, Capacity: b.Capacity, Need: b.Need})
		}
	}
	select {
	case ds.due <- c:
	default:
	}
}

// confirmed notes the answer to a question that was asked at start and
// answered at end of the limiter's clock, unless something newer is known.
func (ds *denials) confirmed(c *confirmation, start, end time.Duration) {
	n := ds.newDenial(&c.demand, start, end)
	s, hash := ds.shard(c.of.buckets[0].key)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.known[hash] != c.of || ds.returnsTo(&c.demand) != c.returns:
	case n == nil:
		delete(s.known, hash)
	default:
		n.follow(c.of, end)
		s.known[hash] = n
	}
}

// confirmDenials asks the store about the memories that are to end, until ctx
// ends.
func (l *Limiter) confirmDenials(ctx context.Context) {
	if l.denials == nil {
		return
	}
	gather := time.NewTimer(0)
	defer gather.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case c := <-l.denials.due:
			gather.Reset(confirmEvery)
			select {
			case <-ctx.Done():
				return
			case <-gather.C:
			}
			l.confirm(c)
		}
	}
}

// confirm asks the store about all memories that wait for it by now, in as few
// calls as may be; others gather meanwhile. Where it does not answer they end, as
// they would have.
func (l *Limiter) confirm(waiting ...*confirmation) {
	for left := len(l.denials.due); ; {
		for ; left > 0 && len(waiting) < MaxBatch; left-- {
			waiting = append(waiting, <-l.denials.due)
		}
		if len(waiting) == 0 {
			return
		}
		if l.guard.allows() {
			demands := make([]*Demand, len(waiting))
			for i, c := range waiting {
				demands[i], c.returns = &c.demand, l.denials.returnsTo(&c.demand)
			}
			start := l.now().Sub(l.began)
			if err := l.batcher.call(demands); err == nil {
				end := l.now().Sub(l.began)
				for _, c := range waiting {
					l.denials.confirmed(c, start, end)
				}
			}
		}
		waiting = waiting[:0]
	}
}
