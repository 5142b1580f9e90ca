package flag

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// The published vectors of MurmurHash3_x86_32 with seed 0.
func TestMurmur3(t *testing.T) {
	for text, want := range map[string]uint32{
		"":              0,
		"a":             0x3c2569b2,
		"test":          0xba6bd213,
		"Hello, world!": 0xc0363e43,
		"The quick brown fox jumps over the lazy dog": 0x2e4ff723,
	} {
		if got := murmur3Whole([]byte(text)); got != want {
			t.Errorf("the reference, %q: got %#x, want %#x", text, got, want)
		}
		if m := murmur3Of(text); m.sum() != want {
			t.Errorf("%q: got %#x, want %#x", text, m.sum(), want)
		}
	}
}

// murmur3Whole is the reference: all at once, as its author wrote it.
func murmur3Whole(data []byte) uint32 {
	const c1, c2 = 0xcc9e2d51, 0x1b873593
	h, length := uint32(0), uint32(len(data))
	for ; len(data) >= 4; data = data[4:] {
		h ^= bits.RotateLeft32(binary.LittleEndian.Uint32(data)*c1, 15) * c2
		h = bits.RotateLeft32(h, 13)*5 + 0xe6546b64
	}
	k := uint32(0)
	switch len(data) {
	case 3:
		k ^= uint32(data[2]) << 16
		fallthrough
	case 2:
		k ^= uint32(data[1]) << 8
		fallthrough
	case 1:
		k ^= uint32(data[0])
		h ^= bits.RotateLeft32(k*c1, 15) * c2
	}
	h ^= length
	h ^= h >> 16
	h *= 0x85ebca6b
	h ^= h >> 13
	h *= 0xc2b2ae35
	return h ^ h>>16
}

// However a text is cut into parts, its hash is the whole's, on the way too.
func TestMurmur3InParts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var m murmur3
		whole := ""
		for _, part := range rapid.SliceOf(rapid.StringOf(rapid.RuneFrom([]rune("az0\x00é\U0010ffff")))).Draw(t, "parts") {
			m.add(part)
			whole += part
			if got, want := m.sum(), murmur3Whole([]byte(whole)); got != want {
				t.Fatalf("%q: got %#x, want %#x", whole, got, want)
			}
		}
	})
}

// tollgate-1 is a promise: these places may never change.
func TestTollgate1DoesNotMove(t *testing.T) {
	if subjectHash("") != 0xef46db3751d8e999 { // XXH64's published value
		t.Error("subjects are not hashed with XXH64")
	}
	var got []uint64
	for _, key := range []string{"", "ann", "user-1", "6f1c2e9a-0000-4000-8000-000000000000", "Zoë"} {
		got = append(got, bucket64(subjectHash(key), saltHash("ml-v2")))
	}
	want := []uint64{8868460078991028950, 3908782662085344845, 4389401749997272495, 799293959083679694, 12241006025979713827}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// flagd's own vectors, from its evaluator test kit (fractional.feature, tags
// fractional-v1 and fractional-v2).
func TestFlagdVectors(t *testing.T) {
	const document = `
flags:
  by-name:
    variants: {clubs: clubs, diamonds: diamonds, hearts: hearts, spades: spades, wild: wild}
    defaultVariant: wild
    targeting: {fractional: [{cat: [{var: $flagd.flagKey}, {var: user.name}]}, [clubs, 25], [diamonds, 25], [hearts, 25], [spades, 25]]}
    tollgate: {flagdKey: fractional-flag, flagdHash: %[1]s}
  seeded:
    variants: {clubs: clubs, diamonds: diamonds, hearts: hearts, spades: spades, wild: wild}
    defaultVariant: wild
    targeting: {fractional: [{cat: [shared-seed, {var: user.name}]}, [clubs, 25], [diamonds, 25], [hearts, 25], [spades, 25]]}
    tollgate: {flagdHash: %[1]s}
  short:
    variants: {heads: heads, tails: tails, draw: draw}
    defaultVariant: draw
    targeting: {fractional: [[heads], [tails, 1]]}
    tollgate: {flagdKey: fractional-flag-shorthand, flagdHash: %[1]s}
  edge:
    variants: {lower: lower, upper: upper}
    defaultVariant: lower
    targeting: {fractional: [{var: targetingKey}, [lower, 50], [upper, 50]]}
    tollgate: {flagdHash: %[1]s}
  nested:
    variants: {premium: premium, standard: standard, fallback: fallback}
    defaultVariant: fallback
    targeting: {fractional: [{var: targetingKey}, [{if: [{"==": [{var: tier}, premium]}, premium, standard]}, 50], [standard, 50]]}
    tollgate: {flagdHash: %[1]s}
  weighted:
    variants: {red: red, blue: blue, fallback: fallback}
    defaultVariant: fallback
    targeting: {fractional: [{var: targetingKey}, [red, {if: [{"==": [{var: tier}, premium]}, 100, 0]}], [blue, 10]]}
    tollgate: {flagdHash: %[1]s}
  condition:
    variants: {big: hundreds, small: ones, fallback: zero}
    defaultVariant: fallback
    targeting: {if: [{fractional: [[false, 0], [true, 100]]}, big, small]}
    tollgate: {flagdHash: %[1]s}
  missing:
    variants: {red: red, blue: blue}
    defaultVariant: red
    targeting: {fractional: [{var: email}, [red, 50], [blue, 50]]}
    tollgate: {flagdKey: headerColor, flagdHash: %[1]s}
`
	type vector struct{ flag, key, name, tier, want string }
	vectors := map[Hash][]vector{
		HashFlagd1: {
			{"by-name", "", "jack", "", "spades"}, {"by-name", "", "queen", "", "clubs"}, {"by-name", "", "ten", "", "diamonds"},
			{"by-name", "", "nine", "", "hearts"}, {"by-name", "", "3", "", "diamonds"},
			{"seeded", "", "jack", "", "hearts"}, {"seeded", "", "queen", "", "spades"}, {"seeded", "", "ten", "", "hearts"}, {"seeded", "", "nine", "", "diamonds"},
			{"short", "jon@company.com", "", "", "heads"}, {"short", "jane@company.com", "", "", "tails"},
		},
		HashFlagd2: {
			{"by-name", "", "jack", "", "hearts"}, {"by-name", "", "queen", "", "spades"}, {"by-name", "", "ten", "", "clubs"},
			{"by-name", "", "nine", "", "diamonds"}, {"by-name", "", "3", "", "clubs"},
			{"seeded", "", "seven", "", "hearts"}, {"seeded", "", "eight", "", "diamonds"}, {"seeded", "", "nine", "", "clubs"}, {"seeded", "", "two", "", "spades"},
			{"short", "jon@company.com", "", "", "heads"}, {"short", "jane@company.com", "", "", "tails"},
			{"edge", "ejOoVL", "", "", "lower"}, {"edge", "bY9fO-", "", "", "lower"}, {"edge", "SI7p-", "", "", "lower"},
			{"edge", "6LvT0", "", "", "upper"}, {"edge", "ceQdGm", "", "", "upper"},
			{"nested", "jon@company.com", "", "premium", "premium"}, {"nested", "jon@company.com", "", "basic", "standard"},
			{"nested", "user1", "", "premium", "standard"}, {"nested", "user1", "", "basic", "standard"},
			{"weighted", "jon@company.com", "", "premium", "red"}, {"weighted", "jon@company.com", "", "basic", "blue"},
			{"weighted", "user1", "", "premium", "red"}, {"weighted", "user1", "", "basic", "blue"},
			{"condition", "some-targeting-key", "", "", "big"},
			{"missing", "", "", "", "red"},
		},
	}
	for hash, vs := range vectors {
		set := mustCompile(t, fmt.Sprintf(document, hash))
		for _, v := range vs {
			s := &Subject{Key: v.key, Tier: v.tier, Claims: map[string]any{"user": map[string]any{"name": v.name}}}
			if got := set.Evaluate(v.flag, s, testTime); got.Variant != v.want {
				t.Errorf("%s %s for %s%s: got %s (%s), want %s", hash, v.flag, v.key, v.name, got.Variant, got.Reason, v.want)
			}
		}
	}
}

// A hash of -2^31 lies beyond flagd-1's last bucket, and flagd serves the
// default there.
func TestFlagd1Edge(t *testing.T) {
	if got := flagd1Place(1 << 31); got <= 100 {
		t.Errorf("got %v", got)
	}
	if got := flagd1Place(math.MaxInt32); got != 100 {
		t.Errorf("got %v", got)
	}
}

// rolledOut is a set with one flag under each hash.
func rolledOut(t testing.TB, salt string, percentage Percentage) *Set {
	defs := &Definitions{Flags: map[string]Definition{}}
	for _, hash := range []Hash{HashTollgate1, HashFlagd1, HashFlagd2} {
		key := string(hash)
		defs.Flags[key] = Definition{
			Key: key, State: Enabled, DefaultVariant: "z", Variants: map[string]any{"a": "a", "b": "b", "z": "z"},
			Extension: Extension{Salt: salt, Hash: hash, Rollout: &Rollout{
				Percentage: percentage, Variants: []Weight{{"a", 1}, {"b", 2}},
			}},
		}
	}
	set, err := Compile(defs)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// Raising a roll-out keeps everyone who is in, on the same variant.
func TestRolloutIsMonotone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		salt := rapid.StringN(1, 20, 60).Draw(t, "salt")
		low := rapid.Int32Range(0, int32(Everyone)).Draw(t, "low")
		high := rapid.Int32Range(low, int32(Everyone)).Draw(t, "high")
		s := &Subject{Key: rapid.StringN(1, 30, 100).Draw(t, "key")}
		defs := func(p int32) *Set {
			out := &Definitions{Flags: map[string]Definition{}}
			for _, hash := range []Hash{HashTollgate1, HashFlagd1, HashFlagd2} {
				out.Flags[string(hash)] = Definition{
					Key: string(hash), State: Enabled, DefaultVariant: "z", Variants: map[string]any{"a": "a", "b": "b", "z": "z"},
					Extension: Extension{Salt: salt, Hash: hash, Rollout: &Rollout{Percentage: Percentage(p), Variants: []Weight{{"a", 1}, {"b", 2}}}},
				}
			}
			set, err := Compile(out)
			if err != nil {
				t.Fatal(err)
			}
			return set
		}
		before, after := defs(low), defs(high)
		for _, key := range before.Keys() {
			if v := before.Evaluate(key, s, testTime).Variant; v != "z" && after.Evaluate(key, s, testTime).Variant != v {
				t.Errorf("%s: %s at %d, %s at %d", key, v, low, after.Evaluate(key, s, testTime).Variant, high)
			}
		}
	})
}

// chiSquare is the statistic of observed counts against expected shares.
func chiSquare(observed []int, shares []float64, n int) float64 {
	sum := 0.0
	for i, o := range observed {
		e := shares[i] * float64(n)
		sum += (float64(o) - e) * (float64(o) - e) / e
	}
	return sum
}

// Shares are what was asked for, for keys as they come: counted up, mail
// addresses, UUID-like.
func TestSharesAreExact(t *testing.T) {
	const n = 20000
	forms := []string{"%d", "user-%d@example.com", "%08x-5717-4562-b3fc-2c963f66afa6"}
	keys := map[string][]string{}
	for _, form := range forms {
		for i := range n {
			keys[form] = append(keys[form], fmt.Sprintf(form, i))
		}
	}
	for _, percentage := range []Percentage{Percent / 2, 25 * Percent, 50 * Percent} {
		set := rolledOut(t, fmt.Sprintf("salt-%s", percentage), percentage)
		p := float64(percentage) / float64(Everyone)
		shares := []float64{p / 3, 2 * p / 3, 1 - p}
		for _, form := range forms {
			for _, key := range set.Keys() {
				counts := make([]int, 3)
				for _, user := range keys[form] {
					switch set.Evaluate(key, &Subject{Key: user}, testTime).Variant {
					case "a":
						counts[0]++
					case "b":
						counts[1]++
					default:
						counts[2]++
					}
				}
				// 99.99 % of the chi-square distribution with 2 degrees of
				// freedom lies below 18.4; keys and salts are fixed.
				if x := chiSquare(counts, shares, n); x > 18.4 {
					t.Errorf("%s, %s %%, %s: %v, chi-square %.1f", key, percentage, form, counts, x)
				}
			}
		}
	}
}

// Two flags' roll-outs are independent, also with salts that differ in one
// bit, and so are a flag's roll-out, its split and a layer of its name.
func TestFlagsAreIndependent(t *testing.T) {
	const n = 50000
	subjects := make([]uint64, n)
	for i := range subjects {
		subjects[i] = subjectHash(fmt.Sprintf("user-%d", i))
	}
	pairs := [][2]uint64{
		{saltHash("ml-v2"), saltHash("ml-v3")},
		{saltHash("a"), saltHash("b")},
		{saltHash("ml-v2"), saltHash("split:ml-v2")},
		{saltHash("ml-v2"), saltHash("layer:ml-v2")},
		{saltHash("ml-v2"), saltHash("ml-v2") ^ 1},
		{saltHash("ml-v2"), saltHash("ml-v2") ^ 1<<63},
	}
	for _, pair := range pairs {
		for _, p := range []Percentage{50 * Percent, 10 * Percent} {
			counts := make([]int, 4)
			for _, subject := range subjects {
				cell := 0
				for bit, salt := range pair {
					if p.within(bucket64(subject, salt)) {
						cell |= 1 << bit
					}
				}
				counts[cell]++
			}
			q := float64(p) / float64(Everyone)
			// 99.99 % of chi-square with 3 degrees of freedom lies below 21.1.
			if x := chiSquare(counts, []float64{(1 - q) * (1 - q), q * (1 - q), q * (1 - q), q * q}, n); x > 21.1 {
				t.Errorf("salts %x and %x at %s %%: %v, chi-square %.1f", pair[0], pair[1], p, counts, x)
			}
		}
	}
}

func TestPercentage(t *testing.T) {
	for text, want := range map[string]Percentage{"0": 0, "100": Everyone, "12.5": 12500, "0.001": 1, "99.999": 99999, "33.3": 33300} {
		p, err := ParsePercentage(text)
		if err != nil || p != want || p.String() != text {
			t.Errorf("%s: got %d (%s), %v", text, p, p, err)
		}
	}
	for _, text := range []string{"", "x", "-0.001", "100.001", "0.0001", "NaN", "Inf", "1e400"} {
		if p, err := ParsePercentage(text); err == nil {
			t.Errorf("%q: got %d", text, p)
		}
	}
	var p Percentage
	if err := p.UnmarshalJSON([]byte("7.25")); err != nil || p != 7250 {
		t.Errorf("got %d, %v", p, err)
	}
	rapid.Check(t, func(t *rapid.T) {
		want := Percentage(rapid.Int32Range(0, int32(Everyone)).Draw(t, "p"))
		if got, err := ParsePercentage(want.String()); err != nil || got != want {
			t.Errorf("%s: got %s, %v", want, got, err)
		}
	})
	// within is exact at the edges: the p-th part of the space, no more.
	for _, p := range []Percentage{1, 50 * Percent, 99999} {
		edge := uint64(math.Ceil(float64(p) / float64(Everyone) * (1 << 32)))
		if !p.within((edge-1)<<32) || p.within((edge+1)<<32) {
			t.Errorf("%s is not exact", p)
		}
	}
}
