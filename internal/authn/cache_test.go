package authn

import (
	"fmt"
	"hash/maphash"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

func someone(name string) verified { return verified{principal: &Principal{Subject: name}} }

// The cache never answers for another token, and never holds more than its
// bound.
func TestCacheModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := newCache(rapid.Int64Range(1, 20_000).Draw(t, "limit"))
		token := rapid.Custom(func(t *rapid.T) string {
			return strings.Repeat(rapid.StringMatching(`[a-c]{1,3}`).Draw(t, "token"), rapid.IntRange(1, 40).Draw(t, "times"))
		})
		for range 60 {
			name := token.Draw(t, "token")
			if rapid.Bool().Draw(t, "put") {
				c.put(name, someone(name))
			}
			if e := c.get(name); e != nil && (e.token != name || e.verified.principal.Subject != name) {
				t.Fatalf("asked for %q, got %q", name, e.token)
			}
			var bytes, count int64
			for i := range c.slots {
				if e := c.slots[i].Load(); e != nil {
					bytes += e.size
					count++
				}
			}
			if bytes != c.bytes.Load() || count != c.count.Load() || bytes > c.limit {
				t.Fatalf("%d bytes in %d entries, counted %d in %d, bound %d", bytes, count, c.bytes.Load(), c.count.Load(), c.limit)
			}
		}
	})
}

func TestCacheKeepsWhatIsUsed(t *testing.T) {
	c := newCache(64 << 10)
	c.put("used", someone("used"))
	lost := 0
	for i := range 10_000 {
		if c.get("used") == nil {
			lost++
			c.put("used", someone("used"))
		}
		name := fmt.Sprint(i)
		c.put(name, someone(name))
		if e := c.get(name); e != nil && e.verified.principal.Subject != name {
			t.Fatalf("asked for %s, got %s", name, e.verified.principal.Subject)
		}
	}
	if n := c.count.Load(); n < 40 || lost > 1500 {
		t.Errorf("%d entries, and an entry in use was lost %d times of 10000", n, lost)
	}
}

// Two tokens of one hash are two tokens.
func TestCacheComparesAll(t *testing.T) {
	c := newCache(64 << 10)
	c.put("mine", someone("me"))
	e := c.get("mine")
	forged := &entry{hash: maphash.String(c.seed, "yours"), token: "mine", verified: e.verified}
	c.group(forged.hash)[0].Store(forged)
	if c.get("yours") != nil {
		t.Error("a token of the same hash is taken for another")
	}
}

func TestCacheReplacesTheSameToken(t *testing.T) {
	c := newCache(64 << 10)
	c.put("a", someone("1"))
	c.put("a", someone("2"))
	if e := c.get("a"); c.count.Load() != 1 || e.verified.principal.Subject != "2" {
		t.Errorf("%d entries, %+v", c.count.Load(), e)
	}
}

func TestCacheInParallel(t *testing.T) {
	c := newCache(32 << 10)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 5000 {
				name := fmt.Sprint(i % 200)
				if e := c.get(name); e != nil && e.verified.principal.Subject != name {
					t.Errorf("asked for %s, got %s", name, e.verified.principal.Subject)
				}
				c.put(name, someone(name))
			}
		})
	}
	wg.Wait()
	var bytes int64
	for i := range c.slots {
		if e := c.slots[i].Load(); e != nil {
			bytes += e.size
		}
	}
	if bytes != c.bytes.Load() {
		t.Errorf("%d bytes held, %d counted", bytes, c.bytes.Load())
	}
}

func TestNoCache(t *testing.T) {
	if newCache(0) != nil {
		t.Error("a cache of no bytes")
	}
}
