package anomaly

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"
)

// failures counts failed verifications of addresses within a window: exactly in this window's half, and pro rata in the
// one before it. It is bounded: where a shard is full, an address that has not failed for longest among a few gives
// way. Safe for concurrent use.
type failures struct {
	window time.Duration
	most   int // entries of a shard
	seed   maphash.Seed
	shards [failureShards]failureShard
}

const failureShards = 16

type failureShard struct {
	mu      sync.Mutex
	entries map[netip.Addr]failureCount
}

// failureCount counts in the window that began at start, and in the one before it.
type failureCount struct {
	start         int64 // Unix nanoseconds, a multiple of the window
	count, before int
}

func newFailures(c FailuresConfig) *failures {
	f := &failures{window: c.Window, most: max(c.Tracked/failureShards, 1), seed: maphash.MakeSeed()}
	for i := range f.shards {
		f.shards[i].entries = map[netip.Addr]failureCount{}
	}
	return f
}

func (f *failures) shard(a netip.Addr) *failureShard {
	return &f.shards[maphash.Comparable(f.seed, a)%failureShards]
}

// at moves a count on to the window of now.
func (c failureCount) at(now int64, window int64) failureCount {
	start := now - now%window
	switch {
	case start <= c.start && start >= c.start-window: // a request that another overtook counts in the later window
		return c
	case start == c.start+window:
		return failureCount{start: start, before: c.count}
	}
	return failureCount{start: start} // too old, or of a clock that was wrong
}

// note counts a failure.
func (f *failures) note(a netip.Addr, now time.Time) {
	s := f.shard(a)
	s.mu.Lock()
	defer s.mu.Unlock()
	c, known := s.entries[a]
	if !known && len(s.entries) >= f.most {
		s.evict()
	}
	c = c.at(now.UnixNano(), int64(f.window))
	c.count++
	s.entries[a] = c
}

// evict forgets the stalest of a few.
func (s *failureShard) evict() {
	const few = 8
	var stalest netip.Addr
	start, seen := int64(0), 0
	for a, c := range s.entries {
		if seen == 0 || c.start < start {
			stalest, start = a, c.start
		}
		if seen++; seen == few {
			break
		}
	}
	delete(s.entries, stalest)
}

// count estimates the failures within the window before now.
func (f *failures) count(a netip.Addr, now time.Time) int {
	s := f.shard(a)
	s.mu.Lock()
	c, known := s.entries[a]
	s.mu.Unlock()
	if !known {
		return 0
	}
	c = c.at(now.UnixNano(), int64(f.window))
	elapsed := float64(now.UnixNano()-c.start) / float64(f.window)
	return c.count + int(float64(c.before)*(1-min(max(elapsed, 0), 1)))
}

// sweep forgets what is over.
func (f *failures) sweep(now time.Time) {
	for i := range f.shards {
		s := &f.shards[i]
		s.mu.Lock()
		for a, c := range s.entries {
			if c = c.at(now.UnixNano(), int64(f.window)); c.count+c.before == 0 {
				delete(s.entries, a)
			}
		}
		s.mu.Unlock()
	}
}

func (f *failures) len() int {
	n := 0
	for i := range f.shards {
		f.shards[i].mu.Lock()
		n += len(f.shards[i].entries)
		f.shards[i].mu.Unlock()
	}
	return n
}

// endpoint is what counts as one address: an IPv4 address, or an IPv6 /64, within which a host changes its address as
// it likes.
func endpoint(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}

// neighbourhood is what of an address is kept for people: its /24, or /48.
func neighbourhood(a netip.Addr) string {
	a = a.Unmap().WithZone("")
	bits := 48
	if a.Is4() {
		bits = 24
	}
	if p, err := a.Prefix(bits); err == nil && p.IsValid() {
		return p.String()
	}
	return ""
}
