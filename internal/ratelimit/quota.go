package ratelimit

import (
	"context"
	"errors"
	"math"
	"math/bits"
	"time"
)

// Usage is what somebody else, such as an Envoy with a quota, let through.
type Usage struct {
	// Entries are those of the descriptor.
	Entries []Entry
	// Requests is their number.
	Requests uint64
	// Over is the time, up to now, in which they came evenly; 0 for all at once.
	Over time.Duration
}

// Quota is how the buckets of a usage stand.
type Quota struct {
	// Key names the subject, whatever else the descriptor says: quotas of one key
	// share its buckets.
	Key string
	// Cost is the number of tokens that a request takes.
	Cost uint64
	// Free is set where no rule limits the descriptor, or one that only watches.
	Free bool
	// States are the subject's buckets, then the system's, after the charge.
	States []State
}

// Spend charges requests that were let through already to the buckets that
// their descriptors meet, as far as they hold anything, and tells what is left
// for each usage, in their order. It asks the shared store, about many usages
// in one call. With an error it tells of those, from the first on, that were
// charged before; of the others some may have been.
func (l *Limiter) Spend(ctx context.Context, name string, usages []Usage) ([]Quota, error) {
	quotas := make([]Quota, len(usages))
	charged := 0
	var batch spending
	defer batch.release()
	for i := range usages {
		if err := batch.add(l, name, &usages[i], &quotas[i]); err != nil {
			return quotas[:charged], err
		}
		if i+1 < len(usages) && !batch.full() {
			continue
		}
		if err := batch.take(ctx, l); err != nil {
			return quotas[:charged], err
		}
		charged = i + 1
	}
	return quotas, nil
}

// charge is what a usage takes from a bucket of that limit: of a bucket that is
// filled, or a window that ends, sooner than the usage took, only what came in as
// long a time. So usages that several report of one bucket add up.
func (u *Usage) charge(limit *Limit, cost uint64) int64 {
	amount := maxCapacity
	if high, hits := bits.Mul64(u.Requests, cost); high == 0 && hits < uint64(maxCapacity) {
		amount = scaled(int64(hits), limit.interval, maxCapacity) //nolint:gosec // hits is below 2^50.
	}
	length := max(limit.period, -limit.period)
	if length == 0 {
		length = limit.capacity
	}
	if over := u.Over.Microseconds(); over > length {
		amount = int64(math.Ceil(float64(amount) / float64(over) * float64(length)))
	}
	return min(amount, limit.capacity)
}

// spending is what one call of the store charges for usages.
type spending struct {
	plans   []*plan
	quotas  []*Quota
	demands []*Demand
}

func (s *spending) add(l *Limiter, name string, u *Usage, q *Quota) error {
	p, err := l.inspect(name, u.Entries)
	if errors.Is(err, ErrUnknown) {
		q.Free = true
		return nil
	}
	if err != nil {
		return err
	}
	m := &p.matches[0]
	q.Key = string(appendSubjectKey(nil, name, m.kind, m.entries))
	q.Cost, q.Free = p.domain.cost(m.rule, u.Entries), m.rule.Shadow || m.rule.Quota
	for i := range p.uses {
		of := &p.uses[i]
		c := &p.demands[of.demand].Charges[of.charge]
		c.Cost = u.charge(of.limit, q.Cost)
	}
	s.plans, s.quotas, s.demands = append(s.plans, p), append(s.quotas, q), append(s.demands, p.active...)
	return nil
}

// full leaves room for what one more usage may add: an enforced demand, and one
// that is watched.
func (s *spending) full() bool { return len(s.demands)+2 > MaxBatch }

func (s *spending) take(ctx context.Context, l *Limiter) error {
	defer s.release()
	if len(s.demands) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	if err := l.store.Take(ctx, s.demands); err != nil {
		return err
	}
	for i, p := range s.plans {
		s.quotas[i].States = p.states()
	}
	return nil
}

func (s *spending) release() {
	for _, p := range s.plans {
		p.release()
	}
	*s = spending{plans: s.plans[:0], quotas: s.quotas[:0], demands: s.demands[:0]}
}
