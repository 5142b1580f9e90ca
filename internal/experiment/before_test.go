package experiment

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/polltest"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

// known is what one user did, before and since, by metric.
type known struct {
	before, since map[string]*User
	exposed       bool
}

// However users are seen before and after the start, the store holds the pairs
// that one pass over all of them gives.
func TestBeforeAgainstOracle(t *testing.T) {
	redistest.Each(t, func(t *testing.T, c *redis.Client) {
		d, s, r := valid(), NewStore(c), rand.New(rand.NewPCG(31, 32))
		d.Guardrails = append(d.Guardrails, Metric{Name: "bytes", Kind: Sum, Source: RequestBytes})
		users := map[string]*known{}
		at := func(i int) (string, *known) {
			name := fmt.Sprintf("user-%d", i)
			if users[name] == nil {
				users[name] = &known{map[string]*User{}, map[string]*User{}, false}
			}
			return name, users[name]
		}
		values := func(into map[string]*User) []Value {
			var out []Value
			for metric, v := range map[string]float64{"conversion": float64(r.IntN(5) / 4), "latency": 0.1 * latency(r), "bytes": float64(r.IntN(1000))} {
				if metric == "conversion" && r.IntN(2) == 0 {
					continue // seen, and nothing reported
				}
				if into[metric] == nil {
					into[metric] = &User{}
				}
				if err := into[metric].Observe(v); err != nil {
					t.Fatal(err)
				}
				out = append(out, Value{metric, v})
			}
			return out
		}
		for range 3 {
			b := newBatch(t, d)
			for range 100 {
				name, u := at(r.IntN(80))
				if err := b.Before(name, values(u.before)...); err != nil {
					t.Fatal(err)
				}
			}
			write(t, s, b)
		}
		for range 6 {
			b := newBatch(t, d)
			for _, u := range []int{45, 50, 55, 60} { // what comes too late does not count
				if name, k := at(u); k.exposed {
					if err := b.Before(name, values(map[string]*User{})...); err != nil {
						t.Fatal(err)
					}
				}
			}
			for range 60 {
				name, u := at(40 + r.IntN(100)) // some are known from before
				arm, _ := d.Assign(name)
				u.exposed = true
				if err := b.Visit(name, arm, values(u.since)...); err != nil {
					t.Fatal(err)
				}
			}
			write(t, s, b)
		}
		data := read(t, s, d)
		for i := range d.Variants {
			for _, m := range d.Metrics() {
				var want Pair
				for name, u := range users {
					arm, _ := d.Assign(name)
					before, ok := u.before[m.Name]
					if arm != i || !u.exposed || !ok {
						continue
					}
					since := u.since[m.Name]
					if since == nil {
						since = &User{}
					}
					if value, ok := since.Value(m.Kind); ok {
						x, _ := before.Value(m.Kind)
						want.Add(value, x)
					}
				}
				got := data[i].Metrics[m.Name].Known
				if got.Value.N != want.Value.N || want.Value.N < 5 || !nearPair(got, want) {
					t.Errorf("variant %d, %s: got %+v, want %+v", i, m.Name, got, want)
				}
			}
		}
		if pairs := paired(d.Primary, data); len(pairs) != 2 || pairs[0].Value.N != data[0].Users || pairs[0].Before.N != data[0].Users {
			t.Errorf("got %+v", pairs)
		}
	})
}

func nearPair(a, b Pair) bool {
	return near(a.Value.Mean, b.Value.Mean, 1e-9) && near(a.Value.M2, b.Value.M2, 1e-6) &&
		near(a.Before.Mean, b.Before.Mean, 1e-9) && near(a.Before.M2, b.Before.M2, 1e-6) && near(a.Co, b.Co, 1e-6)
}

// Users who are new are filled in: the pairs are those of everybody, as if each
// new user had been given the fill.
func TestFilled(t *testing.T) {
	r := rand.New(rand.NewPCG(33, 34))
	for range 50 {
		var all Moments
		var some, want Pair
		for range r.IntN(40) {
			v, x := r.NormFloat64(), r.NormFloat64()
			all.Add(v)
			if r.IntN(3) == 0 {
				x = 0.5
			} else {
				some.Add(v, x)
			}
			want.Add(v, x)
		}
		if got := filled(all, some, 0.5); got.Value.N != want.Value.N || !nearPair(got, want) {
			t.Fatalf("got %+v, want %+v", got, want)
		}
	}
}

// With users of whom a quarter is new, what is known from before makes an
// experiment smaller, and A/A tests are refused at the stated rate all the same:
// by Welch's test at the end, and by the sequential one at any of many looks.
func TestBeforeKeepsTheFalseAlarmRate(t *testing.T) {
	const runs, looks, users, alpha = 600, 10, 80, 0.05
	d := valid()
	d.Primary, d.Guardrails, d.MinimumUsers = Metric{Name: "speed", Kind: Mean}, nil, 400
	r := rand.New(rand.NewPCG(35, 36))
	planned, sequential := 0, 0
	var explained Moments
	for range runs {
		data := []VariantData{{Metrics: map[string]MetricData{}}, {Metrics: map[string]MetricData{}}}
		alarm := false
		var last *Against
		for range looks {
			for i := range data {
				m := data[i].Metrics["speed"]
				for range users {
					habit := math.Exp(0.8 * r.NormFloat64())
					value := habit + 0.5*r.NormFloat64()
					if m.Users.Add(value); r.IntN(4) > 0 {
						m.Known.Add(value, habit)
					}
				}
				data[i].Users = m.Users.N
				data[i].Metrics["speed"] = m
			}
			report, err := Analyse(d, data)
			if err != nil {
				t.Fatal(err)
			}
			last = report.Variants[1].Metrics[0].Against
			alarm = alarm || last.Sequential.P < alpha
		}
		if alarm {
			sequential++
		}
		if last.Planned.P < alpha {
			planned++
		}
		explained.Add(last.Explained)
	}
	// 600 runs at 5 % give 30, with a standard deviation of 5.3.
	if planned < 14 || planned > 46 {
		t.Errorf("Welch's test sees a difference in %d of %d A/A tests", planned, runs)
	}
	if sequential > 46 {
		t.Errorf("the sequential test sees a difference in %d of %d A/A tests", sequential, runs)
	}
	if explained.Mean < 0.4 {
		t.Errorf("only %.2f of the variance is explained", explained.Mean)
	}
}

// A draft that asks for it measures those who would take part, who then begin
// with what is known of them; one that does not ask measures nobody.
func TestMeterBefore(t *testing.T) {
	rdb := redistest.Client(t, redistest.Embedded(t))
	c, asks, does := NewCatalog(rdb, fixedNow), valid(), valid()
	for _, d := range []*Definition{asks, does} {
		d.Primary = Metric{Name: "speed", Kind: Mean, Source: Latency}
		d.Guardrails, d.Tiers = nil, []string{"premium"}
	}
	does.Key = "does-not"
	asks.MeasureBefore = true
	lets := *asks
	lets.Key, lets.Anonymous = "lets-visitors", true
	version := put(t, c, asks).Definition.Version
	put(t, c, does)
	put(t, c, &lets)
	w := watch(t, WatcherOptions{Catalog: c, Now: fixedNow})
	polltest.Until(t, "the drafts", func() bool { return len(w.Current().records) == 3 })
	if !w.Current().MeasuresBefore(fixedNow()) {
		t.Error("the time before is not measured")
	}
	m, recorder := newMeter(t, rdb, w, fixedNow)
	visit := func(user, tier, mark string, seconds int) {
		m.Measure(&Request{User: user, Tier: tier, Assignments: mark, Duration: time.Duration(seconds) * time.Second})
	}
	visit("ann", "premium", "", 2)
	visit("ann", "premium", "", 4)
	visit("bob", "free", "", 3)
	m.Measure(&Request{User: "carl", Tier: "premium", Refused: true})
	m.Measure(&Request{User: "visitor:v-1", Visitor: true, Tier: "premium"})
	recorder.flush(t.Context())
	keys := rdb.Keys(t.Context(), "*}:before").Val()
	if n, more := rdb.HLen(t.Context(), keyOf(asks, "before")).Val(), rdb.HLen(t.Context(), keyOf(&lets, "before")).Val(); len(keys) != 2 || n != 1 || more != 2 {
		t.Fatalf("before: %v with %d users, and %d where visitors may take part", keys, n, more)
	}
	started, err := c.Start(t.Context(), asks.Key, anyone("go"))
	if err != nil {
		t.Fatal(err)
	}
	d := &started.Definition
	if d.Version != version {
		t.Fatal("what was measured before belongs to another version")
	}
	polltest.Until(t, "the experiment", func() bool { return len(w.Current().Live()) == 1 })
	if slices.ContainsFunc(w.Current().before, func(x Live) bool { return x.Key == asks.Key }) {
		t.Error("the time before is measured on")
	}
	for _, user := range []string{"ann", "dan"} {
		arm, _ := d.Assign(user)
		visit(user, "premium", d.Mark(arm), 5)
	}
	recorder.flush(t.Context())
	arm, _ := d.Assign("ann")
	if got := read(t, NewStore(rdb), d)[arm].Metrics["speed"].Known; got.Value.N != 1 || got.Value.Mean != 5 || got.Before.Mean != 3 {
		t.Errorf("got %+v", got)
	}
	// Once it runs, nothing more is before.
	visit("eve", "premium", "", 1)
	recorder.flush(t.Context())
	if n := rdb.HLen(t.Context(), keyOf(d, "before")).Val(); n != 1 {
		t.Errorf("%d users before", n)
	}
}
