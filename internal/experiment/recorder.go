package experiment

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/outage"
)

const (
	defaultFlush = time.Second
	// maxPending bounds how many full batches wait for Redis: some 100,000
	// entries, a few dozen megabytes.
	maxPending   = 64
	writeTimeout = 5 * time.Second
	// lastFlush bounds the writing of what is left when the process ends.
	lastFlush = 3 * time.Second
)

// RecorderOptions configure a Recorder.
type RecorderOptions struct {
	Store *Store
	// Flush is how often what was seen is written; 1 s if 0.
	Flush time.Duration
	Log   *slog.Logger
	// Now is the clock; time.Now if nil.
	Now func() time.Time
	// Metrics is where the recorder registers its metrics; may be nil.
	Metrics prometheus.Registerer
}

// Recorder collects what a process sees and writes it in the background: no
// request waits for it. While Redis is away it keeps a bounded amount and
// counts what it had to drop. It is safe for concurrent use.
type Recorder struct {
	options RecorderOptions
	dropped *prometheus.CounterVec
	strays  prometheus.Counter

	mu      sync.Mutex
	open    map[batchOf]*Batch
	pending []*Batch
	dealt   map[batchOf]*dealt

	refused map[string]bool // by experiment; only flush uses it
	outage  outage.Outage
}

// dealt counts requests by variant, without waiting.
type dealt struct {
	definition *Definition
	requests   [maxVariants]atomic.Int64
}

// NewRecorder makes a recorder; Run writes.
func NewRecorder(o RecorderOptions) (*Recorder, error) {
	if o.Flush <= 0 {
		o.Flush = defaultFlush
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	r := &Recorder{
		options: o,
		open:    map[batchOf]*Batch{},
		dealt:   map[batchOf]*dealt{},
		refused: map[string]bool{},
		dropped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tollgate_experiment_dropped_total",
			Help: "Exposures and observations that were not recorded, by reason.",
		}, []string{"reason"}),
		strays: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tollgate_experiment_strays_total",
			Help: "Users seen in another variant than before; anything but 0 is a broken assignment.",
		}),
	}
	if o.Metrics == nil {
		return r, nil
	}
	for _, c := range []prometheus.Collector{r.dropped, r.strays} {
		if err := o.Metrics.Register(c); err != nil {
			return nil, fmt.Errorf("experiment metrics: %w", err)
		}
	}
	return r, nil
}

// Expose records that a user met a variant of a valid definition.
func (r *Recorder) Expose(d *Definition, user string, variant int) { r.Visit(d, user, variant) }

// Observe records one value of a metric of a user in a variant.
func (r *Recorder) Observe(d *Definition, user string, variant int, metric string, value float64) {
	r.Visit(d, user, variant, Value{metric, value})
}

// Visit records that a user met a variant, and what was measured then.
func (r *Recorder) Visit(d *Definition, user string, variant int, values ...Value) {
	_ = r.into(d, func(b *Batch) error { return b.Visit(user, variant, values...) }) // counted
}

// Report records values of a user who may not have met the variant; see
// [Batch.Report]. The error wraps ErrFull where there is no room for them.
func (r *Recorder) Report(d *Definition, user string, variant int, values ...Value) error {
	return r.into(d, func(b *Batch) error { return b.Report(user, variant, values...) })
}

// Before records what was measured of a user before the experiment; see
// [Batch.Before].
func (r *Recorder) Before(d *Definition, user string, values ...Value) error {
	return r.into(d, func(b *Batch) error { return b.Before(user, values...) })
}

// Dealt gives a function that counts requests that are dealt a variant. It does
// not wait or allocate.
func (r *Recorder) Dealt(d *Definition) func(variant int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	name := batchOf{d.Key, d.Version}
	c := r.dealt[name]
	if c == nil {
		c = &dealt{definition: d}
		r.dealt[name] = c
	}
	return func(variant int) { c.requests[variant].Add(1) }
}

// Seen counts a request that was dealt a variant and has arrived in the access
// log.
func (r *Recorder) Seen(d *Definition, variant int) {
	_ = r.into(d, func(b *Batch) error { b.Seen(variant, 1); return nil }) // counted
}

// collect takes over what was dealt.
func (r *Recorder) collect() {
	r.mu.Lock()
	all := slices.Collect(maps.Values(r.dealt))
	r.mu.Unlock()
	for _, c := range all {
		for variant := range c.requests {
			if n := c.requests[variant].Swap(0); n > 0 {
				_ = r.into(c.definition, func(b *Batch) error { b.Dealt(variant, n); return nil }) // counted
			}
		}
	}
}

// batchOf names an open batch.
type batchOf struct {
	key     string
	version int
}

// into adds to the definition's open batch, and to a new one if that is full.
func (r *Recorder) into(d *Definition, add func(*Batch) error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	name := batchOf{d.Key, d.Version}
	for {
		b := r.open[name]
		if b == nil {
			if len(r.pending)+len(r.open) >= maxPending {
				r.dropped.WithLabelValues("full").Inc()
				return fmt.Errorf("experiment %s: %w", d.Key, ErrFull)
			}
			var err error
			if b, err = NewBatch(d); err != nil { // not reached: the sketch's error is a constant
				r.dropped.WithLabelValues("invalid").Inc()
				return err
			}
			r.open[name] = b
		}
		switch err := add(b); {
		case err == nil:
			return nil
		case errors.Is(err, ErrFull) && !b.Empty():
			r.pending = append(r.pending, b)
			delete(r.open, name)
		default:
			r.dropped.WithLabelValues("invalid").Inc()
			return err
		}
	}
}

// Run writes until the context ends, and then once more what is left.
func (r *Recorder) Run(ctx context.Context) error {
	tick := time.NewTicker(r.options.Flush)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastFlush)
			defer cancel()
			r.flush(last)
			return nil
		case <-tick.C:
			r.flush(ctx)
		}
	}
}

// flush writes every batch. What fails stays for the next time: a batch is
// added once, however often it is written. What Redis refuses for good is left
// out, or it would be in the way of everything behind it.
func (r *Recorder) flush(ctx context.Context) {
	r.collect()
	r.mu.Lock()
	batches := r.pending
	for name, b := range r.open {
		if !b.Empty() {
			batches = append(batches, b)
		}
		delete(r.open, name)
	}
	r.pending = nil
	r.mu.Unlock()
	for i, b := range batches {
		limited, cancel := context.WithTimeout(ctx, writeTimeout)
		strays, err := r.options.Store.Write(limited, b)
		cancel()
		switch {
		case refuses(err):
			r.refuse(b, err)
			continue
		case err != nil:
			r.keep(batches[i:])
			if !errors.Is(ctx.Err(), context.Canceled) { // else Run writes once more
				r.state(true, err)
			}
			return
		}
		delete(r.refused, b.definition.Key)
		r.astray(b, strays)
	}
	if len(batches) > 0 {
		r.state(false, nil)
	}
}

// astray tells of users who were seen in another variant than before.
func (r *Recorder) astray(b *Batch, users int64) {
	if users > 0 {
		r.strays.Add(float64(users))
		r.options.Log.Error("users changed the variant of an experiment", "experiment", b.definition.Key, "users", users)
	}
}

// refuses reports whether an error is Redis's answer to what it will not take at
// any time: a key of another kind, a permission that is missing, a script that
// fails. A full Redis, one that loads or one that has become a replica takes it
// later.
func refuses(err error) bool {
	var answer redis.Error
	if !errors.As(err, &answer) {
		return false
	}
	text := answer.Error()
	return strings.HasPrefix(text, "WRONGTYPE ") || strings.HasPrefix(text, "NOPERM ") ||
		strings.HasPrefix(text, "ERR ") && !strings.HasPrefix(text, "ERR max number of clients")
}

func (r *Recorder) refuse(b *Batch, err error) {
	r.dropped.WithLabelValues("refused").Add(float64(b.size()))
	if key := b.definition.Key; !r.refused[key] {
		r.refused[key] = true
		r.options.Log.Error("Redis refuses what was measured of an experiment; it is left out", "experiment", key, "error", err)
	}
}

// keep puts batches back, the oldest first, as far as there is room.
func (r *Recorder) keep(batches []*Batch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := slices.Concat(batches, r.pending)
	for _, b := range all[min(maxPending, len(all)):] {
		r.dropped.WithLabelValues("full").Add(float64(b.size()))
	}
	r.pending = all[:min(maxPending, len(all))]
}

// state logs when Redis goes away and comes back.
func (r *Recorder) state(away bool, err error) {
	now := r.options.Now()
	switch {
	case away && r.outage.Failed(now):
		r.options.Log.Warn("experiments are not recorded; what is seen is kept for a while", "error", err)
	case !away && r.outage.Answered(now):
		r.options.Log.Info("experiments are recorded again")
	}
}
