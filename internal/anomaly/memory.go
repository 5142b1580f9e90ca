package anomaly

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"
)

// Memory is a store in memory: for tests, and for a single process that keeps nothing.
type Memory struct {
	mu     sync.Mutex
	facts  map[string]map[factKey]Fact
	events map[string][]Event // newest first
}

type factKey struct {
	kind  Kind
	value string
}

// NewMemory returns an empty store.
func NewMemory() *Memory {
	return &Memory{facts: map[string]map[factKey]Fact{}, events: map[string][]Event{}}
}

// Record implements Store.
func (m *Memory) Record(_ context.Context, user string, facts []Fact, keep time.Duration) (History, error) {
	if len(facts) == 0 {
		return History{}, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := millis(facts[0].Last)
	known := m.facts[user]
	if known == nil {
		known = map[factKey]Fact{}
		m.facts[user] = known
	}
	for k, f := range known {
		if f.Last.Before(now.Add(-keep)) {
			delete(known, k)
		}
	}
	before := sorted(known)
	for _, f := range facts {
		record(known, f, now)
	}
	return History{Facts: before}, nil
}

// record adds one fact. The Redis store's script says the same in Lua; one suite and a property test hold the two
// together.
func record(known map[factKey]Fact, f Fact, now time.Time) {
	k := factKey{f.Kind, f.Value}
	old, there := known[k]
	if !there {
		known[k] = Fact{Kind: f.Kind, Value: f.Value, First: now, Last: now, Count: 1}
		trim(known, k)
		return
	}
	if f.Kind == KindHour && old.Last.Before(now.Truncate(time.Hour)) {
		old.Count++
	}
	if now.Before(old.First) {
		old.First = now
	}
	if now.After(old.Last) {
		old.Last = now
	}
	known[k] = old
	if old.Count <= maxCount {
		return
	}
	for k, f := range known {
		if k.kind == KindHour {
			if f.Count /= 2; f.Count == 0 {
				delete(known, k)
				continue
			}
			known[k] = f
		}
	}
}

// trim makes room for a new fact.
func trim(known map[factKey]Fact, added factKey) {
	for {
		n := 0
		var oldest *Fact
		for k, f := range known {
			if k.kind != added.kind {
				continue
			}
			n++
			if k != added && (oldest == nil || cmp.Or(f.Last.Compare(oldest.Last), cmp.Compare(f.Value, oldest.Value)) < 0) {
				oldest = &f
			}
		}
		if n <= added.kind.most() {
			return
		}
		delete(known, factKey{oldest.Kind, oldest.Value})
	}
}

func sorted(known map[factKey]Fact) []Fact {
	facts := make([]Fact, 0, len(known))
	for _, f := range known {
		facts = append(facts, f)
	}
	sortFacts(facts)
	return facts
}

func sortFacts(facts []Fact) {
	slices.SortFunc(facts, func(a, b Fact) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Value, b.Value))
	})
}

// Amend implements Store.
func (m *Memory) Amend(_ context.Context, user string, a Amendment) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	known, at := m.facts[user], millis(a.At)
	for _, f := range a.Withdraw {
		k := factKey{f.Kind, f.Value}
		if old, there := known[k]; there && old.First.Equal(at) && old.Last.Equal(at) {
			delete(known, k)
		}
	}
	for _, f := range a.Vouch {
		k := factKey{f.Kind, f.Value}
		if old, there := known[k]; there && old.First.After(millis(a.Since)) {
			old.First = millis(a.Since)
			known[k] = old
		}
	}
	return nil
}

// Append implements Store.
func (m *Memory) Append(_ context.Context, user string, e Event, within, keep time.Duration) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e.At = millis(e.At)
	events := m.events[user]
	for _, old := range events[:min(recentEvents, len(events))] {
		if old.key == e.key && e.At.Sub(old.At) < within {
			return false, nil
		}
	}
	events = slices.Insert(events, 0, e)
	events = events[:min(maxEvents, len(events))]
	for len(events) > 1 && events[len(events)-1].At.Before(e.At.Add(-keep)) {
		events = events[:len(events)-1]
	}
	m.events[user] = events
	return true, nil
}

// History implements Store.
func (m *Memory) History(_ context.Context, user string, since time.Time) (History, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return History{Facts: slices.DeleteFunc(sorted(m.facts[user]), func(f Fact) bool { return f.Last.Before(millis(since)) })}, nil
}

// Events implements Store.
func (m *Memory) Events(_ context.Context, user string, since time.Time) ([]Event, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(m.events[user]), func(e Event) bool { return e.At.Before(millis(since)) }), nil
}

// Erase implements Store.
func (m *Memory) Erase(_ context.Context, user string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.facts, user)
	delete(m.events, user)
	return nil
}
