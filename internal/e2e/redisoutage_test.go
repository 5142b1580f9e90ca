package e2e

import (
	"fmt"
	"net/http"
	"path/filepath"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/tollgate-proxy/tollgate/internal/stack"
)

// testRedisDownAtStart: each process starts without Redis, says what it lacks,
// does what it can, and becomes whole when Redis comes.
func testRedisDownAtStart(t *testing.T, s *system) {
	await(t, "Envoy to forget the second authz of earlier tests", func() error {
		if n := s.envoyMetric(t, "envoy_cluster_membership_healthy", `envoy_cluster_name="authz"`); n != 1 {
			return fmt.Errorf("%v are healthy", n)
		}
		return nil
	})
	redis := newRedis(t, filepath.Join(t.TempDir(), "redis"))
	s.hide(redis.password)
	addresses := freeAddresses(t, 5)
	limits := replica{grpc: addresses[0], operations: addresses[1]}
	proxy := replica{http: addresses[2], operations: addresses[3]}
	s.spawn(t, "authz-early", programs+"/authz", []string{"-config", s.config(stack.Authz)}, append(s.authzEnv(redis.url()), s.second.env()...))
	s.spawn(t, "ratelimit-early", programs+"/ratelimit", []string{"-config", s.config(stack.Ratelimit)},
		append(s.environFor("TOLLGATE_REDIS_URL="+redis.url()), limits.env()...))
	s.spawn(t, "pyproxy-early", programs+"/pyproxy", []string{"-config", s.config(stack.Pyproxy1)},
		s.environFor("TOLLGATE_REDIS_URL="+redis.url(), "TOLLGATE_HTTP_LISTEN="+proxy.http, "TOLLGATE_OPERATIONS_LISTEN="+proxy.operations))
	for name, r := range map[string]replica{"authz": s.second, "ratelimit": limits, "pyproxy": proxy} {
		await(t, name+" to live", func() error { return s.status("http://"+r.operations+"/livez", http.StatusOK) })
	}
	_, token := s.user(t, "admin")
	authz := dial(t, s.second.grpc)
	check := func(token, path string) error {
		a, err := authv3.NewAuthorizationClient(authz).Check(t.Context(), checkRequest(http.MethodGet, path, token))
		if err != nil {
			return err
		}
		if a.GetStatus().GetCode() != 0 {
			return fmt.Errorf("denied with %d: %s", a.GetDeniedResponse().GetStatus().GetCode(), a.GetDeniedResponse().GetBody())
		}
		return nil
	}

	// authz does not know what is revoked, so it is not ready and lets no token pass.
	if err := s.status("http://"+s.second.operations+"/readyz", http.StatusServiceUnavailable); err != nil {
		t.Errorf("authz: %v", err)
	}
	if got := serving(t, authz); got != grpc_health_v1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("authz says %s to health checks", got)
	}
	if err := check(token, "/orders"); err == nil || !holdsAll(err.Error(), []string{"denied with 503", "dependency_unavailable"}) {
		t.Errorf("a token was judged without Redis: %v", err)
	}
	if err := check("", "/public/x"); err != nil {
		t.Errorf("a public route: %v", err)
	}
	// ratelimit decides with buckets of its own, and says so.
	await(t, "ratelimit to be ready without Redis", func() error { return s.status("http://"+limits.operations+"/readyz", http.StatusOK) })
	user, _ := s.user(t, "free")
	limiter := rlsv3.NewRateLimitServiceClient(dial(t, limits.grpc))
	denied := 0
	for range 12 {
		a, err := limiter.ShouldRateLimit(t.Context(), rateLimitRequest("free", user, "default"))
		if err != nil {
			t.Fatal(err)
		}
		if a.GetOverallCode() == rlsv3.RateLimitResponse_OVER_LIMIT {
			denied++
		}
	}
	if denied == 0 {
		t.Error("without Redis nobody is limited")
	}
	if n := metric(t, "http://"+limits.operations+"/metrics", "tollgate_ratelimit_degraded"); n != 1 {
		t.Errorf("degraded is %v", n)
	}
	// pyproxy needs no Redis.
	await(t, "pyproxy to be ready without Redis", func() error { return s.status("http://"+proxy.operations+"/readyz", http.StatusOK) })
	s.want(t, http.StatusOK, ask{base: "http://" + proxy.http, path: languages})

	// Envoy has not sent anybody to the replica that is not ready.
	_, other := s.user(t, "admin")
	for range 10 {
		s.want(t, http.StatusOK, ask{path: "/orders", token: other})
	}

	redis.ensure(t)
	await(t, "authz to be ready", func() error { return s.status("http://"+s.second.operations+"/readyz", http.StatusOK) })
	if err := check(token, "/orders"); err != nil {
		t.Errorf("with Redis: %v", err)
	}
	await(t, "ratelimit to use Redis", func() error {
		if n := metric(t, "http://"+limits.operations+"/metrics", "tollgate_ratelimit_degraded"); n != 0 {
			return fmt.Errorf("degraded is %v", n)
		}
		return nil
	})
}

// status asks an operations page.
func (s *system) status(url string, want int) error {
	a, err := s.try(ask{base: url})
	if err != nil {
		return err
	}
	if a.status != want {
		return fmt.Errorf("%s: %d instead of %d: %s", url, a.status, want, excerpt(a.body))
	}
	return nil
}

func serving(t *testing.T, conn *grpc.ClientConn) grpc_health_v1.HealthCheckResponse_ServingStatus {
	t.Helper()
	a, err := grpc_health_v1.NewHealthClient(conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return a.GetStatus()
}

// testRedisDownMidRun: what was revoked stays revoked, limits hold on, and an empty
// Redis learns again what it has forgotten.
func testRedisDownMidRun(t *testing.T, s *system) {
	_, revoked := s.user(t, "admin")
	_, good := s.user(t, "admin")
	s.want(t, http.StatusOK, ask{path: "/orders", token: revoked})
	if err := s.api.RevokeToken(t.Context(), revoked, "end-to-end test"); err != nil {
		t.Fatal(err)
	}
	dead := func() {
		t.Helper()
		s.refused(t, http.StatusUnauthorized, "token_revoked", ask{path: "/orders", token: revoked})
	}
	dead()
	s.awaitOneLimiter(t)
	s.redis.kill(t)

	// Limits hold on, decided by this replica alone.
	within(t, limitRefill, func() error {
		_, free := s.user(t, "free")
		for i := range 11 {
			a := s.do(t, ask{path: "/orders", token: free})
			if a.status == http.StatusServiceUnavailable { // authz is past its bound already
				return nil
			}
			if want := map[bool]int{true: http.StatusOK, false: http.StatusTooManyRequests}[i < 10]; a.status != want {
				return fmt.Errorf("request %d without Redis: %d instead of %d", i+1, a.status, want)
			}
		}
		return nil
	})
	dead()
	await(t, "ratelimit to notice", func() error {
		s.do(t, ask{path: "/public/x"})
		if n := s.metric(t, stack.RatelimitOps, "tollgate_ratelimit_degraded"); n != 1 {
			return fmt.Errorf("degraded is %v", n)
		}
		return nil
	})
	within(t, 2*limitRefill, func() error {
		address := newAddress()
		for i := range 6 {
			if a := s.do(t, ask{path: "/public/x", from: address}); a.status != map[bool]int{true: 200, false: 429}[i < 5] {
				return fmt.Errorf("anonymous request %d without Redis: %d", i+1, a.status)
			}
		}
		return nil
	})
	await(t, "tollgate_redis_up to fall", func() error {
		for _, e := range []stack.Endpoint{stack.AuthzOperations, stack.RatelimitOps} {
			if n := s.metric(t, e, "tollgate_redis_up"); n != 0 {
				return fmt.Errorf("%s: %v", e, n)
			}
		}
		return nil
	})
	// Past the bound nobody knows what has been revoked since: no token passes.
	await(t, "authz to give up on tokens that it cannot judge", func() error {
		dead()
		a := s.do(t, ask{path: "/orders", token: good})
		return a.problem(http.StatusServiceUnavailable, "dependency_unavailable")
	})
	dead()
	if seen := s.want(t, http.StatusOK, ask{path: "/public/x"}).seen(t); seen.Headers.Get("X-Feature-Flags") == "" {
		t.Error("flags are gone with Redis")
	}
	if err := s.api.RevokeToken(t.Context(), good, "end-to-end test"); err == nil {
		t.Error("a revocation that nobody keeps is said to be done")
	}
	// authz stays where it is: restarting it would help nobody, and sending its
	// requests elsewhere neither.
	if err := s.status(s.URL(stack.AuthzOperations)+"/livez", http.StatusOK); err != nil {
		t.Error(err)
	}

	s.redis.ensure(t) // and it is empty
	await(t, "tokens to be judged again", func() error { return wrong(s.do(t, ask{path: "/orders", token: good}).status, http.StatusOK) })
	dead()
	await(t, "authz to tell Redis what it lost", func() error {
		if n := s.metric(t, stack.AuthzOperations, "tollgate_revocation_restored_total"); n < 1 {
			return fmt.Errorf("%v restored", n)
		}
		return nil
	})
	dead()
	await(t, "ratelimit to use Redis again", func() error {
		if n := s.metric(t, stack.RatelimitOps, "tollgate_ratelimit_degraded"); n != 0 {
			return fmt.Errorf("degraded is %v", n)
		}
		return nil
	})
	_, free := s.user(t, "free")
	s.want(t, http.StatusOK, ask{path: "/orders", token: free})
	if n := s.redis.keys(t, "tollgate:*"); n == 0 {
		t.Error("nothing is in Redis")
	}
	// A replica that starts now knows it from Redis alone.
	s.startSecondAuthz(t)
	a, err := authv3.NewAuthorizationClient(dial(t, s.second.grpc)).Check(t.Context(), checkRequest(http.MethodGet, "/orders", revoked))
	if err != nil || a.GetDeniedResponse().GetStatus().GetCode() != http.StatusUnauthorized {
		t.Errorf("a new replica: %v, %v", a, err)
	}
}

// awaitOneLimiter waits until ratelimit knows that it is alone again, and grants
// all of a limit without Redis: one that was killed is counted for a while.
func (s *system) awaitOneLimiter(t *testing.T) {
	t.Helper()
	await(t, "ratelimit to know that it is alone", func() error {
		if n := s.metric(t, stack.RatelimitOps, "tollgate_ratelimit_replicas"); n != 1 {
			return fmt.Errorf("%v replicas", n)
		}
		return nil
	})
}
