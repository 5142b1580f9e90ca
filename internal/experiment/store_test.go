package experiment

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

func newBatch(t *testing.T, d *Definition) *Batch {
	t.Helper()
	b, err := NewBatch(d)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t *testing.T, s *Store, b *Batch) int64 {
	t.Helper()
	strays, err := s.Write(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	return strays
}

func read(t *testing.T, s *Store, d *Definition) []VariantData {
	t.Helper()
	data, err := s.Read(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func observe(t *testing.T, b *Batch, user string, variant int, metric string, value float64) {
	t.Helper()
	if err := b.Observe(user, variant, metric, value); err != nil {
		t.Fatal(err)
	}
}

// However observations are spread over replicas and batches, the store holds
// what one pass over all of them gives.
func TestStoreAgainstOracle(t *testing.T) {
	redistest.Each(t, func(t *testing.T, c *redis.Client) {
		d, s, r := valid(), NewStore(c), rand.New(rand.NewPCG(21, 22))
		d.Guardrails = append(d.Guardrails, Metric{Name: "bytes", Kind: Sum})
		users := map[string]map[string]*User{}
		for range 12 {
			b := newBatch(t, d)
			for range 150 {
				user := fmt.Sprintf("user-%d", r.IntN(200))
				variant, _ := d.Assign(user)
				for metric, value := range map[string]float64{
					"conversion": float64(r.IntN(20) / 19), "latency": 0.1 * latency(r), "bytes": float64(r.IntN(1000)),
				} {
					observe(t, b, user, variant, metric, value)
					if users[user] == nil {
						users[user] = map[string]*User{"conversion": {}, "latency": {}, "bytes": {}}
					}
					if err := users[user][metric].Observe(value); err != nil {
						t.Fatal(err)
					}
				}
			}
			// Someone who comes and does nothing.
			idle := fmt.Sprintf("idle-%d", r.IntN(1000))
			variant, _ := d.Assign(idle)
			if err := b.Expose(idle, variant); err != nil {
				t.Fatal(err)
			}
			users[idle] = map[string]*User{"conversion": {}, "latency": {}, "bytes": {}}
			for range 2 { // the second time as after a lost answer
				if strays := write(t, s, b); strays != 0 {
					t.Errorf("%d strays", strays)
				}
			}
		}
		want := make([]map[string]*Moments, len(d.Variants))
		counts := make([]int64, len(d.Variants))
		for i := range want {
			want[i] = map[string]*Moments{"conversion": {}, "latency": {}, "bytes": {}}
		}
		for user, metrics := range users {
			variant, _ := d.Assign(user)
			counts[variant]++
			for _, m := range append([]Metric{d.Primary}, d.Guardrails...) {
				if v, ok := metrics[m.Name].Value(m.Kind); ok {
					want[variant][m.Name].Add(v)
				}
			}
		}
		for i, data := range read(t, s, d) {
			if data.Users != counts[i] {
				t.Errorf("variant %d: %d users, want %d", i, data.Users, counts[i])
			}
			for metric, m := range data.Metrics {
				w := want[i][metric]
				if m.Users.N != w.N || !near(m.Users.Mean, w.Mean, 1e-9) || !near(m.Users.Variance(), w.Variance(), 1e-6) {
					t.Errorf("variant %d, %s: got %+v, want %+v", i, metric, m.Users, *w)
				}
			}
			if q, err := data.Metrics["latency"].Observations.Quantiles(0.5); err != nil || q[0] < 0.08 || q[0] > 0.12 {
				t.Errorf("median %v, %v", q, err)
			}
		}
		report, err := Analyse(d, read(t, s, d))
		if err != nil || report.Status != Undecided {
			t.Errorf("got %+v, %v", report, err)
		}
		if err := s.Delete(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		if data := read(t, s, d); data[0].Users != 0 || data[0].Metrics["latency"].Users.N != 0 {
			t.Errorf("after deletion: %+v", data)
		}
	})
}

// A user is in one variant. Seen in another, it is counted as astray, and what
// it did there is left out.
func TestStoreStrays(t *testing.T) {
	redistest.Each(t, func(t *testing.T, c *redis.Client) {
		d, s := valid(), NewStore(c)
		first, second := newBatch(t, d), newBatch(t, d)
		observe(t, first, "ann", 0, "latency", 1)
		observe(t, second, "ann", 1, "latency", 100)
		observe(t, second, "bob", 1, "latency", 2)
		if strays := write(t, s, first); strays != 0 {
			t.Errorf("%d strays", strays)
		}
		if strays := write(t, s, second); strays != 1 {
			t.Errorf("%d strays", strays)
		}
		data := read(t, s, d)
		if data[0].Metrics["latency"].Users.Mean != 1 || data[1].Metrics["latency"].Users.Mean != 2 || data[1].Users != 1 {
			t.Errorf("got %+v", data)
		}
	})
}

// No id of a user is in Redis, and two versions of an experiment share nothing.
func TestStoreKeepsNobodysName(t *testing.T) {
	c := redistest.Client(t, redistest.Embedded(t))
	d, s := valid(), NewStore(c)
	b := newBatch(t, d)
	observe(t, b, "ann@example.com", 0, "latency", 1)
	write(t, s, b)
	keys, err := c.Keys(t.Context(), "*").Result()
	if err != nil || len(keys) != 6 {
		t.Fatalf("keys %v, %v", keys, err)
	}
	for _, key := range keys {
		if !strings.HasPrefix(key, "tollgate:experiment:{checkout:1}:") {
			t.Errorf("key %s", key)
		}
		fields, _ := c.HGetAll(t.Context(), key).Result()
		for field := range fields {
			if strings.Contains(field, "ann") {
				t.Errorf("%s holds %s", key, field)
			}
		}
	}
	next := valid()
	next.Version = 2
	if data := read(t, s, next); data[0].Users != 0 {
		t.Errorf("the next version starts with %+v", data[0])
	}
}

// Whatever the magnitude of values, what they come to is a number, or nobody
// could read the results again.
func TestStoreOfAllMagnitudes(t *testing.T) {
	redistest.Each(t, func(t *testing.T, c *redis.Client) {
		for i, magnitude := range []float64{MaxValue, -MaxValue, 1e6, 2e-5, 1e-300} {
			d, s := valid(), NewStore(c)
			d.Version, d.Primary.Kind, d.MinimumUsers = i, Sum, 2
			for i := range 20 {
				b := newBatch(t, d)
				user, value := fmt.Sprint(i), magnitude*float64(i/2%2)
				for range 2 {
					if err := errors.Join(b.Observe(user, i%2, "conversion", value), b.Before(user, Value{"conversion", value})); err != nil {
						t.Fatal(err)
					}
				}
				write(t, s, b)
			}
			data := read(t, s, d)
			if m := data[0].Metrics["conversion"]; !near(m.Users.Mean/magnitude, 1, 1e-9) || !near(m.Known.Before.Mean/magnitude, 1, 1e-9) {
				t.Errorf("%v: got %+v", magnitude, m)
			}
			report, err := Analyse(d, data)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := json.Marshal(report); err != nil {
				t.Errorf("%v: %v", magnitude, err)
			}
		}
	})
}

func TestBatchRefuses(t *testing.T) {
	d := valid()
	b := newBatch(t, d)
	for name, err := range map[string]error{
		"unknown metric":  b.Observe("ann", 0, "weight", 1),
		"not a number":    b.Observe("ann", 0, "latency", nan()),
		"endless":         b.Observe("ann", 0, "latency", math.Inf(-1)),
		"too large":       b.Observe("ann", 0, "latency", -1.01*MaxValue),
		"nobody":          b.Observe("", 0, "latency", 1),
		"unknown variant": b.Expose("ann", 2),
		"negative":        b.Expose("ann", -1),
	} {
		if err == nil || errors.Is(err, ErrFull) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if !b.Empty() {
		t.Error("what was refused is in the batch")
	}
	var err error
	for i := 0; err == nil; i++ {
		err = b.Observe(fmt.Sprint(i), 0, "latency", float64(i))
	}
	if !errors.Is(err, ErrFull) || len(b.exposed)+len(b.totals)+len(b.counts) > maxBatch {
		t.Errorf("got %v with %d users", err, len(b.exposed))
	}
	if err := b.Expose("0", 0); err != nil {
		t.Errorf("a known user in a full batch: %v", err)
	}
}

func nan() float64 { z := 0.0; return z / z }

// Bins stand for their values within the sketch's error.
func TestBins(t *testing.T) {
	b := newBatch(t, valid())
	for _, v := range []float64{0, 1e-9, 0.25, 1, 17.5, 1e9, -3} {
		got, err := binValue(b.bins, b.binOf(v))
		if err != nil || got < v-SketchError*1.000001*abs(v) || got > v+SketchError*1.000001*abs(v) {
			t.Errorf("%v: got %v, %v", v, got, err)
		}
	}
	if b.binOf(1e300) != b.binOf(mostMagnitude) || b.binOf(1e-300) != b.binOf(leastMagnitude) {
		t.Error("bins are not bounded")
	}
	for _, field := range []string{"", "7", "+", "+x"} {
		if _, err := binValue(b.bins, field); err == nil {
			t.Errorf("bin %q has a value", field)
		}
	}
}

func abs(v float64) float64 { return max(v, -v) }

// Data that this program did not write is refused and not guessed at.
func TestStoreBadData(t *testing.T) {
	for part, fields := range map[string][2]string{
		"exposed": {"0", "many"}, "moments": {"latency 0", "1 x"}, "pairs": {"latency 0", "1 2 3 4 5"}, "bins": {"latency 0 +x", "1"},
	} {
		c := redistest.Client(t, redistest.Embedded(t))
		d := valid()
		if err := c.HSet(t.Context(), keyOf(d, part), fields[0], fields[1]).Err(); err != nil {
			t.Fatal(err)
		}
		if _, err := NewStore(c).Read(t.Context(), d); err == nil {
			t.Errorf("%s: %v was read", part, fields)
		}
	}
	if _, err := readSketches(map[string]string{"x": "1"}); err == nil {
		t.Error("a bin without a variant was read")
	}
	if _, err := readSketches(map[string]string{"latency 0 +1": "-1"}); err == nil {
		t.Error("a negative count was read")
	}
}

func TestStoreWithoutRedis(t *testing.T) {
	c := redis.NewClient(&redis.Options{Addr: redistest.FreeAddr(t), MaxRetries: -1})
	t.Cleanup(func() { _ = c.Close() })
	s, d := NewStore(c), valid()
	_, writeErr := s.Write(t.Context(), newBatch(t, d))
	_, readErr := s.Read(t.Context(), d)
	if writeErr == nil || readErr == nil || s.Delete(t.Context(), d) == nil {
		t.Error("nothing failed without Redis")
	}
}

// Once as many users have met a variant as are measured at most, no more are,
// and those that are known go on. What waits for an exposure, and what was
// before, is bounded too.
func TestStoreIsBounded(t *testing.T) {
	redistest.Each(t, func(t *testing.T, c *redis.Client) {
		d, s := valid(), NewStore(c)
		d.MinimumUsers, d.MaximumUsers = 2, 4
		b := newBatch(t, d)
		for i := range 20 {
			name := fmt.Sprint(i)
			if err := errors.Join(b.Before("before-"+name, Value{"latency", 1}, Value{"conversion", 1}), b.Report("waits-"+name, 0, Value{"conversion", 1})); err != nil {
				t.Fatal(err)
			}
		}
		write(t, s, b)
		for range 2 {
			b = newBatch(t, d)
			for i := range 20 {
				observe(t, b, fmt.Sprint(i), i%2, "latency", 1)
			}
			if strays := write(t, s, b); strays != 0 {
				t.Errorf("%d strays", strays)
			}
		}
		data := read(t, s, d)
		if users := data[0].Users + data[1].Users; users != 4 || data[0].Metrics["latency"].Users.N+data[1].Metrics["latency"].Users.N != 4 {
			t.Errorf("got %+v", data)
		}
		if n, m := c.HLen(t.Context(), keyOf(d, "before")).Val(), c.HLen(t.Context(), keyOf(d, "totals")).Val(); n > 8 || m > 8+4 {
			t.Errorf("%d values before, %d totals", n, m)
		}
		report, err := Analyse(d, data)
		if err != nil || len(report.Warnings) != 1 || !strings.Contains(report.Warnings[0], "4 users") {
			t.Errorf("got %q, %v", report.Warnings, err)
		}
		for _, part := range dataParts[:5] {
			if ttl := c.TTL(t.Context(), keyOf(d, part)).Val(); ttl <= 0 {
				t.Errorf("%s is kept for ever", part)
			}
		}
	})
}

// Medians and percentiles are of the users that means are of: not of those
// beyond the most that are measured, nor of strays, and of those who have
// something to report once they have met their variant.
func TestStoreQuantilesAreOfTheSameUsers(t *testing.T) {
	redistest.Each(t, func(t *testing.T, c *redis.Client) {
		d, s := valid(), NewStore(c)
		d.MinimumUsers, d.MaximumUsers = 2, 3
		check := func(when string, want ...float64) {
			t.Helper()
			m := read(t, s, d)[0].Metrics["conversion"]
			n := int64(0)
			if m.Observations != nil {
				n = m.Observations.Count()
			}
			if n != int64(len(want)) {
				t.Fatalf("%s: %v observations, want %v", when, n, want)
			}
			for i, w := range want { // sorted
				q, err := m.Observations.Quantiles(float64(i) / float64(n-1))
				if err != nil || !near(q[0], w, 1.01*SketchError) {
					t.Errorf("%s: observation %d is %v, %v, want %v", when, i, q, err, w)
				}
			}
		}
		b := newBatch(t, d)
		for range 2 {
			if err := b.Report("ann", 0, Value{"conversion", 10}, Value{"conversion", 20}); err != nil {
				t.Fatal(err)
			}
		}
		write(t, s, b)
		check("before ann has met the variant")
		b = newBatch(t, d)
		if err := b.Report("ann", 0, Value{"conversion", 10}); err != nil {
			t.Fatal(err)
		}
		write(t, s, b)
		b = newBatch(t, d)
		observe(t, b, "ann", 0, "conversion", 30)
		write(t, s, b)
		check("after it", 10, 10, 10, 20, 20, 30)
		b = newBatch(t, d)
		if err := b.Report("ann", 0, Value{"conversion", 40}); err != nil {
			t.Fatal(err)
		}
		observe(t, b, "bob", 0, "conversion", 50)
		observe(t, b, "cyd", 1, "conversion", 1000)
		write(t, s, b)
		b = newBatch(t, d)
		observe(t, b, "cyd", 0, "conversion", 2000)
		observe(t, b, "dan", 0, "conversion", 3000)
		if strays := write(t, s, b); strays != 1 {
			t.Errorf("%d strays", strays)
		}
		check("after a stray and one too many", 10, 10, 10, 20, 20, 30, 40, 50)

		// What waits is bounded.
		b = newBatch(t, d)
		for i := range 500 {
			if err := b.Report("eve", 0, Value{"conversion", float64(i * i)}); err != nil {
				t.Fatal(err)
			}
		}
		write(t, s, b)
		if text := c.HGet(t.Context(), keyOf(d, "totals"), "conversion "+b.hash("eve")).Val(); len(text) > 1000 || strings.Count(text, ":") != 64 {
			t.Errorf("%d bytes wait: %s", len(text), text)
		}
	})
}

// A batch that failed is not taken for written, and no part of it is.
func TestStoreRetriesWhatFailed(t *testing.T) {
	redistest.Each(t, func(t *testing.T, c *redis.Client) {
		for _, part := range dataParts {
			d, s := valid(), NewStore(c)
			d.Key = part
			b := newBatch(t, d)
			if err := errors.Join(b.Observe("ann", 0, "conversion", 1), b.Before("bob", Value{"conversion", 1})); err != nil {
				t.Fatal(err)
			}
			c.Set(t.Context(), keyOf(d, part), "no hash", 0)
			if _, err := s.Write(t.Context(), b); err == nil {
				t.Fatalf("%s: it was written", part)
			}
			if keys := c.Keys(t.Context(), keyOf(d, "*")).Val(); len(keys) != 1 {
				t.Errorf("%s: half of it was written: %v", part, keys)
			}
			c.Del(t.Context(), keyOf(d, part))
			write(t, s, b)
			if got := read(t, s, d)[0]; got.Users != 1 || got.Metrics["conversion"].Users.N != 1 {
				t.Errorf("%s: after a retry %+v", part, got)
			}
		}
	})
}

// What is reported counts once the user has met the variant, before or after.
func TestReportsWaitForExposure(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rdb *redis.Client) {
		d, s := valid(), NewStore(rdb)
		batches := make([]*Batch, 4)
		for i := range batches {
			batches[i] = newBatch(t, d)
		}
		report := func(b *Batch, user string) {
			if err := b.Report(user, 0, Value{"conversion", 1}); err != nil {
				t.Fatal(err)
			}
		}
		expose := func(b *Batch, user string, variant int) {
			if err := b.Expose(user, variant); err != nil {
				t.Fatal(err)
			}
		}
		report(batches[0], "early")
		report(batches[0], "never")
		expose(batches[1], "early", 0)
		expose(batches[1], "late", 0)
		expose(batches[1], "silent", 0)
		expose(batches[1], "astray", 1)
		report(batches[2], "late")
		report(batches[2], "astray")
		report(batches[3], "both")
		expose(batches[3], "both", 0)
		strays := int64(0)
		for _, b := range batches {
			strays += write(t, s, b)
		}
		data := read(t, s, d)
		conversion := data[0].Metrics["conversion"].Users
		if strays != 1 || data[0].Users != 4 || data[1].Users != 1 || conversion.N != 4 || !near(conversion.Mean, 0.75, 1e-9) {
			t.Errorf("%d strays, got %+v, %+v", strays, data[0], conversion)
		}
		if data[1].Metrics["conversion"].Users.Mean != 0 {
			t.Errorf("the stray counts: %+v", data[1])
		}
	})
}
