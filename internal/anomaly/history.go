package anomaly

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"strings"
	"time"
)

// Kind is what a fact is about.
type Kind byte

// The kinds of facts.
const (
	KindDevice  Kind = 'd' // digest of the device
	KindCountry Kind = 'c'
	KindNetwork Kind = 'n' // number of an autonomous system
	KindAddress Kind = 'a' // digest of an address
	KindAgent   Kind = 'g' // digest of an agent
	KindPlace   Kind = 'p' // Place.text
	KindHour    Kind = 'h' // hour of the day in UTC; counted once for each hour that the user was active in
	// KindTokenPlace is digest of the token, digest of the address, Place.text; KindTokenAgent digest of the token,
	// digest of the agent.
	KindTokenPlace Kind = 't'
	KindTokenAgent Kind = 'x'
)

// most is how many facts of a kind are kept; the one that was not seen for longest goes first.
func (k Kind) most() int {
	switch k {
	case KindDevice, KindNetwork, KindAgent:
		return 32
	case KindAddress, KindTokenPlace, KindTokenAgent:
		return 64
	case KindCountry, KindPlace:
		return 16
	default: // hours
		return 24
	}
}

// Fact is something known of a user.
type Fact struct {
	Kind  Kind
	Value string
	// First and Last are when it was seen, to the millisecond. First is the later of the first sighting and the last
	// refusal of it.
	First, Last time.Time
	// Count is how many different hours it was seen in, for hours; else 1. All hours' counts are halved when one
	// exceeds maxCount, so that habits can change.
	Count int
}

const maxCount = 250

// History is what is known of a user. The zero value is nothing.
type History struct {
	Facts []Fact
}

// find returns a fact; nil where it is not known.
func (h *History) find(kind Kind, value string) *Fact {
	for i := range h.Facts {
		if f := &h.Facts[i]; f.Kind == kind && f.Value == value {
			return f
		}
	}
	return nil
}

// established says whether a fact has been known for long enough to be the user's own.
func (h *History) established(kind Kind, value string, at time.Time, familiar time.Duration) bool {
	f := h.find(kind, value)
	return f != nil && !f.First.After(at.Add(-familiar))
}

// others is how many facts of the kind are older than the value: what makes it new. A user's very first device is not
// new.
func (h *History) others(kind Kind, value string) int {
	known := h.find(kind, value)
	n := 0
	for i := range h.Facts {
		f := &h.Facts[i]
		if f.Kind == kind && f.Value != value && (known == nil || f.First.Before(known.First)) {
			n++
		}
	}
	return n
}

// seen is how many facts of the kind, whose values begin with prefix, were seen since; the value itself is counted.
func (h *History) seen(kind Kind, prefix, value string, since time.Time) int {
	n := 1
	for i := range h.Facts {
		f := &h.Facts[i]
		if f.Kind == kind && f.Value != value && strings.HasPrefix(f.Value, prefix) && !f.Last.Before(since) {
			n++
		}
	}
	return n
}

func (h *History) hours() (hours hoursOfDay, since time.Time) {
	for i := range h.Facts {
		f := &h.Facts[i]
		if f.Kind != KindHour {
			continue
		}
		if hour, err := strconv.Atoi(f.Value); err == nil && hour >= 0 && hour < len(hours) {
			hours[hour] += f.Count
			if since.IsZero() || f.First.Before(since) {
				since = f.First
			}
		}
	}
	return hours, since
}

// AsOf is what was known before a past moment, as far as it can be told: what was first seen later is left out, but for
// places: where the user was afterwards says as much as where they were before.
func (h *History) AsOf(at time.Time) History {
	past := History{Facts: make([]Fact, 0, len(h.Facts))}
	for _, f := range h.Facts {
		before := f.First.Before(at)
		if !before && f.Kind != KindPlace && f.Kind != KindTokenPlace {
			continue
		}
		if before && f.Last.After(at) && f.Kind != KindPlace && f.Kind != KindTokenPlace {
			f.Last = at
		}
		past.Facts = append(past.Facts, f)
	}
	return past
}

// gap is the time between a moment and when a fact was seen; false where the moment lies between two sightings, so that
// nothing can be said. Clocks of several processes are not taken to agree better than clockSkew.
func (f *Fact) gap(at time.Time) (time.Duration, bool) {
	switch {
	case !at.Before(f.Last.Add(-clockSkew)):
		return max(at.Sub(f.Last), 0), true
	case !at.After(f.First):
		return f.First.Sub(at), true
	}
	return 0, false
}

// digest names a value without telling it: 64 bits of a hash that depends on the user, so that the same address or
// agent of two users cannot be told to be the same. It is a pseudonym, not anonymous: who has the address and the user
// can compute it.
func digest(user string, kind Kind, parts ...string) string {
	sum := sha256.New()
	for _, p := range append([]string{user, string(rune(kind))}, parts...) {
		sum.Write([]byte(strconv.Itoa(len(p)) + ":" + p))
	}
	return hex.EncodeToString(sum.Sum(nil)[:8])
}

// family is a user agent without its version numbers, which change by themselves every month.
func family(agent string) string {
	return strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r == '.' || r == '_' {
			return -1
		}
		return r
	}, agent)
}
