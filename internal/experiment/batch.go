package experiment

import (
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"strconv"

	"github.com/DataDog/sketches-go/ddsketch/mapping"
)

// ErrFull: a batch holds as much as it may; what was offered is left out.
var ErrFull = errors.New("batch is full")

// maxBatch bounds the users, totals and bins of one batch together: Redis does
// nothing else while it adds one, some milliseconds.
const maxBatch = 2000

// MaxValue is the largest magnitude of an observation: sums of squares of so many
// as there can be are still numbers.
const MaxValue = 1e15

// Observations are counted in bins for values of this magnitude; smaller and
// larger ones go to the outermost bin. With zero and both signs that is some
// 4,000 bins at most.
const (
	leastMagnitude = 1e-9
	mostMagnitude  = 1e9
)

// Batch is what one replica saw of one experiment since it last wrote. Users
// appear as hashes: nothing in an experiment's data names anyone. It is not
// safe for concurrent use.
type Batch struct {
	definition *Definition
	id         string
	content    string // a digest, where others may use the id for something else
	bins       mapping.IndexMapping
	kinds      map[string]Kind
	exposed    map[string]int // by hash
	reported   map[string]int // variants of users who did not meet theirs here
	totals     map[total]User
	counts     map[bin]int64
	before     map[total]User   // of the time before the experiment
	requests   map[string]int64 // dealt and seen, by field
}

type total struct{ metric, user string }

// bin is one of a user's bins of a metric.
type bin struct {
	total
	field string
}

// NewBatch returns an empty batch for a valid definition.
func NewBatch(d *Definition) (*Batch, error) {
	bins, err := mapping.NewLogarithmicMapping(SketchError)
	if err != nil {
		return nil, fmt.Errorf("experiment %s: %w", d.Key, err)
	}
	b := &Batch{
		definition: d, id: rand.Text(), bins: bins, kinds: map[string]Kind{},
		exposed: map[string]int{}, reported: map[string]int{}, totals: map[total]User{}, counts: map[bin]int64{},
		before: map[total]User{}, requests: map[string]int64{},
	}
	for _, m := range d.Metrics() {
		b.kinds[m.Name] = m.Kind
	}
	return b, nil
}

// Empty reports whether there is nothing to write.
func (b *Batch) Empty() bool { return b.size() == 0 && len(b.requests) == 0 }

// Value is one observation of a metric.
type Value struct {
	Metric string
	Value  float64
}

// Expose records that a user met a variant. Recording it again changes nothing.
func (b *Batch) Expose(user string, variant int) error { return b.Visit(user, variant) }

// Observe records one value of a metric of a user in a variant, and that the
// user met the variant.
func (b *Batch) Observe(user string, variant int, metric string, value float64) error {
	return b.Visit(user, variant, Value{metric, value})
}

// Visit records that a user met a variant, and what was measured then: all of it
// or, with an error, nothing.
func (b *Batch) Visit(user string, variant int, values ...Value) error {
	return b.add(b.exposed, user, variant, values)
}

// Report records values of a user who may not have met the variant. They count
// once the user has, before or after.
func (b *Batch) Report(user string, variant int, values ...Value) error {
	return b.add(b.reported, user, variant, values)
}

// Before records values of a user who would take part, of the time before the
// experiment. They say nothing about a variant, and are left out once the user
// has met one.
func (b *Batch) Before(user string, values ...Value) error {
	hash, err := b.admit(user, 0, values)
	if err != nil {
		return err
	}
	for _, v := range values {
		if err := sum(b.before, total{v.Metric, hash}, v.Value); err != nil { // not reached: the value is finite
			return err
		}
	}
	return nil
}

// Dealt counts requests that were given a variant, Seen those of them that the
// access log told of: what is dealt and not seen is a gap.
func (b *Batch) Dealt(variant int, n int64) { b.requests[dealtField+strconv.Itoa(variant)] += n }

// Seen is the other side of Dealt.
func (b *Batch) Seen(variant int, n int64) { b.requests[seenField+strconv.Itoa(variant)] += n }

func sum(totals map[total]User, at total, value float64) error {
	sums := totals[at]
	err := sums.Observe(value)
	totals[at] = sums
	return err
}

// admit checks what is offered and gives the user's hash.
func (b *Batch) admit(user string, variant int, values []Value) (string, error) {
	if user == "" || variant < 0 || variant >= len(b.definition.Variants) {
		return "", fmt.Errorf("experiment %s: user %t in variant %d of %d", b.definition.Key, user != "", variant, len(b.definition.Variants))
	}
	for _, v := range values {
		if _, ok := b.kinds[v.Metric]; !ok {
			return "", fmt.Errorf("experiment %s has no metric %q", b.definition.Key, v.Metric)
		}
		if !(math.Abs(v.Value) <= MaxValue) {
			return "", fmt.Errorf("experiment %s: %s of %v is not a number from %v to %v", b.definition.Key, v.Metric, v.Value, -MaxValue, MaxValue)
		}
	}
	hash := b.hash(user)
	if _, known := b.exposed[hash]; known && len(values) == 0 {
		return hash, nil // that costs no room
	}
	if b.size()+1+2*len(values) > maxBatch {
		return "", fmt.Errorf("experiment %s: %w", b.definition.Key, ErrFull)
	}
	return hash, nil
}

func (b *Batch) add(users map[string]int, user string, variant int, values []Value) error {
	hash, err := b.admit(user, variant, values)
	if err != nil {
		return err
	}
	if _, ok := users[hash]; !ok {
		users[hash] = variant
	}
	for _, v := range values {
		if err := sum(b.totals, total{v.Metric, hash}, v.Value); err != nil { // not reached: the value is finite
			return err
		}
		b.counts[bin{total{v.Metric, hash}, b.binOf(v.Value)}]++
	}
	return nil
}

// variantOf is the variant of a user of the batch.
func (b *Batch) variantOf(hash string) int {
	if variant, ok := b.exposed[hash]; ok {
		return variant
	}
	return b.reported[hash]
}

func (b *Batch) size() int {
	return len(b.exposed) + len(b.reported) + len(b.totals) + len(b.counts) + len(b.before)
}

// hash is the user's name in the data: the same in every batch of this version
// of the experiment, and in no other experiment.
func (b *Batch) hash(user string) string {
	return digest(fmt.Appendf(nil, "%s:%d:%s", b.definition.Key, b.definition.Version, user))
}

// binOf names a value's bin: z for zero, else the sign and DDSketch's index.
func (b *Batch) binOf(value float64) string {
	magnitude := math.Abs(value)
	if magnitude == 0 {
		return "z"
	}
	sign := "+"
	if value < 0 {
		sign = "-"
	}
	return sign + strconv.Itoa(b.bins.Index(math.Min(mostMagnitude, math.Max(leastMagnitude, magnitude))))
}

// binValue is the value that stands for a bin.
func binValue(bins mapping.IndexMapping, field string) (float64, error) {
	if field == "z" {
		return 0, nil
	}
	if len(field) < 2 || field[0] != '+' && field[0] != '-' {
		return 0, fmt.Errorf("bin %q has no sign", field)
	}
	index, err := strconv.Atoi(field[1:])
	if err != nil {
		return 0, fmt.Errorf("bin %q: %w", field, err)
	}
	value := bins.Value(index)
	if field[0] == '-' {
		value = -value
	}
	return value, nil
}
