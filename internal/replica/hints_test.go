package replica_test

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/redistest"
	"github.com/tollgate-proxy/tollgate/internal/replica"
)

func TestReplicasHintAtOpenedCircuits(t *testing.T) {
	redistest.Each(t, func(t *testing.T, c *redis.Client) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		log := slog.New(slog.DiscardHandler)
		a, b := replica.NewHints(c, log), replica.NewHints(c, log)
		var own atomic.Int64
		heard := make(chan string, 100)
		done := make(chan struct{}, 2)
		go func() { a.Run(ctx, func(string) { own.Add(1) }); done <- struct{}{} }()
		go func() { b.Run(ctx, func(u string) { heard <- u }); done <- struct{}{} }()
		deadline := time.After(20 * time.Second)
		for waiting := true; waiting; { // a subscription takes its time
			a.Opened("ml")
			select {
			case u := <-heard:
				if u != "ml" {
					t.Fatal(u)
				}
				waiting = false
			case <-time.After(10 * time.Millisecond):
			case <-deadline:
				t.Fatal("never heard")
			}
		}
		if own.Load() != 0 {
			t.Fatal("heard its own")
		}
		cancel()
		<-done
		<-done
	})
}

func TestHintsAreDroppedRatherThanWaitedFor(t *testing.T) {
	h := replica.NewHints(redistest.Client(t, redistest.Embedded(t)), slog.New(slog.DiscardHandler))
	for range 1000 { // nobody runs it
		h.Opened("ml")
	}
}
