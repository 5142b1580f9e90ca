package revocation

import (
	"math/bits"
	"math/rand/v2"
	"sync"
	"sync/atomic"
)

// table maps fingerprints to one word each. Readers take no lock and never wait: a slot is published by storing its hi
// word last, growth and sweeping build a new array and swap the pointer. Writers take a shard's lock. Slots are found by
// linear probing from a place that depends on a secret of the process, so that no choice of names can pile up in one
// place. A slot is 24 bytes and shards are between half and seven tenths full: 34 to 48 bytes an entry.
type table struct {
	secret uint64
	length atomic.Int64
	shards [shardCount]shard
}

const (
	shardCount = 64
	firstSize  = 16
	// A shard grows by 7/5 when it is 7/10 full.
	loadNum, loadDen = 7, 10
	growNum, growDen = 7, 5
)

type shard struct {
	slots atomic.Pointer[[]slot]
	mu    sync.Mutex // held by writers
	used  int
	_     [40]byte // keeps neighbouring shards' locks off one cache line
}

type slot struct{ hi, lo, word atomic.Uint64 }

func newTable() *table {
	return &table{secret: rand.Uint64()}
}

// place gives the shard and a number that fixes where in the shard to start.
func (t *table) place(f fingerprint) (*shard, uint64) {
	hi, lo := bits.Mul64(f.lo^t.secret, 0x9e3779b97f4a7c15)
	mixed := hi ^ lo
	return &t.shards[mixed%shardCount], mixed
}

// start scales a mixed number to an index below n.
func start(mixed uint64, n int) int {
	i, _ := bits.Mul64(mixed, uint64(n)) //nolint:gosec // a length
	return int(i)                        //nolint:gosec // below n
}

// get returns the word under f. It takes no lock and does not allocate.
func (t *table) get(f fingerprint) (uint64, bool) {
	s, mixed := t.place(f)
	p := s.slots.Load()
	if p == nil {
		return 0, false
	}
	slots := *p
	for i := start(mixed, len(slots)); ; {
		switch slots[i].hi.Load() {
		case f.hi:
			if slots[i].lo.Load() == f.lo {
				return slots[i].word.Load(), true
			}
		case 0:
			return 0, false
		}
		if i++; i == len(slots) {
			i = 0
		}
	}
}

// vacant tells whether the first slot for f is empty, so that f is surely not there. Asking this of several fingerprints
// before looking any of them up lets the processor wait for their memory together instead of one after another.
func (t *table) vacant(f fingerprint) bool {
	s, mixed := t.place(f)
	p := s.slots.Load()
	return p == nil || (*p)[start(mixed, len(*p))].hi.Load() == 0
}

// merge puts word under f, combined with what is there, and tells whether anything changed. A new fingerprint is refused
// where the table already holds limit of them (0: no limit).
func (t *table) merge(f fingerprint, word uint64, limit int, combine func(old, new uint64) uint64) (changed, refused bool) {
	s, mixed := t.place(f)
	s.mu.Lock()
	defer s.mu.Unlock()
	var slots []slot
	if p := s.slots.Load(); p != nil {
		slots = *p
	}
	if at, found := find(slots, mixed, f); found {
		old := slots[at].word.Load()
		combined := combine(old, word)
		slots[at].word.Store(combined)
		return combined != old, false
	}
	if limit > 0 && t.length.Load() >= int64(limit) {
		return false, true
	}
	if (s.used+1)*loadDen > len(slots)*loadNum {
		slots = t.rebuild(s, max(firstSize, len(slots)*growNum/growDen), nil)
	}
	at, _ := find(slots, mixed, f)
	slots[at].set(f, word)
	s.used++
	t.length.Add(1)
	return true, false
}

func (s *slot) set(f fingerprint, word uint64) {
	s.lo.Store(f.lo)
	s.word.Store(word)
	s.hi.Store(f.hi) // last: from here on readers see the slot
}

// find returns the slot of f, or the empty slot where f belongs; -1 in an empty array.
func find(slots []slot, mixed uint64, f fingerprint) (at int, found bool) {
	if len(slots) == 0 {
		return -1, false
	}
	for i := start(mixed, len(slots)); ; {
		switch slots[i].hi.Load() {
		case f.hi:
			if slots[i].lo.Load() == f.lo {
				return i, true
			}
		case 0:
			return i, false
		}
		if i++; i == len(slots) {
			i = 0
		}
	}
}

// rebuild moves the shard's slots, but for those that drop names, to a new array of the given size. The shard is locked.
func (t *table) rebuild(s *shard, size int, drop func(f fingerprint, word uint64) bool) []slot {
	fresh := make([]slot, size)
	used := 0
	if p := s.slots.Load(); p != nil {
		for i := range *p {
			f, word := (*p)[i].read()
			if f.zero() || (drop != nil && drop(f, word)) {
				continue
			}
			_, mixed := t.place(f)
			at, _ := find(fresh, mixed, f)
			fresh[at].set(f, word)
			used++
		}
	}
	t.length.Add(int64(used - s.used))
	s.used = used
	s.slots.Store(&fresh)
	return fresh
}

func (s *slot) read() (fingerprint, uint64) {
	return fingerprint{hi: s.hi.Load(), lo: s.lo.Load()}, s.word.Load()
}

// sweep removes what drop names, one shard at a time, and returns how many went. Readers are not held up; a writer waits
// for one shard at most.
func (t *table) sweep(drop func(f fingerprint, word uint64) bool) int {
	swept := 0
	for i := range t.shards {
		swept += t.sweepShard(&t.shards[i], drop)
	}
	return swept
}

func (t *table) sweepShard(s *shard, drop func(f fingerprint, word uint64) bool) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.slots.Load()
	if p == nil {
		return 0
	}
	dead := 0
	for i := range *p {
		if f, word := (*p)[i].read(); !f.zero() && drop(f, word) {
			dead++
		}
	}
	if dead == 0 {
		return 0
	}
	t.rebuild(s, max(firstSize, (s.used-dead)*growNum/growDen*loadDen/loadNum), drop)
	return dead
}

// each calls visit for everything in one shard. What is merged meanwhile may or may not be visited.
func (t *table) each(shard int, visit func(f fingerprint, word uint64)) {
	p := t.shards[shard].slots.Load()
	if p == nil {
		return
	}
	for i := range *p {
		if f, word := (*p)[i].read(); !f.zero() {
			visit(f, word)
		}
	}
}

func (t *table) len() int { return int(t.length.Load()) }

// bytes is the memory that the slots take.
func (t *table) bytes() int64 {
	var n int64
	for i := range t.shards {
		if p := t.shards[i].slots.Load(); p != nil {
			n += int64(len(*p)) * 24
		}
	}
	return n
}
