package flag

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tollgate-proxy/tollgate/internal/outage"
	"github.com/tollgate-proxy/tollgate/internal/versioned"
)

const (
	defaultPoll = 500 * time.Millisecond
	syncTimeout = 3 * time.Second
	// bootstrapActor is who seeds.
	bootstrapActor = "bootstrap"
)

// WatcherOptions configure a Watcher.
type WatcherOptions struct {
	// Store to follow.
	Store *Store
	// Bootstrap is what the watcher starts from and seeds Redis with; nil for
	// no flags.
	Bootstrap *Definitions
	// Poll is how often the store's version is read, besides notices; 500 ms
	// if 0.
	Poll time.Duration
	Log  *slog.Logger
	// Metrics is where the watcher registers its metrics; may be nil.
	Metrics prometheus.Registerer
	// Now is the clock; time.Now if nil.
	Now func() time.Time
}

// Watcher follows a store and offers the current Set. It starts from the
// bootstrap definitions, so a process is ready without Redis; when Redis goes
// away it keeps what it last knew.
type Watcher struct {
	options WatcherOptions
	current atomic.Pointer[state]
	follow  *versioned.Follower

	mu      sync.Mutex
	changed chan struct{}
	overlay []Experiment

	// Only Run's goroutine uses these.
	outage  outage.Outage
	refused int64  // the set version that was last refused
	told    string // what is broken, as it was last logged
	seeded  bool

	synced *prometheus.CounterVec
	at     prometheus.Gauge
}

// state is a Set and what it was compiled from.
type state struct {
	set *Set
	// laid is the set with the experiments.
	laid     *Set
	defs     *Definitions
	versions map[string]int64
}

// NewWatcher compiles the bootstrap definitions, so that Current answers at
// once, and registers metrics.
func NewWatcher(o WatcherOptions) (*Watcher, error) {
	if o.Poll <= 0 {
		o.Poll = defaultPoll
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Bootstrap == nil {
		o.Bootstrap = &Definitions{}
	}
	set, err := Compile(o.Bootstrap)
	if err != nil {
		return nil, fmt.Errorf("bootstrap flags: %w", err)
	}
	w := &Watcher{
		options: o,
		follow:  versioned.NewFollower(o.Poll),
		changed: make(chan struct{}),
		synced: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tollgate_flag_sync_total",
			Help: "Reads of the flag store that found a change or failed, by result.",
		}, []string{"result"}),
		at: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "tollgate_flag_sync_timestamp_seconds",
			Help: "When the flag store was last reached; 0 before the first time.",
		}),
	}
	w.current.Store(&state{set: set, laid: set, defs: o.Bootstrap})
	if o.Metrics == nil {
		return w, nil
	}
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f)
	}
	for _, c := range []prometheus.Collector{
		w.synced, w.at,
		gauge("tollgate_flag_set_version", "Version of the flags in force; 0 for the bootstrap file.",
			func() float64 { return float64(w.Current().Version()) }),
		gauge("tollgate_flag_definitions", "Number of flags in force.",
			func() float64 { return float64(len(w.Current().Keys())) }),
		gauge("tollgate_flag_expired", "Number of flags in force past their expiry date.",
			func() float64 { return float64(len(w.current.Load().defs.Stale(o.Now()))) }),
	} {
		if err := o.Metrics.Register(c); err != nil {
			return nil, fmt.Errorf("flag metrics: %w", err)
		}
	}
	return w, nil
}

// Current is the newest good Set, with the experiments laid over it, never nil.
// It does not block.
func (w *Watcher) Current() *Set { return w.current.Load().laid }

// Flags is the newest good Set without experiments, never nil.
func (w *Watcher) Flags() *Set { return w.current.Load().set }

// Experiments lays experiments over the flags from now on, in place of those
// before. The error names those that do not fit their flags at the moment; they
// are tried again when flags change.
func (w *Watcher) Experiments(experiments []Experiment) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.overlay = experiments
	next := *w.current.Load()
	return w.publish(&next)
}

// publish makes a state current, with w.mu held.
func (w *Watcher) publish(next *state) error {
	var err error
	next.laid, err = next.set.With(w.overlay)
	w.current.Store(next)
	close(w.changed)
	w.changed = make(chan struct{})
	return err
}

// Changed is closed when Current next changes.
func (w *Watcher) Changed() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.changed
}

// Wake reads the store soon, without waiting for a notice.
func (w *Watcher) Wake() { w.follow.Wake() }

// Run follows the store until the context ends. Redis may be down at any time.
func (w *Watcher) Run(ctx context.Context) error {
	w.follow.Run(ctx, w.options.Store.documents, w.sync)
	return nil
}

// sync makes the store's flags current, if they are not.
func (w *Watcher) sync(ctx context.Context) {
	limited, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	changed, err := w.pull(limited)
	var refused *refusedError
	switch {
	case errors.As(err, &refused):
		w.synced.WithLabelValues("refused").Inc()
		w.options.Log.Error("stored flags are refused; the flags before stay in force", "version", refused.version, "error", err)
	case err != nil:
		w.synced.WithLabelValues("failed").Inc()
		if ctx.Err() == nil && w.outage.Failed(w.options.Now()) {
			w.options.Log.Warn("flag store is away; the last known flags stay in force", "version", w.Current().Version(), "error", err)
		}
		return
	case changed:
		w.synced.WithLabelValues("changed").Inc()
	}
	w.at.SetToCurrentTime()
	if w.outage.Answered(w.options.Now()) {
		w.options.Log.Info("flag store is back", "version", w.Current().Version())
	}
}

// refusedError: the store's flags do not compile.
type refusedError struct {
	version int64
	cause   error
}

func (e *refusedError) Error() string { return fmt.Sprintf("version %d: %v", e.version, e.cause) }
func (e *refusedError) Unwrap() error { return e.cause }

func (w *Watcher) pull(ctx context.Context) (changed bool, err error) {
	store, before := w.options.Store, w.current.Load()
	version, err := store.Version(ctx)
	if err != nil {
		return false, err
	}
	var seedErr error
	if version == 0 || !w.seeded {
		// A Redis that takes no writes, such as a full one, can still be read.
		if seedErr = w.seed(ctx, version); seedErr != nil && version == 0 {
			return false, seedErr
		}
	} else if version == before.set.version || version == w.refused {
		return false, nil
	}
	if changed, err = w.take(ctx, before); err != nil {
		return false, err
	}
	return changed, seedErr
}

// take compiles what the store holds and makes it current.
func (w *Watcher) take(ctx context.Context, before *state) (changed bool, err error) {
	snapshot, err := w.options.Store.List(ctx)
	if err != nil {
		return false, err
	}
	next, out, err := usable(&snapshot, before)
	w.tell(&snapshot, next, out)
	if err != nil {
		w.refused = snapshot.Version
		return false, &refusedError{snapshot.Version, err}
	}
	next.set.version = snapshot.Version
	if before.set.version == snapshot.Version && before.set.digest == next.set.digest {
		return false, nil
	}
	w.mu.Lock()
	err = w.publish(next)
	w.mu.Unlock()
	if err != nil {
		w.options.Log.Error("experiments do not fit the flags; they do not run", "error", err)
	}
	return true, nil
}

// seed writes the bootstrap flags that Redis has never seen. A Redis that has
// forgotten everything gets back what this process knows, which is newer than
// its bootstrap file.
func (w *Watcher) seed(ctx context.Context, version int64) error {
	state, c := w.current.Load(), Change{Actor: bootstrapActor, Reason: "never seen before"}
	if version == 0 && w.seeded {
		if len(state.defs.Flags) == 0 {
			return nil
		}
		c.Reason = "the store had lost its flags"
		w.options.Log.Warn("flag store has lost its flags; they are written back", "flags", len(state.defs.Flags))
		_, err := w.options.Store.Seed(ctx, state.defs, state.versions, c)
		return err
	}
	n, err := w.options.Store.Seed(ctx, w.options.Bootstrap, nil, c)
	if err != nil {
		return err
	}
	w.seeded = true
	if n > 0 {
		w.options.Log.Info("flags of the bootstrap file are in the store", "flags", n)
	}
	return nil
}

// usable compiles what can be used of a snapshot. Of flags that are stored in a
// form that this program cannot read, such as one of a newer release, the last
// known definitions stay, if the others go with them. Those of which there are
// none are left out, and so is what depends on them: out names those.
func usable(snapshot *Snapshot, before *state) (next *state, out []string, err error) {
	for _, keep := range []bool{true, false} {
		next = &state{defs: snapshot.Definitions(), versions: map[string]int64{}}
		for _, r := range snapshot.Records {
			next.versions[r.Definition.Key] = r.Version
		}
		for key := range snapshot.Broken {
			if def, ok := before.defs.Flags[key]; ok && keep {
				next.defs.Flags[key] = def
				next.versions[key] = before.versions[key]
			}
		}
		out = next.defs.leaveOut(snapshot.Broken)
		if next.set, err = Compile(next.defs); err == nil || len(snapshot.Broken) == 0 {
			break
		}
	}
	return next, out, err
}

// tell logs what is not in force as it is stored, whenever that is something new.
func (w *Watcher) tell(snapshot *Snapshot, next *state, out []string) {
	told := fmt.Sprint(snapshot.Broken, out)
	if told == w.told {
		return
	}
	w.told = told
	for _, key := range slices.Sorted(maps.Keys(snapshot.Broken)) {
		_, kept := next.defs.Flags[key]
		w.options.Log.Error("stored flag is not understood", "flag", key, "kept", kept, "error", snapshot.Broken[key])
	}
	if len(out) > 0 {
		w.options.Log.Error("flags are left out: what they depend on is not understood", "flags", out)
	}
}
