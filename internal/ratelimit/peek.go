package ratelimit

import "context"

// Peek says what Decide would, and takes nothing: no bucket is charged, no
// denial remembered or counted. It asks the shared store. Tokens that replicas
// took in advance count as used, so that a limit that is leased may be denied
// here a little earlier than there.
//
// The error is [ErrInvalid] as for Decide, or the store's: what is decided
// without a store depends on the process that is asked.
func (l *Limiter) Peek(ctx context.Context, req *Request, dec *Decision) error {
	*dec = Decision{Statuses: dec.Statuses[:0], Shown: -1}
	if err := check(req); err != nil {
		return err
	}
	d := l.rules.Load().domains[req.Domain]
	if d == nil {
		dec.Allowed, dec.Statuses = true, append(dec.Statuses, make([]Status, len(req.Descriptors))...)
		return nil
	}
	p := newPlan()
	defer p.release()
	p.build(d, req, l.overrides)
	for _, demand := range p.active {
		for i := range demand.Charges {
			demand.Charges[i].Cost = 0
		}
	}
	dec.Path = PathNone
	if len(p.active) > 0 {
		call, cancel := context.WithTimeout(ctx, l.timeout)
		defer cancel()
		if err := l.store.Take(call, p.active); err != nil {
			return err
		}
		dec.Path = PathExact
	}
	p.answer(dec)
	return nil
}
