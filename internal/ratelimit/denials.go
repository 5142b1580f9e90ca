package ratelimit

import (
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// denials remembers what a denied request found in its buckets, or the last
// allowed one left, so that a flood of one user costs the store nothing. A level
// only rises but for what is returned to the bucket, so a demand that the remembered
// levels deny would be denied by the store too, until the instant that the levels
// tell. What this process returns ends every memory of the bucket at once (see
// returned). Refunds and resets by others are seen when a memory ends, after
// denialAge; one that the store confirms as it was holds twice as long, up to
// denialAgeMost. Who is denied for long does not wait for that either: in the
// last quarter of a memory the store is asked behind the request, together with
// what others ask (see confirm.go).
type denials struct {
	seed   maphash.Seed
	shards [denialShards]denialShard
	limit  int // of each shard
	due    chan *confirmation
	// returns counts, by a hash of the bucket's key, what was returned.
	returns [1024]atomic.Uint32
}

// denialShard holds denials by a hash of their first bucket's key. Of two with
// the same one is known.
type denialShard struct {
	mu    sync.Mutex
	known map[uint64]*denial
}

const (
	denialShards  = 32
	denialAge     = time.Second
	denialAgeMost = 4 * time.Second
	// denialsDue bounds the memories that wait to be confirmed. One that finds
	// no place ends, which costs a call.
	denialsDue = 4096
)

// denial is what is known of the buckets of one denied demand. It lies in one
// piece: what a request waits for here is memory.
type denial struct {
	until, age time.Duration // of the limiter's own clock
	// The store's time is between the limiter's clock plus low and plus high.
	low, high int64
	buckets   []remembered
	few       [2]remembered // of buckets, where they are not more
	// asked is whether its confirmation was asked for.
	asked atomic.Bool
}

type remembered struct {
	key             string
	level, previous int64
	returns         uint32 // to the bucket, when this was learnt
}

func newDenials(limit int) *denials {
	d := &denials{seed: maphash.MakeSeed(), limit: max(limit/denialShards, 1), due: make(chan *confirmation, denialsDue)}
	for i := range d.shards {
		d.shards[i].known = map[uint64]*denial{}
	}
	return d
}

// first returns the first charge of a bucket that is not shared. Shared ones
// are not remembered: they change with every request of anybody.
func first(d *Demand) *Charge {
	for i := range d.Charges {
		if !d.Charges[i].Shared {
			return &d.Charges[i]
		}
	}
	return nil
}

// shard returns where a demand is known whose first bucket has that key, and by
// what.
func (ds *denials) shard(key string) (*denialShard, uint64) {
	hash := maphash.String(ds.seed, key)
	return &ds.shards[hash%denialShards], hash
}

// returned notes that something was, or may have been, returned to the demand's
// buckets: what is remembered of them, by whatever demand, holds no more. It tells
// by how much that changes what returnsTo says of the demand.
func (ds *denials) returned(d *Demand) (change uint64) {
	for i := range d.Charges {
		if c := &d.Charges[i]; !c.Shared {
			ds.returnsOf(c.Key).Add(1)
			change++
		}
	}
	return change
}

// returnsTo is how often something was returned to the demands' buckets.
func (ds *denials) returnsTo(demands ...*Demand) (sum uint64) {
	for _, d := range demands {
		for i := range d.Charges {
			if c := &d.Charges[i]; !c.Shared {
				sum += uint64(ds.returnsOf(c.Key).Load())
			}
		}
	}
	return sum
}

func (ds *denials) returnsOf(key string) *atomic.Uint32 {
	return &ds.returns[maphash.String(ds.seed, key)%uint64(len(ds.returns))]
}

// newDenial is what a demand that was asked at start and answered at end of
// the limiter's clock tells, or nil where its buckets do not deny it.
func (ds *denials) newDenial(d *Demand, start, end time.Duration) *denial {
	if !d.spent() {
		return nil
	}
	n := &denial{until: end + denialAge, age: denialAge, low: d.Now - end.Microseconds(), high: d.Now - start.Microseconds()}
	n.buckets = n.few[:0]
	for i := range d.Charges {
		if c := &d.Charges[i]; !c.Shared {
			n.buckets = append(n.buckets, remembered{c.Key, c.Level, c.Previous, ds.returnsOf(c.Key).Load()})
		}
	}
	return n
}

// spent says whether the buckets that are not shared hold too little for the
// demand, once a store has decided it.
func (d *Demand) spent() bool {
	for i := range d.Charges {
		if c := &d.Charges[i]; !c.Shared && c.lacking(d.Now) > 0 {
			return true
		}
	}
	return false
}

// due is when the denial may be confirmed, before it ends.
func (n *denial) due() time.Duration { return n.until - n.age/4 }

// follow makes n, which was learnt at end, last longer than the memory it
// replaces, if it confirms that.
func (n *denial) follow(old *denial, end time.Duration) {
	if !slices.Equal(old.buckets, n.buckets) {
		return
	}
	if n.age = old.age; old.due() <= end {
		n.age = min(2*old.age, denialAgeMost)
	}
	n.until = end + n.age
}

// remember notes a denied demand that was asked at start and answered at end
// of the limiter's clock, unless something was returned since to the buckets of
// those asked with it: perhaps the store had decided before.
func (ds *denials) remember(d *Demand, start, end time.Duration, returns uint64, asked ...*Demand) {
	head := first(d)
	if head == nil {
		return
	}
	n := ds.newDenial(d, start, end)
	if n == nil || ds.returnsTo(asked...) != returns {
		return
	}
	s, hash := ds.shard(head.Key)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch old := s.known[hash]; {
	case old != nil:
		n.follow(old, end)
	case len(s.known) >= ds.limit:
		for other := range s.known { // Any one; it costs one call to learn again.
			delete(s.known, other)
			break
		}
	}
	s.known[hash] = n
}

// forget drops what is known of a demand's buckets.
func (ds *denials) forget(d *Demand) {
	if head := first(d); head != nil {
		s, hash := ds.shard(head.Key)
		s.mu.Lock()
		delete(s.known, hash)
		s.mu.Unlock()
	}
}

// decide denies the demand where the store surely would at that time of the
// limiter's clock, and says whether it did, and whether anything is known of
// the buckets: if it is, and the store allows the demand, that must be forgotten.
// Tokens that leases hold are left of their buckets.
func (ds *denials) decide(d *Demand, at time.Duration, ls *leases) (denied, known bool) {
	head := first(d)
	if head == nil {
		return false, false
	}
	s, hash := ds.shard(head.Key)
	s.mu.Lock()
	n := s.known[hash]
	s.mu.Unlock()
	if n == nil || n.until <= at {
		return false, false
	}
	latest := at.Microseconds() + n.high
	met := 0
	for i := range d.Charges {
		c := &d.Charges[i]
		if c.Shared {
			continue
		}
		if met == len(n.buckets) || n.buckets[met].key != c.Key || n.buckets[met].returns != ds.returnsOf(c.Key).Load() {
			return false, true
		}
		if c.Level, c.Previous = n.buckets[met].level, n.buckets[met].previous; c.ahead(latest) {
			return false, true // The limit is smaller now, and the store cuts the level to it.
		}
		if c.Interval > 0 && ls != nil {
			c.Level -= ls.holds(c.Key, at)
		}
		c.present(latest)
		denied = denied || c.lacking(latest) > 0
		met++
	}
	if !denied || met != len(n.buckets) {
		return false, true
	}
	if n.due() <= at && !n.asked.Load() && n.asked.CompareAndSwap(false, true) {
		ds.ask(n, d)
	}
	// Tell times by the earliest that it may be, so that nobody is told to
	// come back too early.
	d.Allowed, d.Now = false, at.Microseconds()+n.low
	met = 0
	for i := range d.Charges {
		c := &d.Charges[i]
		if c.Shared {
			c.Level, c.Previous, c.Need = c.base(d.Now), 0, 0
			continue
		}
		c.Level, c.Previous = n.buckets[met].level, n.buckets[met].previous
		c.present(d.Now)
		met++
	}
	return true, true
}
