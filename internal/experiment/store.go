package experiment

import (
	"context"
	_ "embed"
	"fmt"
	"strconv"
	"strings"

	"github.com/DataDog/sketches-go/ddsketch/mapping"
	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/redisconn"
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
)

// Store keeps what was measured in Redis, summed per user and per variant: many
// replicas add to it, and nothing is read back to add. It is safe for
// concurrent use.
type Store struct {
	rdb    redis.UniversalClient
	record *redis.Script
	read   *redis.Script
}

// NewStore makes a store on a client.
func NewStore(rdb redis.UniversalClient) *Store {
	return &Store{rdb: rdb, record: redis.NewScript(recordSource), read: redis.NewScript(readSource)}
}

// keyOf names one part of an experiment's data. All parts of one version share
// a hash tag.
func keyOf(d *Definition, part string) string {
	return redisconn.Prefix + "experiment:{" + redisconn.Escape(d.Key) + ":" + strconv.Itoa(d.Version) + "}:" + part
}

// Write adds a batch, in one atomic script. Writing a batch again, as after an
// answer that was lost, changes nothing. strays counts users who were in
// another variant before: anything but 0 means that the assignment is broken.
func (s *Store) Write(ctx context.Context, b *Batch) (strays int64, err error) {
	d := b.definition
	keys := []string{
		keyOf(d, "batch:"+b.id), keyOf(d, "users"), keyOf(d, "exposed"),
		keyOf(d, "totals"), keyOf(d, "moments"), keyOf(d, "bins"),
	}
	args := make([]any, 0, 6+2*maxMetrics+2*len(b.exposed)+7*len(b.totals)+2*len(b.counts))
	args = append(args, batchMarkSeconds)
	args = appendReported(args, d)
	args = append(args, len(b.exposed))
	for user, variant := range b.exposed {
		args = append(args, user, variant)
	}
	args = append(args, len(b.totals))
	for at, sums := range b.totals {
		args = append(args, at.metric, at.user, b.variantOf(at.user), string(b.kinds[at.metric]),
			sums.Count, strconv.FormatFloat(sums.Sum, 'g', -1, 64), sums.NonZero)
	}
	args = append(args, len(b.counts))
	for at, n := range b.counts {
		args = append(args, fmt.Sprintf("%s %d %s", at.metric, at.variant, at.field), n)
	}
	strays, err = s.record.Run(ctx, s.rdb, keys, args...).Int64()
	if err != nil {
		return 0, fmt.Errorf("record experiment %s: %w", d.Key, err)
	}
	return strays, nil
}

// Read gives what was measured so far, for Analyse. Users who met a variant and
// were not observed count as 0 for sums and rates.
func (s *Store) Read(ctx context.Context, d *Definition) ([]VariantData, error) {
	answer, err := s.read.Run(ctx, s.rdb, []string{keyOf(d, "exposed"), keyOf(d, "moments"), keyOf(d, "bins")}).Slice()
	if err != nil {
		return nil, fmt.Errorf("read experiment %s: %w", d.Key, err)
	}
	var hashes [3]map[string]string
	if len(answer) != len(hashes) {
		return nil, fmt.Errorf("read experiment %s: answer of %d parts", d.Key, len(answer))
	}
	for i := range hashes {
		if hashes[i], err = hashOf(answer[i]); err != nil {
			return nil, fmt.Errorf("read experiment %s: %w", d.Key, err)
		}
	}
	exposed, moments := hashes[0], hashes[1]
	sketches, err := readSketches(hashes[2])
	if err != nil {
		return nil, fmt.Errorf("read experiment %s: %w", d.Key, err)
	}
	out := make([]VariantData, len(d.Variants))
	for i := range out {
		out[i].Metrics = map[string]MetricData{}
		if text, ok := exposed[strconv.Itoa(i)]; ok {
			if out[i].Users, err = strconv.ParseInt(text, 10, 64); err != nil {
				return nil, fmt.Errorf("read experiment %s: users of variant %d: %w", d.Key, i, err)
			}
		}
		for _, m := range d.Metrics() {
			group := fmt.Sprintf("%s %d", m.Name, i)
			sums, err := readMoments(moments[group])
			if err != nil {
				return nil, fmt.Errorf("read experiment %s: %s: %w", d.Key, group, err)
			}
			if m.Kind != Mean {
				sums.Merge(Moments{N: out[i].Users - sums.N})
			}
			out[i].Metrics[m.Name] = MetricData{Users: sums, Observations: sketches[group]}
		}
	}
	return out, nil
}

// appendReported adds the metrics that are not measured by the gateway.
func appendReported(args []any, d *Definition) []any {
	at := len(args)
	args = append(args, 0)
	n := 0
	for _, m := range d.Metrics() {
		if m.Source == Reported {
			args = append(args, m.Name, string(m.Kind))
			n++
		}
	}
	args[at] = n
	return args
}

// hashOf reads a hash of a script's answer: fields and values in turn.
func hashOf(answer any) (map[string]string, error) {
	pairs, ok := answer.([]any)
	if !ok || len(pairs)%2 != 0 {
		return nil, fmt.Errorf("answer of %T", answer)
	}
	out := make(map[string]string, len(pairs)/2)
	for i := 0; i < len(pairs); i += 2 {
		field, isField := pairs[i].(string)
		value, isValue := pairs[i+1].(string)
		if !isField || !isValue {
			return nil, fmt.Errorf("answer of %T and %T", pairs[i], pairs[i+1])
		}
		out[field] = value
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
	for _, part := range []string{"users", "exposed", "totals", "moments", "bins"} {
		keys = append(keys, keyOf(d, part))
	}
	if err := s.rdb.Unlink(ctx, keys...).Err(); err != nil {
		return fmt.Errorf("delete experiment %s: %w", d.Key, err)
	}
	return nil
}
