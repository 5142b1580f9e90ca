package httpcache

import (
	"sync"
	"time"
)

// storeOverhead is what an entry takes in a store besides its form, roughly.
const storeOverhead = 200

// storeLongest is how long an entry stays in the store: well within the time that
// purges are remembered there, or an entry could outlive the word that it is void.
const storeLongest = 7 * 24 * time.Hour

// ration bounds the bytes that one process has in the store at once. The store
// drops entries when their time is over and for no other reason, and others need
// its memory too. An entry that is stored anew counts again until the first one's
// time would have been over.
type ration struct {
	mu   sync.Mutex
	most int64
	used int64
	at   int64           // the minute of the last call
	ends map[int64]int64 // bytes by the minute in which they are gone
}

func newRation(most int64) *ration { return &ration{most: most, ends: map[int64]int64{}} }

// take asks to store n bytes for a time.
func (r *ration) take(n int64, ttl time.Duration, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if minute := now.Unix() / 60; minute != r.at {
		r.at = minute
		for end, bytes := range r.ends {
			if end < minute {
				r.used -= bytes
				delete(r.ends, end)
			}
		}
	}
	if r.used+n > r.most {
		return false
	}
	r.used += n
	r.ends[now.Add(ttl).Unix()/60] += n
	return true
}
