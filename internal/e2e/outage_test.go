package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/stack"
	"github.com/tollgate-proxy/tollgate/internal/supervisor"
)

// testBackendDown: no backend is an error in our form, and the backend is served
// once it is back.
func testBackendDown(t *testing.T, s *system) {
	_, token := s.user(t, "admin")
	s.kill(t, stack.Echo)
	for range 5 {
		a := s.do(t, ask{path: "/orders", token: token})
		if a.status != http.StatusServiceUnavailable && a.status != http.StatusBadGateway {
			t.Errorf("status %d", a.status)
		}
		if err := a.problem(a.status, ""); err != nil {
			t.Errorf("%v: %s", err, excerpt(a.body))
		}
	}
	s.refused(t, http.StatusUnauthorized, "token_missing", ask{path: "/orders"}) // decided first
	s.want(t, http.StatusOK, ask{path: languages, token: token})
	s.start(t, stack.Echo)
	await(t, "the backend to be served again", func() error {
		return wrong(s.do(t, ask{path: "/orders", token: token}).status, http.StatusOK)
	})

	t.Run("python service", func(t *testing.T) {
		s.kill(t, "fraud")
		a := s.do(t, ask{path: "/api/v1/fraud/assess", token: token, body: "{}"})
		if a.status != http.StatusBadGateway && a.status != http.StatusServiceUnavailable {
			t.Errorf("status %d", a.status)
		}
		if err := a.problem(a.status, ""); err != nil {
			t.Errorf("%v: %s", err, excerpt(a.body))
		}
		s.start(t, "fraud")
		await(t, "the service to be served again", func() error {
			return wrong(s.do(t, ask{path: "/api/v1/fraud/assess", token: token, body: "{}"}).status, http.StatusUnprocessableEntity)
		})
	})
	t.Run("one pyproxy", func(t *testing.T) {
		// Nobody knows how far the requests came that the killed one was working on: one of each client, and perhaps
		// its next one, on a connection whose end Envoy has not seen yet.
		if lost := s.under(t, ask{path: languages, header: fresh()}, func() { s.kill(t, stack.Pyproxy1) }); lost > 2*clients {
			t.Errorf("%d requests were lost", lost)
		}
	})
	t.Run("both pyproxy", func(t *testing.T) {
		s.kill(t, stack.Pyproxy1)
		s.kill(t, stack.Pyproxy2)
		s.refused(t, http.StatusServiceUnavailable, "dependency_unavailable", ask{path: languages, token: token})
		s.want(t, http.StatusOK, ask{path: "/orders", token: token})
		s.start(t, stack.Pyproxy1)
		await(t, "one pyproxy to be found", func() error {
			return wrong(s.do(t, ask{path: languages, token: token}).status, http.StatusOK)
		})
	})
}

// testAuthzDown: without a decision nobody passes.
func testAuthzDown(t *testing.T, s *system) {
	_, token := s.user(t, "admin")
	t.Run("all", func(t *testing.T) {
		lost := s.under(t, ask{path: "/orders"}, func() {
			s.kill(t, stack.Authz)
			for range 20 {
				for _, a := range []ask{
					{path: "/orders", token: token}, {path: "/orders"}, {path: "/public/x"}, {path: languages, token: token},
					{path: "/orders", token: token, http2: true}, {path: "/orders", header: http.Header{"X-User-Id": {"mallory"}}},
				} {
					s.refused(t, http.StatusServiceUnavailable, "dependency_unavailable", a)
				}
			}
		})
		if lost == 0 {
			t.Error("nothing was refused while authz was down")
		}
		s.start(t, stack.Authz)
		await(t, "decisions to be back", func() error { return wrong(s.do(t, ask{path: "/orders", token: token}).status, http.StatusOK) })
		if n := s.envoyMetric(t, "envoy_cluster_ext_authz_authz_failure_mode_allowed"); n != 0 {
			t.Errorf("%v requests passed unasked", n)
		}
	})
	t.Run("one of two", func(t *testing.T) {
		second := s.startSecondAuthz(t)
		lost := s.under(t, ask{path: "/orders"}, func() { s.kill(t, stack.Authz) })
		if lost > 0 {
			t.Errorf("%d requests were lost", lost)
		}
		s.start(t, stack.Authz)
		s.awaitBothAuthz(t)
		lost = s.under(t, ask{path: "/orders"}, func() {
			if err := second.Kill(); err != nil {
				t.Error(err)
			}
		})
		if lost > 0 {
			t.Errorf("%d requests were lost", lost)
		}
	})
}

// startSecondAuthz starts another replica and waits until Envoy uses both.
func (s *system) startSecondAuthz(t *testing.T) *supervisor.Process {
	t.Helper()
	env := append(s.authzEnv(s.redis.url()), s.second.env()...)
	p := s.spawn(t, "authz-2", programs+"/authz", []string{"-config", s.config(stack.Authz)}, env)
	await(t, "the second authz", func() error { return s.status("http://"+s.second.operations+"/readyz", http.StatusOK) })
	s.awaitBothAuthz(t)
	return p
}

// awaitBothAuthz waits until Envoy uses both replicas.
func (s *system) awaitBothAuthz(t *testing.T) {
	t.Helper()
	operations := []string{s.URL(stack.AuthzOperations), "http://" + s.second.operations}
	decided := func(url string) float64 { return metric(t, url+"/metrics", "tollgate_authz_decisions_total") }
	var before []float64
	for _, url := range operations {
		before = append(before, decided(url))
	}
	await(t, "Envoy to use both authz", func() error {
		_, token := s.user(t, "admin") // another one each time: nobody spends a minute's limit
		for range 10 {
			s.want(t, http.StatusOK, ask{path: "/orders", token: token})
		}
		for i, url := range operations {
			if decided(url) < before[i]+5 {
				return fmt.Errorf("%s has decided %v requests", url, decided(url)-before[i])
			}
		}
		return nil
	})
}

// authzEnv is the environment of an authz beside the stack's.
func (s *system) authzEnv(redis string) []string {
	return append(environ(),
		"TOLLGATE_REDIS_URL="+redis, "TOLLGATE_MODE=development", "TOLLGATE_DEVELOPMENT_KEY_FILE="+s.KeyFile(),
		"TOLLGATE_SHUTDOWN_DRAIN_DELAY="+drainDelay,
	)
}

// under runs so many clients at once, which together send a request each pace at
// most.
const (
	clients = 4
	pace    = 2 * time.Millisecond
)

// under keeps sending a request from several clients while something happens, and
// counts those that were not answered with 200.
func (s *system) under(t *testing.T, a ask, happens func()) (lost int) {
	t.Helper()
	const before, after = 20, 40
	// A fast machine spends an admin's 5000 a minute within seconds, so the requests are those of users in turn, whose
	// limits nothing else has used and who have them back when it is their turn again.
	const turn = 1000 // requests
	tokens := make([]string, 40)
	for i := range tokens {
		_, tokens[i] = s.user(t, "admin")
	}
	stop := make(chan struct{})
	tick := time.NewTicker(pace)
	defer tick.Stop()
	var mu sync.Mutex
	var begun, sent int
	var failures []string
	var running sync.WaitGroup
	for range clients {
		running.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-tick.C:
				}
				mu.Lock()
				a := a
				a.token = tokens[begun/turn%len(tokens)]
				begun++
				mu.Unlock()
				got, err := s.try(a)
				mu.Lock()
				sent++
				if err != nil || got.status != http.StatusOK {
					lost++
					failures = append(failures, fmt.Sprintf("%d %v %s", got.status, err, excerpt(got.body)))
				}
				mu.Unlock()
			}
		})
	}
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return sent
	}
	awaitSent := func(n int) {
		await(t, "requests to be sent", func() error {
			if count() < n {
				return fmt.Errorf("%d sent", count())
			}
			return nil
		})
	}
	awaitSent(before)
	happens()
	awaitSent(count() + after)
	close(stop)
	running.Wait()
	if lost > 0 {
		t.Logf("%d of %d failed, such as %s", lost, sent, failures[0])
	}
	return lost
}

// testRatelimitDown: requests pass, because authz let them; or they do not, where
// Envoy is told so.
func testRatelimitDown(t *testing.T, s *system) {
	_, token := s.user(t, "free")
	strict := s.secondEnvoy(t, "envoy-strict", func(manager map[string]any) {
		filter(t, manager, "envoy.filters.http.ratelimit")["failure_mode_deny"] = true
	})
	allowed := func() float64 { return s.envoyMetric(t, "envoy_cluster_ratelimit_ratelimit_failure_mode_allowed") }
	before := allowed()
	s.kill(t, stack.Ratelimit)
	for range 15 { // more than a free user has
		a := s.want(t, http.StatusOK, ask{path: "/orders", token: token})
		if a.header.Get("RateLimit") != "" {
			t.Error("limits are told that nobody decided")
		}
	}
	s.refused(t, http.StatusUnauthorized, "token_missing", ask{path: "/orders"})
	if allowed() <= before {
		t.Error("Envoy counted no request that passed unlimited")
	}
	s.refused(t, http.StatusServiceUnavailable, "dependency_unavailable", ask{base: strict, path: "/orders", token: token})
	s.start(t, stack.Ratelimit)
	for _, base := range []string{"", strict} {
		await(t, "limits to be back", func() error {
			_, token := s.user(t, "free")
			a := s.do(t, ask{base: base, path: "/orders", token: token})
			if a.status != http.StatusOK || !strings.HasPrefix(a.header.Get("RateLimit"), `"minute";r=9`) {
				return fmt.Errorf("%d, %q", a.status, a.header.Get("RateLimit"))
			}
			return nil
		})
	}
}
