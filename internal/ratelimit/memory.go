package ratelimit

import (
	"context"
	"sync"
	"time"
)

// Memory is a [Store] in the memory of one process: the fallback while Redis
// is gone, and the twin of [Redis] in tests. Use [NewMemory].
type Memory struct {
	now   func() time.Time
	limit int

	mu      sync.Mutex
	buckets map[string]kept
}

// kept is the state of a bucket until it is full again.
type kept struct {
	level    int64
	previous int64
	expires  int64
	period   int64
	capacity int64
}

// evictionSample is how many buckets are looked at to find one to forget.
const evictionSample = 8

// NewMemory returns an empty store that keeps at most limit buckets. Where a
// new bucket finds no room, one is forgotten among a few: the one that would
// have been full again soonest.
func NewMemory(limit int, now func() time.Time) *Memory {
	return &Memory{now: now, limit: max(limit, 1), buckets: map[string]kept{}}
}

// Take implements [Store].
func (m *Memory) Take(ctx context.Context, demands []*Demand) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now().UnixMicro()
	for _, d := range demands {
		ahead := false
		for i := range d.Charges {
			c := &d.Charges[i]
			k := m.buckets[c.Key]
			c.Level, c.Previous = k.level, k.previous
			ahead = ahead || c.ahead(now)
		}
		Decide(now, d)
		for i := range d.Charges {
			c := &d.Charges[i]
			if d.Allowed && c.Cost != 0 || !d.Allowed && ahead && m.buckets[c.Key].level > c.Level {
				m.put(now, c)
			}
		}
	}
	return nil
}

func (m *Memory) put(now int64, c *Charge) {
	expires := c.ends(now)
	if expires <= now {
		delete(m.buckets, c.Key)
		return
	}
	if _, known := m.buckets[c.Key]; !known {
		m.makeRoom(now)
	}
	m.buckets[c.Key] = kept{level: c.Level, previous: c.Previous, expires: expires, period: c.Period, capacity: c.Capacity}
}

// makeRoom looks at a few buckets, forgets those that are full again, and one
// more where the store is at its limit. As it runs for each new bucket, the
// store cannot fill up with what has ended.
func (m *Memory) makeRoom(now int64) {
	seen, victim, soonest := 0, "", int64(0)
	for key, k := range m.buckets {
		if k.expires <= now {
			delete(m.buckets, key)
		} else if victim == "" || k.expires < soonest {
			victim, soonest = key, k.expires
		}
		if seen++; seen == evictionSample {
			break
		}
	}
	if len(m.buckets) >= m.limit {
		delete(m.buckets, victim)
	}
}

// Len is the number of buckets kept.
func (m *Memory) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.buckets)
}

// Drain empties the store and returns, for each bucket that is not full, a
// demand that charges what was missing in it divided by share, whatever
// another store's bucket still holds.
func (m *Memory) Drain(share int64) []*Demand {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now().UnixMicro()
	var debts []*Demand
	for key, k := range m.buckets {
		if k.expires <= now {
			continue
		}
		c := Charge{Key: key, Period: k.period, Capacity: k.capacity, Level: k.level, Previous: k.previous}
		c.present(now)
		missed := min(c.used(now), k.capacity)
		if c.Level, c.Previous = 0, 0; missed <= 0 {
			continue
		}
		c.Cost = max(missed/max(share, 1), 1)
		debts = append(debts, &Demand{Charges: []Charge{c}})
	}
	m.buckets = map[string]kept{}
	return debts
}
