package experiment

import (
	"fmt"
	"math"
	"math/bits"
	"slices"
	"time"

	"github.com/cespare/xxhash/v2"
)

// Assigner deals the users of one version of an experiment. It depends on the
// user, the experiment's key and version and nothing else: sticky without
// memory. Raising the traffic keeps everyone who takes part on the same variant.
// It is immutable, and nothing in it allocates.
//
// Three independent places decide: in the layer, in the traffic, and among the
// variants. A place is fmix64(xxh64(user) XOR xxh64(salt)), as for feature
// flags; the two share a formula and no code, since domains do not import each
// other.
type Assigner struct {
	layered               bool
	layer                 uint64
	layerFrom, layerUntil float64
	trafficSalt, variant  uint64
	traffic               float64
	ends                  []uint64
	tiers                 []string
	from, until           int64 // seconds since the epoch
}

// NewAssigner prepares a valid definition.
func NewAssigner(d *Definition) *Assigner {
	salt := fmt.Sprintf("%s:%d", d.Key, d.Version)
	a := &Assigner{
		trafficSalt: xxhash.Sum64String("experiment-traffic:" + salt), variant: xxhash.Sum64String("experiment-variant:" + salt),
		traffic: d.Traffic, tiers: d.Tiers, from: math.MinInt64, until: math.MaxInt64,
	}
	if l := d.Layer; l != nil {
		a.layered, a.layerFrom, a.layerUntil = true, l.From, l.Until
		a.layer = xxhash.Sum64String("experiment-layer:" + l.Name)
	}
	total := uint64(0)
	for _, v := range d.Variants {
		total += uint64(v.Weight)
		a.ends = append(a.ends, total)
	}
	if !d.Start.IsZero() {
		a.from = ceilUnix(d.Start)
	}
	if !d.Stop.IsZero() {
		a.until = ceilUnix(d.Stop)
	}
	if d.State == Draft || d.State == Stopped {
		a.until = math.MinInt64
	}
	return a
}

// ceilUnix is the first whole second that is not before t.
func ceilUnix(t time.Time) int64 {
	if t.Nanosecond() > 0 {
		return t.Unix() + 1
	}
	return t.Unix()
}

// Assign gives the index of the user's variant, or false if the user does not
// take part, whatever the user's tier and the time.
func (a *Assigner) Assign(user string) (int, bool) {
	if user == "" {
		return 0, false
	}
	hash := xxhash.Sum64String(user)
	if a.layered {
		if at := position(hash, a.layer); at < a.layerFrom || at >= a.layerUntil {
			return 0, false
		}
	}
	if position(hash, a.trafficSalt) >= a.traffic {
		return 0, false
	}
	at, _ := bits.Mul64(place(hash, a.variant), a.ends[len(a.ends)-1])
	for i, end := range a.ends {
		if at < end {
			return i, true
		}
	}
	return 0, false // not reached: at is below the total
}

// At is Assign for a user of a tier at a time, in seconds since the epoch.
func (a *Assigner) At(user, tier string, now int64) (int, bool) {
	if now < a.from || now >= a.until {
		return 0, false
	}
	return a.would(user, tier)
}

// would is At whenever the experiment runs.
func (a *Assigner) would(user, tier string) (int, bool) {
	if len(a.tiers) > 0 && !slices.Contains(a.tiers, tier) {
		return 0, false
	}
	return a.Assign(user)
}

// place is a user's place in a space of 2^64, one space a salt.
func place(user, salt uint64) uint64 {
	h := user ^ salt
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

// position is a place between 0 and 1.
func position(user, salt uint64) float64 {
	return float64(place(user, salt)>>32) / space
}
