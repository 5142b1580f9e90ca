package revocation

import (
	"context"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/polltest"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

const million = 1_000_000

// fullReplica holds a million entries and a thousand user marks.
func fullReplica(b *testing.B) *Replica {
	b.Helper()
	r, err := NewReplica(nil, Options{})
	if err != nil {
		b.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range million {
		r.set.learn(change{print: fingerprint{hi: random.Uint64() | 1, lo: random.Uint64()}, entry: 1_900_000_000})
	}
	for i := range 1000 {
		r.set.learn(change{
			print: printOf(KindUser, "", strconv.Itoa(i)), isMark: true,
			mark: mark{notBefore: 1_800_000_000, tie: 1, expires: 1_800_086_400},
		})
	}
	r.freshAt.Store(0)
	return r
}

// BenchmarkMillion looks one fingerprint up among a million, and shows what the million take.
func BenchmarkMillion(b *testing.B) {
	r := fullReplica(b)
	names := make([]fingerprint, 1<<16)
	for i := range names {
		names[i] = fingerprint{hi: rand.Uint64() | 1, lo: rand.Uint64()}
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if _, found := r.set.entries.get(names[i&(1<<16-1)]); found {
			b.Fatal("found what was never put in")
		}
		i++
	}
	b.ReportMetric(float64(r.set.entries.bytes())/(1<<20), "MiB")
}

// BenchmarkCheck is the whole check of a token with every claim: ten look-ups.
func BenchmarkCheck(b *testing.B) {
	r := fullReplica(b)
	now := r.started
	tokens := make([]*Token, 1<<12)
	for i := range tokens {
		tokens[i] = exampleToken(strconv.Itoa(i + 5000))
	}
	check := func(b *testing.B) {
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			if v := r.Check(tokens[i&(1<<12-1)], now); v.Revoked || !v.Fresh {
				b.Fatal(v)
			}
			i++
		}
	}
	b.Run("hashing", check)
	for _, token := range tokens {
		token.Prepare()
	}
	b.Run("prepared", check)
	b.Run("parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			i := rand.IntN(1 << 12)
			for pb.Next() {
				if r.Check(tokens[i&(1<<12-1)], now).Revoked {
					b.Error("revoked")
				}
				i++
			}
		})
	})
}

// BenchmarkPropagation revokes on one replica and waits until another refuses: the median and the 99th percentile.
func BenchmarkPropagation(b *testing.B) {
	addr := redistest.Server(b)
	r := startReplica(b, addr)
	s := newTestStore(b, newClient(b, addr), nil)
	var took []time.Duration
	for b.Loop() {
		token := withSession(strconv.Itoa(len(took)))
		began := time.Now()
		revoke(b, s, session(token.Session))
		for !r.Check(token, began).Revoked {
			sleep(b.Context(), 20*time.Microsecond) // a poll: it bounds what is measured from below
		}
		took = append(took, time.Since(began))
	}
	reportPercentiles(b, took)
}

func reportPercentiles(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	at := func(p float64) float64 { return float64(took[int(p*float64(len(took)-1))].Microseconds()) }
	b.ReportMetric(at(0.5), "µs/p50")
	b.ReportMetric(at(0.99), "µs/p99")
}

// BenchmarkRestart is from an empty replica to a ready one with a million entries in Redis.
func BenchmarkRestart(b *testing.B) {
	addr := redistest.Server(b)
	rdb := redis.NewClient(&redis.Options{Addr: addr})
	defer rdb.Close()
	s := newTestStore(b, rdb, nil)
	rs := make([]Revocation, 10_000)
	for i := range million / len(rs) {
		for j := range rs {
			rs[j] = session(strconv.Itoa(i*len(rs) + j))
		}
		revoke(b, s, rs...)
	}
	for b.Loop() {
		r, err := NewReplica(rdb, Options{})
		if err != nil {
			b.Fatal(err)
		}
		ctx, cancel := context.WithCancel(b.Context())
		done := make(chan error)
		go func() { done <- r.Run(ctx) }()
		polltest.Until(b, "ready", r.Ready)
		if r.set.entries.len() != million {
			b.Fatalf("%d entries", r.set.entries.len())
		}
		b.StopTimer()
		cancel()
		<-done
		b.StartTimer()
	}
}

// BenchmarkCheckDuringMassRevocation takes the time of checks while 100,000 tokens are being revoked, against idle.
func BenchmarkCheckDuringMassRevocation(b *testing.B) {
	addr := redistest.Server(b)
	r := startReplica(b, addr)
	s := newTestStore(b, newClient(b, addr), nil)
	token := prepared(exampleToken("alice"))
	rs := make([]Revocation, 100_000)
	for i := range rs {
		rs[i] = session(strconv.Itoa(i))
	}
	measure := func(until func() bool) []time.Duration {
		var took []time.Duration
		for len(took) < 1000 || !until() {
			for range 100 {
				began := time.Now()
				r.Check(token, began)
				took = append(took, time.Since(began))
			}
			sleep(b.Context(), 100*time.Microsecond) // requests do not come back to back
		}
		return took
	}
	for b.Loop() {
		end := time.Now().Add(time.Second)
		idle := measure(func() bool { return time.Now().After(end) })
		var done atomic.Bool
		go func() {
			if _, err := s.Revoke(context.Background(), rs...); err != nil {
				b.Error(err)
			}
			done.Store(true)
		}()
		busy := measure(done.Load)
		slices.Sort(idle)
		slices.Sort(busy)
		b.ReportMetric(float64(idle[len(idle)*99/100].Nanoseconds()), "ns/p99-idle")
		b.ReportMetric(float64(busy[len(busy)*99/100].Nanoseconds()), "ns/p99-busy")
	}
}
