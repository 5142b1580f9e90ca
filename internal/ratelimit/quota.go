package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// Quota is how the buckets of a descriptor stand whose requests somebody else
// counts, such as an Envoy with a quota.
type Quota struct {
	// Key names the subject, whatever else the descriptor says: quotas of one key
	// share its buckets.
	Key string
	// Cost is the number of tokens that a request takes.
	Cost uint64
	// Watched is set where the rule only watches.
	Watched bool
	// States are the subject's buckets, then the system's, after the charge.
	States []State
}

// Spend charges requests that were let through already to the buckets that a
// descriptor with these entries meets, as far as they hold anything, and tells
// what is left. It asks the shared store; the error is [ErrUnknown] where no
// rule limits the descriptor.
func (l *Limiter) Spend(ctx context.Context, name string, entries []Entry, requests uint64) (Quota, error) {
	p, err := l.inspect(name, entries)
	if err != nil {
		return Quota{}, err
	}
	defer p.release()
	m := &p.matches[0]
	q := Quota{
		Key:  string(appendSubjectKey(nil, name, m.kind, m.entries)),
		Cost: p.domain.cost(m.rule, entries), Watched: m.rule.Shadow || m.rule.Quota,
	}
	for i := range p.uses {
		u := &p.uses[i]
		c := &p.demands[u.demand].Charges[u.charge]
		c.Cost = min(u.limit.worth(requests*q.Cost), c.Capacity)
	}
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	if err := l.store.Take(ctx, p.active); err != nil {
		return Quota{}, err
	}
	q.States = make([]State, 0, len(p.uses))
	for i := range p.uses {
		u := &p.uses[i]
		var s Status
		p.show(&s, u)
		q.States = append(q.States, State{Limit: *u.limit, System: u.key < 0, Remaining: s.Remaining, Full: s.Reset})
	}
	return q, nil
}

// Sharers keeps in Redis who shares a quota, so that all processes that serve
// quotas divide it among the same ones. It may be used by any number of
// goroutines.
type Sharers struct {
	client redis.Cmdable
	now    func() time.Time
}

// NewSharers returns sharers kept with client.
func NewSharers(client redis.Cmdable, now func() time.Time) *Sharers {
	return &Sharers{client: client, now: now}
}

// sharersPrefix begins the key of the hash of a quota's sharers: name to demand
// and end. The hash expires with the last of them.
const sharersPrefix = "tollgate:quota:"

// Join notes that a sharer wants so much of a quota, in tokens a second, for as
// long as life, and returns what the others want.
func (s *Sharers) Join(ctx context.Context, key, name string, demand float64, life time.Duration) ([]float64, error) {
	key = sharersPrefix + key
	now := s.now()
	var all *redis.MapStringStringCmd
	_, err := s.client.TxPipelined(ctx, func(p redis.Pipeliner) error {
		p.HSet(ctx, key, name, strconv.FormatFloat(demand, 'g', 6, 64)+" "+strconv.FormatInt(now.Add(life).UnixMilli(), 10))
		p.PExpire(ctx, key, life)
		all = p.HGetAll(ctx, key)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("sharers of a quota: %w", err)
	}
	var others []float64
	var ended []string
	for other, text := range all.Val() {
		if other == name {
			continue
		}
		wanted, until, err := parseSharer(text)
		if err != nil || until <= now.UnixMilli() {
			ended = append(ended, other)
			continue
		}
		others = append(others, wanted)
	}
	if len(ended) > 0 {
		if err := s.client.HDel(ctx, key, ended...).Err(); err != nil {
			return nil, fmt.Errorf("forget sharers of a quota: %w", err)
		}
	}
	return others, nil
}

func parseSharer(text string) (demand float64, until int64, err error) {
	first, second, _ := strings.Cut(text, " ")
	demand, err1 := strconv.ParseFloat(first, 64)
	until, err2 := strconv.ParseInt(second, 10, 64)
	return demand, until, errors.Join(err1, err2)
}

// Leave gives back a sharer's part of a quota.
func (s *Sharers) Leave(ctx context.Context, key, name string) error {
	if err := s.client.HDel(ctx, sharersPrefix+key, name).Err(); err != nil {
		return fmt.Errorf("leave a quota: %w", err)
	}
	return nil
}
