package experiment

import (
	"errors"
	"fmt"
	"math/bits"
	"time"

	"github.com/cespare/xxhash/v2"
)

// Definition is one experiment.
type Definition struct {
	// Key names the experiment: [a-z0-9-], 1 to 64 bytes.
	Key string `json:"key"`
	// Version counts changes that make earlier measurements incomparable. It
	// is part of the assignment: a new version deals anew.
	Version int `json:"version"`
	// Variants are two to 16; the first is the control.
	Variants []Variant `json:"variants"`
	// Traffic is the share of users who take part, from above 0 to 1.
	Traffic float64 `json:"traffic"`
	// Layer makes experiments of one layer mutually exclusive; nil for none.
	Layer *Layer `json:"layer,omitempty"`
	// Start and Stop bound the assignment in time; a zero time does not.
	Start time.Time `json:"start,omitzero"`
	Stop  time.Time `json:"stop,omitzero"`
	// Primary is the metric that the experiment is about.
	Primary Metric `json:"primary"`
	// Guardrails must not get worse.
	Guardrails []Metric `json:"guardrails,omitempty"`
	// MinimumUsers is how many users each variant needs before a verdict.
	MinimumUsers int64 `json:"minimum_users"`
	// Alpha is the accepted rate of false alarms; 0.05 if 0.
	Alpha float64 `json:"alpha,omitempty"`
}

// Variant is one arm with its weight, relative to the sum of all weights.
type Variant struct {
	Name   string `json:"name"`
	Weight uint32 `json:"weight"`
}

// Layer is the slice [From, Until) of a space that experiments share, both
// from 0 to 1.
type Layer struct {
	Name  string  `json:"name"`
	From  float64 `json:"from"`
	Until float64 `json:"until"`
}

// Kind says how observations of a user become the user's value.
type Kind string

const (
	// Mean is the average of the user's observations, such as latency.
	Mean Kind = "mean"
	// Sum is the total of the user's observations, such as bytes.
	Sum Kind = "sum"
	// Rate is 1 for a user with any observation that is not 0, else 0, such as
	// conversion.
	Rate Kind = "rate"
)

// Metric is something measured.
type Metric struct {
	Name string `json:"name"`
	Kind Kind   `json:"kind"`
	// LowerIsBetter is true for latency and errors.
	LowerIsBetter bool `json:"lower_is_better,omitempty"`
}

const (
	defaultAlpha = 0.05
	maxVariants  = 16
	maxMetrics   = 32
	maxName      = 64
	// space is the resolution of traffic and layers.
	space = 1 << 32
)

// Validate reports everything that is wrong with the definition, joined.
func (d *Definition) Validate() error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !validName(d.Key) {
		fail("key %q is not 1 to %d of a-z, 0-9 and hyphen", d.Key, maxName)
	}
	if len(d.Variants) < 2 || len(d.Variants) > maxVariants {
		fail("an experiment has 2 to %d variants, not %d", maxVariants, len(d.Variants))
	}
	seen, total := map[string]bool{}, uint64(0)
	for i, v := range d.Variants {
		if !validName(v.Name) || seen[v.Name] {
			fail("variants[%d]: name %q is not unique and 1 to %d of a-z, 0-9 and hyphen", i, v.Name, maxName)
		}
		if v.Weight == 0 {
			fail("variants[%d]: weight of %q is 0", i, v.Name)
		}
		seen[v.Name] = true
		total += uint64(v.Weight)
	}
	if total >= space {
		fail("weights add up to %d, more than 2^32-1", total)
	}
	if !(d.Traffic > 0 && d.Traffic <= 1) {
		fail("traffic %v is not above 0 and at most 1", d.Traffic)
	}
	if l := d.Layer; l != nil && !(l.Name != "" && l.From >= 0 && l.From < l.Until && l.Until <= 1) {
		fail("layer %q from %v until %v is not a slice between 0 and 1", l.Name, l.From, l.Until)
	}
	if !d.Start.IsZero() && !d.Stop.IsZero() && !d.Start.Before(d.Stop) {
		fail("the experiment stops at %s, before it starts", d.Stop.Format(time.RFC3339))
	}
	if d.MinimumUsers < 2 {
		fail("minimum_users %d is below 2", d.MinimumUsers)
	}
	if !(d.Alpha >= 0 && d.Alpha < 0.5) {
		fail("alpha %v is not between 0 and 0.5", d.Alpha)
	}
	if len(d.Guardrails) >= maxMetrics {
		fail("%d guardrails are more than %d", len(d.Guardrails), maxMetrics-1)
	}
	metrics := map[string]bool{}
	for _, m := range append([]Metric{d.Primary}, d.Guardrails...) {
		if m.Name == "" || len(m.Name) > maxName || metrics[m.Name] {
			fail("metric %q needs a unique name of at most %d bytes", m.Name, maxName)
		}
		if m.Kind != Mean && m.Kind != Sum && m.Kind != Rate {
			fail("metric %q: kind %q is not mean, sum or rate", m.Name, m.Kind)
		}
		metrics[m.Name] = true
	}
	return errors.Join(errs...)
}

func validName(s string) bool {
	if s == "" || len(s) > maxName {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c != '-' && (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

// alpha is the accepted rate of false alarms.
func (d *Definition) alpha() float64 {
	if d.Alpha == 0 {
		return defaultAlpha
	}
	return d.Alpha
}

// Running reports whether users are assigned at that time.
func (d *Definition) Running(now time.Time) bool {
	return (d.Start.IsZero() || !now.Before(d.Start)) && (d.Stop.IsZero() || now.Before(d.Stop))
}

// Assign gives the index of the user's variant, or false if the user does not
// take part. It depends on the user, the experiment's key and version and
// nothing else: sticky without memory. Raising the traffic keeps everyone who
// takes part on the same variant. The definition must be valid.
//
// Three independent places decide: in the layer, in the traffic, and among the
// variants. A place is fmix64(xxh64(user) XOR xxh64(salt)), as for feature
// flags; the two share a formula and no code, since domains do not import each
// other.
func (d *Definition) Assign(user string) (int, bool) {
	if user == "" {
		return 0, false
	}
	hash := xxhash.Sum64String(user)
	if l := d.Layer; l != nil {
		at := position(hash, "experiment-layer:"+l.Name)
		if at < l.From || at >= l.Until {
			return 0, false
		}
	}
	salt := fmt.Sprintf("%s:%d", d.Key, d.Version)
	if position(hash, "experiment-traffic:"+salt) >= d.Traffic {
		return 0, false
	}
	total := uint64(0)
	for _, v := range d.Variants {
		total += uint64(v.Weight)
	}
	at, _ := bits.Mul64(place(hash, "experiment-variant:"+salt), total)
	for i, v := range d.Variants {
		if at < uint64(v.Weight) {
			return i, true
		}
		at -= uint64(v.Weight)
	}
	return 0, false // not reached: at is below the total
}

// place is a user's place in a space of 2^64, one space a salt.
func place(user uint64, salt string) uint64 {
	h := user ^ xxhash.Sum64String(salt)
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

// position is a place between 0 and 1.
func position(user uint64, salt string) float64 {
	return float64(place(user, salt)>>32) / space
}
