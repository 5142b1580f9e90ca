package anomaly

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/outage"
	"github.com/tollgate-proxy/tollgate/internal/polltest"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

func TestStoreAway(t *testing.T) {
	var passed atomic.Int64
	w := newWatch(t, NewMemory(), nil, func(o *Options) { o.Now = func() time.Time { return start.Add(time.Duration(passed.Load())) } })
	w.Observe(t.Context(), sighting(-3*day, berlin))
	suspect := sighting(0, berlin, phone)
	w.expect("known", suspect, "new_device", Header)

	w.store.away.Store(true)
	for i := range 10 {
		w.expect("no signal", sighting(0, berlin, token("a"+strconv.Itoa(i)), phone), "", None)
	}
	suspect.At = at(6 * time.Minute)
	w.expect("what is known stays", suspect, "new_device", Header)
	polltest.Until(t, "it was tried", func() bool { return w.counted(failed) == 11 })
	if n := strings.Count(w.log.String(), "no new signals"); n != 1 {
		t.Errorf("told %d times: %s", n, w.log)
	}
	asked := w.store.calls.Load()
	w.expect("not asked again at once", sighting(time.Second, berlin, token("a1"), phone), "", None)
	if w.store.calls.Load() != asked {
		t.Error("asked again at once")
	}

	w.store.away.Store(false)
	again := sighting(6*time.Second, berlin, token("a1"), phone)
	polltest.Until(t, "it is judged again", func() bool { return w.Observe(t.Context(), again).Reasons == "new_device" })
	// It is told of once it has stayed so.
	w.store.away.Store(true)
	failures := w.counted(failed)
	w.expect("away again", sighting(6*time.Second, berlin, token("b"), phone), "", None)
	polltest.Until(t, "it was tried again", func() bool { return w.counted(failed) > failures })
	w.store.away.Store(false)
	w.expect("and back", sighting(6*time.Second, berlin, token("c"), phone), "new_device", Header)
	w.idle()
	if w.log.Count("no new signals") != 1 || w.log.Count("judged again") != 0 {
		t.Errorf("what comes and goes is told: %s", w.log)
	}
	passed.Store(int64(outage.Calm))
	w.expect("to stay", sighting(7*time.Second, berlin, token("d"), phone), "new_device", Header)
	polltest.Until(t, "it is told", func() bool { return w.log.Count("judged again") == 1 })
}

// A hanging Redis costs the wait, never more; and its metric says so.
func TestRedisHangs(t *testing.T) {
	p := redistest.NewProcess(t)
	c := redis.NewClient(&redis.Options{Addr: p.Addr(), ContextTimeoutEnabled: true, MaxRetries: -1}) // as redisconn has it
	defer c.Close()
	w := newWatch(t, NewRedis(c), func(c *Config) { c.Wait, c.Timeout = time.Millisecond, 2*time.Second })
	p.Pause()
	defer p.Resume()
	w.expect("hanging", sighting(0, berlin), "", None)
	polltest.Until(t, "it failed", func() bool { return w.counted(failed) == 1 })
	if w.counted(late) != 1 {
		t.Errorf("%v late", w.counted(late))
	}
}

func TestSessionThatCannotBeEnded(t *testing.T) {
	var fail atomic.Bool
	fail.Store(true)
	ends := make(chan bool, 10)
	w := newWatch(t, NewMemory(), nil, func(o *Options) {
		o.EndSession = func(context.Context, string, string, string) error {
			ends <- true
			if fail.Load() {
				return errors.New("away")
			}
			return nil
		}
	})
	w.expect("home", sighting(-3*day, berlin), "", None)
	w.expect("home", sighting(-time.Hour, berlin), "", None)
	w.idle()
	w.expect("thief", sighting(0, newYork), "impossible_travel,new_country,new_network", RevokeSession)
	<-ends
	w.idle()
	polltest.Until(t, "it is counted", func() bool { return testutil.ToFloat64(w.metrics.endFailures) == 1 && w.counted(failed) == 1 })
	fail.Store(false)
	w.expect("refused meanwhile", sighting(time.Second, newYork), "impossible_travel,new_country,new_network", RevokeSession)
	w.expect("refused, and tried again", sighting(6*time.Second, newYork), "impossible_travel,new_country,new_network", RevokeSession)
	<-ends
	w.idle()
	w.expect("no session to end", sighting(7*time.Second, newYork, func(s *Sighting) { s.Session = "" }), "impossible_travel,new_country,new_network", RevokeSession)
	if len(ends) != 0 {
		t.Error("ended no session")
	}
}
