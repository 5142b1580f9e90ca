package revocation

import (
	"context"
	"io"
	"net"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/tollgate-proxy/tollgate/internal/clocktest"
	"github.com/tollgate-proxy/tollgate/internal/logtest"
	"github.com/tollgate-proxy/tollgate/internal/outage"
	"github.com/tollgate-proxy/tollgate/internal/polltest"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

func session(id string) Revocation { return Revocation{Kind: KindSession, ID: id} }

// withSession is a token of a session.
func withSession(id string) *Token {
	token := exampleToken("alice")
	token.Session = id
	return prepared(token)
}

func refuses(r *Replica, token *Token) func() bool {
	return func() bool { return r.Check(token, time.Now()).Revoked }
}

func fresh(r *Replica) func() bool {
	return func() bool { return r.Check(withSession("any"), time.Now()).Fresh }
}

func TestNotReadyBeforeTheFirstSync(t *testing.T) {
	server := redistest.NewProcess(t)
	revoke(t, newTestStore(t, newClient(t, server.Addr()), nil), session("s"))
	r := newTestReplica(t, newClient(t, server.Addr()))
	if v := r.Check(withSession("any"), time.Now()); r.Ready() || v.Fresh || v.Revoked {
		t.Errorf("before Run: ready %v, %+v: want neither ready nor fresh", r.Ready(), v)
	}
	server.Kill()
	run(t, r)
	sleep(t.Context(), 100*time.Millisecond)
	if r.Ready() || fresh(r)() {
		t.Error("ready or fresh without Redis")
	}
	server.Start()
	polltest.Until(t, "ready once Redis is there", r.Ready)
	polltest.Until(t, "fresh once Redis is there", fresh(r))
}

func TestSnapshotHoldsWhatWasWrittenBefore(t *testing.T) {
	onEach(t, func(t *testing.T, addr string) {
		s := newTestStore(t, newClient(t, addr), nil)
		rs := make([]Revocation, 5000)
		for i := range rs {
			rs[i] = session(strconv.Itoa(i))
		}
		revoke(t, s, rs...)
		receipt := revoke(t, s, Revocation{Kind: KindUser, ID: "bob", Version: 3})
		r := startReplica(t, addr)
		for i := range rs {
			if !refuses(r, withSession(strconv.Itoa(i)))() {
				t.Fatalf("session %d is missing", i)
			}
		}
		bob := exampleToken("bob")
		bob.IssuedAt, bob.Version = receipt.NotBefore.Add(time.Minute), 2
		if !refuses(r, bob)() {
			t.Error("the mark's version is missing")
		}
	})
}

// The server hangs without closing connections: staleness grows past the bound and verdicts say so; afterwards the
// replica catches up by itself.
func TestServerHangs(t *testing.T) {
	server := redistest.NewProcess(t)
	r := startReplica(t, server.Addr())
	polltest.Until(t, "fresh", fresh(r))
	server.Pause()
	polltest.Until(t, "not fresh", func() bool {
		v := r.Check(withSession("any"), time.Now())
		return !v.Fresh && v.Staleness > r.options.MaxStaleness
	})
	server.Resume()
	polltest.Until(t, "fresh again", fresh(r))
}

// A Redis that answers every other question is told of once, not for each.
func TestFeedIsLoggedByState(t *testing.T) {
	clock, log := clocktest.New(time.Now()), &logtest.Buffer{}
	r, err := NewReplica(nil, Options{Now: clock.Now, Log: log.Logger()})
	if err != nil {
		t.Fatal(err)
	}
	want := func(lost, back int) {
		t.Helper()
		if log.Count("revocation feed lost") != lost || log.Count("revocation feed is back") != back {
			t.Errorf("want %d and %d:\n%s", lost, back, log)
		}
	}
	for range 20 {
		r.note(ErrUnavailable)
		r.note(nil)
		clock.Advance(r.options.Heartbeat)
	}
	want(1, 0)
	clock.Advance(outage.Calm)
	r.note(nil)
	want(1, 1)
}

// On a slow link the delay shows in the staleness, and a revoked token is never accepted as fresh later than the bound.
func TestSlowLink(t *testing.T) {
	server := redistest.Server(t)
	link := newLink(t, server)
	r := startReplica(t, link.addr)
	s := newTestStore(t, newClient(t, server), nil)
	for _, delay := range []time.Duration{0, 30 * time.Millisecond, 150 * time.Millisecond, time.Second, 0} {
		link.delay.Store(int64(delay))
		token := withSession("revoked at " + delay.String())
		revoke(t, s, session(token.Session))
		revoked := time.Now()
		polltest.Until(t, "refused, or stale", func() bool {
			now := time.Now()
			v := r.Check(token, now)
			if v.Fresh && !v.Revoked && now.Sub(revoked) > r.options.MaxStaleness {
				t.Fatalf("delay %s: accepted as fresh %s after the revocation", delay, now.Sub(revoked))
			}
			return v.Revoked || now.Sub(revoked) > 2*r.options.MaxStaleness
		})
	}
	polltest.Until(t, "caught up", refuses(r, withSession("revoked at 1s")))
}

// link is a TCP proxy that delays what the server says.
type link struct {
	addr  string
	delay atomic.Int64
}

func newLink(t *testing.T, server string) *link {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	k := &link{addr: l.Addr().String()}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() { cancel(); _ = l.Close() })
	go func() {
		for {
			down, err := l.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial("tcp", server)
			if err != nil {
				_ = down.Close()
				continue
			}
			context.AfterFunc(ctx, func() { _ = down.Close(); _ = up.Close() })
			go func() { _, _ = io.Copy(up, down); _ = up.Close() }()
			go func() {
				defer down.Close()
				buf := make([]byte, 32<<10)
				for {
					n, err := up.Read(buf)
					if err != nil || !sleepFor(ctx, time.Duration(k.delay.Load())) {
						return
					}
					if _, err := down.Write(buf[:n]); err != nil {
						return
					}
				}
			}()
		}
	}()
	return k
}

func sleepFor(ctx context.Context, d time.Duration) bool { return d == 0 || sleep(ctx, d) }

// A mass revocation reaches the other replica whole, and checks go on meanwhile.
func TestMassRevocation(t *testing.T) {
	addr := redistest.Server(t)
	s, r := newTestStore(t, newClient(t, addr), nil), startReplica(t, addr)
	const n = 20_000
	rs := make([]Revocation, n)
	for i := range rs {
		rs[i] = session(strconv.Itoa(i))
	}
	revoke(t, s, rs...)
	polltest.Until(t, "all of it is refused", func() bool {
		return r.set.entries.len() == n && refuses(r, withSession(strconv.Itoa(n-1)))()
	})
	if n := testutil.ToFloat64(r.metrics.resyncs.WithLabelValues(dueGap)); n != 0 {
		t.Errorf("%v resyncs, want the feed to have sufficed", n)
	}
}

// A replica that runs out of room says that it does not know, instead of accepting what did not fit; a sweep that makes
// room brings it back.
func TestFullReplicaIsNotFresh(t *testing.T) {
	addr := redistest.Server(t)
	o := testOptions()
	o.MaxEntries = 10
	r, err := NewReplica(newClient(t, addr), o)
	if err != nil {
		t.Fatal(err)
	}
	run(t, r)
	polltest.Until(t, "ready", r.Ready)
	s := newTestStore(t, newClient(t, addr), nil)
	past, err := NewStore(newClient(t, addr), nil, Options{
		MaxLifetime: time.Second, Leeway: time.Nanosecond, Now: func() time.Time { return time.Now().Add(-time.Hour) },
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 8 {
		revoke(t, past, session("old "+strconv.Itoa(i)))
	}
	for i := range 4 {
		revoke(t, s, session("new "+strconv.Itoa(i)))
	}
	polltest.Until(t, "full", func() bool { return r.set.full.Load() && !fresh(r)() })
	r.sweepOnce(t.Context())
	polltest.Until(t, "fresh after the sweep", fresh(r))
	for i := range 4 {
		if !refuses(r, withSession("new "+strconv.Itoa(i)))() {
			t.Errorf("new %d did not come back", i)
		}
	}
	if r.set.len() != 4 {
		t.Errorf("%d entries, want the 4 that live", r.set.len())
	}
}

// Clocks jump by days: nothing comes back to life, and staleness does not notice.
func TestSweepTakesTheEarliestClock(t *testing.T) {
	const now, day = 1_800_000_000, 86_400
	for _, c := range []struct {
		name                string
		wall, steady, redis int64
	}{
		{"all agree", now, now, now},
		{"the wall clock jumps ahead", now + 3*day, now, now},
		{"Redis's clock jumps ahead", now, now, now + 3*day},
		{"both jump ahead", now + 3*day, now, now + 3*day},
		{"the process started in the future", now, now + 3*day, now},
	} {
		if got := sweepTime(c.wall, c.steady, c.redis); got != now {
			t.Errorf("%s: swept up to %d, want %d", c.name, got, now)
		}
	}
}

func TestJudge(t *testing.T) {
	for _, c := range []struct {
		name       string
		own, redis position
		want       step
	}{
		{"nothing anywhere", position{}, position{}, inStep},
		{"the same", position{5, "a"}, position{5, "a"}, inStep},
		{"Redis has more", position{5, "a"}, position{6, "b"}, behind},
		{"Redis has less", position{5, "a"}, position{4, "z"}, forked},
		{"Redis is empty", position{5, "a"}, position{}, forked},
		{"another history", position{5, "a"}, position{5, "b"}, forked},
		{"the first write", position{}, position{1, "a"}, behind},
	} {
		if got := judge(c.own, c.redis); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}

func TestApply(t *testing.T) {
	m := func(seq int64, prev, link string) message { return message{at: position{seq, link}, prev: prev} }
	for _, c := range []struct {
		name     string
		messages []message
		want     position
		err      error
	}{
		{"in order", []message{m(6, "e", "f"), m(7, "f", "g")}, position{7, "g"}, nil},
		{"known ones again", []message{m(4, "c", "d"), m(5, "d", "e"), m(6, "e", "f")}, position{6, "f"}, nil},
		{"a gap", []message{m(7, "f", "g")}, position{5, "e"}, errGap},
		{"a gap later on", []message{m(6, "e", "f"), m(8, "g", "h")}, position{6, "f"}, errGap},
		{"another history", []message{m(6, "x", "f")}, position{5, "e"}, errFork},
		{"nothing", nil, position{5, "e"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newTestReplica(t, nil)
			r.at = position{5, "e"}
			err := r.apply(c.messages)
			if r.at != c.want || !isOrNil(err, c.err) {
				t.Errorf("at %v, %v: want %v, %v", r.at, err, c.want, c.err)
			}
		})
	}
}

func TestReplicaMetrics(t *testing.T) {
	addr := redistest.Server(t)
	registry := prometheus.NewPedanticRegistry()
	o := testOptions()
	o.Metrics = registry
	r, err := NewReplica(newClient(t, addr), o)
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewStore(newClient(t, addr), r, o)
	if err != nil {
		t.Fatal(err)
	}
	run(t, r)
	polltest.Until(t, "ready", r.Ready)
	revoke(t, s, session("s"), Revocation{Kind: KindUser, ID: "alice"})
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range families {
		names = append(names, f.GetName())
	}
	for _, want := range []string{
		"tollgate_revocation_entries", "tollgate_revocation_feed_changes_total", "tollgate_revocation_full",
		"tollgate_revocation_marks", "tollgate_revocation_ready", "tollgate_revocation_restored_total",
		"tollgate_revocation_redis_clock_ahead_seconds", "tollgate_revocation_resyncs_total", "tollgate_revocation_set_bytes", "tollgate_revocation_staleness_seconds",
		"tollgate_revocation_unreadable_total", "tollgate_revocation_written_total",
	} {
		if !slices.Contains(names, want) {
			t.Errorf("%s is missing from %v", want, names)
		}
	}
	if _, err := NewReplica(nil, o); err == nil {
		t.Error("a second replica registered the same metrics")
	}
	if _, err := NewStore(nil, nil, o); err == nil {
		t.Error("a second store registered the same metrics")
	}
}
