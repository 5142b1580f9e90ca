package revocation

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestMarkCovers(t *testing.T) {
	const second = 1_800_000_000
	auto := mark{notBefore: second, tie: 501} // set by the store 500 ms into the second
	named := mark{notBefore: second, tie: tieVersion, version: 7}
	plain := mark{notBefore: second, tie: tieNone}
	const ms = second*1000 + 501
	for _, c := range []struct {
		name    string
		mark    mark
		iat     int64
		version int64
		want    bool
	}{
		{"issued before", plain, second - 1, 0, true},
		{"issued before, whatever the version", named, second - 1, 99, true},
		{"issued before, with the store's version", auto, second - 1, ms, true},
		{"no iat", plain, time.Time{}.Unix(), 0, true},
		{"issued after", plain, second + 1, 0, false},
		{"issued in the same second", plain, second, 0, true},
		{"issued in the same second, any version", plain, second, ms, true},

		{"store's version: same second, none", auto, second, 0, true},
		{"store's version: same second, older", auto, second, ms - 1, true},
		{"store's version: same second, that one", auto, second, ms, false},
		{"store's version: same second, a later millisecond", auto, second, ms + 300, false},
		{"store's version: same second, a small counter", auto, second, 3, true},
		{"store's version: same second, microseconds", auto, second, ms * 1000, true},
		{"store's version: same second, past its reach", auto, second, second*1000 + tieReach, true},
		{"store's version: same second, just within its reach", auto, second, second*1000 + tieReach - 1, false},
		{"store's version: after, a small counter", auto, second + 1, 3, false},

		{"named version: same second, older", named, second, 6, true},
		{"named version: same second, that one", named, second, 7, false},
		{"named version: same second, later", named, second, 8, false},
		{"named version: same second, none", named, second, 0, true},
		{"named version: after, older", named, second + 60, 6, true},
		{"named version: after, none", named, second + 60, 0, false},
		{"named version: after, that one", named, second + 60, 7, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := c.mark.covers(c.iat, c.version); got != c.want {
				t.Errorf("%+v covers (iat %d, version %d) = %v, want %v", c.mark, c.iat, c.version, got, c.want)
			}
		})
	}
}

// drawMark draws marks that lie close together, so that ties happen. Expiry is on the grid of packed marks.
func drawMark(t *rapid.T, name string) mark {
	m := mark{
		notBefore: rapid.Int64Range(100, 104).Draw(t, name+".notBefore"),
		tie:       rapid.SampledFrom([]int64{tieVersion, 1, 2, 500, maxTie, tieNone}).Draw(t, name+".tie"),
		version:   rapid.Int64Range(0, 3).Draw(t, name+".version"),
	}
	if m.tie == tieVersion && m.version == 0 {
		m.version = 1 // such a mark is made with a version only
	}
	m.expires = m.notBefore + 60*rapid.Int64Range(0, 5).Draw(t, name+".life")
	return m
}

func TestMarkMergeIsALattice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := drawMark(t, "a"), drawMark(t, "b"), drawMark(t, "c")
		if a.merge(b) != b.merge(a) {
			t.Errorf("not commutative: %+v, %+v", a.merge(b), b.merge(a))
		}
		if a.merge(b).merge(c) != a.merge(b.merge(c)) {
			t.Errorf("not associative")
		}
		if a.merge(a) != a {
			t.Errorf("not idempotent: %+v becomes %+v", a, a.merge(a))
		}
	})
}

// What either mark covers, the merged one covers: merging never brings a token back.
func TestMarkMergeCoversBoth(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := drawMark(t, "a"), drawMark(t, "b")
		iat := rapid.Int64Range(98, 106).Draw(t, "iat")
		version := rapid.OneOf(rapid.Int64Range(0, 4), rapid.Int64Range(99_990, 108_000)).Draw(t, "version")
		merged := a.merge(b)
		// Two versions named in one second by different sides is the one case where covering both means covering more
		// than either; never less.
		if (a.covers(iat, version) || b.covers(iat, version)) && !merged.covers(iat, version) {
			t.Errorf("(iat %d, version %d) is covered by %+v or %+v but not by %+v", iat, version, a, b, merged)
		}
	})
}

func TestMarkPackKeepsAllButTheVersion(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := mark{
			notBefore: rapid.Int64Range(0, 1<<32-1).Draw(t, "notBefore"),
			tie:       rapid.Int64Range(0, tieNone).Draw(t, "tie"),
		}
		m.expires = m.notBefore + rapid.Int64Range(0, maxLife-60).Draw(t, "life")
		got := unpackMark(m.pack())
		if got.notBefore != m.notBefore || got.tie != m.tie {
			t.Errorf("%+v becomes %+v", m, got)
		}
		if got.expires < m.expires || got.expires > m.expires+59 {
			t.Errorf("expiry %d becomes %d: want it, rounded up to a minute of life", m.expires, got.expires)
		}
		if again := unpackMark(got.pack()); again != got {
			t.Errorf("packing twice moves %+v to %+v", got, again)
		}
	})
}

// The replica's packed merge agrees with the plain one on everything that decides.
func TestMarkWordsMergeAlike(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := drawMark(t, "a"), drawMark(t, "b")
		got, want := unpackMark(mergeMarkWords(a.pack(), b.pack())), a.merge(b)
		if got.notBefore != want.notBefore || got.tie != want.tie || got.expires < want.expires {
			t.Errorf("words: %+v, plain: %+v", got, want)
		}
	})
}
