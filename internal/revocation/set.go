package revocation

import (
	"sync"
	"sync/atomic"
)

// set is everything that is revoked, in memory. Look-ups take no lock.
//
// They ignore expiry: what has expired stays until it is swept, since a token covered by it has expired too, and a clock
// that jumps must not bring tokens back to life.
type set struct {
	entries  *table // expiry in Unix seconds
	marks    *table // packed marks
	versions *table // a user mark's smallest version, where one was given
	limit    int
	// pairing is held while a version and its mark are put in, so that a sweep does not find the one without the other.
	pairing sync.Mutex
	// full is true from when something did not fit until a sweep has made room and a snapshot filled it.
	full atomic.Bool
}

func newSet(limit int) *set {
	return &set{entries: newTable(), marks: newTable(), versions: newTable(), limit: limit}
}

func larger(a, b uint64) uint64 { return max(a, b) }

// learn merges a change into the set.
func (s *set) learn(c change) {
	if !c.isMark {
		s.note(s.entries.merge(c.print, uint64(c.entry), s.limit, larger)) //nolint:gosec // not negative
		return
	}
	if c.mark.version == 0 {
		s.note(s.marks.merge(c.print, c.mark.pack(), s.limit, mergeMarkWords))
		return
	}
	s.pairing.Lock()
	defer s.pairing.Unlock()
	// The version goes first: a reader that sees the mark must see what it relies on.
	s.note(s.versions.merge(c.print, uint64(c.mark.version), s.limit, larger)) //nolint:gosec // positive
	s.note(s.marks.merge(c.print, c.mark.pack(), s.limit, mergeMarkWords))
}

func (s *set) note(_, refused bool) {
	if refused {
		s.full.Store(true)
	}
}

// covering returns the place at which a token is covered, or -1. What nothing is revoked by is not even hashed.
func (s *set) covering(t *Token) int {
	var own prints
	p := t.prepared
	if s.entries.len() > 0 {
		if p == nil {
			t.fillEntries(&own)
			p = &own
		}
		if at := s.entryAt(p); at >= 0 {
			return at
		}
	}
	if s.marks.len() == 0 {
		return -1
	}
	if t.prepared == nil {
		t.fillMarks(&own)
		p = &own
	}
	iat := t.IssuedAt.Unix()
	for at := firstMark; at < places; at++ {
		if f := p[at]; !f.zero() && s.markCovers(f, iat, t.Version) {
			return at
		}
	}
	return -1
}

func (s *set) entryAt(p *prints) int {
	var absent [firstMark]bool
	for at := range firstMark {
		absent[at] = p[at].zero() || s.entries.vacant(p[at])
	}
	for at := range firstMark {
		if absent[at] {
			continue
		}
		if _, found := s.entries.get(p[at]); found {
			return at
		}
	}
	return -1
}

func (s *set) markCovers(f fingerprint, iat, version int64) bool {
	word, found := s.marks.get(f)
	return found && s.markAt(f, word).covers(iat, version)
}

// markAt completes a packed mark with its version.
func (s *set) markAt(f fingerprint, word uint64) mark {
	m := unpackMark(word)
	if s.versions.len() > 0 {
		version, _ := s.versions.get(f)
		m.version = int64(version) //nolint:gosec // was an int64 when stored
	}
	return m
}

// sweep removes what expired before now (Unix seconds), and tells how many went.
func (s *set) sweep(now int64) int {
	n := s.entries.sweep(func(_ fingerprint, expires uint64) bool { return int64(expires) < now }) //nolint:gosec // Unix seconds
	n += s.marks.sweep(func(_ fingerprint, word uint64) bool { return unpackMark(word).expires < now })
	s.pairing.Lock()
	defer s.pairing.Unlock()
	s.versions.sweep(func(f fingerprint, _ uint64) bool {
		_, marked := s.marks.get(f)
		return !marked
	})
	return n
}

// live lists, for one shard of the tables, what expires at now or later.
func (s *set) live(shard int, now int64) []change {
	var changes []change
	s.marks.each(shard, func(f fingerprint, word uint64) {
		if m := s.markAt(f, word); m.expires >= now {
			changes = append(changes, change{print: f, isMark: true, mark: m})
		}
	})
	s.entries.each(shard, func(f fingerprint, expires uint64) {
		if e := int64(expires); e >= now { //nolint:gosec // Unix seconds
			changes = append(changes, change{print: f, entry: e})
		}
	})
	return changes
}

func (s *set) len() int { return s.entries.len() + s.marks.len() }

func (s *set) bytes() int64 { return s.entries.bytes() + s.marks.bytes() + s.versions.bytes() }
