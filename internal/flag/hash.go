package flag

import (
	"math"
	"math/bits"

	"github.com/cespare/xxhash/v2"
)

// The bucketing functions. They are part of what is promised to users: a
// change here moves people between variants, so a new function gets a new
// [Hash] and the old ones stay.

// mix64 is MurmurHash3's 64-bit finaliser: every bit of the input moves every
// bit of the output.
func mix64(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	h ^= h >> 33
	return h
}

// saltHash prepares a salt for bucket64.
func saltHash(salt string) uint64 { return xxhash.Sum64String(salt) }

// bucket64 is tollgate-1: the subject's place in a space of 2^64, independent
// of its place under any other salt. Hashing the subject once serves all flags
// of a request.
func bucket64(subject, salt uint64) uint64 { return mix64(subject ^ salt) }

// within reports whether a place lies in the first p of its space. What is in
// for p is in for every larger percentage.
func (p Percentage) within(place uint64) bool {
	hi, _ := bits.Mul64(place, uint64(Everyone))
	return hi < uint64(p)
}

// share scales a place to 0 to total-1.
func share(place uint64, total uint32) uint32 {
	hi, _ := bits.Mul64(place, uint64(total))
	return uint32(hi)
}

// murmur3 is MurmurHash3_x86_32 with seed 0, flagd's hash, of text that comes
// in parts. A copy of it goes on where the original is, so that what all
// evaluations begin with is hashed once.
type murmur3 struct {
	hash   uint32
	tail   uint32 // the bytes since the last block of four
	length uint32
}

func murmur3Of(text string) murmur3 {
	var m murmur3
	m.add(text)
	return m
}

func (m *murmur3) add(text string) {
	for ; len(text) > 0 && m.length%4 != 0; text = text[1:] {
		m.tail |= uint32(text[0]) << (m.length % 4 * 8)
		if m.length++; m.length%4 == 0 {
			m.hash, m.tail = murmur3Block(m.hash, m.tail), 0
		}
	}
	m.length += uint32(len(text))
	hash := m.hash
	for ; len(text) >= 4; text = text[4:] {
		hash = murmur3Block(hash, uint32(text[0])|uint32(text[1])<<8|uint32(text[2])<<16|uint32(text[3])<<24)
	}
	m.hash = hash
	for i := range len(text) {
		m.tail |= uint32(text[i]) << (8 * i)
	}
}

func murmur3Block(hash, block uint32) uint32 {
	return bits.RotateLeft32(hash^murmur3Scramble(block), 13)*5 + 0xe6546b64
}

func murmur3Scramble(block uint32) uint32 {
	return bits.RotateLeft32(block*0xcc9e2d51, 15) * 0x1b873593
}

// sum is the hash of what has been added; more may follow.
func (m *murmur3) sum() uint32 {
	h := m.hash ^ murmur3Scramble(m.tail) ^ m.length // no tail scrambles to 0
	h ^= h >> 16
	h *= 0x85ebca6b
	h ^= h >> 13
	h *= 0xc2b2ae35
	return h ^ h>>16
}

// flagd1Place is flagd-1's place, 0 to 100 both included: as a signed number
// the hash reaches -2^31, whose magnitude is one more than the divisor.
func flagd1Place(hash uint32) float64 {
	return math.Abs(float64(int32(hash))) / math.MaxInt32 * 100
}

// flagd2Place is flagd-2's place, 0 to total-1.
func flagd2Place(hash, total uint32) uint32 {
	return uint32(uint64(hash) * uint64(total) >> 32)
}
