package session

import (
	"context"
	"errors"
	"hash/maphash"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Sighting is a request that came in a session.
type Sighting struct {
	User, Session, Issuer, Tier  string
	DeviceID, UserAgent, Address string
	// Country is what a trusted proxy says of the address: ISO 3166-1 alpha-2, or empty.
	Country string
	At      time.Time
}

// Tracker notes which sessions requests come in. Observe is for the request's way: it neither waits nor, for a session
// that is known, allocates. A session seen for the first time is registered behind it, and sightings are written behind
// in batches. A session that turns out to have timed out, or to be one too many, is killed: the next request in it is
// refused.
type Tracker struct {
	manager *Manager
	seed    maphash.Seed
	shards  [trackerShards]trackerShard
	most    int // entries of a shard
	queue   chan Sighting

	registered *prometheus.CounterVec
	dropped    prometheus.Counter
	written    prometheus.Counter
}

const (
	trackerShards = 32
	// queueLength bounds the sessions that wait to be registered. Where it is full the next sighting tries again.
	queueLength = 4096
	// touchBatch bounds the sightings of one round trip.
	touchBatch = 256
	// registrars is how many registrations run at a time.
	registrars = 4
)

type trackerShard struct {
	mu      sync.RWMutex
	entries map[trackedSession]*tracked
}

type trackedSession struct {
	user string
	Ref
}

func (s *Sighting) tracked() trackedSession { return trackedSession{s.User, Ref{s.Issuer, s.Session}} }

// tracked is what a process knows of a session. Times are Unix milliseconds.
type tracked struct {
	seen    atomic.Int64
	written atomic.Int64
	// known is true once the session is registered; until then a registration is under way.
	known atomic.Bool
}

// NewTracker returns a tracker; Run does its work.
func NewTracker(m *Manager) (*Tracker, error) {
	t := &Tracker{
		manager: m, seed: maphash.MakeSeed(), most: max(m.config.Tracked/trackerShards, 1),
		queue: make(chan Sighting, queueLength),
		registered: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tollgate_session_first_seen_total",
			Help: "Sessions seen for the first time by this process, by what came of registering them.",
		}, []string{"outcome"}),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tollgate_session_sightings_dropped_total",
			Help: "First sightings that were not registered because the queue was full.",
		}),
		written: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tollgate_session_sightings_written_total",
			Help: "Sightings written behind.",
		}),
	}
	for i := range t.shards {
		t.shards[i].entries = map[trackedSession]*tracked{}
	}
	for _, outcome := range []string{outcomeKnown, outcomeTooMany, outcomeEnded, outcomeInvalid, outcomeFailed} {
		t.registered.WithLabelValues(outcome)
	}
	size := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tollgate_session_tracked", Help: "Sessions that this process keeps sightings of.",
	}, func() float64 { return float64(t.len()) })
	return t, register(m.options.Metrics, t.registered, t.dropped, t.written, size)
}

// What came of a first sighting.
const (
	outcomeKnown   = "registered"
	outcomeTooMany = "too_many"
	outcomeEnded   = "ended"
	outcomeInvalid = "invalid"
	outcomeFailed  = "failed"
)

func (t *Tracker) shard(k trackedSession) *trackerShard {
	return &t.shards[(maphash.String(t.seed, k.ID)^maphash.String(t.seed, k.user))%trackerShards]
}

// Observe notes a request. A sighting without user or session is passed over.
func (t *Tracker) Observe(s *Sighting) {
	if s.User == "" || s.Session == "" {
		return
	}
	k := s.tracked()
	shard := t.shard(k)
	shard.mu.RLock()
	e := shard.entries[k]
	shard.mu.RUnlock()
	at := s.At.UnixMilli()
	if e == nil {
		t.meet(shard, k, s)
		return
	}
	last := e.seen.Load()
	if at <= last {
		return
	}
	// After a pause as long as the idle timeout the session may be over, unless another process saw it: ask.
	if at-last >= t.manager.config.Idle.Milliseconds() && e.known.CompareAndSwap(true, false) {
		if !t.enqueue(*s) {
			e.known.Store(true)
			return // and ask again at the next sighting
		}
	}
	e.seen.Store(at)
}

// meet notes a session that is seen for the first time.
func (t *Tracker) meet(shard *trackerShard, k trackedSession, s *Sighting) {
	shard.mu.Lock()
	defer shard.mu.Unlock()
	if shard.entries[k] != nil || !t.enqueue(*s) {
		return
	}
	if len(shard.entries) >= t.most {
		for other := range shard.entries { // any: it is met again at its next request
			delete(shard.entries, other)
			break
		}
	}
	e := &tracked{}
	e.seen.Store(s.At.UnixMilli())
	e.written.Store(s.At.UnixMilli())
	shard.entries[k] = e
}

// enqueue hands on a sighting that keeps nothing of the request: what waits is bounded in bytes, too.
func (t *Tracker) enqueue(s Sighting) bool {
	s.DeviceID, s.Address = strings.Clone(cut(s.DeviceID, maxName)), strings.Clone(cut(s.Address, maxName))
	s.UserAgent, s.Country = strings.Clone(cut(s.UserAgent, MaxUserAgent)), alpha2(s.Country)
	select {
	case t.queue <- s:
		return true
	default:
		t.dropped.Inc()
		return false
	}
}

func (t *Tracker) forget(k trackedSession) {
	shard := t.shard(k)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	delete(shard.entries, k)
}

func (t *Tracker) len() int {
	n := 0
	for i := range t.shards {
		t.shards[i].mu.RLock()
		n += len(t.shards[i].entries)
		t.shards[i].mu.RUnlock()
	}
	return n
}

// Run registers, writes behind and ends what has timed out until ctx ends, then writes what is left, and returns nil.
func (t *Tracker) Run(ctx context.Context) error {
	var workers sync.WaitGroup
	for range registrars {
		workers.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case s := <-t.queue:
					t.admit(ctx, s)
				}
			}
		})
	}
	workers.Go(func() { t.sweep(ctx) })
	tick := time.NewTicker(t.manager.config.Flush)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
			t.flush(ctx)
		}
	}
	workers.Wait()
	const last = 2 * time.Second
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), last)
	defer cancel()
	t.flush(ctx)
	return nil
}

// sweep ends what has timed out, as often as sightings are written, until ctx ends.
func (t *Tracker) sweep(ctx context.Context) {
	tick := time.NewTicker(t.manager.config.Flush)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for more := true; more && ctx.Err() == nil; {
			var err error
			if more, err = t.manager.sweep(ctx); err != nil && ctx.Err() == nil {
				t.manager.options.Log.Debug("sessions that timed out not ended, to be tried again", slog.Any("error", err))
			}
		}
	}
}

// admit registers a session at first sight. Its device is described from what the request said.
func (t *Tracker) admit(ctx context.Context, s Sighting) {
	k := s.tracked()
	_, err := t.manager.Register(ctx, Session{
		User: s.User, Ref: k.Ref, Address: s.Address,
		Device:   Device{ID: s.DeviceID, UserAgent: clean(s.UserAgent)},
		Place:    Place{Country: s.Country},
		Inferred: true,
	}, s.Tier)
	outcome := outcomeKnown
	switch {
	case err == nil:
		t.known(k)
	case errors.Is(err, ErrTooMany):
		outcome = outcomeTooMany
		err = t.manager.End(ctx, s.User, k.Ref)
	case errors.Is(err, ErrEnded):
		// Its tokens were revoked when it ended, but here is one in use.
		outcome = outcomeEnded
		err = t.manager.kill(ctx, []Ref{k.Ref})
	case errors.Is(err, ErrInvalid):
		outcome = outcomeInvalid // and will be next time: do not ask again
		t.known(k)
	default:
		outcome = outcomeFailed
	}
	t.registered.WithLabelValues(outcome).Inc()
	if outcome != outcomeKnown && outcome != outcomeInvalid {
		t.forget(k)
	}
	if err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrInvalid) && ctx.Err() == nil {
		t.manager.options.Log.Debug("session at first sight", slog.String("outcome", outcome), slog.Any("error", err))
	}
}

// alpha2 returns a copy of the code of a country, in capitals; empty for what is none, and for XX, which proxies say for
// unknown.
func alpha2(code string) string {
	if len(code) != 2 {
		return ""
	}
	code = strings.ToUpper(strings.Clone(code))
	if code == "XX" || strings.Trim(code, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
		return ""
	}
	return code
}

func (t *Tracker) known(k trackedSession) {
	shard := t.shard(k)
	shard.mu.RLock()
	defer shard.mu.RUnlock()
	if e := shard.entries[k]; e != nil {
		e.known.Store(true)
	}
}

// flush writes the sightings since the last flush, and forgets the sessions that were not seen for the idle timeout.
func (t *Tracker) flush(ctx context.Context) {
	var due []Seen
	idle := t.manager.options.Now().Add(-2 * t.manager.config.Idle).UnixMilli()
	for i := range t.shards {
		shard := &t.shards[i]
		shard.mu.Lock()
		for k, e := range shard.entries {
			seen := e.seen.Load()
			switch {
			case seen > e.written.Load() && e.known.Load():
				due = append(due, Seen{User: k.user, Ref: k.Ref, At: time.UnixMilli(seen)})
			case seen < idle:
				delete(shard.entries, k)
			}
		}
		shard.mu.Unlock()
	}
	for len(due) > 0 && ctx.Err() == nil {
		batch := due[:min(touchBatch, len(due))]
		due = due[len(batch):]
		if err := t.write(ctx, batch); err != nil {
			t.manager.options.Log.Debug("sightings not written, to be tried again", slog.Any("error", err))
			return
		}
	}
}

// write writes one batch. A session that has ended meanwhile is forgotten, and killed where that is owed.
func (t *Tracker) write(ctx context.Context, batch []Seen) error {
	outcomes, err := t.manager.store.Touch(ctx, batch, t.manager.limits(""), t.manager.options.Now())
	if err != nil {
		return err
	}
	t.written.Add(float64(len(batch)))
	for i, o := range outcomes {
		k := trackedSession{batch[i].User, batch[i].Ref}
		if lives(o.Sessions, k.Ref) {
			t.noteWritten(k, batch[i].At.UnixMilli())
		} else {
			t.forget(k)
		}
		if err := t.manager.pay(ctx, k.user, o, causeTimeout); err != nil {
			return err
		}
	}
	return nil
}

func (t *Tracker) noteWritten(k trackedSession, at int64) {
	shard := t.shard(k)
	shard.mu.RLock()
	defer shard.mu.RUnlock()
	if e := shard.entries[k]; e != nil {
		e.written.Store(at)
	}
}

func lives(sessions []Session, r Ref) bool {
	for _, s := range sessions {
		if s.Ref == r {
			return true
		}
	}
	return false
}
