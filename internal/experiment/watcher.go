package experiment

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tollgate-proxy/tollgate/internal/outage"
	"github.com/tollgate-proxy/tollgate/internal/versioned"
)

const (
	defaultPoll = 500 * time.Millisecond
	syncTimeout = 3 * time.Second
)

// WatcherOptions configure a Watcher.
type WatcherOptions struct {
	// Catalog to follow.
	Catalog *Catalog
	// Poll is how often the catalog's version is read, besides notices; 500 ms
	// if 0.
	Poll time.Duration
	// Changed is called after every change, by Run's goroutine; may be nil.
	Changed func(*Set)
	Log     *slog.Logger
	// Now is the clock; time.Now if nil.
	Now func() time.Time
	// Metrics is where the watcher registers its metrics; may be nil.
	Metrics prometheus.Registerer
}

// Set is the experiments at one moment. It is immutable.
type Set struct {
	version int64
	records []Record // sorted by key
	live    []Live
	before  []Live // those that measure the time before they start
}

// Live is an experiment that is not stopped, ready to assign.
type Live struct {
	*Definition
	*Assigner
}

// Live are the experiments that assign users now or may later by themselves.
// The caller must not change them.
func (s *Set) Live() []Live { return s.live }

// Find gives an experiment's record, nil where there is none. The caller must
// not change it.
func (s *Set) Find(key string) *Record { return find(s.records, key) }

// MeasuresBefore says whether an experiment measures the time before it begins.
func (s *Set) MeasuresBefore(now time.Time) bool {
	return slices.ContainsFunc(s.before, func(x Live) bool { return x.Definition.MeasuresBefore(now) })
}

func newSet(version int64, records []Record, now time.Time) *Set {
	s := &Set{version: version, records: records}
	for i := range records {
		d := &records[i].Definition
		x := Live{d, NewAssigner(d)}
		switch state := d.StateAt(now); {
		case state == Stopped:
		case state == Draft && !d.MeasureBefore:
		case state == Draft:
			s.before = append(s.before, x)
		default:
			s.live = append(s.live, x)
			if d.MeasuresBefore(now) {
				s.before = append(s.before, x)
			}
		}
	}
	return s
}

// Watcher follows a catalog. When Redis goes away it keeps what it last knew;
// when Redis has forgotten everything, it writes that back.
type Watcher struct {
	options WatcherOptions
	current atomic.Pointer[Set]
	follow  *versioned.Follower
	outage  outage.Outage
	told    string // what is broken, as it was last logged; only Run's goroutine uses it
}

// NewWatcher makes a watcher that knows no experiments until Run has read them.
func NewWatcher(o WatcherOptions) (*Watcher, error) {
	if o.Poll <= 0 {
		o.Poll = defaultPoll
	}
	if o.Changed == nil {
		o.Changed = func(*Set) {}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	w := &Watcher{options: o, follow: versioned.NewFollower(o.Poll)}
	w.current.Store(newSet(-1, nil, o.Now()))
	if o.Metrics == nil {
		return w, nil
	}
	running := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "tollgate_experiments_running", Help: "Experiments that assign users."}, w.running)
	if err := o.Metrics.Register(running); err != nil {
		return nil, fmt.Errorf("experiment metrics: %w", err)
	}
	return w, nil
}

func (w *Watcher) running() float64 {
	n, now := 0.0, w.options.Now()
	for _, x := range w.Current().Live() {
		n += one(x.Running(now))
	}
	return n
}

// Current is what is known, never nil. It does not block.
func (w *Watcher) Current() *Set { return w.current.Load() }

// Wake reads the catalog soon, without waiting for a notice.
func (w *Watcher) Wake() { w.follow.Wake() }

// Run follows the catalog until the context ends. Redis may be down at any time.
func (w *Watcher) Run(ctx context.Context) error {
	w.follow.Run(ctx, w.options.Catalog.documents, w.sync)
	return nil
}

func (w *Watcher) sync(ctx context.Context) {
	limited, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	err := w.pull(limited)
	switch {
	case err != nil && ctx.Err() != nil: // the process ends
	case err != nil && w.outage.Failed(w.options.Now()):
		w.options.Log.Warn("experiments cannot be read; the last known ones stay in force", "error", err)
	case err == nil && w.outage.Answered(w.options.Now()):
		w.options.Log.Info("experiments can be read again")
	}
}

func (w *Watcher) pull(ctx context.Context) error {
	before := w.Current()
	version, err := w.options.Catalog.Version(ctx)
	if err != nil || version == before.version {
		return err
	}
	if version == 0 && len(before.records) > 0 {
		w.options.Log.Warn("the store has lost its experiments; they are written back", "experiments", len(before.records))
		if _, err := w.options.Catalog.restore(ctx, before.records); err != nil {
			return err
		}
	}
	snapshot, err := w.options.Catalog.List(ctx)
	if err != nil {
		return err
	}
	told := fmt.Sprint(snapshot.Broken)
	for _, key := range slices.Sorted(maps.Keys(snapshot.Broken)) {
		kept := before.Find(key)
		if kept != nil {
			snapshot.Records = append(snapshot.Records, *kept)
		}
		if told != w.told {
			w.options.Log.Error("stored experiment is not understood", "experiment", key, "kept", kept != nil, "error", snapshot.Broken[key])
		}
	}
	w.told = told
	slices.SortFunc(snapshot.Records, func(a, b Record) int { return strings.Compare(a.Definition.Key, b.Definition.Key) })
	next := newSet(snapshot.Version, snapshot.Records, w.options.Now())
	w.current.Store(next)
	w.options.Changed(next)
	return nil
}
