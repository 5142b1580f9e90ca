package ratelimit

import (
	"math"
	"sort"
)

// Charge is what one bucket is asked for in one decision. All amounts are
// integer microseconds: tokens times the interval of the bucket's limit.
type Charge struct {
	// Key names the bucket.
	Key string
	// Shared says that many demands meet the bucket. It changes nothing but
	// how a store sends it.
	Shared bool
	// Interval is what one token is worth where the bucket may be leased, else
	// 0. It changes nothing of the decision.
	Interval int64
	// Period is 0 for a token bucket, the length of the window for a fixed
	// window, and its negative for a sliding window, whose Capacity is less.
	Period int64
	// Capacity is the size of the bucket.
	Capacity int64
	// Need is what the bucket must hold for the demand to be allowed. More
	// than Capacity is never held.
	Need int64
	// Cost is taken from the bucket when the demand is allowed: equal to Need
	// for an ordinary request, 0 for a question, negative for a refund.
	Cost int64

	// Level is the state of the bucket: the instant at which it will be full,
	// in microseconds since the epoch; of a window, its beginning and what was
	// taken since. A store sets it to the state after the decision.
	Level int64
	// Previous is what was taken in the window before a sliding one.
	Previous int64
}

// Demand is all that one request asks of its buckets. Either every bucket
// holds what is needed and all are charged, or none is.
type Demand struct {
	// Charges has no two elements with the same key.
	Charges []Charge
	// Allowed is the answer.
	Allowed bool
	// Now is the time of the decision by the store's clock, in microseconds
	// since the epoch.
	Now int64
	// Returned is whether a store took something first and gave it back: who was
	// denied meanwhile may have been denied for that.
	Returned bool
}

// base is the level of a full bucket at that time: now, or the beginning of
// the window.
func (c *Charge) base(now int64) int64 {
	if c.Period == 0 {
		return now
	}
	return now - now%c.window()
}

// window is the length of the window; 0 for a token bucket.
func (c *Charge) window() int64 { return max(c.Period, -c.Period) }

// present brings stored levels to the present, and into the range that a
// bucket of this size can have. A level beyond it comes from a larger limit of
// the past, or from a clock that was set back; it must not deny for longer
// than an empty bucket.
func (c *Charge) present(now int64) {
	base := c.base(now)
	if c.Period >= 0 {
		c.Level = min(max(c.Level, base), base+c.Capacity)
		return
	}
	window := c.window()
	used, before := c.Level%window, c.Previous
	switch from := c.Level - used; {
	case from == base:
	case from == base-window:
		used, before = 0, used
	case from < base:
		used, before = 0, 0
	default:
		used, before = c.Capacity, 0
	}
	c.Level, c.Previous = base+min(used, c.Capacity), min(before, c.Capacity)
}

// ahead says whether the stored level is beyond what present lets it be. A store
// keeps what present makes of it, even where the demand is denied: else an empty
// bucket would stay as empty until the time that the level names.
func (c *Charge) ahead(now int64) bool {
	if c.Period >= 0 {
		return c.Level > c.base(now)+c.Capacity
	}
	return c.Level-c.Level%c.window() > c.base(now)
}

// used is what is taken from a bucket that is brought to the present. Of the
// window before a sliding one it counts the part that the window of the same
// length that ends now still covers, rounded up.
func (c *Charge) used(now int64) int64 {
	base := c.base(now)
	used := c.Level - base
	if c.Period < 0 && c.Previous > 0 {
		used += weighted(c.Previous, base+c.window()-now, c.window())
	}
	return used
}

// weighted is amount*left/window, rounded up. Lua reckons in the same numbers;
// the conversions keep the compiler from fusing what Lua rounds.
func weighted(amount, left, window int64) int64 {
	weight := float64(float64(left) / float64(window))
	return int64(math.Ceil(float64(float64(amount) * weight)))
}

// lacking is how much the bucket is short of what is needed, at most 0 where
// it holds it.
func (c *Charge) lacking(now int64) int64 { return c.used(now) + c.Need - c.Capacity }

// add charges a bucket that is brought to the present. A refund is taken from
// the window before only where there is more of it than this one's.
func (c *Charge) add(now int64) {
	base := c.base(now)
	c.Level += c.Cost
	if c.Level < base {
		if c.Period < 0 {
			c.Previous = max(c.Previous+c.Level-base, 0)
		}
		c.Level = base
	}
	c.Level = min(c.Level, base+c.Capacity)
}

// ends is when the bucket is full again if nobody charges it.
func (c *Charge) ends(now int64) int64 {
	base := c.base(now)
	switch {
	case c.Period == 0:
		return c.Level
	case c.Period > 0 && c.Level > base:
		return base + c.Period
	case c.Period < 0 && c.Level > base:
		return base + 2*c.window()
	case c.Period < 0 && c.Previous > 0:
		return base + c.window()
	default:
		return now
	}
}

// wait is how long it takes until the bucket holds what is needed, which is
// no more than its size, if nobody charges it.
func (c *Charge) wait(now int64) int64 {
	lacking := c.lacking(now)
	switch {
	case lacking <= 0:
		return 0
	case c.Period == 0:
		return lacking
	case c.Period > 0:
		return c.base(now) + c.Period - now
	}
	window, room := c.window(), c.Capacity-c.Need
	begin, fading := c.base(now), c.Previous
	if used := c.Level - begin; used <= room {
		room -= used // It suffices that the window before fades.
	} else {
		begin, fading = begin+window, used
	}
	enough := sort.Search(int(window), func(at int) bool { return weighted(fading, window-int64(at), window) <= room })
	return begin + int64(enough) - now
}

// Decide is the decision: it sets d.Allowed, d.Now, and every Level and
// Previous from those found in it (0 where a bucket is not kept). It never
// grants more than a bucket holds, and on a denial leaves every bucket as it
// was, brought to the present (see ahead). lua/decide.lua is the same function; their
// equality is tested.
func Decide(now int64, d *Demand) {
	d.Now, d.Allowed = now, true
	for i := range d.Charges {
		c := &d.Charges[i]
		c.present(now)
		if c.lacking(now) > 0 {
			d.Allowed = false
		}
	}
	if !d.Allowed {
		return
	}
	for i := range d.Charges {
		d.Charges[i].add(now)
	}
}
