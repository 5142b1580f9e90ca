package ratelimit_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tollgate-proxy/tollgate/internal/ratelimit"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

func newSpender(t *testing.T, store ratelimit.Store) *ratelimit.Limiter {
	t.Helper()
	file := filepath.Join(t.TempDir(), "rules.yaml")
	text := `
domain: d
tiers: {entry: tier, subjects: [user], default: t, table: [{name: t, limits: [{unit: day, requests_per_unit: 10}]}]}
costs: {entry: endpoint, default: 1, table: [{value: ml, cost: 5}]}
descriptors:
- {key: w, shadow_mode: true, rate_limit: {unit: day, requests_per_unit: 3}}
- {key: short, rate_limit: {unit: second, requests_per_unit: 100}}
- {key: fixed, rate_limit: {unit: second, requests_per_unit: 100, algorithm: fixed_window}}
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	rules, err := ratelimit.LoadRules(file)
	if err != nil {
		t.Fatal(err)
	}
	l, err := ratelimit.NewLimiter(ratelimit.Options{
		Rules: rules, Store: store, Timeout: 10 * time.Second, Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// lastsOneCall is a store that is gone after one call.
type lastsOneCall struct {
	ratelimit.Store
	gone bool
}

func (s *lastsOneCall) Take(ctx context.Context, demands []*ratelimit.Demand) error {
	if s.gone {
		return errors.New("gone")
	}
	s.gone = true
	return s.Store.Take(ctx, demands)
}

// Spend takes what was used as far as there is anything, at the rule's cost, and
// never refuses.
func TestSpend(t *testing.T) {
	l := newSpender(t, ratelimit.NewMemory(100, time.Now))
	spend := func(n uint64, over time.Duration, entries ...ratelimit.Entry) ratelimit.Quota {
		t.Helper()
		q, err := l.Spend(t.Context(), "d", []ratelimit.Usage{{Entries: entries, Requests: n, Over: over}})
		if err != nil || len(q) != 1 || len(q[0].States) != 1 {
			t.Fatalf("%+v, %v", q, err)
		}
		return q[0]
	}
	ada, ml := ratelimit.Entry{Key: "user", Value: "ada"}, ratelimit.Entry{Key: "endpoint", Value: "ml"}
	plain := spend(2, 5*time.Second, ada)
	dear := spend(1, 0, ada, ml)
	if plain.States[0].Remaining != 8 || dear.States[0].Remaining != 3 || dear.Cost != 5 || plain.Key != dear.Key || plain.Free {
		t.Errorf("%+v, then %+v", plain, dear)
	}
	for _, n := range []uint64{1_000_000, math.MaxUint64} {
		if q := spend(n, time.Second, ada, ml); q.States[0].Remaining != 0 || q.States[0].Full > 24*time.Hour {
			t.Errorf("more than there was: %+v", q)
		}
	}
	if q := spend(1, 0, ratelimit.Entry{Key: "w", Value: "x"}); !q.Free || q.States[0].Remaining != 2 {
		t.Errorf("watched: %+v", q)
	}
	// What came over a longer time than a short window takes to refill is not a
	// lump: only what came last counts.
	for _, c := range []struct {
		key            string
		requests, left uint64
	}{
		{"short", 100, 80}, {"short", 450, 10}, {"short", 1000, 0},
		{"fixed", 100, 80}, {"fixed", 500, 0},
		{"user", 6, 4},
	} {
		q := spend(c.requests, 5*time.Second, ratelimit.Entry{Key: c.key, Value: fmt.Sprint(c.requests)})
		if left := uint64(q.States[0].Remaining); left != c.left {
			t.Errorf("%s, %d requests in 5 s: %d left, want %d", c.key, c.requests, left, c.left)
		}
	}
}

// Many usages are charged together, each to its own subject, and those that no
// rule limits are free.
func TestSpendMany(t *testing.T) {
	l := newSpender(t, ratelimit.NewRedis(redistest.Client(t, redistest.Server(t)), false))
	var usages []ratelimit.Usage
	for i := range 200 {
		u := ratelimit.Usage{Entries: []ratelimit.Entry{{Key: "user", Value: fmt.Sprint("u", i/2)}}, Requests: uint64(i % 5)}
		switch i % 10 {
		case 3:
			u.Entries[0] = ratelimit.Entry{Key: "other"}
		case 7:
			u.Entries[0] = ratelimit.Entry{Key: "w", Value: fmt.Sprint(i)}
		}
		usages = append(usages, u)
	}
	quotas, err := l.Spend(t.Context(), "d", usages)
	if err != nil || len(quotas) != len(usages) {
		t.Fatalf("%d quotas, %v", len(quotas), err)
	}
	left := map[string]uint32{}
	for i, q := range quotas {
		u := usages[i]
		switch of := u.Entries[0]; {
		case of.Key == "other":
			if !q.Free || q.Key != "" || q.States != nil {
				t.Errorf("usage %d: %+v", i, q)
			}
		case of.Key == "w":
			if !q.Free || uint64(q.States[0].Remaining) != 3-min(u.Requests, 3) {
				t.Errorf("usage %d: %+v", i, q)
			}
		default:
			if _, known := left[of.Value]; !known {
				left[of.Value] = 10
			}
			left[of.Value] -= uint32(u.Requests)
			if q.Free || q.States[0].Remaining != left[of.Value] {
				t.Errorf("usage %d: %+v, want %d left", i, q, left[of.Value])
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if q, err := l.Spend(ctx, "d", usages); err == nil || len(q) > 0 {
		t.Errorf("without a store: %+v", q)
	}
	// Those that were charged before the store went are told of.
	l = newSpender(t, &lastsOneCall{Store: ratelimit.NewMemory(1000, time.Now)})
	if q, err := l.Spend(t.Context(), "d", usages); err == nil || len(q) == 0 || len(q) == len(usages) || q[len(q)-1].Key == "" {
		t.Errorf("a store that goes: %d are told of, %v", len(q), err)
	}
	if q, err := l.Spend(t.Context(), "d", nil); err != nil || len(q) != 0 {
		t.Errorf("of nothing: %+v, %v", q, err)
	}
}

// Sharers see each other until they leave or their time is over, and nothing
// stays in Redis without an end.
func TestSharers(t *testing.T) {
	for name, addr := range map[string]string{"server": redistest.Server(t), "embedded": redistest.Embedded(t)} {
		t.Run(name, func(t *testing.T) {
			client := redistest.Client(t, addr)
			now := time.Now()
			s := ratelimit.NewSharers(client, func() time.Time { return now })
			join := func(name string, demand float64, want ...float64) {
				t.Helper()
				all, err := s.Join(t.Context(), []ratelimit.Part{{Key: "of " + name, Name: name}, {Key: "k", Name: name, Demand: demand}}, 10*time.Second)
				if err != nil || len(all) != 2 || len(all[0]) != 0 {
					t.Fatalf("%v, %v", all, err)
				}
				others := all[1]
				slices.Sort(others)
				if !slices.Equal(others, want) {
					t.Errorf("%s sees %v, %v; want %v", name, others, err, want)
				}
			}
			join("a", 1)
			join("b", 2.5, 1)
			if err := client.HSet(t.Context(), "tollgate:quota:k", "broken", "x").Err(); err != nil {
				t.Fatal(err)
			}
			join("a", -1, 2.5)
			if n := client.HLen(t.Context(), "tollgate:quota:k").Val(); n != 2 {
				t.Errorf("%d sharers are kept", n)
			}
			if life := client.PTTL(t.Context(), "tollgate:quota:k").Val(); life <= 0 || life > 10*time.Second {
				t.Errorf("kept for %s", life)
			}
			if err := s.Leave(t.Context(), []ratelimit.Part{{Key: "k", Name: "b"}, {Key: "k", Name: "nobody"}}); err != nil {
				t.Fatal(err)
			}
			join("c", 3, -1)
			now = now.Add(11 * time.Second)
			join("c", 3)
		})
	}
}
