package revocation

import (
	"math/bits"
	"math/rand/v2"
	"sync"
	"sync/atomic"
)

// table maps fingerprints to one word each. Readers take no lock and never wait: a slot is published by storing its tag
// last, growth and sweeping build a new array and swap the pointer. Writers take a shard's lock.
//
// Slots come in groups of eight. A group's tags, a byte for each slot, lie in one word, and the tags of a million entries
// in two megabytes, which stay in a processor's cache: a look-up that finds nothing, nearly every one, seldom waits for
// memory. Where a fingerprint belongs depends on a secret of the process, so that no choice of names can pile up in one
// place. A slot and its tag are 25 bytes and shards are between half and seven tenths full: 36 to 50 bytes an entry.
type table struct {
	secret uint64
	length atomic.Int64
	shards [shardCount]shard
}

const (
	shardCount = 64
	lanes      = 8
	slotBytes  = 25
	firstSize  = 2 * lanes
	// A shard grows by 7/5 when it is 7/10 full.
	loadNum, loadDen = 7, 10
	growNum, growDen = 7, 5
)

type shard struct {
	array atomic.Pointer[array]
	mu    sync.Mutex // held by writers
	used  int
	_     [40]byte // keeps neighbouring shards' locks off one cache line
}

// array has a word of tags for every eight slots. A tag of 0 means an empty slot.
type array struct {
	tags  []atomic.Uint64
	slots []slot
}

type slot struct{ hi, lo, word atomic.Uint64 }

func newArray(size int) *array {
	groups := (size + lanes - 1) / lanes
	return &array{tags: make([]atomic.Uint64, groups), slots: make([]slot, groups*lanes)}
}

func newTable() *table {
	return &table{secret: rand.Uint64()}
}

const (
	lowBits  = 0x0101010101010101
	highBits = 0x8080808080808080
)

// zeroBytes has the high bit of every byte of x that is zero, and maybe of some above one that is.
func zeroBytes(x uint64) uint64 { return (x - lowBits) &^ x & highBits }

// place gives the shard, the first group in an array of the shard, scaled from mixed, and the tag.
func (t *table) place(f fingerprint) (s *shard, mixed, tag uint64) {
	hi, lo := bits.Mul64(f.lo^t.secret, 0x9e3779b97f4a7c15)
	mixed = hi ^ lo
	return &t.shards[mixed%shardCount], mixed, mixed>>6&0x7f | 0x80
}

// start scales a mixed number to an index below n.
func start(mixed uint64, n int) int {
	i, _ := bits.Mul64(mixed, uint64(n)) //nolint:gosec // a length
	return int(i)                        //nolint:gosec // below n
}

// find returns the slot of f, or -1 and the empty slot where f belongs.
func (a *array) find(f fingerprint, mixed, tag uint64) (at, empty int) {
	for group := start(mixed, len(a.tags)); ; {
		tags := a.tags[group].Load()
		for match := zeroBytes(tags ^ tag*lowBits); match != 0; match &= match - 1 {
			i := group*lanes + bits.TrailingZeros64(match)/8
			if a.slots[i].hi.Load() == f.hi && a.slots[i].lo.Load() == f.lo {
				return i, -1
			}
		}
		if free := zeroBytes(tags); free != 0 {
			return -1, group*lanes + bits.TrailingZeros64(free)/8
		}
		if group++; group == len(a.tags) {
			group = 0
		}
	}
}

// put fills the empty slot i. The writer holds the shard.
func (a *array) put(i int, f fingerprint, word, tag uint64) {
	s := &a.slots[i]
	s.lo.Store(f.lo)
	s.word.Store(word)
	s.hi.Store(f.hi)
	tags := &a.tags[i/lanes]
	tags.Store(tags.Load() | tag<<(8*(i%lanes))) // last: from here on readers see the slot
}

// get returns the word under f. It takes no lock and does not allocate.
func (t *table) get(f fingerprint) (uint64, bool) {
	s, mixed, tag := t.place(f)
	a := s.array.Load()
	if a == nil {
		return 0, false
	}
	at, _ := a.find(f, mixed, tag)
	if at < 0 {
		return 0, false
	}
	return a.slots[at].word.Load(), true
}

// vacant tells whether the tags where f belongs show that it is not there. Asking this of several fingerprints before
// looking any of them up lets the processor wait for their memory together instead of one after another.
func (t *table) vacant(f fingerprint) bool {
	s, mixed, tag := t.place(f)
	a := s.array.Load()
	if a == nil {
		return true
	}
	tags := a.tags[start(mixed, len(a.tags))].Load()
	return zeroBytes(tags) != 0 && zeroBytes(tags^tag*lowBits) == 0
}

// merge puts word under f, combined with what is there, and tells whether anything changed. A new fingerprint is refused
// where the table already holds limit of them (0: no limit).
func (t *table) merge(f fingerprint, word uint64, limit int, combine func(old, new uint64) uint64) (changed, refused bool) {
	s, mixed, tag := t.place(f)
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.array.Load()
	at, empty := -1, -1
	if a != nil {
		at, empty = a.find(f, mixed, tag)
	}
	if at >= 0 {
		old := a.slots[at].word.Load()
		combined := combine(old, word)
		a.slots[at].word.Store(combined)
		return combined != old, false
	}
	if limit > 0 && t.length.Load() >= int64(limit) {
		return false, true
	}
	if a == nil || (s.used+1)*loadDen > len(a.slots)*loadNum {
		size := firstSize
		if a != nil {
			size = len(a.slots)*growNum/growDen + 1
		}
		a = t.rebuild(s, size, nil)
		_, empty = a.find(f, mixed, tag)
	}
	a.put(empty, f, word, tag)
	s.used++
	t.length.Add(1)
	return true, false
}

// rebuild moves the shard's slots, but for those that drop names, to a new array of the given size. The shard is locked.
func (t *table) rebuild(s *shard, size int, drop func(f fingerprint, word uint64) bool) *array {
	fresh := newArray(size)
	used := 0
	if old := s.array.Load(); old != nil {
		for i := range old.slots {
			f, word := old.slots[i].read()
			if f.zero() || (drop != nil && drop(f, word)) {
				continue
			}
			_, mixed, tag := t.place(f)
			_, empty := fresh.find(f, mixed, tag)
			fresh.put(empty, f, word, tag)
			used++
		}
	}
	t.length.Add(int64(used - s.used))
	s.used = used
	s.array.Store(fresh)
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
	a := s.array.Load()
	if a == nil {
		return 0
	}
	dead := 0
	for i := range a.slots {
		if f, word := a.slots[i].read(); !f.zero() && drop(f, word) {
			dead++
		}
	}
	if dead > 0 {
		t.rebuild(s, max(firstSize, (s.used-dead)*growNum/growDen*loadDen/loadNum), drop)
	}
	return dead
}

// each calls visit for everything in one shard. What is merged meanwhile may or may not be visited.
func (t *table) each(shard int, visit func(f fingerprint, word uint64)) {
	a := t.shards[shard].array.Load()
	if a == nil {
		return
	}
	for i := range a.slots {
		if f, word := a.slots[i].read(); !f.zero() {
			visit(f, word)
		}
	}
}

func (t *table) len() int { return int(t.length.Load()) }

// bytes is the memory that the slots take.
func (t *table) bytes() int64 {
	var n int64
	for i := range t.shards {
		if a := t.shards[i].array.Load(); a != nil {
			n += int64(len(a.slots)) * slotBytes
		}
	}
	return n
}
