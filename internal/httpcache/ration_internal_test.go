package httpcache

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// What is in the store at once, whatever is put there and when, stays within the
// ration; and room comes back.
func TestRation(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type kept struct {
			until time.Time
			bytes int64
		}
		const most = 1000
		r, now, in := newRation(most), time.Unix(1_800_000_000, 0), []kept{}
		for range rapid.IntRange(1, 50).Draw(t, "puts") {
			now = now.Add(time.Duration(rapid.IntRange(0, 200).Draw(t, "passes")) * time.Second)
			n, ttl := rapid.Int64Range(1, 600).Draw(t, "bytes"), time.Duration(rapid.IntRange(1, 1000).Draw(t, "ttl"))*time.Second
			if r.take(n, ttl, now) {
				in = append(in, kept{now.Add(ttl), n})
			}
			var sum int64
			for _, k := range in {
				if k.until.After(now) {
					sum += k.bytes
				}
			}
			if sum > most {
				t.Fatalf("%d bytes", sum)
			}
		}
		if !r.take(most, time.Second, now.Add(20*time.Minute)) {
			t.Fatal("room does not come back")
		}
	})
}
