package experiment

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/DataDog/sketches-go/ddsketch/mapping"
	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/redisconn"
	"github.com/tollgate-proxy/tollgate/internal/versioned"
)

var (
	//go:embed lua/record.lua
	recordSource string
	//go:embed lua/read.lua
	readSource string
)

const (
	// batchMarkSeconds is how long a batch may be tried again.
	batchMarkSeconds = 3600
	// keepSeconds is how long data is kept that nothing is added to: 400 days.
	// So what was measured under earlier versions goes away by itself.
	keepSeconds = 400 * 24 * 3600
	// Fields beside the users of each variant.
	dealtField = "dealt "
	seenField  = "seen "
)

// dataParts are the parts of an experiment's data, in the order of record.lua.
var dataParts = [...]string{"users", "exposed", "totals", "moments", "bins", "before", "pairs"}

// Store keeps what was measured in Redis, summed per user and per variant: many
// replicas add to it, and nothing is read back to add. It is safe for
// concurrent use.
type Store struct {
	rdb    redis.UniversalClient
	record *redisconn.Script
	read   *redisconn.Script
}

// NewStore makes a store on a client.
func NewStore(rdb redis.UniversalClient) *Store {
	return &Store{rdb: rdb, record: redisconn.NewScript(recordSource), read: redisconn.NewScript(readSource)}
}

// keyOf names one part of an experiment's data. All parts of one version share
// a hash tag.
func keyOf(d *Definition, part string) string {
	return redisconn.Prefix + "experiment:{" + redisconn.Escape(d.Key) + ":" + strconv.Itoa(d.Version) + "}:" + part
}

// ErrReused: a call's id was there before, with other content.
var ErrReused = errors.New("id was used for another call")

// Write adds a batch, in one atomic script. Writing a batch again, as after an
// answer that was lost, changes nothing. strays counts users who were in
// another variant before: anything but 0 means that the assignment is broken.
func (s *Store) Write(ctx context.Context, b *Batch) (strays int64, err error) {
	d := b.definition
	keys := []string{keyOf(d, "batch:"+b.id)}
	for _, part := range dataParts {
		keys = append(keys, keyOf(d, part))
	}
	args := make([]any, 0, 16+3*maxMetrics+5*len(b.before)+2*len(b.exposed)+8*len(b.totals)+2*len(b.requests))
	args = append(args, batchMarkSeconds, keepSeconds, d.maximumUsers(), b.content)
	metrics := d.Metrics()
	args = append(args, len(metrics))
	for _, m := range metrics {
		args = append(args, m.Name, string(m.Kind), one(m.Source == Reported))
	}
	args = append(args, len(b.before))
	for at, sums := range b.before {
		args = append(args, at.metric, at.user, sums.Count, exact(sums.Sum), sums.NonZero)
	}
	args = append(args, len(b.exposed))
	for user, variant := range b.exposed {
		args = append(args, user, variant)
	}
	bins := make(map[total][]byte, len(b.totals))
	for at, n := range b.counts {
		bins[at.total] = fmt.Appendf(bins[at.total], "%s:%d ", at.field, n)
	}
	args = append(args, len(b.totals))
	for at, sums := range b.totals {
		args = append(args, at.metric, at.user, b.variantOf(at.user), string(b.kinds[at.metric]), sums.Count, exact(sums.Sum), sums.NonZero, bins[at])
	}
	args = append(args, len(b.requests))
	for field, n := range b.requests {
		args = append(args, field, n)
	}
	strays, err = s.record.RunIdempotent(ctx, s.rdb, keys, args...).Int64()
	if err != nil {
		return 0, fmt.Errorf("record experiment %s: %w", d.Key, err)
	}
	if strays < 0 {
		return 0, fmt.Errorf("record experiment %s: %w", d.Key, ErrReused)
	}
	return strays, nil
}

// exact writes a number so that it reads back the same.
func exact(f float64) string { return strconv.FormatFloat(f, 'g', -1, 64) }

// Read gives what was measured so far, for Analyse. Users who met a variant and
// were not observed count as 0 for sums and rates.
func (s *Store) Read(ctx context.Context, d *Definition) ([]VariantData, error) {
	data, err := s.readAll(ctx, d)
	if err != nil {
		return nil, fmt.Errorf("read experiment %s: %w", d.Key, err)
	}
	return data, nil
}

func (s *Store) readAll(ctx context.Context, d *Definition) ([]VariantData, error) {
	answer, err := s.read.RunIdempotent(ctx, s.rdb, []string{keyOf(d, "exposed"), keyOf(d, "moments"), keyOf(d, "bins"), keyOf(d, "pairs")}).Slice()
	if err != nil {
		return nil, err
	}
	var hashes [4]map[string]string
	if len(answer) != len(hashes) {
		return nil, fmt.Errorf("answer of %d parts", len(answer))
	}
	for i := range hashes {
		if hashes[i], err = versioned.Fields(answer[i]); err != nil {
			return nil, err
		}
	}
	exposed, moments, pairs := hashes[0], hashes[1], hashes[3]
	sketches, err := readSketches(hashes[2])
	if err != nil {
		return nil, err
	}
	out := make([]VariantData, len(d.Variants))
	for i := range out {
		v := &out[i]
		v.Metrics = map[string]MetricData{}
		variant := strconv.Itoa(i)
		for field, to := range map[string]*int64{variant: &v.Users, dealtField + variant: &v.Dealt, seenField + variant: &v.Seen} {
			if text, ok := exposed[field]; ok {
				if *to, err = strconv.ParseInt(text, 10, 64); err != nil {
					return nil, fmt.Errorf("count %q: %w", field, err)
				}
			}
		}
		for _, m := range d.Metrics() {
			group := m.Name + " " + variant
			sums, err := readMoments(moments[group])
			if err != nil {
				return nil, fmt.Errorf("%s: %w", group, err)
			}
			if m.Kind != Mean {
				sums.Merge(Moments{N: v.Users - sums.N})
			}
			known, err := readPair(pairs[group])
			if err != nil {
				return nil, fmt.Errorf("%s: %w", group, err)
			}
			v.Metrics[m.Name] = MetricData{Users: sums, Known: known, Observations: sketches[group]}
		}
	}
	return out, nil
}

// readMoments reads "n mean m2"; nothing is nothing measured.
func readMoments(text string) (Moments, error) {
	var m Moments
	if text == "" {
		return m, nil
	}
	if _, err := fmt.Sscan(text, &m.N, &m.Mean, &m.M2); err != nil {
		return m, fmt.Errorf("moments %q: %w", text, err)
	}
	return m, nil
}

// readPair reads "n mean m2 mean m2 co"; nothing is nothing measured.
func readPair(text string) (Pair, error) {
	var p Pair
	if text == "" {
		return p, nil
	}
	if _, err := fmt.Sscan(text, &p.Value.N, &p.Value.Mean, &p.Value.M2, &p.Before.Mean, &p.Before.M2, &p.Co); err != nil {
		return p, fmt.Errorf("pairs of moments %q: %w", text, err)
	}
	p.Before.N = p.Value.N
	return p, nil
}

// readSketches makes sketches of the bins, by metric and variant.
func readSketches(fields map[string]string) (map[string]*Sketch, error) {
	indexes, err := mapping.NewLogarithmicMapping(SketchError)
	if err != nil {
		return nil, fmt.Errorf("sketch: %w", err)
	}
	out := map[string]*Sketch{}
	for field, text := range fields {
		cut := strings.LastIndexByte(field, ' ')
		if cut < 0 {
			return nil, fmt.Errorf("bin %q names no variant", field)
		}
		value, err := binValue(indexes, field[cut+1:])
		if err != nil {
			return nil, err
		}
		count, err := strconv.ParseInt(text, 10, 64)
		if err != nil || count < 0 {
			return nil, fmt.Errorf("bin %q holds %q", field, text)
		}
		group := field[:cut]
		if out[group] == nil {
			if out[group], err = NewSketch(); err != nil {
				return nil, err
			}
		}
		if err := out[group].inner.AddWithCount(value, float64(count)); err != nil {
			return nil, fmt.Errorf("bin %q: %w", field, err)
		}
	}
	return out, nil
}

// Delete forgets what was measured of one version of an experiment.
func (s *Store) Delete(ctx context.Context, d *Definition) error {
	var keys []string
	for _, part := range dataParts {
		keys = append(keys, keyOf(d, part))
	}
	if err := s.rdb.Unlink(ctx, keys...).Err(); err != nil {
		return fmt.Errorf("delete experiment %s: %w", d.Key, err)
	}
	return nil
}
