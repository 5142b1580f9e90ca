package extauthz

import (
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/redistest"
	"github.com/tollgate-proxy/tollgate/internal/revocation"
)

// BenchmarkWholeCheckDuringMassRevocation takes the time of whole Checks, five
// thousand a second, while another process's store revokes 100,000 tokens and
// the replica here follows; against idle. The ratio of the 99th percentiles is
// to stay below 2. That the writing store shares our processors makes it harder.
func BenchmarkWholeCheckDuringMassRevocation(b *testing.B) {
	const tokens, pause = 100_000, 200 * time.Microsecond
	w := newWhole(b)
	elsewhere, err := revocation.NewStore(redistest.Client(b, w.redis), nil, revocation.Options{})
	if err != nil {
		b.Fatal(err)
	}
	tick := time.NewTicker(pause)
	defer tick.Stop()
	p99 := func(until func() bool) time.Duration {
		var took []time.Duration
		for len(took) < 1000 || !until() {
			<-tick.C
			began := time.Now()
			w.check(b)
			took = append(took, time.Since(began))
		}
		slices.Sort(took)
		return took[len(took)*99/100]
	}
	var idle, busy []time.Duration
	for round := 0; b.Loop(); round++ {
		end := time.Now().Add(2 * time.Second)
		idle = append(idle, p99(func() bool { return time.Now().After(end) }))
		rs := make([]revocation.Revocation, tokens)
		for i := range rs {
			rs[i] = revocation.Revocation{Kind: revocation.KindTokenID, Issuer: wholeIssuer, ID: fmt.Sprint(round, "-", i)}
		}
		last := revocation.Token{Issuer: wholeIssuer, TokenID: rs[tokens-1].ID, IssuedAt: time.Now()}
		var done atomic.Bool
		go func() {
			if _, err := elsewhere.Revoke(b.Context(), rs...); err != nil {
				b.Error(err)
			}
			done.Store(true)
		}()
		busy = append(busy, p99(func() bool { return done.Load() && w.replica.Check(&last, time.Now()).Revoked }))
	}
	slices.Sort(idle)
	slices.Sort(busy)
	before, during := idle[len(idle)/2], busy[len(busy)/2]
	b.ReportMetric(float64(before.Nanoseconds())/1000, "µs/p99-idle")
	b.ReportMetric(float64(during.Nanoseconds())/1000, "µs/p99-busy")
	b.ReportMetric(float64(during)/float64(before), "ratio")
}
