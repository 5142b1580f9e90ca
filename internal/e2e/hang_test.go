package e2e

import (
	"fmt"
	"net/http"
	"syscall"
	"testing"

	"github.com/tollgate-proxy/tollgate/internal/stack"
)

// testHangs: a part that is there and does not answer is worse than one that is
// gone, and must look no different to clients.
func testHangs(t *testing.T, s *system) {
	_, token := s.user(t, "admin")
	served := func() {
		t.Helper()
		await(t, "requests to be served", func() error {
			_, token := s.user(t, "free")
			a := s.do(t, ask{path: "/orders", token: token})
			if a.status != http.StatusOK || a.header.Get("RateLimit") == "" {
				return fmt.Errorf("%d, limits %q", a.status, a.header.Get("RateLimit"))
			}
			return nil
		})
	}
	t.Run("authz", func(t *testing.T) {
		base := s.secondEnvoy(t, "envoy-hangs-authz", asShipped(t, "envoy.filters.http.ext_authz"))
		s.freeze(t, s.pid(t, stack.Authz))
		for _, a := range []ask{{base: base, path: "/orders", token: token}, {base: base, path: "/orders"}, {base: base, path: "/public/x"}} {
			s.refused(t, http.StatusServiceUnavailable, "dependency_unavailable", a)
		}
	})
	served()
	t.Run("ratelimit", func(t *testing.T) {
		base := s.secondEnvoy(t, "envoy-hangs-ratelimit", asShipped(t, "envoy.filters.http.ratelimit"))
		s.freeze(t, s.pid(t, stack.Ratelimit))
		for range 3 {
			s.want(t, http.StatusOK, ask{base: base, path: "/orders", token: token})
		}
	})
	served()
	t.Run("pyproxy", func(t *testing.T) {
		s.freeze(t, s.pid(t, stack.Pyproxy1))
		await(t, "Envoy to notice", func() error {
			if n := s.envoyMetric(t, "envoy_cluster_membership_healthy", `envoy_cluster_name="pyproxy"`); n != 1 {
				return fmt.Errorf("%v are healthy", n)
			}
			return nil
		})
		for range 10 {
			s.want(t, http.StatusOK, ask{path: "/api/v1/data/e2e/ok", token: token})
		}
	})
	served()
	t.Run("redis", func(t *testing.T) {
		s.awaitOneLimiter(t)
		s.freeze(t, s.redis.pid())
		within(t, 2*limitRefill, func() error { // decided by each process for itself
			address := newAddress()
			for i := range 6 {
				a := s.do(t, ask{path: "/public/x", from: address})
				if want := map[bool]int{true: http.StatusOK, false: http.StatusTooManyRequests}[i < 5]; a.status != want {
					return fmt.Errorf("anonymous request %d: %d instead of %d", i+1, a.status, want)
				}
			}
			return nil
		})
		if a := s.do(t, ask{path: "/orders", token: token}); a.status != http.StatusOK && a.problem(http.StatusServiceUnavailable, "dependency_unavailable") != nil {
			t.Errorf("%d: %s", a.status, excerpt(a.body))
		}
	})
	served()
	await(t, "ratelimit to use Redis again", func() error {
		if n := s.metric(t, stack.RatelimitOps, "tollgate_ratelimit_degraded"); n != 0 {
			return fmt.Errorf("degraded is %v", n)
		}
		return nil
	})
}

// freeze stops a process until the test ends.
func (s *system) freeze(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Error(err)
		}
	})
}
