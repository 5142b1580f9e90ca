package e2e

import (
	"fmt"
	"net/http"
	"syscall"
	"testing"

	"github.com/tollgate-proxy/tollgate/internal/stack"
)

// testDrain: a process that is told to end finishes what it has, is sent nothing
// new, and ends with 0.
func testDrain(t *testing.T, s *system) {
	terminate := func(part string) {
		t.Helper()
		if err := s.StopPart(part); err != nil {
			t.Error(err)
		}
		if err := s.ExitOf(part); err != nil {
			t.Errorf("%s ended with %v", part, err)
		}
	}
	t.Run("pyproxy", func(t *testing.T) {
		lost := s.under(t, ask{path: languages, header: fresh()}, func() { terminate(stack.Pyproxy1) })
		if lost > 0 {
			t.Errorf("%d requests were lost", lost)
		}
		lost = s.under(t, ask{path: languages, header: fresh()}, func() { s.start(t, stack.Pyproxy1) })
		if lost > 0 {
			t.Errorf("%d requests were lost by the return", lost)
		}
	})
	t.Run("a request on its way", func(t *testing.T) {
		s.fault(t, "data", `{"delay_ms":6000,"requests":1}`) // beyond the drain delay
		answered := make(chan error, 1)
		go func() {
			a, err := s.try(ask{
				base: s.URL(stack.Pyproxy2HTTP), path: "/api/v1/data/aggregate",
				body: `{"interval_ms":60000,"trades":[{"symbol":"A","timestamp_ms":0,"price":1.0,"quantity":1.0}]}`,
			})
			if err == nil {
				err = wrong(a.status, http.StatusOK)
			}
			answered <- err
		}()
		await(t, "the request to be on its way", func() error {
			if n := s.metric(t, stack.Pyproxy2Ops, "tollgate_pyproxy_requests_in_flight"); n < 1 {
				return fmt.Errorf("%v in flight", n)
			}
			return nil
		})
		terminate(stack.Pyproxy2)
		if err := <-answered; err != nil {
			t.Error(err)
		}
		s.start(t, stack.Pyproxy2)
	})
	t.Run("authz", func(t *testing.T) {
		second := s.startSecondAuthz(t)
		lost := s.under(t, ask{path: "/orders"}, func() {
			if err := second.Signal(syscall.SIGTERM); err != nil {
				t.Error(err)
			}
			<-second.Done()
		})
		if err := second.Err(); err != nil {
			t.Errorf("authz ended with %v", err)
		}
		if lost > 0 {
			t.Errorf("%d requests were lost", lost)
		}
		// And the first, while another second one serves.
		s.startSecondAuthz(t)
		if lost := s.under(t, ask{path: "/orders"}, func() { terminate(stack.Authz) }); lost > 0 {
			t.Errorf("%d requests were lost", lost)
		}
		s.start(t, stack.Authz)
		s.awaitBothAuthz(t) // before the second one goes
	})
	t.Run("ratelimit", func(t *testing.T) {
		lost := s.under(t, ask{path: "/orders"}, func() { terminate(stack.Ratelimit) })
		if lost > 0 { // there is no other replica, and requests pass without one
			t.Errorf("%d requests were lost", lost)
		}
		s.start(t, stack.Ratelimit)
	})
}
