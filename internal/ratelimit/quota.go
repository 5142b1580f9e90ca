package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
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
// in one call. After an error some may have been charged.
func (l *Limiter) Spend(ctx context.Context, name string, usages []Usage) ([]Quota, error) {
	quotas := make([]Quota, len(usages))
	var batch spending
	defer batch.release()
	for i := range usages {
		if err := batch.add(l, name, &usages[i], &quotas[i]); err != nil {
			return nil, err
		}
		if i+1 < len(usages) && !batch.full() {
			continue
		}
		if err := batch.take(ctx, l); err != nil {
			return nil, err
		}
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

// Sharers keeps in Redis who shares a quota, so that all processes that serve
// quotas divide it among the same ones. It may be used by any number of
// goroutines.
type Sharers struct {
	client redis.Cmdable
	now    func() time.Time
}

// NewSharers returns sharers kept with client.
func NewSharers(client redis.Cmdable, now func() time.Time) *Sharers {
	return &Sharers{client: client, now: now}
}

// sharersPrefix begins the key of the hash of a quota's sharers: name to demand
// and end. The hash expires with the last of them.
const sharersPrefix = "tollgate:quota:"

// Part is what a sharer wants of a quota.
type Part struct {
	Key, Name string
	Demand    float64 // tokens a second
}

// Join notes what sharers want for as long as life, and returns, for each part,
// what the others want of its quota.
func (s *Sharers) Join(ctx context.Context, parts []Part, life time.Duration) ([][]float64, error) {
	others := make([][]float64, 0, len(parts))
	for chunk := range slices.Chunk(parts, MaxBatch) {
		found, err := s.join(ctx, chunk, life)
		if err != nil {
			return nil, fmt.Errorf("sharers of quotas: %w", err)
		}
		others = append(others, found...)
	}
	return others, nil
}

func (s *Sharers) join(ctx context.Context, parts []Part, life time.Duration) ([][]float64, error) {
	now := s.now()
	all := make([]*redis.MapStringStringCmd, len(parts))
	// A transaction, so that no key stays without an end.
	_, err := s.client.TxPipelined(ctx, func(p redis.Pipeliner) error {
		until := " " + strconv.FormatInt(now.Add(life).UnixMilli(), 10)
		for i, part := range parts {
			key := sharersPrefix + part.Key
			p.HSet(ctx, key, part.Name, strconv.FormatFloat(part.Demand, 'g', 6, 64)+until)
			p.PExpire(ctx, key, life)
			all[i] = p.HGetAll(ctx, key)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	others := make([][]float64, len(parts))
	for i, part := range parts {
		var ended []string
		for other, text := range all[i].Val() {
			if other == part.Name {
				continue
			}
			wanted, until, err := parseSharer(text)
			if err != nil || until <= now.UnixMilli() {
				ended = append(ended, other)
				continue
			}
			others[i] = append(others[i], wanted)
		}
		if len(ended) > 0 {
			if err := s.client.HDel(ctx, sharersPrefix+part.Key, ended...).Err(); err != nil {
				return nil, err
			}
		}
	}
	return others, nil
}

func parseSharer(text string) (demand float64, until int64, err error) {
	first, second, _ := strings.Cut(text, " ")
	demand, err1 := strconv.ParseFloat(first, 64)
	until, err2 := strconv.ParseInt(second, 10, 64)
	return demand, until, errors.Join(err1, err2)
}

// Leave gives back a sharer's part of a quota.
func (s *Sharers) Leave(ctx context.Context, key, name string) error {
	if err := s.client.HDel(ctx, sharersPrefix+key, name).Err(); err != nil {
		return fmt.Errorf("leave a quota: %w", err)
	}
	return nil
}
