package ratelimit

import (
	"context"
	"runtime"
	"sync"
	"time"
)

// batcher is a [Store] that puts the demands of concurrent requests into
// common calls of another: while one call is under way the next one gathers.
// A request that comes alone waits for nobody.
type batcher struct {
	store   Store
	timeout time.Duration
	// observe is told of every call of the store.
	observe func(demands int, start time.Time, err error)
	now     func() time.Time

	mu      sync.Mutex
	pending []*ticket
	running int
}

// While a call is under way another begins only when so many wait that it is
// worth it: the larger the calls, the less each demand costs. concurrentCalls
// is how many there may be.
const (
	worthACall      = MaxBatch / 2
	concurrentCalls = 4
)

// maxBuckets bounds the buckets of one call: Lua's stack holds the keys.
const maxBuckets = 1000

// ticket is one caller waiting for its demands.
type ticket struct {
	demands []*Demand
	err     error
	done    chan struct{}
}

var tickets = sync.Pool{New: func() any { return &ticket{done: make(chan struct{}, 1)} }}

func newBatcher(store Store, timeout time.Duration, now func() time.Time, observe func(int, time.Time, error)) *batcher {
	return &batcher{store: store, timeout: timeout, now: now, observe: observe}
}

// Take implements [Store]. It returns when the store answered or its deadline
// passed, whatever becomes of ctx: a call is shared, and nobody's leaving may
// end it for the others.
func (b *batcher) Take(_ context.Context, demands []*Demand) error {
	t := tickets.Get().(*ticket) //nolint:forcetypeassert // The pool holds nothing else.
	t.demands, t.err = demands, nil
	b.mu.Lock()
	b.pending = append(b.pending, t)
	start := b.running == 0 || b.running < concurrentCalls && len(b.pending) >= worthACall
	if start {
		b.running++
	}
	b.mu.Unlock()
	if start {
		b.lead(t)
	}
	<-t.done
	err := t.err
	t.demands = nil
	tickets.Put(t)
	return err
}

// round is what one call is gathered in, reused.
type round struct {
	batch   []*ticket
	demands []*Demand
}

var rounds = sync.Pool{New: func() any { return new(round) }}

// lead calls the store from the goroutine of the caller whose ticket began the
// call, which spares waking another, and leaves to a goroutine of its own what
// gathers meanwhile.
func (b *batcher) lead(t *ticket) {
	// Let requests that are ready to run join.
	runtime.Gosched()
	for b.once() {
		if len(t.done) > 0 {
			go b.run()
			return
		}
	}
}

// run calls the store until nothing is pending.
func (b *batcher) run() {
	for b.once() {
	}
}

// once calls the store for those who wait, and says whether there are others
// now. Where there are none, the call has ended.
func (b *batcher) once() bool {
	r := rounds.Get().(*round) //nolint:forcetypeassert // The pool holds nothing else.
	defer rounds.Put(r)
	b.mu.Lock()
	n := b.fitting()
	r.batch = append(r.batch[:0], b.pending[:n]...)
	rest := copy(b.pending, b.pending[n:])
	clear(b.pending[rest:])
	b.pending = b.pending[:rest]
	b.mu.Unlock()

	r.demands = r.demands[:0]
	for _, t := range r.batch {
		r.demands = append(r.demands, t.demands...)
	}
	var err error
	if n > 0 { // Another call may have taken all.
		err = b.call(r.demands)
	}
	clear(r.demands)
	for _, t := range r.batch {
		t.err = err
		t.done <- struct{}{}
	}
	clear(r.batch)
	if err != nil {
		b.failPending(err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.pending) == 0 {
		b.running--
		return false
	}
	return true
}

// fitting is how many of those who wait fit into one call.
func (b *batcher) fitting() (n int) {
	demands, buckets := 0, 0
	for ; n < len(b.pending); n++ {
		t := b.pending[n]
		demands += len(t.demands)
		for _, d := range t.demands {
			buckets += len(d.Charges)
		}
		if n > 0 && (demands > MaxBatch || buckets > maxBuckets) {
			break
		}
	}
	return n
}

func (b *batcher) call(demands []*Demand) error {
	ctx, cancel := context.WithTimeout(context.Background(), b.timeout)
	defer cancel()
	start := b.now()
	err := b.store.Take(ctx, demands)
	b.observe(len(demands), start, err)
	return err
}

// failPending fails those who waited during a call that failed: they have
// waited long enough.
func (b *batcher) failPending(err error) {
	b.mu.Lock()
	waiting := b.pending
	b.pending = nil
	b.mu.Unlock()
	for _, t := range waiting {
		t.err = err
		t.done <- struct{}{}
	}
}
