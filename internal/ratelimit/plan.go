package ratelimit

import (
	"math"
	"slices"
	"sync"
	"time"
)

// plan is the work on one request: what its descriptors met, the demands made
// of them, and the way back from buckets to statuses. Plans are reused.
type plan struct {
	domain  *domain
	matches []match
	uses    []use
	// demands holds the enforced demand first, then one for each descriptor
	// whose rule only watches. Demands without charges are left out of active.
	demands []Demand
	active  []*Demand
	arena   []byte // keys, end to end
	bounds  []int
	// scale multiplies what a token is worth: the number of replicas that
	// share a limit without seeing each other.
	scale   int64
	refunds bool // whether any descriptor returns tokens
	claims  []claim
	stale   bool   // whether a denial is remembered that an allowed request ends
	returns uint64 // what was returned to the buckets before the store was asked
}

// use is one bucket that one descriptor counts against.
type use struct {
	descriptor int
	demand     int
	charge     int
	limit      *Limit
	probe      bool
	refund     bool
	hits       uint64
	key        int // index into bounds, or -1-i for the i-th system key
}

var plans = sync.Pool{New: func() any { return new(plan) }}

func newPlan() *plan {
	p := plans.Get().(*plan) //nolint:forcetypeassert // The pool holds nothing else.
	p.scale, p.refunds, p.stale = 1, false, false
	return p
}

// release gives the plan back. It must not be used afterwards.
func (p *plan) release() {
	clear(p.matches)
	for i := range p.demands {
		clear(p.demands[i].Charges)
		p.demands[i].Charges = p.demands[i].Charges[:0]
	}
	clear(p.uses)
	clear(p.claims)
	p.domain, p.claims = nil, p.claims[:0]
	p.matches, p.uses, p.active = p.matches[:0], p.uses[:0], p.active[:0]
	p.demands, p.arena, p.bounds = p.demands[:0], p.arena[:0], p.bounds[:0]
	plans.Put(p)
}

// build finds the buckets of a request and what each is charged.
func (p *plan) build(d *domain, req *Request, overrides *Overrides) {
	p.domain = d
	p.addDemand()
	for i := range req.Descriptors {
		m := d.match(req.Descriptors[i].Entries)
		if m.kind == kindTier {
			if tier, ok := overrides.tier(d.name, m.entries[0]); ok && d.tiers[tier] != nil {
				m.rule = d.tiers[tier]
			}
		}
		if o := req.Descriptors[i].Override; o != nil {
			m = override(d, o, req.Descriptors[i].Entries, m)
		}
		p.matches = append(p.matches, m)
	}
	p.replace()
	anyRule := false
	for i := range req.Descriptors {
		desc, m := &req.Descriptors[i], &p.matches[i]
		if m.rule == nil {
			continue
		}
		anyRule = true
		hits, refund := p.hits(req, desc, m.rule), desc.Refund
		p.refunds = p.refunds || refund
		p.addRule(i, m, hits, refund)
		p.addSystem(i, hits, refund)
	}
	if !anyRule {
		// Nothing but the system's own limits watches this request.
		p.addSystem(-1, uint64(max(req.Hits, 1)), false)
	}
	p.charge()
}

// override makes a rule of the limit that a descriptor carries. A limit that
// cannot be kept leaves the configured rule in force.
func override(d *domain, o *Override, entries []Entry, configured match) match {
	limit, err := NewLimit("", o.Tokens, o.Unit, o.Multiple, 0, TokenBucket)
	if err != nil {
		return configured
	}
	rule := *d.overridden
	rule.Limits = []Limit{limit}
	rule.policy = policyOf(rule.Limits)
	return match{rule: &rule, kind: kindDescriptor, entries: entries}
}

// replace drops the rules that another rule of the request replaces.
func (p *plan) replace() {
	for i := range p.matches {
		if p.matches[i].rule == nil {
			continue
		}
		for _, name := range p.matches[i].rule.replaces {
			for j := range p.matches {
				if r := p.matches[j].rule; r != nil && i != j && slices.Contains(r.names, name) {
					p.matches[j].rule = nil
				}
			}
		}
	}
}

// hits is what a descriptor asks for: its own number, else the request's, else
// the configured cost.
func (p *plan) hits(req *Request, desc *Descriptor, rule *Rule) uint64 {
	switch {
	case desc.HasHits:
		return desc.Hits
	case req.Hits > 0:
		return uint64(req.Hits)
	default:
		return p.domain.cost(rule, desc.Entries)
	}
}

func (p *plan) addDemand() int {
	if len(p.demands) < cap(p.demands) {
		p.demands = p.demands[:len(p.demands)+1]
	} else {
		p.demands = append(p.demands, Demand{})
	}
	d := &p.demands[len(p.demands)-1]
	d.Allowed, d.Now, d.Returned = false, 0, false
	return len(p.demands) - 1
}

func (p *plan) addRule(descriptor int, m *match, hits uint64, refund bool) {
	if m.rule.Unlimited {
		return
	}
	demand := 0
	if m.rule.Shadow || m.rule.Quota {
		demand = p.addDemand()
	}
	start := len(p.arena)
	for i := range m.rule.Limits {
		limit := &m.rule.Limits[i]
		if i == 0 {
			p.arena = appendSubjectKey(p.arena, p.domain.name, m.kind, m.entries)
		} else {
			p.arena = append(p.arena, p.arena[start:start+p.subjectLen(start)]...)
		}
		p.arena = append(p.arena, limit.suffix...)
		p.bounds = append(p.bounds, len(p.arena))
		p.uses = append(p.uses, use{
			descriptor: descriptor, demand: demand, limit: limit,
			probe: hits == 0, refund: refund, hits: hits, key: len(p.bounds) - 1,
		})
	}
}

// subjectLen is the length of the subject's key that starts there.
func (p *plan) subjectLen(start int) int {
	n := len(keyPrefix)
	for p.arena[start+n] != '}' {
		n++
	}
	return n + 1
}

func (p *plan) addSystem(descriptor int, hits uint64, refund bool) {
	for i := range p.domain.system {
		p.uses = append(p.uses, use{
			descriptor: descriptor, limit: &p.domain.system[i],
			probe: hits == 0, refund: refund, hits: hits, key: -1 - i,
		})
	}
}

// charge turns uses into charges. Uses of one bucket in one demand become one
// charge of their sum, so that a bucket met twice is charged twice.
func (p *plan) charge() {
	keys := string(p.arena)
	for i := range p.uses {
		u := &p.uses[i]
		var key string
		if u.key < 0 {
			key = p.domain.systemKeys[-1-u.key]
		} else {
			start := 0
			if u.key > 0 {
				start = p.bounds[u.key-1]
			}
			key = keys[start:p.bounds[u.key]]
		}
		need, cost := u.amounts()
		d := &p.demands[u.demand]
		u.charge = -1
		for j := range d.Charges {
			if d.Charges[j].Key == key {
				u.charge = j
				break
			}
		}
		if u.charge < 0 {
			u.charge = len(d.Charges)
			d.Charges = append(d.Charges, Charge{
				Key: key, Shared: u.key < 0, Interval: u.limit.leased(),
				Period: u.limit.period, Capacity: u.limit.capacity, Need: need, Cost: cost,
			})
			continue
		}
		c := &d.Charges[u.charge]
		if c.Interval != u.limit.leased() {
			c.Interval = 0
		}
		c.Capacity = min(c.Capacity, u.limit.capacity)
		c.Need = min(c.Need+need, c.Capacity+1)
		c.Cost = max(min(c.Cost+cost, c.Capacity), -c.Capacity)
	}
	for i := range p.demands {
		if len(p.demands[i].Charges) > 0 {
			p.active = append(p.active, &p.demands[i])
		} else {
			p.demands[i].Allowed = true
		}
	}
}

// keep drops what descriptors count against that are not to be kept.
func (p *plan) keep(kept func(descriptor int) bool) {
	p.uses = slices.DeleteFunc(p.uses, func(u use) bool { return !kept(u.descriptor) })
	for i := range p.demands {
		p.demands[i].Charges = p.demands[i].Charges[:0]
	}
	p.active = p.active[:0]
	p.charge()
}

// amounts is what the use needs of its bucket and takes from it.
func (u *use) amounts() (need, cost int64) {
	switch {
	case u.probe:
		// A question: would there be one token?
		return u.limit.worth(1), 0
	case u.refund:
		return 0, -min(u.limit.worth(u.hits), u.limit.capacity)
	default:
		need = u.limit.worth(u.hits)
		return need, min(need, u.limit.capacity)
	}
}

// localise makes each token worth scale times as much, so that this process
// grants only its share. Every bucket still grants one request that it could
// grant undivided.
func (p *plan) localise(scale int64) {
	p.scale = max(scale, 1)
	for _, d := range p.active {
		for i := range d.Charges {
			c := &d.Charges[i]
			if c.Need <= c.Capacity {
				c.Need = scaled(c.Need, p.scale, c.Capacity)
			}
			if c.Cost > 0 {
				c.Cost = scaled(c.Cost, p.scale, c.Capacity)
			} else {
				c.Cost = -scaled(-c.Cost, p.scale, c.Capacity)
			}
		}
	}
}

func scaled(amount, scale, limit int64) int64 {
	if amount > limit/scale {
		return limit
	}
	return amount * scale
}

// answer fills the decision from the decided demands.
func (p *plan) answer(dec *Decision) {
	dec.Allowed = p.demands[0].Allowed
	for i := range p.matches {
		s := Status{Rule: p.matches[i].rule}
		for u := range p.uses {
			if at := p.uses[u].descriptor; at == i || at < 0 && !dec.Allowed {
				p.show(&s, &p.uses[u])
			}
		}
		if s.Rule != nil && (s.Rule.Shadow || s.Rule.Quota) && s.Denied && p.demands[0].Allowed {
			s.Over, s.Denied = true, false
		}
		dec.Statuses = append(dec.Statuses, s)
	}
	dec.Shown = shown(dec)
}

// show makes the status tell of the use's bucket where that says more than
// what the status tells so far.
func (p *plan) show(s *Status, u *use) {
	d := &p.demands[u.demand]
	c := &d.Charges[u.charge]
	room := c.Capacity - c.used(d.Now)
	denied := !d.Allowed && c.Need > room
	left := uint32(0)
	if worth := u.limit.interval * p.scale; room > 0 && worth > 0 {
		left = uint32(min(room/worth, math.MaxUint32)) //nolint:gosec // Bounded on the left.
	}
	reset, retry := c.ends(d.Now)-d.Now, denied
	switch {
	case denied && c.Need > c.Capacity:
		reset, retry = u.limit.Window().Microseconds(), false
	case denied:
		reset = c.wait(d.Now)
	case c.Period > 0:
		reset = c.base(d.Now) + c.Period - d.Now
	}
	reset = max(reset, 0)
	wait := time.Duration(reset) * time.Microsecond
	switch {
	case s.Limit == nil:
	case denied != s.Denied:
		if !denied {
			return
		}
	case denied:
		if never := !retry; never == s.Retry {
			if !never {
				return // A status that can never pass stays.
			}
		} else if wait <= s.Reset {
			return
		}
	case left > s.Remaining || left == s.Remaining && wait <= s.Reset:
		return
	}
	s.Limit, s.Denied, s.Remaining, s.Reset, s.Retry = u.limit, denied, left, wait, retry
}

// shown chooses the status to tell a client about by the same rule.
func shown(dec *Decision) int {
	best := -1
	for i := range dec.Statuses {
		s := &dec.Statuses[i]
		if s.Limit == nil || s.Over {
			continue
		}
		if best < 0 {
			best = i
			continue
		}
		b := &dec.Statuses[best]
		switch {
		case s.Denied != b.Denied:
			if s.Denied {
				best = i
			}
		case s.Denied && s.Reset > b.Reset, !s.Denied && s.Remaining < b.Remaining:
			best = i
		}
	}
	return best
}
