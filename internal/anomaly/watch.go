package anomaly

import (
	"context"
	"errors"
	"hash/maphash"
	"log/slog"
	"math/bits"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tollgate-proxy/tollgate/internal/outage"
)

// Sighting is a request with a verified token.
type Sighting struct {
	// User is the token's subject, Session its sid or jti; Issuer, who issued it, may be empty.
	User, Session, Issuer string
	// Token is a SHA-256 of the token, or of its signing input: it stands for User and Session, too. Where it is zero
	// those are compared instead.
	Token   [32]byte
	Address netip.Addr
	// Agent is the User-Agent header, Device the device_id claim; each may be empty.
	Agent, Device string
	// Place is what trusted headers say; empty where there are none.
	Place PlaceText
	// Authenticated is when the user last proved who they are: the claim auth_time. The zero value is never; a token's
	// iat is no such proof, since refreshing sets it.
	Authenticated time.Time
	At            time.Time
}

// Options are the parts of a Watch. Store is required.
type Options struct {
	Store  Store
	Places *Places // nil: headers alone say where addresses are
	// EndSession ends a session of a user, of one issuer where that is known. It is required where an action is
	// revoke_session. That a session is not registered is no error.
	EndSession func(ctx context.Context, user, session, issuer string) error
	Log        *slog.Logger
	Metrics    prometheus.Registerer
	Now        func() time.Time
}

// Watch looks at requests. Observe is for the request's way: what it has seen before costs one look-up. What is new is
// judged behind it by Run, and the assessment holds from then on; where the configuration says wait, the request waits
// for it, but no longer than that.
//
// Where the store is away or too slow there is no signal: an assessment that is known stays, and one that is not is
// asked for again a few seconds later.
type Watch struct {
	rules    atomic.Pointer[Rules]
	options  Options
	failures atomic.Pointer[failures]
	metrics  *watchMetrics
	seed     maphash.Seed
	shards   [watchShards]watchShard
	arrivals newcomers
	queue    chan job
	away     atomic.Bool // when it was last asked
	outage   outage.Outage
}

const (
	watchShards = 64
	// queueLength bounds the requests that wait to be judged. Where it is full the next request tries again.
	queueLength = 4096
	// judges is how many are judged at a time.
	judges = 8
	// retry is how long after a failure a request is judged again.
	retry = 5 * time.Second
	// maxAgent and maxName bound what of a request is looked at, in bytes.
	maxAgent = 512
	maxName  = 256
)

type watchShard struct {
	mu      sync.RWMutex
	entries map[uint64]*entry
}

// watchKey is a seeded hash of everything that is compared, and the token, which is compared itself as well.
type watchKey struct {
	hash  uint64
	token [16]byte
}

// entry is what is known of a token at an address with an agent and a device.
type entry struct {
	token      [16]byte
	pooled     bool                     // it stands for many combinations of the token
	assessment atomic.Pointer[assessed] // nil until it was judged
	due        atomic.Int64             // Unix nanoseconds: when it is judged again
	judging    atomic.Bool
	first      chan struct{} // closed when it was judged for the first time, or could not be
	once       sync.Once
	key        string // of the last event; used by the judge
}

// assessed is an assessment, and the rules by which it was made.
type assessed struct {
	Assessment

	rules *Rules
}

// under is the assessment as the rules have it: where it was made by others its score leads to what these say.
func (a *assessed) under(r *Rules) Assessment {
	if a == nil {
		return Assessment{}
	}
	if a.rules != r {
		return Assessment{Score: a.Score, Reasons: a.Reasons, Action: r.action(a.Score)}
	}
	return a.Assessment
}

type job struct {
	sighting Sighting
	entry    *entry
}

// NewWatch returns a watch; Run does its work.
func NewWatch(c Config, o Options) (*Watch, error) {
	if o.Store == nil {
		return nil, errors.New("anomaly: a store is required")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	w := &Watch{options: o, seed: maphash.MakeSeed(), queue: make(chan job, queueLength)}
	for i := range w.shards {
		w.shards[i].entries = map[uint64]*entry{}
	}
	use, err := w.Prepare(c)
	if err != nil {
		return nil, err
	}
	use()
	w.metrics = newWatchMetrics(w)
	return w, register(o.Metrics, w.metrics.collectors()...)
}

// Prepare makes ready to judge by another configuration; use puts it into force. Places and Headers are for others.
//
// Scores that are known lead to the new actions at once; by the new weights and thresholds a request is judged when it
// comes again.
func (w *Watch) Prepare(c Config) (use func(), err error) {
	rules, err := Compile(c)
	if err != nil {
		return nil, err
	}
	if w.options.EndSession == nil && rules.does(RevokeSession) {
		return nil, errors.New("anomaly: the action revoke_session needs something that ends sessions")
	}
	return func() {
		old := w.rules.Swap(rules)
		if old == nil || old.config.Failures.Window != c.Failures.Window || old.config.Failures.Tracked != c.Failures.Tracked {
			w.failures.Store(newFailures(c.Failures))
		}
	}, nil
}

// Enabled says whether requests are looked at.
func (w *Watch) Enabled() bool { return w.rules.Load().config.Enabled }

func (w *Watch) key(s *Sighting) watchKey {
	var known [32]byte
	address := s.Address.As16()
	copy(known[:16], address[:])
	copy(known[16:], s.Token[:16])
	k := watchKey{token: [16]byte(s.Token[:16]), hash: maphash.Bytes(w.seed, known[:])}
	k.mix(maphash.String(w.seed, s.Agent))
	k.mix(maphash.String(w.seed, s.Device))
	if k.token == [16]byte{} { // else the token says whose it is
		k.mix(maphash.String(w.seed, s.User))
		k.mix(maphash.String(w.seed, s.Session))
	}
	return k
}

// mix adds the hash of a field, so that no two fields can be exchanged.
func (k *watchKey) mix(field uint64) {
	k.hash = bits.RotateLeft64(k.hash*0x9e3779b97f4a7c15, 23) ^ field
}

func (w *Watch) shard(k watchKey) *watchShard { return &w.shards[k.hash%watchShards] }

// Observe returns the assessment of a request. For one like the last it neither waits nor allocates. Past 32 new
// combinations of a token within a minute the rest is judged as one, every few seconds. The strings of s
// are not kept. A sighting without a user is passed over.
func (w *Watch) Observe(ctx context.Context, s *Sighting) Assessment {
	rules := w.rules.Load()
	if s.User == "" || !rules.config.Enabled {
		return Assessment{}
	}
	k := w.key(s)
	shard := w.shard(k)
	shard.mu.RLock()
	e := shard.entries[k.hash]
	shard.mu.RUnlock()
	if e == nil || e.token != k.token {
		e = w.meet(k, s.At, max(rules.config.Tracked/watchShards, 1))
	}
	known := e.assessment.Load()
	due := s.At.UnixNano() >= e.due.Load() || known != nil && known.rules != rules
	if due && e.judging.CompareAndSwap(false, true) && !w.enqueue(s, e) {
		e.judging.Store(false)
		return known.under(rules)
	}
	if known == nil && rules.config.Wait > 0 {
		w.wait(ctx, e, rules.config.Wait)
	}
	return e.assessment.Load().under(rules)
}

// meet makes an entry for what is new, in a shard that holds no more than most.
func (w *Watch) meet(k watchKey, at time.Time, most int) *entry {
	pooled := !w.arrivals.admit(k.token, at)
	if pooled {
		w.metrics.evaluations[pool].Inc()
		k.hash = maphash.Bytes(w.seed, k.token[:])
	}
	shard := w.shard(k)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	e := shard.entries[k.hash]
	if e != nil && e.token == k.token {
		return e
	}
	for e == nil && len(shard.entries) >= most {
		shard.evict()
	}
	e = &entry{token: k.token, pooled: pooled, first: make(chan struct{})}
	shard.entries[k.hash] = e
	return e
}

// evict forgets, of a few, the entry that is due first: it was not judged for longest.
func (s *watchShard) evict() {
	const few = 8
	var stalest uint64
	due, seen := int64(0), 0
	for k, e := range s.entries {
		if d := e.due.Load(); seen == 0 || d < due {
			stalest, due = k, d
		}
		if seen++; seen == few {
			break
		}
	}
	delete(s.entries, stalest)
}

// enqueue hands a copy of the sighting to a judge.
func (w *Watch) enqueue(s *Sighting, e *entry) bool {
	c := *s
	for _, field := range []struct {
		s    *string
		most int
	}{
		{&c.User, len(c.User)}, {&c.Session, len(c.Session)}, {&c.Issuer, len(c.Issuer)}, {&c.Agent, maxAgent}, {&c.Device, maxName},
		{&c.Place.Country, maxName}, {&c.Place.Network, maxName}, {&c.Place.Latitude, maxName},
		{&c.Place.Longitude, maxName}, {&c.Place.Radius, maxName},
	} {
		*field.s = strings.Clone((*field.s)[:min(len(*field.s), field.most)])
	}
	select {
	case w.queue <- job{c, e}:
		return true
	default:
		w.metrics.evaluations[dropped].Inc()
		return false
	}
}

// wait waits for the first assessment.
func (w *Watch) wait(ctx context.Context, e *entry, most time.Duration) {
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case <-e.first:
	case <-ctx.Done():
		w.metrics.evaluations[late].Inc()
	case <-timer.C:
		w.metrics.evaluations[late].Inc()
	}
}

// Failed notes that the verification of a token from the address failed. It does not wait.
func (w *Watch) Failed(address netip.Addr, now time.Time) {
	if address.IsValid() && w.Enabled() {
		w.failures.Load().note(endpoint(address), now)
	}
}

// Run judges what Observe has seen until ctx ends, and returns nil.
func (w *Watch) Run(ctx context.Context) error {
	var workers sync.WaitGroup
	for range judges {
		workers.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case j := <-w.queue:
					w.judge(ctx, &j)
				}
			}
		})
	}
	for ctx.Err() == nil {
		timer := time.NewTimer(w.rules.Load().config.Refresh)
		select {
		case <-ctx.Done():
		case <-timer.C:
			w.sweep(w.options.Now())
		}
		timer.Stop()
	}
	workers.Wait()
	return nil
}

// sweep forgets what was not seen for a while.
func (w *Watch) sweep(now time.Time) {
	w.failures.Load().sweep(now)
	over := now.Add(-w.rules.Load().config.Refresh).UnixNano()
	for i := range w.shards {
		s := &w.shards[i]
		s.mu.Lock()
		for k, e := range s.entries {
			if e.due.Load() < over && !e.judging.Load() {
				delete(s.entries, k)
			}
		}
		s.mu.Unlock()
	}
}

func (w *Watch) len() int {
	n := 0
	for i := range w.shards {
		w.shards[i].mu.RLock()
		n += len(w.shards[i].entries)
		w.shards[i].mu.RUnlock()
	}
	return n
}
