package revocation

import (
	"errors"
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/polltest"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

func TestGuard(t *testing.T) {
	server := redistest.NewProcess(t)
	rdb := newClient(t, server.Addr())
	replica := newTestReplica(t, rdb)
	stop := run(t, replica)
	polltest.Until(t, "ready", replica.Ready)
	here, there := newTestStore(t, rdb, replica), newTestStore(t, rdb, nil)
	revoke(t, here, session("known"))
	polltest.Until(t, "followed", func() bool { return replica.position().seq == 1 })
	stop()
	revoke(t, there, session("unheard"))
	unsynced := newTestReplica(t, rdb)

	now := time.Now()
	late := now.Add(time.Minute)
	known, unheard, good := withSession("known"), withSession("unheard"), withSession("good")
	type want struct {
		why Kind
		err error
	}
	cases := []struct {
		name    string
		replica *Replica
		strict  bool
		policy  Policy
		token   *Token
		at      time.Time
		up      want // what is said while Redis answers
		down    want // and while it does not
	}{
		{"fresh", replica, false, FailClosed, good, now, want{}, want{}},
		{"fresh, revoked", replica, false, FailClosed, known, now, want{why: KindSession}, want{why: KindSession}},
		{"stale, closed", replica, false, FailClosed, good, late, want{err: ErrStale}, want{err: ErrStale}},
		{"stale, revoked", replica, false, FailClosed, known, late, want{why: KindSession}, want{why: KindSession}},
		{"stale, asks", replica, false, AskRedis, good, late, want{}, want{err: ErrUnavailable}},
		{"stale, asks, unheard", replica, false, AskRedis, unheard, late, want{why: KindSession}, want{err: ErrUnavailable}},
		{"stale, serves", replica, false, ServeStale, good, late, want{}, want{}},
		{"stale, serves, unheard", replica, false, ServeStale, unheard, late, want{}, want{}},
		{"never synchronised, serves", unsynced, false, ServeStale, good, now, want{err: ErrStale}, want{err: ErrStale}},
		{"never synchronised, asks", unsynced, false, AskRedis, unheard, now, want{why: KindSession}, want{err: ErrUnavailable}},
		{"strict", replica, true, ServeStale, good, now, want{}, want{err: ErrUnavailable}},
		{"strict, unheard", replica, true, ServeStale, unheard, now, want{why: KindSession}, want{err: ErrUnavailable}},
		{"strict, known here", replica, true, ServeStale, known, now, want{why: KindSession}, want{why: KindSession}},
	}
	check := func(t *testing.T, up bool) {
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				want := c.up
				if !up {
					want = c.down
				}
				v, err := NewGuard(there, c.replica, c.strict).Check(t.Context(), c.token, c.at, c.policy)
				if v.Why != want.why || !isOrNil(err, want.err) {
					t.Errorf("%+v, %v: want %s, %v", v, err, want.why, want.err)
				}
			})
		}
	}
	// The replica's last beat must not have been too long ago for the fresh cases.
	replica.options.MaxStaleness = 30 * time.Second
	t.Run("Redis answers", func(t *testing.T) { check(t, true) })
	server.Kill()
	t.Run("Redis is away", func(t *testing.T) { check(t, false) })
}

func TestPolicyNames(t *testing.T) {
	for _, p := range []Policy{FailClosed, AskRedis, ServeStale} {
		if got, err := ParsePolicy(p.String()); got != p || err != nil {
			t.Errorf("ParsePolicy(%q) = %s, %v", p, got, err)
		}
	}
	if p, err := ParsePolicy(""); p != FailClosed || err != nil {
		t.Errorf(`ParsePolicy("") = %s, %v, want the safe one`, p, err)
	}
	if _, err := ParsePolicy("open"); err == nil {
		t.Error(`ParsePolicy("open") is accepted`)
	}
	if got := Policy(9).String(); got != "policy(9)" {
		t.Errorf("unknown policy is %q", got)
	}
	if got := Kind(99).String(); got != "kind(99)" {
		t.Errorf("unknown kind is %q", got)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for name, o := range map[string]Options{
		"staleness":           {MaxStaleness: time.Millisecond},
		"heartbeat too slow":  {MaxStaleness: time.Second, Heartbeat: time.Second},
		"heartbeat too quick": {Heartbeat: time.Microsecond},
		"lifetime too short":  {MaxLifetime: time.Millisecond},
		"lifetime too long":   {MaxLifetime: 9000 * time.Hour},
		"leeway negative":     {Leeway: -1},
		"leeway too long":     {Leeway: 2 * time.Hour},
		"entries":             {MaxEntries: -1},
		"sweep":               {Sweep: 1},
	} {
		if _, err := NewReplica(nil, o); err == nil {
			t.Errorf("%s: NewReplica accepts %+v", name, o)
		}
		if _, err := NewStore(nil, nil, o); err == nil {
			t.Errorf("%s: NewStore accepts %+v", name, o)
		}
	}
	if errors.Is(ErrStale, ErrUnavailable) {
		t.Error("the two errors are to be told apart")
	}
}
