package revocation

import (
	"crypto/sha256"
	"encoding/binary"
)

// fingerprint is what the sets hold in place of a name: 128 bits of SHA-256, the same in every process, so that any
// replica can write back what Redis lost. With n entries a look-up is wrong with probability n/2^128 (3e-33 at a
// million). The zero fingerprint means "no such claim" and is never looked up.
type fingerprint struct{ hi, lo uint64 }

func (f fingerprint) zero() bool { return f.hi == 0 }

// fingerprintOf reads the first 16 bytes of a SHA-256. hi is never 0, which marks an empty slot.
func fingerprintOf(sum []byte) fingerprint {
	f := fingerprint{hi: binary.BigEndian.Uint64(sum), lo: binary.BigEndian.Uint64(sum[8:])}
	if f.hi == 0 {
		f.hi = 1
	}
	return f
}

// everything is the fingerprint of all tokens: a fixed one, since it names nothing.
func everything() fingerprint { return fingerprint{hi: 1, lo: 1} }

// folded opens every block after the first; no Kind has this value, so that a long name cannot imitate a short one.
const folded = 0xff

// printOf hashes (kind, issuer, id). The issuer's length goes in too, so that ("a","bc") and ("ab","c") differ. Names
// longer than the buffer are folded in block by block, which keeps it free of allocation at any length.
func printOf(kind Kind, issuer, id string) fingerprint {
	var buf [256]byte
	buf[0] = byte(kind)
	n := 1 + binary.PutUvarint(buf[1:], uint64(len(issuer)))
	n = absorb(&buf, n, issuer)
	n = absorb(&buf, n, id)
	sum := sha256.Sum256(buf[:n])
	return fingerprintOf(sum[:])
}

func absorb(buf *[256]byte, n int, s string) int {
	for {
		c := copy(buf[n:], s)
		n += c
		s = s[c:]
		if s == "" {
			return n
		}
		sum := sha256.Sum256(buf[:])
		buf[0] = folded
		n = 1 + copy(buf[1:], sum[:])
	}
}

// print gives the fingerprint of what a revocation names.
func (r *Revocation) print() fingerprint {
	switch r.Kind {
	case KindToken:
		return fingerprintOf(r.Digest[:])
	case KindEverything:
		return everything()
	default:
		return printOf(r.Kind, r.Issuer, r.ID)
	}
}
