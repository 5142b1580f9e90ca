package authn

import (
	"hash/maphash"
	"strings"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// ways is how many entries share a place of the cache.
const ways = 8

// entryOverhead is what an entry costs beside its text, in bytes: the entry,
// the principal and its strings; the claims, decoded, are some times the text
// that they were read from, a token or a server's answer.
const entryOverhead = 768

// entry is a verified signature and what came of it. It is immutable but for
// used.
type entry struct {
	hash     uint64
	size     int64
	token    string
	verified verified
	used     atomic.Bool
}

// cache remembers verified signatures by the whole token. A look-up takes a
// hash seeded at random, so that nobody can choose tokens that collide, and a
// comparison of all bytes; it locks nothing. The cache is bounded in bytes; a
// place that is full, or a cache that is, gives up what was not used since the
// last time.
//
// Callers must check key retirement and times: the cache only saves the
// signature.
type cache struct {
	seed  maphash.Seed
	slots []atomic.Pointer[entry] // a power of two, in groups of ways
	limit int64
	bytes atomic.Int64
	count atomic.Int64
	hand  atomic.Uint64
}

// newCache returns a cache of at most limit bytes, or nil for none.
func newCache(limit int64) *cache {
	if limit <= 0 {
		return nil
	}
	n := int64(ways)
	for n < limit/1024 {
		n *= 2
	}
	return &cache{seed: maphash.MakeSeed(), slots: make([]atomic.Pointer[entry], n), limit: limit}
}

func (c *cache) group(hash uint64) []atomic.Pointer[entry] {
	at := (hash * ways) & uint64(len(c.slots)-1)
	return c.slots[at : at+ways]
}

// get returns the entry of the token, nil where there is none.
func (c *cache) get(token string) *entry {
	hash := maphash.String(c.seed, token)
	group := c.group(hash)
	for i := range group {
		e := group[i].Load()
		if e != nil && e.hash == hash && e.token == token {
			if !e.used.Load() { // keeps the cache line shared
				e.used.Store(true)
			}
			return e
		}
	}
	return nil
}

// put remembers a verified token, of which it keeps a copy.
func (c *cache) put(token string, v verified) {
	e := &entry{hash: maphash.String(c.seed, token), size: int64(6*(len(token)+v.answer) + entryOverhead), verified: v}
	if e.size > c.limit {
		return
	}
	e.token = strings.Clone(token)
	group := c.group(e.hash)
	victim := -1
	for i := range group {
		old := group[i].Load()
		switch {
		case old == nil:
			if victim < 0 || group[victim].Load() != nil {
				victim = i
			}
		case old.hash == e.hash && old.token == token:
			c.swap(&group[i], e)
			return
		case victim < 0 && !old.used.Load():
			victim = i
		}
	}
	if victim < 0 {
		for i := range group {
			if old := group[i].Load(); old != nil {
				old.used.Store(false)
			}
		}
		victim = int(e.hash>>32) & (ways - 1)
	}
	c.swap(&group[victim], e)
	c.shrink()
}

// shrink walks over the slots, and drops what was not used since it last came
// by, until the cache is within its bound.
func (c *cache) shrink() {
	for n := 2 * len(c.slots); n > 0 && c.bytes.Load() > c.limit; n-- {
		slot := &c.slots[c.hand.Add(1)&uint64(len(c.slots)-1)]
		e := slot.Load()
		if e == nil || e.used.Swap(false) {
			continue
		}
		if slot.CompareAndSwap(e, nil) {
			c.bytes.Add(-e.size)
			c.count.Add(-1)
		}
	}
}

func (c *cache) swap(slot *atomic.Pointer[entry], e *entry) {
	c.bytes.Add(e.size)
	c.count.Add(1)
	if old := slot.Swap(e); old != nil {
		c.bytes.Add(-old.size)
		c.count.Add(-1)
	}
}

func (c *cache) collectors() []prometheus.Collector {
	return []prometheus.Collector{
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "tollgate_authn_signature_cache_bytes",
			Help: "Memory held by remembered signatures, estimated.",
		}, func() float64 { return float64(c.bytes.Load()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "tollgate_authn_signature_cache_entries",
			Help: "Tokens whose signature is remembered.",
		}, func() float64 { return float64(c.count.Load()) }),
	}
}
