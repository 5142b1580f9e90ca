package revocation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/outage"
)

// Replica holds the whole state in memory, fed by Redis. Check may be called at any time and from any goroutine; Run
// must run once, for as long as the answers are to be fresh.
type Replica struct {
	backend backend
	options Options
	log     *slog.Logger
	set     *set
	started time.Time // with a monotonic reading, where the clock gives one

	// freshAt is when Redis was last asked an answer to which the set is known to hold, in nanoseconds since started.
	freshAt atomic.Int64
	ready   atomic.Bool

	mu  sync.Mutex // guards at, and the order in which the feed is applied
	at  position
	due string // why a full synchronisation is due; empty when none is

	// wake tells the manager that a synchronisation is due.
	wake chan struct{}
	// redisAhead is Redis's clock less the steady clock, in seconds.
	redisAhead atomic.Int64

	outage  outage.Outage
	metrics replicaMetrics
}

type replicaMetrics struct {
	resyncs  *prometheus.CounterVec
	applied  prometheus.Counter
	unread   prometheus.Counter
	restored prometheus.Counter
}

const never = math.MinInt64

// Why a full synchronisation is due.
const (
	dueStart = "start" // nothing is known yet
	dueGap   = "gap"   // the feed was trimmed past the replica's position
	dueFork  = "fork"  // Redis lost writes
	dueFull  = "full"  // something did not fit, and there is room again
)

// NewReplica returns a replica that knows nothing until Run has synchronised it.
func NewReplica(rdb redis.UniversalClient, o Options) (*Replica, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	r := &Replica{
		backend: newBackend(rdb),
		options: o,
		log:     o.Log,
		set:     newSet(o.MaxEntries),
		started: o.Now(),
		due:     dueStart,
		wake:    make(chan struct{}, 1),
	}
	r.freshAt.Store(never)
	r.metrics = replicaMetrics{
		resyncs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tollgate_revocation_resyncs_total",
			Help: "Full synchronisations of the revocation replica, by cause.",
		}, []string{"cause"}),
		applied: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tollgate_revocation_feed_changes_total",
			Help: "Changes received through the revocation feed.",
		}),
		unread: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tollgate_revocation_unreadable_total",
			Help: "Revocations in Redis that this version could not read.",
		}),
		restored: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tollgate_revocation_restored_total",
			Help: "Revocations written back because Redis had lost them.",
		}),
	}
	for _, cause := range []string{dueStart, dueGap, dueFork, dueFull} {
		r.metrics.resyncs.WithLabelValues(cause)
	}
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "tollgate_revocation_" + name, Help: help}, value)
	}
	err = register(o.Metrics, r.metrics.resyncs, r.metrics.applied, r.metrics.unread, r.metrics.restored,
		gauge("entries", "Denylist entries held in memory.", func() float64 { return float64(r.set.entries.len()) }),
		gauge("marks", "Not-before marks held in memory.", func() float64 { return float64(r.set.marks.len()) }),
		gauge("set_bytes", "Memory that the entries and marks take.", func() float64 { return float64(r.set.bytes()) }),
		gauge("ready", "1 after the first full synchronisation.", func() float64 { return boolGauge(r.Ready()) }),
		gauge("redis_clock_ahead_seconds", "Redis's clock less this process's, to the second.",
			func() float64 { return float64(r.steady() + r.redisAhead.Load() - r.options.Now().Unix()) }),
		gauge("full", "1 while something did not fit into memory.", func() float64 { return boolGauge(r.set.full.Load()) }),
		gauge("staleness_seconds", "How old the replica's knowledge is; +Inf before the first synchronisation.",
			func() float64 { return r.stalenessSeconds() }))
	if err != nil {
		return nil, err
	}
	return r, nil
}

func boolGauge(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func (r *Replica) stalenessSeconds() float64 {
	if r.freshAt.Load() == never {
		return math.Inf(1)
	}
	return r.Staleness(r.options.Now()).Seconds()
}

// Staleness is how old the replica's knowledge is at now: the time since it last asked Redis for the feed's position and
// then knew all up to that. Before the first synchronisation it is the largest Duration.
func (r *Replica) Staleness(now time.Time) time.Duration {
	at := r.freshAt.Load()
	if at == never {
		return math.MaxInt64
	}
	return max(now.Sub(r.started)-time.Duration(at), 0)
}

// Ready tells whether the first full synchronisation is done. It stays true: from then on Verdict.Fresh tells whether
// the answers are up to date.
func (r *Replica) Ready() bool { return r.ready.Load() }

// Check decides about the token from memory. It takes no lock, does not block, and does not allocate. now should come
// from time.Now: its monotonic reading is what makes staleness immune to a clock that jumps.
func (r *Replica) Check(t *Token, now time.Time) Verdict {
	staleness := r.Staleness(now)
	v := Verdict{
		Staleness: staleness,
		Fresh:     staleness <= r.options.MaxStaleness && !r.set.full.Load(),
	}
	if place := r.set.covering(t); place >= 0 {
		return v.at(place)
	}
	return v
}

// learn merges changes that did not come over the feed.
func (r *Replica) learn(changes []change) {
	for _, c := range changes {
		r.set.learn(c)
	}
}

// position is where the replica stands on the feed.
func (r *Replica) position() position {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.at
}

// Errors of apply.
var (
	errGap  = errors.New("the feed was trimmed past the replica's position")
	errFork = errors.New("the feed does not continue what the replica knows")
)

// apply takes messages of the feed in order. What is known already is skipped, so that two readers may overlap.
func (r *Replica) apply(messages []message) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range messages {
		switch {
		case m.at.seq <= r.at.seq:
			continue
		case m.at.seq != r.at.seq+1:
			return fmt.Errorf("%w: at %d, next is %d", errGap, r.at.seq, m.at.seq)
		case m.prev != r.at.link:
			return fmt.Errorf("%w: at %d", errFork, r.at.seq)
		}
		r.learn(m.changes)
		r.at = m.at
		r.metrics.applied.Add(float64(len(m.changes)))
	}
	return nil
}

// demand asks the manager for a full synchronisation.
func (r *Replica) demand(cause string) {
	r.mu.Lock()
	if r.due == "" || cause == dueFork {
		r.due = cause
	}
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// demandFor demands what an error of apply calls for.
func (r *Replica) demandFor(err error) {
	if errors.Is(err, errFork) {
		r.demand(dueFork)
	} else {
		r.demand(dueGap)
	}
}

// syncDue says why a full synchronisation is due; empty where none is.
func (r *Replica) syncDue() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.due
}

// resync loads a snapshot and takes up the feed where the snapshot began. What the replica knows beyond the snapshot it
// keeps.
func (r *Replica) resync(ctx context.Context) error {
	before, err := r.backend.begin(ctx)
	if err != nil {
		return err
	}
	if r.set.full.Load() && r.set.len() < r.options.MaxEntries {
		// What did not fit is not known: nothing is fresh until the snapshot has brought it.
		r.freshAt.Store(never)
		r.set.full.Store(false)
	}
	now := sweepTime(r.options.Now().Unix(), r.steady(), before.time.Unix())
	bad, err := r.backend.scan(ctx, func(c change) {
		if c.expires() >= now { // Redis is pruned a little later than things expire
			r.set.learn(c)
		}
	})
	if err != nil {
		return err
	}
	r.metrics.unread.Add(float64(bad))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.at, r.due = before.at, ""
	return nil
}
