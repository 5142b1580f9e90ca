package resilience_test

import (
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/resilience"
)

func TestOpenRefusesUntilItsTimeIsOver(t *testing.T) {
	f := opened(t)
	f.refused(time.Minute)
	f.Advance(59*time.Second + 500*time.Millisecond)
	f.refused(time.Second) // half a second, never told as less than one
	f.Advance(500 * time.Millisecond)
	f.acquire()
}

func TestOpenIsTrueWithoutTraffic(t *testing.T) {
	f := opened(t)
	f.Advance(time.Hour)
	f.want(resilience.HalfOpen) // nobody called in between
}

func TestRecoveredHealthEndsOpenEarly(t *testing.T) {
	f := opened(t)
	f.b.Health(true) // the health page worked all along and proves nothing
	f.want(resilience.Open)
	f.b.Health(false)
	f.want(resilience.Open)
	f.b.Health(true)
	f.want(resilience.HalfOpen)
}

func TestHealthThatFailedBeforeTheBreakerOpenedCounts(t *testing.T) {
	f := newFixture(t, nil)
	f.b.Health(false)
	f.calls(20, resilience.Failure)
	f.want(resilience.Open)
	f.b.Health(true)
	f.want(resilience.HalfOpen)
}
