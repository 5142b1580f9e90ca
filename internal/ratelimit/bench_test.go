package ratelimit

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

// BenchmarkDecide is the pure decision over three buckets.
func BenchmarkDecide(b *testing.B) {
	d := ask(1000, "a", "b", "c")
	for i := range b.N {
		Decide(int64(i)*1000, d)
	}
}

// BenchmarkLimiter is a whole decision without a store's round trip.
func BenchmarkLimiter(b *testing.B) {
	l := newLab(b, mustLoad(b, shipped))
	l.batcher.store = nothing{}
	reqs := make([]Request, 1000)
	for i := range reqs {
		reqs[i] = request(of("premium", fmt.Sprint("user-", i), "default"))
	}
	var dec Decision
	b.ReportAllocs()
	for i := range b.N {
		if err := l.Decide(context.Background(), &reqs[i%1000], &dec); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRemembered denies what was denied before, of 10,000 users in no order.
func BenchmarkRemembered(b *testing.B) {
	rules := `{domain: tollgate, tiers: {entry: tier, subjects: [user], default: free, table: [
		{name: free, limits: [{unit: day, requests_per_unit: 1}, {unit: year, requests_per_unit: 1}]}]}}`
	l := newLab(b, mustParse(b, rules), func(o *Options) { o.Denials = 100_000 })
	const users = 10_000
	reqs := make([]Request, users)
	var dec Decision
	for i, user := range rand.New(rand.NewPCG(1, 2)).Perm(users) {
		reqs[i] = request(of("free", fmt.Sprint("user-", user), "default"))
		_ = l.Decide(context.Background(), &reqs[i], &dec)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if err := l.Decide(context.Background(), &reqs[i%users], &dec); err != nil || dec.Path != PathDenied {
			b.Fatal(dec, err)
		}
	}
}

// nothing is a store that allows everything.
type nothing struct{}

func (nothing) Take(_ context.Context, demands []*Demand) error {
	for _, d := range demands {
		d.Allowed = true
	}
	return nil
}

// BenchmarkRedis decides batches on a real server and reports the server's
// CPU for each demand.
func BenchmarkRedis(b *testing.B) {
	for _, size := range []int{1, 4, 16, 64} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			client := redis.NewClient(&redis.Options{Addr: redistest.Server(b)})
			defer client.Close()
			s := NewRedis(client, false)
			batch := make([]*Demand, size)
			before := serverCPU(b, client)
			b.ReportAllocs()
			for i := 0; i < b.N; i += size {
				for j := range batch {
					batch[j] = ask(1000, fmt.Sprintf("tollgate:bucket:{tollgate~user=u%d}:60", (i+j)%10000), fmt.Sprintf("tollgate:bucket:{tollgate~user=u%d}:3600", (i+j)%10000), "tollgate:bucket:{tollgate}:system:1")
				}
				for j := range batch {
					batch[j].Charges[2].Shared = true
				}
				if err := s.Take(b.Context(), batch); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64((serverCPU(b, client)-before).Nanoseconds())/float64(b.N), "redis-ns/op")
		})
	}
}

// serverCPU is the CPU time that the server has used.
func serverCPU(b *testing.B, client *redis.Client) time.Duration {
	b.Helper()
	info, err := client.InfoMap(b.Context(), "cpu").Result()
	if err != nil {
		b.Fatal(err)
	}
	var user, system float64
	if _, err := fmt.Sscan(info["CPU"]["used_cpu_user"], &user); err != nil {
		b.Fatal(err)
	}
	if _, err := fmt.Sscan(info["CPU"]["used_cpu_sys"], &system); err != nil {
		b.Fatal(err)
	}
	return time.Duration((user + system) * float64(time.Second))
}
