package session

import (
	"cmp"
	"slices"
	"time"
)

// account is one user's sessions, and the rules that they follow, as plain data without a clock or a store. The Redis
// store's script says the same in Lua; one suite and one model hold the two together.
type account struct {
	live  map[string]Session
	tombs map[string]time.Time // when an ended session may be forgotten
	owed  map[string]bool
}

func newAccount() *account {
	return &account{live: map[string]Session{}, tombs: map[string]time.Time{}, owed: map[string]bool{}}
}

// expire ends what is idle or too old, and forgets tombstones whose time is over unless a kill is still owed.
func (a *account) expire(l Limits, now time.Time) {
	for id, s := range a.live {
		if !now.Before(s.LastSeen.Add(l.Idle)) || !now.Before(s.Created.Add(l.Absolute)) {
			a.end(id, l, now)
		}
	}
	for id, until := range a.tombs {
		if !now.Before(until) && !a.owed[id] {
			delete(a.tombs, id)
		}
	}
}

// end turns a session into a tombstone that is owed a kill.
func (a *account) end(id string, l Limits, now time.Time) {
	delete(a.live, id)
	a.tombs[id] = now.Add(l.Tombstone)
	a.owed[id] = true
}

// oldestFirst lists the sessions by creation, then id.
func (a *account) oldestFirst() []Session {
	list := make([]Session, 0, len(a.live))
	for _, s := range a.live {
		list = append(list, s)
	}
	slices.SortFunc(list, func(x, y Session) int {
		return cmp.Or(x.Created.Compare(y.Created), cmp.Compare(x.ID, y.ID))
	})
	return list
}

// register is the decision about a new or known session.
func (a *account) register(s Session, l Limits, now time.Time) (ended []string, err error) {
	a.expire(l, now)
	if _, dead := a.tombs[s.ID]; dead {
		return nil, ErrEnded
	}
	inferred := s.Inferred
	s.Created, s.LastSeen, s.Inferred = now, now, false
	if known, there := a.live[s.ID]; there {
		if inferred {
			s = known
			s.LastSeen = now
		}
		s.Created = known.Created
		if known.LastSeen.After(now) {
			s.LastSeen = known.LastSeen
		}
		a.live[s.ID] = s
		return nil, nil
	}
	if len(a.live) >= l.Max && l.Policy == RefuseNew {
		return nil, ErrTooMany
	}
	for _, old := range a.oldestFirst() {
		if len(a.live) < l.Max {
			break
		}
		a.end(old.ID, l, now)
		ended = append(ended, old.ID)
	}
	a.live[s.ID] = s
	return ended, nil
}

func (a *account) endSome(which Which, l Limits, now time.Time) (ended []string) {
	a.expire(l, now)
	for _, s := range a.oldestFirst() {
		if which.covers(s.ID) {
			a.end(s.ID, l, now)
			ended = append(ended, s.ID)
		}
	}
	if _, dead := a.tombs[which.Only]; which.Only != "" && !dead {
		a.end(which.Only, l, now)
	}
	return ended
}

func (a *account) touch(id string, at time.Time, l Limits, now time.Time) {
	a.expire(l, now)
	if s, there := a.live[id]; there && at.After(s.LastSeen) {
		s.LastSeen = at
		a.live[id] = s
	}
}

func (a *account) outcome(ended []string) Outcome {
	owed := make([]string, 0, len(a.owed))
	for id := range a.owed {
		owed = append(owed, id)
	}
	return Outcome{Sessions: a.oldestFirst(), Ended: ended, Owed: owed}
}

func (a *account) empty() bool { return len(a.live)+len(a.tombs)+len(a.owed) == 0 }
