package ratelimit

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"
	"pgregory.net/rapid"

	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

// fresh numbers keys, so that tests on one server do not meet.
var fresh atomic.Int64

func freshKey(tag string) string { return fmt.Sprintf("test:{%s}:%d", tag, fresh.Add(1)) }

// eachStore runs the test over every store there is.
func eachStore(t *testing.T, test func(t *testing.T, s Store)) {
	t.Helper()
	t.Run("memory", func(t *testing.T) { test(t, NewMemory(1e6, time.Now)) })
	for name, start := range servers {
		client := redis.NewClient(&redis.Options{Addr: start(t), PoolSize: 32})
		t.Cleanup(func() { _ = client.Close() })
		t.Run(name, func(t *testing.T) { test(t, NewRedis(client, false)) })
		t.Run(name+" batched", func(t *testing.T) {
			test(t, newBatcher(NewRedis(client, false), 10*time.Second, time.Now, func(int, time.Time, error) {}))
		})
		t.Run(name+" in steps", func(t *testing.T) { test(t, NewRedis(client, true)) })
	}
}

var servers = map[string]func(testing.TB) string{
	"redis":    func(t testing.TB) string { return redistest.Server(t) },
	"embedded": redistest.Embedded,
}

func take(t *testing.T, s Store, demands ...*Demand) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := s.Take(ctx, demands); err != nil {
		t.Fatal(err)
	}
}

const hour = int64(time.Hour / time.Microsecond)

// ask makes a demand of one token of an hour each, on buckets of that size.
func ask(size int64, keys ...string) *Demand {
	d := &Demand{}
	for _, k := range keys {
		d.Charges = append(d.Charges, Charge{Key: k, Capacity: size * hour, Need: hour, Cost: hour})
	}
	return d
}

func TestStoreChargesAllOrNone(t *testing.T) {
	eachStore(t, func(t *testing.T, s Store) {
		small, large, other := freshKey("a"), freshKey("a"), freshKey("b")
		for i := range 5 {
			d := ask(10, large, other)
			d.Charges = append(d.Charges, Charge{Key: small, Capacity: 2 * hour, Need: hour, Cost: hour})
			take(t, s, d)
			if want := i < 2; d.Allowed != want {
				t.Fatalf("request %d: allowed %v, want %v", i, d.Allowed, want)
			}
			left := (d.Now + 10*hour - d.Charges[0].Level) / hour
			if want := int64(10 - min(i+1, 2)); left != want {
				t.Errorf("request %d leaves %d tokens in the large bucket, want %d", i, left, want)
			}
			if otherLeft := (d.Now + 10*hour - d.Charges[1].Level) / hour; otherLeft != left {
				t.Errorf("request %d leaves %d tokens in the other bucket, want %d", i, otherLeft, left)
			}
		}
	})
}

func TestStoreOrderWithinOneCall(t *testing.T) {
	eachStore(t, func(t *testing.T, s Store) {
		key := freshKey("a")
		demands := []*Demand{ask(2, key), ask(2, key), ask(2, key), {Charges: []Charge{{Key: key, Capacity: 2 * hour, Cost: -hour}}}, ask(2, key)}
		take(t, s, demands...)
		got := make([]bool, len(demands))
		for i, d := range demands {
			got[i] = d.Allowed
		}
		if diff := cmp.Diff([]bool{true, true, false, true, true}, got); diff != "" {
			t.Error(diff)
		}
	})
}

func TestStoreSpecialAmounts(t *testing.T) {
	eachStore(t, func(t *testing.T, s Store) {
		key := freshKey("a")
		question := func() *Demand {
			return &Demand{Charges: []Charge{{Key: key, Capacity: 2 * hour, Need: hour}}}
		}
		never := &Demand{Charges: []Charge{{Key: key, Capacity: 2 * hour, Need: 2*hour + 1, Cost: 2 * hour}}}
		refund := &Demand{Charges: []Charge{{Key: key, Capacity: 2 * hour, Cost: -2 * hour}}}
		q1, q2, q3 := question(), question(), question()
		take(t, s, q1, never, ask(2, key), ask(2, key), q2, refund, q3)
		if !q1.Allowed || q1.Charges[0].Level != q1.Now {
			t.Errorf("a question to a full bucket: %+v at %d", q1.Charges, q1.Now)
		}
		if never.Allowed {
			t.Error("more than the bucket's size was allowed")
		}
		if q2.Allowed {
			t.Error("an empty bucket said that it holds a token")
		}
		if q3.Charges[0].Level != q3.Now {
			t.Errorf("a refund left the bucket at %d beyond now", q3.Charges[0].Level-q3.Now)
		}
		forced := &Demand{Charges: []Charge{{Key: key, Capacity: 2 * hour, Cost: 9 * hour}}}
		take(t, s, forced)
		if !forced.Allowed || forced.Charges[0].Level != forced.Now+2*hour {
			t.Errorf("a forced charge beyond the size: level %d beyond now", forced.Charges[0].Level-forced.Now)
		}
	})
}

// TestStoreNeverGrantsMore counts what many clients get at once.
func TestStoreNeverGrantsMore(t *testing.T) {
	eachStore(t, func(t *testing.T, s Store) {
		const size, clients, each = 100, 16, 20
		key, system := freshKey("a"), freshKey("s")
		var granted atomic.Int64
		var wg sync.WaitGroup
		for range clients {
			wg.Go(func() {
				for range each {
					d := ask(size, key)
					d.Charges = append(d.Charges, Charge{Key: system, Capacity: 1000 * hour, Need: hour, Cost: hour})
					if err := s.Take(t.Context(), []*Demand{d}); err != nil {
						t.Error(err)
						return
					}
					if d.Allowed {
						granted.Add(1)
					}
				}
			})
		}
		wg.Wait()
		if granted.Load() != size {
			t.Errorf("granted %d of %d", granted.Load(), size)
		}
		d := &Demand{Charges: []Charge{{Key: system, Capacity: 1000 * hour, Need: hour}}}
		take(t, s, d)
		if used := (d.Charges[0].Level - d.Now + hour - 1) / hour; used != size {
			t.Errorf("the system's bucket was charged %d, want %d: denied requests take nothing", used, size)
		}
	})
}

func TestStoreForgetsFullBuckets(t *testing.T) {
	client := redis.NewClient(&redis.Options{Addr: redistest.Server(t)})
	defer client.Close()
	s := NewRedis(client, false)
	key, window := freshKey("a"), freshKey("a")
	second := int64(1e6)
	d := &Demand{Charges: []Charge{
		{Key: key, Capacity: 100 * second, Need: 60 * second, Cost: 60 * second},
		{Key: window, Period: 100 * second, Capacity: 100 * second, Need: second, Cost: second},
	}}
	take(t, s, d)
	for i, k := range []string{key, window} {
		want := time.Minute
		if i == 1 {
			want = time.Duration(100*second-d.Now%(100*second)) * time.Microsecond
		}
		ttl, err := client.PTTL(t.Context(), k).Result()
		if err != nil || ttl > want+time.Millisecond || ttl < want-5*time.Second {
			t.Errorf("%s lives for %s (%v), want at most %s", k, ttl, err, want)
		}
	}
	memory, err := client.MemoryUsage(t.Context(), key).Result()
	if err != nil || memory-int64(len(key)) > 120 {
		t.Errorf("a bucket takes %d bytes with a key of %d (%v); at most 120 beside the key", memory, len(key), err)
	}
}

// TestStoreIgnoresLevelsOutOfRange shows that a clock that was set back, or a
// limit that shrank, denies for no longer than an empty bucket does.
func TestStoreIgnoresLevelsOutOfRange(t *testing.T) {
	for name, start := range servers {
		t.Run(name, func(t *testing.T) {
			client := redis.NewClient(&redis.Options{Addr: start(t)})
			defer client.Close()
			s := NewRedis(client, false)
			for value, wantLeft := range map[string]int64{"9007199254740991": 0, "12": 5, "-7": 5, "not a number": 5, "": 5} {
				key := freshKey("a")
				if err := client.Set(t.Context(), key, value, time.Minute).Err(); err != nil {
					t.Fatal(err)
				}
				d := &Demand{Charges: []Charge{{Key: key, Capacity: 5 * hour, Need: hour}}}
				take(t, s, d)
				if left := (d.Now + 5*hour - d.Charges[0].Level) / hour; left != wantLeft {
					t.Errorf("level %q leaves %d, want %d", value, left, wantLeft)
				}
			}
		})
	}
}

// TestLuaEqualsGo draws sequences of batches and holds the script's every
// answer against Decide's, at the server's own times.
func TestLuaEqualsGo(t *testing.T) {
	for name, start := range servers {
		t.Run(name, func(t *testing.T) {
			client := redis.NewClient(&redis.Options{Addr: start(t)})
			defer client.Close()
			s := NewRedis(client, false)
			rapid.Check(t, func(t *rapid.T) {
				run := fresh.Add(1)
				levels := map[string]int64{}
				before := map[string]int64{}
				for range rapid.IntRange(1, 5).Draw(t, "batches") {
					batch := drawBatch(t, run)
					if err := s.Take(context.Background(), batch); err != nil {
						t.Fatal(err)
					}
					for i, d := range batch {
						want := &Demand{Charges: append([]Charge(nil), d.Charges...)}
						ahead := make([]bool, len(want.Charges))
						for j := range want.Charges {
							want.Charges[j].Level = levels[want.Charges[j].Key]
							want.Charges[j].Previous = before[want.Charges[j].Key]
							ahead[j] = want.Charges[j].ahead(d.Now)
						}
						Decide(d.Now, want)
						if diff := cmp.Diff(want, d); diff != "" {
							t.Fatalf("demand %d (-go +lua):\n%s", i, diff)
						}
						for j, c := range want.Charges {
							if want.Allowed && c.Cost != 0 || !want.Allowed && ahead[j] {
								levels[c.Key], before[c.Key] = c.Level, c.Previous
							}
						}
					}
				}
			})
		})
	}
}

func drawBatch(t *rapid.T, run int64) []*Demand {
	batch := make([]*Demand, rapid.IntRange(1, 6).Draw(t, "demands"))
	amount := func(most int64, name string) int64 {
		return rapid.OneOf(rapid.Int64Range(0, most), rapid.SampledFrom([]int64{0, 1, most})).Draw(t, name)
	}
	for i := range batch {
		batch[i] = &Demand{}
		first := rapid.IntRange(0, 3).Draw(t, "key")
		for k := range rapid.IntRange(1, 3).Draw(t, "charges") {
			c := Charge{Key: fmt.Sprintf("test:%d:{a}:%d", run, (first+k)%4)}
			window := rapid.SampledFrom([]int64{1e6, 60e6, 3600e6, 30 * 24 * 3600e6, maxCapacity}).Draw(t, "period")
			switch rapid.SampledFrom([]Algorithm{TokenBucket, FixedWindow, SlidingWindow}).Draw(t, "algorithm") {
			case TokenBucket:
				c.Capacity = amount(maxCapacity, "size")
			case FixedWindow:
				c.Key += fmt.Sprintf("w%d", window)
				c.Period, c.Capacity = window, amount(window, "size")
			case SlidingWindow:
				c.Key += fmt.Sprintf("s%d", window)
				c.Period, c.Capacity = -window, amount(window-1, "size")
			}
			c.Need = min(amount(c.Capacity, "need")+rapid.Int64Range(0, 1).Draw(t, "beyond"), c.Capacity+1)
			c.Cost = rapid.SampledFrom([]int64{0, c.Need, -c.Need, c.Capacity}).Draw(t, "cost")
			c.Shared = rapid.Bool().Draw(t, "shared")
			batch[i].Charges = append(batch[i].Charges, c)
		}
	}
	return batch
}

func TestRedisRefusesWhatIsNotItsReply(t *testing.T) {
	d := ask(1, "k")
	for _, reply := range [][]int64{nil, {1}, {1, 1}, {1, 1, 1, 1}} {
		if err := results(reply, []*Demand{d}); err == nil {
			t.Errorf("reply %v was understood", reply)
		}
	}
	big := make([]*Demand, MaxBatch+1)
	if err := (&Redis{}).Take(t.Context(), big); err == nil {
		t.Error("a batch beyond the bound was sent")
	}
}

func TestRedisGone(t *testing.T) {
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1})
	defer client.Close()
	for _, s := range []*Redis{NewRedis(client, false), NewRedis(client, true)} {
		if err := s.Take(t.Context(), []*Demand{ask(1, "{a}", "{b}")}); err == nil {
			t.Error("no error without a server")
		}
		if s.Load(t.Context()) == nil || s.Reset(t.Context(), "k") == nil {
			t.Error("no error without a server")
		}
	}
}

func TestRedisReset(t *testing.T) {
	client := redis.NewClient(&redis.Options{Addr: redistest.Server(t)})
	defer client.Close()
	s, key := NewRedis(client, false), freshKey("a")
	if err := s.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	take(t, s, ask(1, key))
	if err := s.Reset(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	d := ask(1, key)
	take(t, s, d)
	if !d.Allowed {
		t.Error("a bucket that was reset is not full")
	}
}

// TestMemoryIsBounded meets many more keys than there is room for.
func TestMemoryIsBounded(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	m := NewMemory(100, func() time.Time { return now })
	for i := range 10_000 {
		take(t, m, ask(3, fmt.Sprint(i)))
		if m.Len() > 100 {
			t.Fatalf("%d buckets after %d", m.Len(), i)
		}
	}
	// What has ended makes room for what comes.
	now = now.Add(3 * time.Hour)
	for i := range 200 {
		take(t, m, ask(3, fmt.Sprint("new", i)))
	}
	if m.Len() > 100 {
		t.Errorf("%d buckets", m.Len())
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if m.Take(ended, []*Demand{ask(1, "k")}) == nil {
		t.Error("a call that had ended was decided")
	}
}

func TestMemoryDrain(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	m := NewMemory(100, func() time.Time { return now })
	take(t, m, ask(3, "a"), ask(3, "a"), ask(3, "b"),
		&Demand{Charges: []Charge{{Key: "w", Period: 24 * hour, Capacity: 24 * hour, Need: hour, Cost: hour}}})
	now = now.Add(time.Hour)
	got := map[string]int64{}
	for _, d := range m.Drain(2) {
		got[d.Charges[0].Key] = d.Charges[0].Cost
	}
	if diff := cmp.Diff(map[string]int64{"a": hour / 2, "w": hour / 2}, got); diff != "" {
		t.Error(diff)
	}
	if m.Len() != 0 {
		t.Errorf("%d buckets are left", m.Len())
	}
}

// FuzzDecide holds the invariants of a decision over any history.
func FuzzDecide(f *testing.F) {
	f.Add(uint64(1), int64(60e6), int64(6e6))
	f.Fuzz(func(t *testing.T, seed uint64, capacity, need int64) {
		capacity = max(min(capacity, maxCapacity), 0)
		need = max(min(need, capacity+1), 0)
		r := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // A reproducible sequence.
		now, start, granted, level := int64(1_800_000_000e6), int64(1_800_000_000e6), int64(0), int64(0)
		for range 100 {
			now += r.Int64N(capacity + 2)
			d := &Demand{Charges: []Charge{{Capacity: capacity, Need: need, Cost: need, Level: level}}}
			Decide(now, d)
			if d.Allowed {
				granted += need
			}
			level = d.Charges[0].Level
			if level < now || level > now+capacity {
				t.Fatalf("level %d at %d with capacity %d", level, now, capacity)
			}
			if granted > capacity+now-start {
				t.Fatalf("granted %d in %d with capacity %d", granted, now-start, capacity)
			}
		}
	})
}
