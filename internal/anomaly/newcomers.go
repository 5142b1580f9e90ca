package anomaly

import (
	"sync"
	"time"
)

// newcomers counts how many combinations of address, agent and device tokens show for the first time. Somebody who makes
// up an agent for every request would otherwise keep the judges busy, and Redis behind them, and push out what is known
// of others: past the limit the rest of a token's combinations is judged as one. Safe for concurrent use.
type newcomers struct {
	shards [newcomerShards]newcomerShard
}

const (
	newcomerShards = 16
	// newcomersAMinute is how many of a token have an assessment of their own.
	newcomersAMinute = 32
)

type newcomerShard struct {
	mu     sync.Mutex
	minute int64 // Unix minute that is counted
	counts map[[16]byte]int
}

// admit counts one, and says whether it is within the limit. Without a token there is none.
func (n *newcomers) admit(token [16]byte, at time.Time) bool {
	if token == [16]byte{} {
		return true
	}
	s := &n.shards[token[0]%newcomerShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	// A request of the minute before was overtaken by another, and counts on; an earlier one tells of a clock that was wrong.
	if minute := at.Unix() / 60; minute > s.minute || minute < s.minute-1 || s.counts == nil {
		s.minute, s.counts = minute, map[[16]byte]int{}
	}
	s.counts[token]++
	return s.counts[token] <= newcomersAMinute
}
