package resilience_test

import (
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/resilience"
)

func TestHalfOpenAdmitsAFewProbes(t *testing.T) {
	f := halfOpened(t)
	a, b, c := f.acquire(), f.acquire(), f.acquire()
	f.refused(30 * time.Second)
	a.Done(resilience.Success, 0)
	f.refused(30 * time.Second) // a success keeps its place: three are enough to decide
	b.Done(resilience.Success, 0)
	c.Done(resilience.Success, 0)
	f.want(resilience.Closed)
}

func TestAFailedProbeOpens(t *testing.T) {
	f := halfOpened(t)
	f.calls(2, resilience.Success)
	f.calls(1, resilience.Failure)
	f.refused(time.Minute)
}

func TestAnIgnoredProbeGivesItsPlaceBack(t *testing.T) {
	f := halfOpened(t)
	f.calls(50, resilience.Ignored)
	f.want(resilience.HalfOpen)
	f.calls(3, resilience.Success)
	f.want(resilience.Closed)
}

func TestALostProbeTimesOut(t *testing.T) {
	f := halfOpened(t)
	lost := f.acquire()
	f.acquire()
	f.acquire()
	f.Advance(30 * time.Second)
	f.calls(2, resilience.Success)
	lost.Done(resilience.Failure, 0) // too late to count
	f.want(resilience.HalfOpen)
	f.calls(1, resilience.Success)
	f.want(resilience.Closed)
}

func TestHealthChecksCloseWithoutTraffic(t *testing.T) {
	f := halfOpened(t)
	f.b.Health(true)
	f.b.Health(true)
	f.want(resilience.HalfOpen)
	f.b.Health(true)
	f.want(resilience.Closed)
}

func TestAFailedHealthCheckOpensAgain(t *testing.T) {
	f := halfOpened(t)
	f.b.Health(false)
	f.want(resilience.Open)
	f.b.Health(true)
	f.want(resilience.HalfOpen)
}

func TestHealthAndCallsDecideTogether(t *testing.T) {
	f := halfOpened(t)
	f.b.Health(true)
	f.calls(2, resilience.Success)
	f.want(resilience.Closed)
}
