package session

import (
	"cmp"
	"slices"
	"time"
)

// account is one user's sessions, and the rules that they follow, as plain data without a clock or a store. The Redis
// store's script says the same in Lua; one suite and one model hold the two together.
type account struct {
	live map[Ref]Session
	// tombs says when an ended session may be forgotten. One of a known issuer has a second, under someIssuer.
	tombs map[Ref]time.Time
	owed  map[Ref]bool
}

// someIssuer stands in a tombstone for the issuers that an id has ended with. No issuer has a control character.
const someIssuer = "\x01"

func newAccount() *account {
	return &account{live: map[Ref]Session{}, tombs: map[Ref]time.Time{}, owed: map[Ref]bool{}}
}

// expire ends what is idle or too old, and forgets tombstones whose time is over unless a kill is still owed.
func (a *account) expire(l Limits, now time.Time) {
	for r, s := range a.live {
		if !now.Before(s.LastSeen.Add(l.Idle)) || !now.Before(s.Created.Add(l.Absolute)) {
			a.end(r, l, now)
		}
	}
	for r, until := range a.tombs {
		if !now.Before(until) && !a.owed[r] {
			delete(a.tombs, r)
		}
	}
}

// end turns a session into a tombstone that is owed a kill.
func (a *account) end(r Ref, l Limits, now time.Time) {
	delete(a.live, r)
	a.tombs[r] = now.Add(l.Tombstone)
	if r.Issuer != "" {
		a.tombs[Ref{someIssuer, r.ID}] = now.Add(l.Tombstone)
	}
	a.owed[r] = true
}

// dead says whether the session has ended: as what it is, of an unknown issuer, or where its own is unknown of any.
func (a *account) dead(r Ref) bool {
	_, own := a.tombs[r]
	_, unknown := a.tombs[Ref{ID: r.ID}]
	_, some := a.tombs[Ref{someIssuer, r.ID}]
	return own || unknown || some && r.Issuer == ""
}

// meet returns the session that r means: a live one of an unknown issuer takes the issuer of r, and where r names none
// it is the oldest live one of that id.
func (a *account) meet(r Ref) Ref {
	if _, there := a.live[r]; there {
		return r
	}
	if r.Issuer == "" {
		for _, s := range a.oldestFirst() {
			if s.ID == r.ID {
				return s.Ref
			}
		}
		return r
	}
	unknown := Ref{ID: r.ID}
	if s, there := a.live[unknown]; there && !a.dead(r) {
		delete(a.live, unknown)
		s.Issuer = r.Issuer
		a.live[r] = s
	}
	return r
}

// oldestFirst lists the sessions by creation, then issuer and id.
func (a *account) oldestFirst() []Session {
	list := make([]Session, 0, len(a.live))
	for _, s := range a.live {
		list = append(list, s)
	}
	slices.SortFunc(list, func(x, y Session) int {
		return cmp.Or(x.Created.Compare(y.Created), cmp.Compare(x.member(), y.member()))
	})
	return list
}

// register is the decision about a new or known session.
func (a *account) register(s Session, l Limits, now time.Time) (ended []Ref, err error) {
	a.expire(l, now)
	s.Ref = a.meet(s.Ref)
	known, there := a.live[s.Ref]
	if !there && a.dead(s.Ref) {
		return nil, ErrEnded
	}
	inferred := s.Inferred
	s.Created, s.LastSeen, s.Inferred = now, now, false
	if there {
		if inferred {
			s = known
			s.LastSeen = now
		}
		s.Created = known.Created
		if known.LastSeen.After(now) {
			s.LastSeen = known.LastSeen
		}
		a.live[s.Ref] = s
		return nil, nil
	}
	if len(a.live) >= l.Max && l.Policy == RefuseNew {
		return nil, ErrTooMany
	}
	for _, old := range a.oldestFirst() {
		if len(a.live) < l.Max {
			break
		}
		a.end(old.Ref, l, now)
		ended = append(ended, old.Ref)
	}
	a.live[s.Ref] = s
	return ended, nil
}

func (a *account) endSome(which Which, l Limits, now time.Time) (ended []Ref) {
	a.expire(l, now)
	only := Ref{which.Issuer, which.Only}
	if which.Only != "" && which.Issuer != "" {
		a.meet(only)
	}
	for _, s := range a.oldestFirst() {
		if which.covers(s.Ref) {
			a.end(s.Ref, l, now)
			ended = append(ended, s.Ref)
		}
	}
	if which.Only != "" && !a.dead(only) {
		a.end(only, l, now)
	}
	return ended
}

func (a *account) touch(r Ref, at time.Time, l Limits, now time.Time) {
	a.expire(l, now)
	if s, there := a.live[r]; there && at.After(s.LastSeen) {
		s.LastSeen = at
		a.live[r] = s
	}
}

func (a *account) outcome(ended []Ref) Outcome {
	owed := make([]Ref, 0, len(a.owed))
	for r := range a.owed {
		owed = append(owed, r)
	}
	return Outcome{Sessions: a.oldestFirst(), Ended: ended, Owed: owed}
}

func (a *account) empty() bool { return len(a.live)+len(a.tombs)+len(a.owed) == 0 }
