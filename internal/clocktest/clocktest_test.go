package clocktest_test

import (
	"sync"
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/clocktest"
)

// Run with -race: no move is lost.
func TestClock(t *testing.T) {
	start := time.Unix(1_800_000_000, 0)
	c := clocktest.New(start)
	for range 2 {
		if got := c.Now(); !got.Equal(start) {
			t.Errorf("%s: the clock moves by itself", got)
		}
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				c.Advance(time.Second)
				_ = c.Now()
			}
		})
	}
	wg.Wait()
	c.Advance(-time.Minute)
	if got := c.Now().Sub(start); got != 340*time.Second {
		t.Errorf("moved by %s", got)
	}
}
