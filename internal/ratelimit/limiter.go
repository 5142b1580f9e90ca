package ratelimit

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
)

// FailureMode says what happens to requests while the shared store is gone.
type FailureMode string

// The failure modes.
const (
	// FailLocal decides with buckets of this process, each with this
	// replica's share of the limit.
	FailLocal FailureMode = "local"
	// FailAllow allows every request.
	FailAllow FailureMode = "allow"
	// FailDeny denies every request that a rule matches.
	FailDeny FailureMode = "deny"
)

// Options are what a [Limiter] is made of. Rules, Store, Log and Metrics are
// required.
type Options struct {
	Rules *Rules
	// Store is the shared store.
	Store Store
	// Probe says whether the store works again; nil charges a bucket of its own.
	Probe func(context.Context) error
	// Timeout bounds one call of the store; 20 ms where it is not set.
	Timeout time.Duration
	// OnFailure is FailLocal where it is not set.
	OnFailure FailureMode
	// LocalBuckets bounds the buckets of FailLocal; 100,000 where it is not set.
	LocalBuckets int
	// Denials bounds the denials remembered; 0 remembers none.
	Denials int
	// LeaseLife is how long tokens taken in advance may lie unused; 0 takes
	// none.
	LeaseLife time.Duration
	// Overrides are tiers that subjects have for a while; nil for none.
	Overrides *Overrides
	// Replicas is the least number of limiters that share the store; 1 where it
	// is not set. Those that a [Redis] store has seen count too. Each grants its
	// share while the store is gone.
	Replicas int
	// BeatEvery is how often a limiter shows the others that it lives; 2 s where
	// it is not set.
	BeatEvery time.Duration
	// Failures is the number of failed calls in a row after which the store is
	// not asked any more; 3 where it is not set.
	Failures int
	// ProbeEvery is how often a store that is gone is tried; 250 ms where it
	// is not set.
	ProbeEvery time.Duration
	// LogDenials is how many denials are logged each second at most; 0 logs
	// none. LogSubjects names whose they are; else they are told apart only.
	LogDenials  int
	LogSubjects bool
	// Notify is told when the store goes and comes back; it may be nil.
	Notify  func(up bool, reason string)
	Now     func() time.Time
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

// Limiter decides requests. It may be used by any number of goroutines. Use
// [NewLimiter], and [Limiter.Run] beside it.
type Limiter struct {
	rules    atomic.Pointer[Rules]
	store    Store
	probe    func(context.Context) error
	timeout  time.Duration
	failure  FailureMode
	local    *Memory
	replicas *replicas
	every    time.Duration
	now      func() time.Time
	guard    *guard
	batcher  *batcher
	denials  *denials // nil: nothing is remembered
	// overrides may be nil.
	overrides *Overrides
	leases    *leases // nil: nothing is taken in advance
	denyLog   *denyLog
	began     time.Time
	metrics   *metrics
	unknown   *Rule
}

// NewLimiter returns a limiter.
func NewLimiter(o Options) (*Limiter, error) {
	if o.Timeout <= 0 {
		o.Timeout = 20 * time.Millisecond
	}
	if o.OnFailure == "" {
		o.OnFailure = FailLocal
	}
	if o.LocalBuckets <= 0 {
		o.LocalBuckets = 100_000
	}
	if o.Failures <= 0 {
		o.Failures = 3
	}
	if o.ProbeEvery <= 0 {
		o.ProbeEvery = 250 * time.Millisecond
	}
	if o.BeatEvery <= 0 {
		o.BeatEvery = 2 * time.Second
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	l := &Limiter{
		store: o.Store, probe: o.Probe, timeout: o.Timeout, failure: o.OnFailure,
		local: NewMemory(o.LocalBuckets, o.Now), replicas: newReplicas(o.Store, o.Replicas, o.BeatEvery),
		overrides: o.Overrides, every: o.ProbeEvery, now: o.Now, unknown: &Rule{Name: "none", counters: new(counters)},
	}
	var err error
	if l.metrics, err = newMetrics(o.Metrics, func() float64 { return float64(l.local.Len()) }); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	if l.probe == nil {
		l.probe = func(ctx context.Context) error {
			// A write, as a server that may only be read is of no use.
			return l.store.Take(ctx, []*Demand{{Charges: []Charge{{Key: keyPrefix + "}:probe", Capacity: 1, Cost: 1}}}})
		}
	}
	l.denyLog = newDenyLog(o.Log, o.LogDenials, o.LogSubjects)
	l.guard = newGuard(o.Failures, o.Log, l.metrics, o.Notify)
	if l.began = o.Now(); o.Denials > 0 {
		l.denials = newDenials(o.Denials)
	}
	if o.LeaseLife > 0 {
		l.leases = newLeases(o.LeaseLife, maxLeases, l.replicas.count)
	}
	l.batcher = newBatcher(o.Store, o.Timeout, o.Now, l.observe)
	l.SetRules(o.Rules)
	return l, nil
}

// Rules returns the rules in force.
func (l *Limiter) Rules() *Rules { return l.rules.Load() }

// SetRules puts rules in force. Requests being decided keep the old ones.
func (l *Limiter) SetRules(r *Rules) {
	l.rules.Store(r)
	l.metrics.reloads.WithLabelValues("loaded").Inc()
	l.metrics.loaded.Set(float64(l.now().UnixMilli()) / 1e3)
}

// RulesRefused counts rule files that could not be loaded; the old rules stay.
func (l *Limiter) RulesRefused() { l.metrics.reloads.WithLabelValues("refused").Inc() }

// Run does until ctx ends what requests do not wait for: a store that is gone is
// tried, and when it is back it learns what was granted without it; denials that
// last are confirmed; tokens that were taken in advance go back.
func (l *Limiter) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { l.returnLeases(ctx) })
	wg.Go(func() { l.confirmDenials(ctx) })
	wg.Go(func() { l.replicas.run(ctx, l.metrics.replicas.Set) })
	l.guard.run(ctx, l.every, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, l.every)
		defer cancel()
		return l.probe(ctx)
	}, l.settle)
	return nil
}

// maxLeases bounds the buckets of which tokens are held.
const maxLeases = 100_000

// returnLeases gives back what was not used, until ctx ends; then all of it.
func (l *Limiter) returnLeases(ctx context.Context) {
	if l.leases == nil {
		return
	}
	tick := time.NewTicker(l.leases.life / 2)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
			l.giveBack(ctx, l.leases.sweep(l.now().Sub(l.began), false))
		}
	}
	l.giveBack(context.WithoutCancel(ctx), l.leases.sweep(0, true))
}

// giveBack refunds tokens. Where that fails they are lost, which grants less,
// never more.
func (l *Limiter) giveBack(ctx context.Context, refunds []*Demand) {
	for len(refunds) > 0 && l.guard.allows() {
		n := min(len(refunds), MaxBatch)
		call, cancel := context.WithTimeout(ctx, l.every)
		start := l.now()
		if err := l.store.Take(call, refunds[:n]); err != nil {
			l.guard.failed(start, l.now(), err)
		}
		cancel()
		l.returned(refunds[:n]...)
		refunds = refunds[n:]
	}
}

// settle charges the store with what the local buckets granted.
func (l *Limiter) settle(ctx context.Context) error {
	share := l.replicas.share(false)
	debts := l.local.Drain(share)
	for len(debts) > 0 {
		n := min(len(debts), MaxBatch)
		call, cancel := context.WithTimeout(ctx, l.every)
		err := l.store.Take(call, debts[:n])
		cancel()
		if err != nil {
			l.restore(ctx, debts, share)
			return err
		}
		debts = debts[n:]
	}
	return nil
}

// restore puts debts that the store did not take back into the local buckets.
func (l *Limiter) restore(ctx context.Context, debts []*Demand, share int64) {
	for _, d := range debts {
		d.Charges[0].Cost = scaled(d.Charges[0].Cost, share, d.Charges[0].Capacity)
	}
	_ = l.local.Take(context.WithoutCancel(ctx), debts) // It has nothing to fail with.
}

// Decide decides the request and fills dec, reusing what dec holds. The error
// is [ErrInvalid] for a request that cannot be decided; nothing else fails.
func (l *Limiter) Decide(ctx context.Context, req *Request, dec *Decision) error {
	*dec = Decision{Statuses: dec.Statuses[:0], Shown: -1}
	if err := check(req); err != nil {
		return err
	}
	d := l.rules.Load().domains[req.Domain]
	if d == nil {
		dec.Allowed = true
		for range req.Descriptors {
			dec.Statuses = append(dec.Statuses, Status{})
			l.metrics.count("unknown", l.unknown, nil, PathNone, outcomeAllowed)
		}
		return nil
	}
	p := newPlan()
	defer p.release()
	p.build(d, req, l.overrides)
	start := l.now().Sub(l.began)
	switch {
	case len(p.active) == 0:
		dec.Path = PathNone
		p.answer(dec)
	case l.remembered(p, start):
		dec.Path = PathDenied
		p.answer(dec)
	case l.ask(ctx, p, start, dec):
		p.answer(dec)
	default:
		l.without(p, dec)
	}
	l.count(ctx, p, dec)
	return nil
}

// ask decides with leases and the shared store, and says whether that worked.
func (l *Limiter) ask(ctx context.Context, p *plan, start time.Duration, dec *Decision) bool {
	dec.Path = PathExact
	if l.leases == nil || len(p.active) > 1 {
		l.before(p)
		if !l.exact(ctx, p) {
			return false
		}
		l.learn(p, start)
		return true
	}
	d := p.active[0]
	var served bool
	if p.claims, served = l.leases.reserve(d, p.claims, start); served {
		dec.Path = PathLeased
		l.leases.served(d, p.claims, start)
		return true
	}
	l.before(p)
	// What leases served at the end of the demand need not be sent.
	whole := len(d.Charges)
	for len(d.Charges) > 0 && p.claims[len(d.Charges)-1].leased {
		d.Charges = d.Charges[:len(d.Charges)-1]
	}
	sent := len(d.Charges)
	decided := l.exact(ctx, p)
	if decided && !d.Allowed && undo(d, p.claims) {
		// Perhaps only the lease was too much.
		decided = l.exact(ctx, p)
	}
	d.Charges = d.Charges[:whole]
	for i := sent; decided && i < whole; i++ {
		l.leases.told(d, i)
	}
	l.leases.settle(d, p.claims, start, decided)
	if decided {
		l.learn(p, start)
	}
	return decided
}

// remembered denies from memory where that is exact. Demands that only watch
// want the store to count, so a request with one always asks it.
func (l *Limiter) remembered(p *plan, at time.Duration) bool {
	if l.denials == nil {
		return false
	}
	if len(p.active) > 1 {
		p.stale = true
		return false
	}
	var denied bool
	denied, p.stale = l.denials.decide(p.active[0], at, l.leases)
	return denied
}

// before notes what was returned to the buckets before the store is asked.
func (l *Limiter) before(p *plan) {
	if l.denials != nil {
		p.returns = l.denials.returnsTo(p.active...)
	}
}

// learn remembers what the store said to a request asked at start: a denial, and
// an allowance that left too little for another request like it.
func (l *Limiter) learn(p *plan, start time.Duration) {
	if l.denials == nil {
		return
	}
	for _, d := range p.active {
		switch {
		case !d.Allowed, len(p.active) == 1 && !p.refunds && !leased(d, p.claims) && d.spent():
			l.denials.remember(d, start, l.now().Sub(l.began), p.returns, p.active...)
		case p.stale:
			l.denials.forget(d)
		}
	}
}

func check(req *Request) error {
	switch {
	case req.Domain == "":
		return fmt.Errorf("%w: the domain is empty", ErrInvalid)
	case len(req.Descriptors) == 0:
		return fmt.Errorf("%w: there is no descriptor", ErrInvalid)
	case len(req.Descriptors) > MaxDescriptors:
		return fmt.Errorf("%w: %d descriptors; at most %d", ErrInvalid, len(req.Descriptors), MaxDescriptors)
	}
	for i := range req.Descriptors {
		if n := len(req.Descriptors[i].Entries); n == 0 || n > MaxEntries {
			return fmt.Errorf("%w: descriptor %d has %d entries; 1 to %d", ErrInvalid, i, n, MaxEntries)
		}
	}
	return nil
}

// exact decides in the shared store, and says whether that worked.
func (l *Limiter) exact(ctx context.Context, p *plan) bool {
	if !l.guard.allows() {
		return false
	}
	decided := l.take(ctx, p)
	for _, d := range p.active {
		if l.denials == nil || !p.refunds && !d.Returned {
			continue
		}
		// It may be remembered itself, where nobody else returned anything.
		p.returns += l.denials.returned(d)
	}
	return decided
}

// returned notes that the store took back, or may have, something of the
// demands' buckets.
func (l *Limiter) returned(demands ...*Demand) {
	for _, d := range demands {
		if l.denials != nil {
			l.denials.returned(d)
		}
	}
}

func (l *Limiter) take(ctx context.Context, p *plan) bool {
	if span := trace.SpanContextFromContext(ctx); span.IsSampled() {
		// A call of its own, so that the trace shows it. As any other it is not
		// ended by its caller, whose deadline may be as short: the guard would
		// not hear of a store that hangs.
		call, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.timeout)
		defer cancel()
		start := l.now()
		err := l.store.Take(call, p.active)
		l.observe(len(p.active), start, err)
		return err == nil
	}
	return l.batcher.Take(ctx, p.active) == nil
}

// observe notes a call of the store that began at start and has ended.
func (l *Limiter) observe(demands int, start time.Time, err error) {
	end := l.now()
	l.metrics.store.Observe(end.Sub(start).Seconds())
	l.metrics.batch.Observe(float64(demands))
	if err != nil {
		l.guard.failed(start, end, err)
		return
	}
	l.guard.succeeded()
}

// without decides while the shared store is gone: each descriptor as its rule
// says.
func (l *Limiter) without(p *plan, dec *Decision) {
	modes := map[FailureMode]bool{}
	for i := range p.matches {
		modes[l.mode(p.matches[i].rule)] = true
	}
	switch {
	case modes[FailDeny]:
		dec.Path, dec.Allowed = PathFallback, false
	case !modes[FailLocal]:
		dec.Path, dec.Allowed = PathFallback, true
	default:
		if modes[FailAllow] {
			p.keep(func(descriptor int) bool {
				return descriptor < 0 || l.mode(p.matches[descriptor].rule) == FailLocal
			})
		}
		p.localise(l.replicas.share(l.guard.allows()))
		if l.local.Take(context.Background(), p.active) == nil { // It has nothing to fail with.
			dec.Path = PathLocal
			p.answer(dec)
		}
		return
	}
	for i := range p.matches {
		rule := p.matches[i].rule
		dec.Statuses = append(dec.Statuses, Status{Rule: rule, Denied: !dec.Allowed && l.mode(rule) == FailDeny})
	}
}

// mode is what happens to a descriptor that met the rule while the store is
// gone. A rule that only watches denies nothing.
func (l *Limiter) mode(rule *Rule) FailureMode {
	mode := l.failure
	if rule != nil && rule.OnFailure != "" {
		mode = rule.OnFailure
	}
	if mode == FailDeny && rule != nil && (rule.Shadow || rule.Quota || rule.Unlimited && rule.OnFailure == "") {
		return FailAllow
	}
	return mode
}

// count counts the decision about each descriptor, and logs some denials.
func (l *Limiter) count(ctx context.Context, p *plan, dec *Decision) {
	for i := range dec.Statuses {
		s := &dec.Statuses[i]
		o, rule := outcomeAllowed, s.Rule
		switch {
		case s.Denied:
			o = outcomeDenied
			if l.denyLog.most > 0 && l.denyLog.admits(l.now()) {
				l.denyLog.write(ctx, p.domain.name, &p.matches[i], s, dec.Path)
			}
		case s.Over:
			o = outcomeShadow
		}
		if rule == nil {
			rule = p.domain.unmatched
		}
		l.metrics.count(p.domain.name, rule, p.matches[i].entries, dec.Path, o)
	}
}
