package revocation

import (
	"strings"
	"testing"
)

func TestPrintsDiffer(t *testing.T) {
	long := strings.Repeat("x", 1000)
	seen := map[fingerprint]string{}
	for _, c := range []struct {
		kind       Kind
		issuer, id string
	}{
		{KindTokenID, "a", "bc"},
		{KindTokenID, "ab", "c"},
		{KindTokenID, "", "abc"},
		{KindTokenID, "abc", ""},
		{KindSession, "a", "bc"},
		{KindUser, "", "abc"},
		{KindUser, "", "abc\x00"},
		{KindUser, "", long},
		{KindUser, "", long + "y"},
		{KindUser, "", "y" + long},
		{KindUser, long, ""},
		{KindUser, long[:500], long[:500]},
		{KindUser, long[:499], long[:501]},
	} {
		name := c.kind.String() + "/" + c.issuer + "/" + c.id
		f := printOf(c.kind, c.issuer, c.id)
		if other, taken := seen[f]; taken {
			t.Errorf("%s and %s share a fingerprint", name, other)
		}
		if f != printOf(c.kind, c.issuer, c.id) {
			t.Errorf("%s has two fingerprints", name)
		}
		seen[f] = name
	}
}

// Replicas of different versions share what is in Redis: the fingerprint is part of the format.
func TestPrintsAreStable(t *testing.T) {
	for _, c := range []struct {
		kind       Kind
		issuer, id string
		want       fingerprint
	}{
		{KindUser, "", "alice", fingerprint{hi: 0x267586d0b823d52f, lo: 0xa0cda4632ba5256e}},
		{KindUser, "", strings.Repeat("alice", 200), fingerprint{hi: 0x4f89cc439304065, lo: 0x17aab98f526b8fbd}},
	} {
		if got := printOf(c.kind, c.issuer, c.id); got != c.want {
			t.Errorf("printOf(%s, %q, %.10q) = %#x, %#x, want %#x", c.kind, c.issuer, c.id, got.hi, got.lo, c.want)
		}
	}
}

func TestFingerprintIsNeverZero(t *testing.T) {
	if f := fingerprintOf(make([]byte, 16)); f.zero() {
		t.Error("a hash of zeros gives the zero fingerprint")
	}
}

func TestCheckDoesNotAllocate(t *testing.T) {
	r := newTestReplica(t, nil)
	r.set.learn(change{print: printOf(KindUser, "", "bob"), isMark: true, mark: mark{notBefore: 1}})
	r.set.learn(change{print: printOf(KindSession, "", "bob"), entry: 1})
	for name, token := range map[string]*Token{
		"prepared":     prepared(exampleToken("alice")),
		"not prepared": exampleToken("alice"),
		"long names":   exampleToken(strings.Repeat("alice", 500)),
	} {
		now := r.options.Now()
		if n := testing.AllocsPerRun(100, func() { r.Check(token, now) }); n != 0 {
			t.Errorf("%s: %v allocations, want 0", name, n)
		}
	}
}
