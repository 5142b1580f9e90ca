package logtest_test

import (
	"strings"
	"sync"
	"testing"

	"github.com/tollgate-proxy/tollgate/internal/logtest"
)

// Run with -race: records of many goroutines arrive whole, while others read.
func TestBuffer(t *testing.T) {
	var b logtest.Buffer
	log := b.Logger()
	if b.String() != "" {
		t.Errorf("the zero value holds %q", b.String())
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				log.Info("went through", "key", "value")
				_ = b.Count("went")
			}
		})
	}
	wg.Wait()
	log.Debug("not told")
	if n := b.Count(`msg="went through" key=value` + "\n"); n != 400 || strings.Count(b.String(), "\n") != n {
		t.Errorf("%d whole records of 400 in:\n%s", n, b.String())
	}
}
