// Package polltest waits for what comes to be at some time, so that no test
// asserts how long a thing takes.
package polltest

import (
	"testing"
	"time"
)

// Patience is how long Until waits on: longer than anything takes on a machine
// that is busy.
const Patience = time.Minute

// every is how often Until asks.
const every = 2 * time.Millisecond

// Until asks until the condition holds, and ends the test where it does not
// within Patience; what names the condition. It is to be called from the test's
// own goroutine, as t.Fatal is.
func Until(t testing.TB, what string, holds func() bool) {
	t.Helper()
	until(t, Patience, what, holds)
}

func until(t testing.TB, patience time.Duration, what string, holds func() bool) {
	t.Helper()
	end := time.After(patience)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for !holds() {
		select {
		case <-end:
			t.Fatalf("not so within %s: %s", patience, what)
		case <-tick.C:
		}
	}
}
