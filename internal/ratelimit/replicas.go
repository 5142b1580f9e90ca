package ratelimit

import (
	"context"
	"crypto/rand"
	_ "embed"
	"fmt"
	"sync/atomic"
	"time"
)

//go:embed lua/beat.lua
var beatLua string

// replicasKey is the set of processes that decide limits with one Redis.
const replicasKey = "tollgate:ratelimit:replicas"

// census is a [Store] that counts who uses it.
type census interface {
	// Beat says that id uses the store, and returns how many have said so within
	// life.
	Beat(ctx context.Context, id string, life time.Duration) (int, error)
	// Leave says that id does not any more.
	Leave(ctx context.Context, id string) error
}

// Beat notes that the process of that id lives, and returns the number of those
// that did within life.
func (r *Redis) Beat(ctx context.Context, id string, life time.Duration) (int, error) {
	n, err := r.beat.RunIdempotent(ctx, r.client, []string{replicasKey}, id, life.Milliseconds()).Int()
	if err != nil {
		return 0, fmt.Errorf("count the replicas: %w", err)
	}
	return n, nil
}

// Leave forgets the process of that id.
func (r *Redis) Leave(ctx context.Context, id string) error {
	if err := r.client.ZRem(ctx, replicasKey, id).Err(); err != nil {
		return fmt.Errorf("leave the replicas: %w", err)
	}
	return nil
}

// replicas is how many processes share the limits: those that the store has
// seen lately, and never fewer than configured.
type replicas struct {
	store census // nil: only the configured number is known
	id    string
	every time.Duration
	floor int64
	seen  atomic.Int64
	// shared is what the local buckets were divided by, for as long as the
	// store is gone.
	shared atomic.Int64
}

// lostBeats is how many beats of a replica may be missed until it counts no
// more.
const lostBeats = 3

func newReplicas(store Store, floor int, every time.Duration) *replicas {
	r := &replicas{id: rand.Text(), every: every, floor: int64(max(floor, 1))}
	r.store, _ = store.(census)
	return r
}

// count is the number that is known now.
func (r *replicas) count() int64 { return max(r.floor, r.seen.Load()) }

// share is what limits are divided by. It stays as it is while settled is
// false, so that what was granted is reckoned as it was granted.
func (r *replicas) share(settled bool) int64 {
	if n := r.shared.Load(); n > 0 && !settled {
		return n
	}
	n := r.count()
	r.shared.Store(n)
	return n
}

// run counts until ctx ends. While the store is gone, what was seen last holds.
func (r *replicas) run(ctx context.Context, tell func(float64)) {
	tell(float64(r.count()))
	if r.store == nil {
		return
	}
	tick := time.NewTicker(r.every)
	defer tick.Stop()
	for {
		call, cancel := context.WithTimeout(ctx, r.every)
		if n, err := r.store.Beat(call, r.id, lostBeats*r.every); err == nil {
			r.seen.Store(int64(n))
			tell(float64(r.count()))
		}
		cancel()
		select {
		case <-ctx.Done():
			call, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.every)
			defer cancel()
			_ = r.store.Leave(call, r.id) // The others miss its beats soon.
			return
		case <-tick.C:
		}
	}
}
