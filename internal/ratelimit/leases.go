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
// A bucket that is asked for often gets a lease of what it refills in a few
// lifetimes, twice as much where that is soon used up, and never more than a part
// of what the bucket has left; near the limit there is none, and every request is
// decided exactly. Tokens lapse when the bucket would have refilled them, so that
// no bucket ever holds more than its size together with its leases. What is not
// used within a lifetime, and does not lapse soon, goes back.
type leases struct {
	seed     maphash.Seed
	life     time.Duration
	limit    int          // of each shard
	replicas func() int64 // who take leases of the same buckets
	shards   [leaseShards]leaseShard
}

type leaseShard struct {
	mu    sync.Mutex
	known map[string]*lease
}

const (
	leaseShards = 32
	// leaseShare is the part of what a bucket has left that the leases of all
	// replicas may take at most.
	leaseShare = 8
	// leaseSpan is how many lifetimes a full bucket takes to refill a lease, whose
	// tokens lapse then.
	leaseSpan = 3
	// firstLease is the least lease, in tokens.
	firstLease = 8
	// idleShare is how many times what was used in a lifetime a lease may hold.
	idleShare = 8
)

// lease is what this process holds of one bucket, in microseconds. Its shard's
// mu guards it.
type lease struct {
	held int64
	size int64 // of the lease; held is never more
	// until is when the bucket would have refilled the last of it; taken is when
	// the store was asked for it.
	until, taken time.Duration
	level        int64 // of the bucket when the store told it last
	offset       int64 // of the store's clock to the limiter's, then
	interval     int64
	capacity     int64
	expires      time.Duration
	asked        int64         // since the last look of a sweep
	last         time.Duration // when it was asked last
	filling      bool          // a request is about to fetch the next one
}

func newLeases(life time.Duration, limit int, replicas func() int64) *leases {
	ls := &leases{seed: maphash.MakeSeed(), life: life, limit: max(limit/leaseShards, 1), replicas: replicas}
	for i := range ls.shards {
		ls.shards[i].known = map[string]*lease{}
	}
	return ls
}

func (ls *leases) shard(key string) *leaseShard {
	return &ls.shards[maphash.String(ls.seed, key)%leaseShards]
}

// claim is what a demand uses of leases: for each charge what it needed and
// cost before, and what was done about it.
type claim struct {
	need, cost int64
	of         *lease // nil where the charge has none
	shard      *leaseShard
	leased     bool // handed out from a lease
	extra      int64
	filling    bool
	// level and offset are the bucket's where leased.
	level, offset int64
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
	s := ls.shard(c.Key)
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.known[c.Key]
	if l == nil {
		if len(s.known) >= ls.limit {
			return
		}
		l = &lease{interval: c.Interval, capacity: c.Capacity, expires: at + ls.life}
		s.known[c.Key] = l
	}
	if cl.of, cl.shard = l, s; l.interval != c.Interval || l.capacity != c.Capacity {
		cl.of = nil // The limit is another now; the sweep returns what is held.
		return
	}
	l.asked, l.last = l.asked+c.Cost, at
	l.held = l.valid(at)
	switch {
	case l.held >= c.Need:
		l.held -= c.Cost
		cl.leased = true
		cl.level, cl.offset = l.level-l.held, l.offset
		c.Need, c.Cost = 0, 0
	case !l.filling:
		if tokens := ls.next(l, at); tokens > 0 {
			l.filling, cl.filling = true, true
			cl.extra = tokens * c.Interval
			c.Need += cl.extra
			c.Cost += cl.extra
		}
	}
}

// valid is what is held and has not lapsed.
func (l *lease) valid(at time.Duration) int64 {
	return max(min(l.held, (l.until-at).Microseconds()), 0)
}

// next is how many tokens the next lease takes; 0 for none.
func (ls *leases) next(l *lease, at time.Duration) int64 {
	if l.level == 0 {
		return 0 // Nothing is known of the bucket yet.
	}
	now := at.Microseconds() + l.offset
	lacking := max(l.level-now, 0)
	left := (l.capacity - lacking) / l.interval
	tokens := max((leaseSpan*ls.life.Microseconds()-lacking)/l.interval, firstLease)
	switch lasted, before := at-l.taken, l.size/l.interval; {
	case before == 0:
	case lasted < ls.life:
		tokens = max(tokens, 2*before)
	case lasted < leaseSpan*ls.life:
		tokens = max(tokens, before)
	default:
		tokens = max(tokens, before/2)
	}
	tokens = min(tokens, left/(leaseShare*ls.replicas()))
	if tokens < firstLease {
		return 0
	}
	return tokens
}

// leased says whether a lease has a part in what is charged to the demand's own
// buckets.
func leased(d *Demand, claims []claim) bool {
	for i := range claims {
		if (claims[i].leased || claims[i].extra > 0) && !d.Charges[i].Shared {
			return true
		}
	}
	return false
}

// served fills a demand that leases served wholly.
func (ls *leases) served(d *Demand, claims []claim, at time.Duration) {
	d.Allowed = true
	for i := range d.Charges {
		c := &d.Charges[i]
		c.Need, c.Cost, c.Level = claims[i].need, claims[i].cost, claims[i].level
		d.Now = max(d.Now, at.Microseconds()+claims[i].offset)
	}
	for i := range d.Charges {
		d.Charges[i].present(d.Now)
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
		if cl.of != nil {
			cl.settle(d, c, at, decided)
		}
		c.Need, c.Cost = cl.need, cl.cost
	}
}

func (cl *claim) settle(d *Demand, c *Charge, at time.Duration, decided bool) {
	cl.shard.mu.Lock()
	defer cl.shard.mu.Unlock()
	l := cl.of
	if cl.filling {
		l.filling = false
	}
	if cl.leased && !(decided && d.Allowed) {
		l.held = min(l.held+cl.cost, l.size)
	}
	if !decided {
		return
	}
	l.level, l.offset = c.Level, d.Now-at.Microseconds()
	if cl.extra > 0 && d.Allowed {
		// Too little for a request may have been left of the last one: it is lost,
		// as it would not lapse in its time.
		l.held, l.size = cl.extra, cl.extra
		l.taken, l.until = at, at+time.Duration(c.Level-d.Now)*time.Microsecond
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
	s := ls.shard(c.Key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.known[c.Key]; l != nil {
		c.Level = l.level
		c.present(d.Now)
	}
}

// holds is what is held of a bucket.
func (ls *leases) holds(key string, at time.Duration) int64 {
	s := ls.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.known[key]; l != nil {
		return l.valid(at)
	}
	return 0
}

// drop loses what is held of a bucket that is made full.
func (ls *leases) drop(key string) {
	s := ls.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.known[key]; l != nil {
		l.held, l.size = 0, 0
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
			idle := at-l.last >= ls.life
			l.held = l.valid(at)
			much := at-l.taken >= ls.life && l.held > idleShare*l.asked
			if l.held > 0 && (end || (idle || much) && l.until-at > leaseSpan*ls.life) {
				// The largest capacity there is: the limit may be another by now, and
				// a refund must not cut the level to a smaller one's.
				back = append(back, &Demand{Charges: []Charge{{Key: key, Capacity: maxCapacity, Cost: -l.held}}})
				l.level -= l.held
				l.held, l.size = 0, l.asked
			}
			if idle || end {
				delete(s.known, key)
			}
			l.asked = 0
			l.expires = at + ls.life
		}
		s.mu.Unlock()
	}
	return back
}
