package ratelimit_test

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tollgate-proxy/tollgate/internal/ratelimit"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

// Spend takes what was used as far as there is anything, at the rule's cost, and
// never refuses.
func TestSpend(t *testing.T) {
	file := filepath.Join(t.TempDir(), "rules.yaml")
	text := `
domain: d
tiers: {entry: tier, subjects: [user], default: t, table: [{name: t, limits: [{unit: day, requests_per_unit: 10}]}]}
costs: {entry: endpoint, default: 1, table: [{value: ml, cost: 5}]}
descriptors: [{key: w, shadow_mode: true, rate_limit: {unit: day, requests_per_unit: 3}}]
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	rules, err := ratelimit.LoadRules(file)
	if err != nil {
		t.Fatal(err)
	}
	l, err := ratelimit.NewLimiter(ratelimit.Options{
		Rules: rules, Store: ratelimit.NewMemory(100, time.Now), Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	spend := func(n uint64, entries ...ratelimit.Entry) ratelimit.Quota {
		t.Helper()
		q, err := l.Spend(t.Context(), "d", entries, n)
		if err != nil || len(q.States) != 1 {
			t.Fatalf("%+v, %v", q, err)
		}
		return q
	}
	ada, ml := ratelimit.Entry{Key: "user", Value: "ada"}, ratelimit.Entry{Key: "endpoint", Value: "ml"}
	plain := spend(2, ada)
	dear := spend(1, ada, ml)
	if plain.States[0].Remaining != 8 || dear.States[0].Remaining != 3 || dear.Cost != 5 || plain.Key != dear.Key || plain.Watched {
		t.Errorf("%+v, then %+v", plain, dear)
	}
	if q := spend(1_000_000, ada); q.States[0].Remaining != 0 || q.States[0].Full > 24*time.Hour {
		t.Errorf("more than there was: %+v", q)
	}
	if q := spend(1, ratelimit.Entry{Key: "w", Value: "x"}); !q.Watched || q.States[0].Remaining != 2 {
		t.Errorf("watched: %+v", q)
	}
	if _, err := l.Spend(t.Context(), "d", []ratelimit.Entry{{Key: "other"}}, 1); !errors.Is(err, ratelimit.ErrUnknown) {
		t.Errorf("got %v", err)
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
				others, err := s.Join(t.Context(), "k", name, demand, 10*time.Second)
				slices.Sort(others)
				if err != nil || !slices.Equal(others, want) {
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
			if err := s.Leave(t.Context(), "k", "b"); err != nil {
				t.Fatal(err)
			}
			join("c", 3, -1)
			now = now.Add(11 * time.Second)
			join("c", 3)
		})
	}
}
