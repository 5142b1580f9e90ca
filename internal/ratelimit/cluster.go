package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// part is what a demand asks of the buckets with one hash tag.
type part struct {
	Demand
	// look says that only the state is of interest, as another part denied.
	look bool
	took bool
}

// inSteps decides demands whose buckets may live on several servers: of each,
// first the parts of its own, then those that it shares with everybody. Each step
// is one pipeline, however many demands and parts there are.
func (r *Redis) inSteps(ctx context.Context, demands []*Demand) error {
	parts := make([][]*part, len(demands))
	for i, d := range demands {
		parts[i] = byTag(d.Charges)
		d.Allowed, d.Now, d.Returned = true, 0, false
	}
	for _, shared := range []bool{false, true} {
		var asked []*part
		for i, d := range demands {
			for _, p := range parts[i] {
				if p.Charges[0].Shared == shared {
					p.lookOnly(!d.Allowed)
					asked = append(asked, p)
				}
			}
		}
		if len(asked) == 0 {
			continue
		}
		if err := r.runAll(ctx, asked); err != nil {
			return errors.Join(err, r.giveBack(ctx, demands, parts, func(int) bool { return true }))
		}
		for i, d := range demands {
			for _, p := range parts[i] {
				d.Allowed = d.Allowed && (p.Allowed || p.Charges[0].Shared != shared)
			}
		}
	}
	if err := r.giveBack(ctx, demands, parts, func(i int) bool { return !demands[i].Allowed }); err != nil {
		return err
	}
	for i, d := range demands {
		for _, p := range parts[i] {
			p.tell(d)
		}
	}
	return nil
}

// lookOnly makes the part ask for the state alone, if so.
func (p *part) lookOnly(look bool) {
	if p.look = look; look {
		for i := range p.Charges {
			p.Charges[i].Cost = 0
		}
	}
}

// tell gives the demand what its part found.
func (p *part) tell(d *Demand) {
	d.Now = max(d.Now, p.Now)
	for i := range p.Charges {
		for j := range d.Charges {
			if d.Charges[j].Key == p.Charges[i].Key {
				d.Charges[j].Level, d.Charges[j].Previous = p.Charges[i].Level, p.Charges[i].Previous
			}
		}
	}
}

// runAll decides parts in one pipeline, those with the same hash tag in one
// script. Where it fails, some may have taken what they asked for all the same.
func (r *Redis) runAll(ctx context.Context, parts []*part) error {
	type script struct {
		parts   []*part
		demands []*Demand
		call    *call
		cmd     *redis.IntSliceCmd
	}
	var scripts []*script
	scriptOf := map[string]*script{} // by hash tag
	for _, p := range parts {
		tag := hashTag(p.Charges[0].Key)
		s := scriptOf[tag]
		if s == nil {
			s = &script{call: calls.Get().(*call)} //nolint:forcetypeassert // The pool holds nothing else.
			defer s.call.release()
			scriptOf[tag], scripts = s, append(scripts, s)
		}
		s.parts, s.demands = append(s.parts, p), append(s.demands, &p.Demand)
	}
	for _, s := range scripts {
		s.call.build(r.script.Hash(), s.demands)
	}
	for send := scripts; len(send) > 0; {
		pipe := r.client.Pipeline()
		for _, s := range send {
			s.cmd = s.call.send(ctx, pipe)
		}
		_, _ = pipe.Exec(ctx) // Each command holds its error.
		// What servers did not know they know after that.
		send = slices.DeleteFunc(slices.Clone(send), func(s *script) bool { return !s.call.unknown(s.cmd) })
	}
	var failed error
	for _, s := range scripts {
		if err := read(s.cmd, s.demands); err != nil {
			failed = err
			continue
		}
		for _, p := range s.parts {
			p.took = p.Allowed && !p.look
		}
	}
	return failed
}

// returnTime bounds how long the store is asked to take back what it gave.
const returnTime = time.Second

// giveBack returns what parts of some demands took, and sets their levels to
// what they are afterwards. It goes on after the request's deadline, but does not
// hold the request up then.
func (r *Redis) giveBack(ctx context.Context, demands []*Demand, parts [][]*part, of func(demand int) bool) error {
	var taken, refunds []*part
	for i := range parts {
		for _, p := range parts[i] {
			if !p.took || !of(i) {
				continue
			}
			demands[i].Returned = true
			refund := &part{Demand: Demand{Charges: append([]Charge(nil), p.Charges...)}}
			for j := range refund.Charges {
				c := &refund.Charges[j]
				c.Need, c.Cost = 0, -c.Cost
			}
			taken, refunds = append(taken, p), append(refunds, refund)
		}
	}
	if len(refunds) == 0 {
		return nil
	}
	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), returnTime)
		defer cancel()
		done <- r.runAll(ctx, refunds)
	}()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("return what a denied request took: %w", err)
	}
	for i, p := range taken {
		for j := range p.Charges {
			p.Charges[j].Level, p.Charges[j].Previous = refunds[i].Charges[j].Level, refunds[i].Charges[j].Previous
		}
	}
	return nil
}

// byTag splits charges by the hash tag of their keys, in order.
func byTag(charges []Charge) []*part {
	var parts []*part
	for _, c := range charges {
		found := false
		for _, p := range parts {
			if hashTag(p.Charges[0].Key) == hashTag(c.Key) {
				p.Charges = append(p.Charges, c)
				found = true
				break
			}
		}
		if !found {
			parts = append(parts, &part{Demand: Demand{Charges: []Charge{c}}})
		}
	}
	return parts
}

// hashTag is the part of a key that decides on which server of a Cluster it
// lives: what stands between the first braces, or all of it.
func hashTag(key string) string {
	if open := strings.IndexByte(key, '{'); open >= 0 {
		if end := strings.IndexByte(key[open+1:], '}'); end > 0 {
			return key[open+1 : open+1+end]
		}
	}
	return key
}
