package revocation

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"
)

// Run keeps the replica synchronised until ctx ends, and returns nil then. Redis being away is not an error: the replica
// goes stale, says so in every verdict, and catches up by itself.
//
// Four loops share the work. The manager asks Redis at every heartbeat where the feed stands, which measures staleness,
// and loads snapshots. The tail waits on the feed, on a connection of its own for as long as it runs. The sweeper
// forgets what has expired, here and in Redis. The restorer writes back what Redis lost.
func (r *Replica) Run(ctx context.Context) error {
	restore := make(chan struct{}, 1)
	var g errgroup.Group
	for _, loop := range []func(context.Context){
		func(ctx context.Context) { r.manage(ctx, restore) },
		r.follow,
		r.sweep,
		func(ctx context.Context) { r.restore(ctx, restore) },
	} {
		g.Go(func() error { loop(ctx); return nil })
	}
	return g.Wait()
}

// manage synchronises and measures.
func (r *Replica) manage(ctx context.Context, restore chan<- struct{}) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-r.wake:
		}
		wait := r.options.Heartbeat
		err := r.synchronise(ctx, restore)
		if err == nil {
			if r.syncDue() == "" {
				err = r.beat(ctx)
			}
		}
		if ctx.Err() != nil {
			return
		}
		r.note(err)
		timer.Reset(wait)
	}
}

// note tells once that Redis went away, and once that it is back.
func (r *Replica) note(err error) {
	now := r.options.Now()
	switch {
	case err != nil && r.outage.Failed(now):
		r.log.Warn("revocation feed lost", slog.Any("error", err))
	case err == nil && r.outage.Answered(now):
		r.log.Info("revocation feed is back")
	}
}

// synchronise loads a snapshot if one is due. Where the replica knew something before, Redis may know less: a gap can
// hide that the feed started over. So what it knows is written back, whatever the cause.
func (r *Replica) synchronise(ctx context.Context, restore chan<- struct{}) error {
	cause := r.syncDue()
	if cause == "" {
		return nil
	}
	began := r.options.Now()
	knew := r.set.len() > 0
	if err := r.resync(ctx); err != nil {
		return err
	}
	r.metrics.resyncs.WithLabelValues(cause).Inc()
	level := slog.LevelInfo
	if knew && cause == dueFork {
		level = slog.LevelError
	}
	r.log.Log(ctx, level, "revocation state synchronised",
		slog.String("cause", cause),
		slog.Int("entries", r.set.entries.len()),
		slog.Int("marks", r.set.marks.len()),
		slog.Int64("sequence", r.position().seq),
		slog.Duration("took", r.options.Now().Sub(began)))
	if knew {
		select {
		case restore <- struct{}{}:
		default:
		}
	}
	return nil
}

// beat asks Redis where the feed stands, catches up where the tail has not, and notes how fresh that makes the replica.
func (r *Replica) beat(ctx context.Context) error {
	own := r.position()
	asked := r.options.Now()
	redis, err := r.backend.standing(ctx)
	if err != nil {
		return err
	}
	r.redisAhead.Store(redis.time.Unix() - r.steady())
	if redis.evicted {
		r.log.Error("Redis evicted revocations: its maxmemory-policy must be noeviction")
		return r.backend.forget(ctx) // the next beat finds the fork
	}
	switch judge(own, redis.at) {
	case forked:
		r.demand(dueFork)
		return nil
	case behind:
		if err := r.catchUp(ctx, redis.at); err != nil {
			if errors.Is(err, errGap) || errors.Is(err, errFork) {
				r.demandFor(err)
				return nil
			}
			return err
		}
	case inStep:
	}
	r.freshAt.Store(int64(asked.Sub(r.started)))
	if r.ready.CompareAndSwap(false, true) {
		r.log.Info("revocation replica ready", slog.Int("entries", r.set.entries.len()), slog.Int("marks", r.set.marks.len()))
	}
	return nil
}

// catchUp reads the feed up to a position without waiting. The tail may be doing the same.
func (r *Replica) catchUp(ctx context.Context, to position) error {
	for {
		own := r.position()
		if own.seq == to.seq && own.link != to.link {
			return errFork
		}
		if own.seq >= to.seq {
			return nil
		}
		messages, bad, err := r.backend.tail(ctx, own, noBlock)
		if err != nil {
			return err
		}
		r.metrics.unread.Add(float64(bad))
		if len(messages) == 0 && r.position().seq < to.seq {
			return errGap
		}
		if err := r.apply(messages); err != nil {
			return err
		}
	}
}

// follow waits on the feed and applies what comes.
func (r *Replica) follow(ctx context.Context) {
	const least, most = 10 * time.Millisecond, time.Second
	pause := least
	for ctx.Err() == nil {
		if r.syncDue() != "" {
			sleep(ctx, least)
			continue
		}
		messages, bad, err := r.backend.tail(ctx, r.position(), r.options.Heartbeat)
		if err == nil {
			pause = least
			r.metrics.unread.Add(float64(bad))
			if err = r.apply(messages); err != nil {
				r.demandFor(err)
			}
			continue
		}
		sleep(ctx, pause/2+rand.N(pause/2)) // the manager logs
		pause = min(2*pause, most)
	}
}

// sweep forgets what has expired.
func (r *Replica) sweep(ctx context.Context) {
	for sleep(ctx, r.options.Sweep/2+rand.N(r.options.Sweep)) {
		if !r.ready.Load() {
			continue
		}
		r.sweepOnce(ctx)
	}
}

func (r *Replica) sweepOnce(ctx context.Context) {
	now := r.earliest()
	r.set.sweep(now)
	if r.set.full.Load() && r.set.len() < r.options.MaxEntries {
		r.demand(dueFull)
	}
	for {
		n, err := r.backend.pruneSome(ctx, now)
		if err != nil || n < pruneSize || ctx.Err() != nil {
			return // the manager logs; the next sweep goes on
		}
	}
}

// steady is the wall clock at the start moved on by the monotonic clock, in Unix seconds.
func (r *Replica) steady() int64 {
	return r.started.Unix() + int64(r.options.Now().Sub(r.started)/time.Second)
}

// earliest is the time by which to forget, in Unix seconds.
func (r *Replica) earliest() int64 {
	return sweepTime(r.options.Now().Unix(), r.steady(), r.steady()+r.redisAhead.Load())
}

// restore writes what this replica knows back to Redis, whenever Redis has lost something. Every replica does: what is
// there already changes nothing.
func (r *Replica) restore(ctx context.Context, wanted <-chan struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-wanted:
		}
		restored := 0
		for shard := 0; shard < shardCount && ctx.Err() == nil; {
			n, err := r.restoreShard(ctx, shard)
			restored += n
			if err != nil {
				sleep(ctx, r.options.Heartbeat)
				continue
			}
			shard++
		}
		if restored > 0 {
			r.log.Warn("revocations written back that Redis had lost", slog.Int("count", restored))
		}
	}
}

func (r *Replica) restoreShard(ctx context.Context, shard int) (restored int, err error) {
	now := r.options.Now()
	changes := r.set.live(shard, r.earliest())
	for done := 0; done < len(changes) && err == nil; done += batchSize {
		var w written
		w, err = r.backend.put(ctx, modeMerge, changes[done:min(done+batchSize, len(changes))], now)
		restored += w.changed
		r.metrics.restored.Add(float64(w.changed))
	}
	return restored, err
}

// sleep waits and returns true, or false where ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
