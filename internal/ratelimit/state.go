package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// State is what one bucket holds.
type State struct {
	// Limit is the bucket's limit.
	Limit Limit
	// System is whether the bucket is the domain's, not the subject's.
	System bool
	// Remaining is the number of whole tokens in the bucket.
	Remaining uint32
	// Full is the time until the bucket is full.
	Full time.Duration
}

// ErrUnknown is the error for a domain or subject that no rule limits.
var ErrUnknown = errors.New("no rule limits this")

// State tells what the buckets hold that a descriptor with these entries
// meets, without charging any: the subject's, then the system's. Tokens that
// other replicas took in advance count as used. It asks the shared store.
func (l *Limiter) State(ctx context.Context, name string, entries []Entry) ([]State, error) {
	p, err := l.inspect(name, entries)
	if err != nil {
		return nil, err
	}
	defer p.release()
	if err := l.store.Take(ctx, p.active); err != nil {
		return nil, err
	}
	if l.leases != nil {
		for _, d := range p.active {
			for i := range d.Charges {
				c := &d.Charges[i]
				c.Level -= l.leases.holds(c.Key, l.now().Sub(l.began))
				c.present(d.Now)
			}
		}
	}
	return p.states(), nil
}

// states tells of the buckets of a decided plan.
func (p *plan) states() []State {
	states := make([]State, 0, len(p.uses))
	for i := range p.uses {
		u := &p.uses[i]
		var s Status
		p.show(&s, u)
		states = append(states, State{Limit: *u.limit, System: u.key < 0, Remaining: s.Remaining, Full: s.Reset})
	}
	return states
}

// Reset makes the subject's buckets full that a descriptor with these entries
// meets; the system's stay. Other processes may deny from memory for up to
// four seconds more, and may still hand out what they took in advance.
func (l *Limiter) Reset(ctx context.Context, name string, entries []Entry) error {
	p, err := l.inspect(name, entries)
	if err != nil {
		return err
	}
	defer p.release()
	d := p.active[0]
	for i := range d.Charges {
		if c := &d.Charges[i]; !c.Shared {
			c.Cost = -2 * c.Capacity // Of a sliding window, both windows.
		}
	}
	err = l.store.Take(ctx, p.active)
	l.returned(d)
	if err != nil {
		return err
	}
	for i := range d.Charges {
		if c := &d.Charges[i]; l.leases != nil && !c.Shared {
			l.leases.drop(c.Key)
		}
	}
	return nil
}

// inspect plans a question to the buckets of a descriptor whose demand nothing
// denies.
func (l *Limiter) inspect(name string, entries []Entry) (*plan, error) {
	d := l.rules.Load().domains[name]
	if d == nil || d.match(entries).rule == nil {
		return nil, fmt.Errorf("%w: domain %q", ErrUnknown, name)
	}
	p := newPlan()
	p.build(d, &Request{Domain: name, Descriptors: []Descriptor{{Entries: entries, HasHits: true}}}, l.overrides)
	if len(p.active) == 0 {
		p.release()
		return nil, fmt.Errorf("%w: domain %q", ErrUnknown, name)
	}
	for _, demand := range p.active {
		for i := range demand.Charges {
			demand.Charges[i].Need = 0
		}
	}
	return p, nil
}
