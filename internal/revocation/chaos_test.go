package revocation

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/polltest"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

// Redis is flushed, killed, frozen, trimmed and robbed of keys in any order while revocations go on, and one of the two
// replicas is restarted now and then. At the end every revocation that was acknowledged while the writer's replica heard
// it is in force on both replicas and in Redis: as long as one process that knew lives, nothing is forgotten.
func TestNothingIsForgottenWhileOneReplicaLives(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 1))
			server := redistest.NewProcess(t)
			rdb := newClient(t, server.Addr())
			writer := startReplica(t, server.Addr())
			store := newTestStore(t, newClient(t, server.Addr()), writer)
			another := newTestReplica(t, newClient(t, server.Addr()))
			stop := run(t, another)

			var acknowledged []string
			try := func(id string) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				if _, err := store.Revoke(ctx, session(id)); err == nil {
					acknowledged = append(acknowledged, id)
				}
			}
			ignore := func(error) {} // a fault that Redis does not take is no fault
			faults := []func(){
				func() { ignore(rdb.FlushAll(t.Context()).Err()) },
				func() { server.Kill(); server.Start() },
				func() { server.Pause(); sleep(t.Context(), 50*time.Millisecond); server.Resume() },
				func() { ignore(rdb.XTrimMaxLen(t.Context(), keyFeed, 1).Err()) },
				func() { ignore(rdb.Del(t.Context(), keyFeed).Err()) },
				func() { ignore(rdb.Del(t.Context(), keyMeta).Err()) },
				func() { ignore(rdb.Del(t.Context(), keyEntries).Err()) },
				func() {
					stop()
					another = newTestReplica(t, newClient(t, server.Addr()))
					stop = run(t, another)
				},
				func() {}, func() {}, func() {},
			}
			for i := range 25 {
				try(fmt.Sprintf("%d before", i))
				faults[random.IntN(len(faults))]()
				try(fmt.Sprintf("%d after", i))
			}
			if len(acknowledged) == 0 {
				t.Fatal("nothing was acknowledged")
			}
			for _, id := range acknowledged {
				token := withSession(id)
				if !refuses(writer, token)() {
					t.Errorf("%q is forgotten where it was revoked", id)
				}
				polltest.Until(t, id+" is in force in Redis", func() bool {
					v, err := store.Check(t.Context(), token)
					return err == nil && v.Revoked
				})
				polltest.Until(t, id+" is in force on the other replica", refuses(another, token))
			}
			polltest.Until(t, "both are fresh", func() bool { return fresh(writer)() && fresh(another)() })
		})
	}
}
