package revocation

// mark is a not-before mark: it covers the tokens issued before its second, decides within that second by tie, and
// covers tokens of an older version whenever issued.
//
// iat has a resolution of one second, so the second of the revocation itself holds both the tokens to kill and the login
// that the revocation asked for. The token's version tells them apart.
type mark struct {
	notBefore int64 // Unix seconds
	// tie decides within the second notBefore: tieVersion, then 1 to maxTie, then tieNone, from lenient to strict.
	tie     int64
	expires int64 // Unix seconds: when every token that it covers has expired
	version int64 // smallest version accepted; 0: none was given
}

const (
	// tieVersion: the login service named the version; tokens of that second pass with it or a later one.
	tieVersion = 0
	// maxTie: a tie of 1 to maxTie stands for version notBefore*1000+tie, a time in milliseconds that the store chose.
	maxTie = 4094
	// tieNone: nothing passes that was issued in that second.
	tieNone = 4095
	// tieReach bounds how far above its second, in milliseconds, a token's version may lie to pass a version that the store
	// chose. It keeps an issuer whose versions count in another unit from passing by accident. It does not depend on the
	// tie, so that a later tie never admits what an earlier one did not.
	tieReach = maxTie + 2000
)

// admits gives the version that a login within the mark's own second must carry; 0 where none will do.
func (m mark) admits() int64 {
	switch m.tie {
	case tieVersion:
		return m.version
	case tieNone:
		return 0
	default:
		return m.notBefore*1000 + m.tie
	}
}

// covers tells whether a token issued at iat (Unix seconds) with a version (0: none) is killed by the mark.
func (m mark) covers(iat, version int64) bool {
	switch {
	case iat < m.notBefore:
		return true
	case m.version > 0 && version > 0 && version < m.version:
		return true
	case iat > m.notBefore:
		return false
	}
	least := m.admits()
	if least <= 0 || version < least {
		return true
	}
	return m.tie != tieVersion && version >= m.notBefore*1000+tieReach
}

// merge is the least mark that covers all that m and o cover. It is commutative, associative and idempotent.
func (m mark) merge(o mark) mark {
	if o.notBefore > m.notBefore || (o.notBefore == m.notBefore && o.tie > m.tie) {
		m.notBefore, m.tie = o.notBefore, o.tie
	}
	m.expires = max(m.expires, o.expires)
	m.version = max(m.version, o.version)
	return m
}

// A mark without its version packs into one word, so that readers need no lock: 32 bits of notBefore, 12 of tie, 20 of
// life in minutes, rounded up.
const (
	tieBits  = 12
	lifeBits = 20
	maxLife  = (1<<lifeBits - 1) * 60 // seconds; just under two years
)

func (m mark) pack() uint64 {
	life := min(max(m.expires-m.notBefore, 0)+59, maxLife) / 60
	return uint64(m.notBefore)<<(tieBits+lifeBits) | uint64(m.tie)<<lifeBits | uint64(life) //nolint:gosec // all three were bounded when the mark was parsed
}

func unpackMark(word uint64) mark {
	m := mark{
		notBefore: int64(word >> (tieBits + lifeBits)), //nolint:gosec // 32 bits
		tie:       int64(word >> lifeBits & (1<<tieBits - 1)),
	}
	m.expires = m.notBefore + int64(word&(1<<lifeBits-1))*60
	return m
}

// mergeMarkWords is merge on packed marks.
func mergeMarkWords(a, b uint64) uint64 {
	return unpackMark(a).merge(unpackMark(b)).pack()
}
