package session

import (
	"context"
	"sync"
	"time"
)

// Memory is a store in memory: for tests, and for a single process that keeps nothing.
type Memory struct {
	mu    sync.Mutex
	users map[string]*account
	due   map[string]time.Time
}

// NewMemory returns an empty store.
func NewMemory() *Memory { return &Memory{users: map[string]*account{}, due: map[string]time.Time{}} }

// on runs f on a user's account, and drops the account where nothing is left of it.
func (m *Memory) on(user string, f func(*account)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	a := m.users[user]
	if a == nil {
		a = newAccount()
	}
	f(a)
	if a.empty() {
		delete(m.users, user)
	} else {
		m.users[user] = a
	}
}

// Register implements Store.
func (m *Memory) Register(_ context.Context, s Session, l Limits, now time.Time) (o Outcome, err error) {
	m.on(s.User, func(a *account) {
		var ended []Ref
		m.due[s.User] = millis(now).Add(putOff)
		ended, err = a.register(s, l, millis(now))
		o = a.outcome(ended)
	})
	return o, err
}

// List implements Store.
func (m *Memory) List(_ context.Context, user string, l Limits, now time.Time) (o Outcome, err error) {
	m.on(user, func(a *account) {
		a.expire(l, millis(now))
		o = a.outcome(nil)
	})
	return o, nil
}

// End implements Store.
func (m *Memory) End(_ context.Context, user string, which Which, l Limits, now time.Time) (o Outcome, err error) {
	m.on(user, func(a *account) {
		m.due[user] = millis(now).Add(putOff)
		o = a.outcome(a.endSome(which, l, millis(now)))
	})
	return o, nil
}

// Touch implements Store.
func (m *Memory) Touch(_ context.Context, seen []Seen, l Limits, now time.Time) ([]Outcome, error) {
	outcomes := make([]Outcome, len(seen))
	for i, s := range seen {
		m.on(s.User, func(a *account) {
			a.touch(s.Ref, millis(s.At), l, millis(now))
			outcomes[i] = a.outcome(nil)
		})
	}
	return outcomes, nil
}

// Settle implements Store.
func (m *Memory) Settle(_ context.Context, user string, refs []Ref) error {
	m.on(user, func(a *account) {
		for _, r := range refs {
			delete(a.owed, r)
		}
	})
	return nil
}

// Owners implements Store.
func (m *Memory) Owners(_ context.Context, r Ref) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var users []string
	for user, a := range m.users {
		for s := range a.live {
			if s.ID == r.ID && (r.Issuer == "" || s.Issuer == r.Issuer || s.Issuer == "") {
				users = append(users, user)
				break
			}
		}
	}
	return users, nil
}

// Due implements Store.
func (m *Memory) Due(_ context.Context, now time.Time) (users []string, claim time.Time, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	claim = millis(now).Add(putOff)
	for user, due := range m.due {
		if len(users) < dueBatch && !due.After(now) {
			users = append(users, user)
			m.due[user] = claim
		}
	}
	return users, claim, nil
}

// Defer implements Store.
func (m *Memory) Defer(_ context.Context, user string, claim, next time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch due, there := m.due[user]; {
	case !there || !due.Equal(claim):
	case next.IsZero():
		delete(m.due, user)
	default:
		m.due[user] = next
	}
	return nil
}

// millis cuts a time to the millisecond, as stores keep it.
func millis(t time.Time) time.Time { return time.UnixMilli(t.UnixMilli()) }
