package ratelimit

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
	// Period is 0 for a token bucket and the length of the window for a fixed
	// window.
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
	// in microseconds since the epoch. A store sets it to the state after the
	// decision.
	Level int64
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
}

// base is the level of a full bucket at that time.
func (c *Charge) base(now int64) int64 {
	if c.Period == 0 {
		return now
	}
	return now - now%c.Period
}

// clamp brings a stored level into the range that a bucket of this size can
// have. A level beyond it comes from a larger limit of the past, or from a
// clock that was set back; it must not deny for longer than an empty bucket.
func (c *Charge) clamp(base, level int64) int64 {
	return min(max(level, base), base+c.Capacity)
}

// Decide is the decision: it sets d.Allowed, d.Now, and every Level from the
// levels found in it (0 where a bucket is not kept). It never grants more
// than a bucket holds, and on a denial leaves every bucket as it was, brought
// to the present. lua/decide.lua is the same function; their equality is
// tested.
func Decide(now int64, d *Demand) {
	d.Now, d.Allowed = now, true
	for i := range d.Charges {
		c := &d.Charges[i]
		base := c.base(now)
		c.Level = c.clamp(base, c.Level)
		if c.Level+c.Need > base+c.Capacity {
			d.Allowed = false
		}
	}
	if !d.Allowed {
		return
	}
	for i := range d.Charges {
		c := &d.Charges[i]
		c.Level = c.clamp(c.base(now), c.Level+c.Cost)
	}
}
