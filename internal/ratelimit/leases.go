package ratelimit

import (
	"hash/maphash"
	"sync"
	"time"
)

// leases hands out tokens of large buckets that this process took in advance,
// so that most requests need no call of the store. What is handed out was
// charged before: together all processes never grant more than a bucket held.
//
// A bucket that is asked for often gets a lease, twice as large each time it is
// used up, up to a part of what the bucket has left; near the limit there is
// none, and every request is decided exactly. What is not used within a
// lifetime goes back.
type leases struct {
	seed   maphash.Seed
	life   time.Duration
	limit  int // of each shard
	shards [leaseShards]struct {
		mu    sync.Mutex
		known map[string]*lease
	}
}

const (
	leaseShards = 32
	// leaseShare is the part of what a bucket has left that one lease may take.
	leaseShare = 16
	// firstLease and lastLease bound a lease, in tokens.
	firstLease = 8
	lastLease  = 1024
)

// lease is what this process holds of one bucket, in microseconds.
type lease struct {
	held     int64
	level    int64 // of the bucket when the lease was taken
	offset   int64 // of the store's clock to the limiter's, then
	interval int64
	capacity int64
	chunk    int64 // tokens of the lease, or of the next one
	expires  time.Duration
	filling  bool // a request is about to fetch the next one
	used     bool // since the last sweep
}

func newLeases(life time.Duration, limit int) *leases {
	ls := &leases{seed: maphash.MakeSeed(), life: life, limit: max(limit/leaseShards, 1)}
	for i := range ls.shards {
		ls.shards[i].known = map[string]*lease{}
	}
	return ls
}

// claim is what a demand uses of leases: for each charge what it needed and
// cost before, and what was done about it.
type claim struct {
	need, cost int64
	leased     bool // handed out from a lease
	extra      int64
	filling    bool
}

// leasable says whether the charge may be served from a lease.
func leasable(c *Charge) bool { return c.Interval > 0 && c.Cost > 0 && c.Need == c.Cost }

// reserve serves what it can of the demand from leases, and changes the rest:
// a charge that is served asks the store for nothing, and one whose lease is
// to be renewed asks for the next lease too. It says whether nothing is left
// to ask the store.
func (ls *leases) reserve(d *Demand, claims []claim, at time.Duration) ([]claim, bool) {
	all := true
	claims = claims[:0]
	for i := range d.Charges {
		c := &d.Charges[i]
		cl := claim{need: c.Need, cost: c.Cost}
		if leasable(c) {
			ls.claim(c, &cl, at)
		}
		all = all && cl.leased
		claims = append(claims, cl)
	}
	return claims, all
}

func (ls *leases) claim(c *Charge, cl *claim, at time.Duration) {
	s := &ls.shards[maphash.String(ls.seed, c.Key)%leaseShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.known[c.Key]
	if l == nil {
		if len(s.known) < ls.limit {
			s.known[c.Key] = &lease{interval: c.Interval, capacity: c.Capacity, expires: at + ls.life}
		}
		return
	}
	l.used = true
	if l.interval != c.Interval || l.capacity != c.Capacity {
		return // The limit is another now; the sweep returns what is held.
	}
	if l.expires > at && l.held >= c.Need {
		l.held -= c.Cost
		cl.leased = true
		c.Need, c.Cost = 0, 0
		return
	}
	if l.filling || l.expires <= at && l.held > 0 {
		return
	}
	if chunk := l.next(at); chunk > 0 {
		l.filling, cl.filling = true, true
		cl.extra = chunk * c.Interval
		c.Need += cl.extra
		c.Cost += cl.extra
	}
}

// next is how many tokens the next lease takes; 0 for none.
func (l *lease) next(at time.Duration) int64 {
	if l.level == 0 {
		return 0 // Nothing is known of the bucket yet.
	}
	now := at.Microseconds() + l.offset
	left := (now + l.capacity - max(l.level, now)) / l.interval
	chunk := min(max(2*l.chunk, firstLease), lastLease, left/leaseShare)
	if chunk < firstLease {
		return 0
	}
	return chunk
}

// served fills a demand that leases served wholly.
func (ls *leases) served(d *Demand, claims []claim, at time.Duration) {
	d.Allowed = true
	for i := range d.Charges {
		c := &d.Charges[i]
		c.Need, c.Cost = claims[i].need, claims[i].cost
		s := &ls.shards[maphash.String(ls.seed, c.Key)%leaseShards]
		s.mu.Lock()
		if l := s.known[c.Key]; l != nil {
			d.Now = max(d.Now, at.Microseconds()+l.offset)
			c.Level = l.level - l.held
		}
		s.mu.Unlock()
	}
	for i := range d.Charges {
		c := &d.Charges[i]
		c.present(d.Now)
	}
}

// undo takes back what reserve added for leases, so that the demand asks for
// no more than its request does.
func undo(d *Demand, claims []claim) (changed bool) {
	for i := range d.Charges {
		if cl := &claims[i]; cl.extra > 0 {
			d.Charges[i].Need, d.Charges[i].Cost = cl.need, cl.cost
			cl.extra, changed = 0, true
		}
	}
	return changed
}

// settle ends what reserve began, after the store's answer, or without one
// where decided is false.
func (ls *leases) settle(d *Demand, claims []claim, at time.Duration, decided bool) {
	for i := range d.Charges {
		c, cl := &d.Charges[i], &claims[i]
		if c.Interval > 0 {
			ls.settleOne(d, c, cl, at, decided)
		}
		c.Need, c.Cost = cl.need, cl.cost
	}
}

func (ls *leases) settleOne(d *Demand, c *Charge, cl *claim, at time.Duration, decided bool) {
	s := &ls.shards[maphash.String(ls.seed, c.Key)%leaseShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.known[c.Key]
	if l == nil {
		return
	}
	if cl.filling {
		l.filling = false
	}
	if cl.leased && !(decided && d.Allowed) {
		l.held += cl.cost
	}
	if !decided {
		return
	}
	l.level, l.offset = c.Level, d.Now-at.Microseconds()
	if cl.extra > 0 && d.Allowed {
		l.held += cl.extra
		l.chunk = cl.extra / l.interval
		l.expires = at + ls.life
	}
	if d.Allowed || cl.leased {
		// What is held here is left too.
		c.Level -= l.held
		c.present(d.Now)
	}
}

// told gives the i-th charge, which was not sent to the store, the state of its
// lease.
func (ls *leases) told(d *Demand, i int) {
	c := &d.Charges[i]
	s := &ls.shards[maphash.String(ls.seed, c.Key)%leaseShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.known[c.Key]; l != nil {
		c.Level = l.level
		c.present(d.Now)
	}
}

// sweep returns demands that give back what was not used in time, all of it
// where the end has come, and forgets buckets that nobody asks for.
func (ls *leases) sweep(at time.Duration, end bool) []*Demand {
	var back []*Demand
	for i := range ls.shards {
		s := &ls.shards[i]
		s.mu.Lock()
		for key, l := range s.known {
			if !end && (l.expires > at || l.filling) {
				continue
			}
			if l.held > 0 {
				back = append(back, &Demand{Charges: []Charge{{Key: key, Capacity: maxCapacity, Cost: -l.held}}})
				// The largest capacity there is: the limit may be another by now, and
				// a refund must not cut the level to a smaller one's.
				// What was used shows what is needed.
				l.chunk = max(l.chunk-l.held/l.interval, 0) / 2
				l.held = 0
			}
			if !l.used || end {
				delete(s.known, key)
			}
			l.used = false
			l.expires = at + ls.life
		}
		s.mu.Unlock()
	}
	return back
}
