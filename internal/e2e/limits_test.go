package e2e

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"

	"github.com/tollgate-proxy/tollgate/internal/stack"
)

// limitRefill is less than a free user or an anonymous one waits for a token.
const limitRefill = 5 * time.Second

// testLimits: what authz says about a request is what it is limited by.
func testLimits(t *testing.T, s *system) {
	t.Run("ten a minute", func(t *testing.T) { testTenAMinute(t, s) })
	t.Run("costs", func(t *testing.T) { testCosts(t, s) })
	t.Run("a denied request takes nothing", func(t *testing.T) { testDeniedTakesNothing(t, s) })
	t.Run("anonymous by address", func(t *testing.T) { testAnonymousLimit(t, s) })
	t.Run("unknown address", func(t *testing.T) { testUnknownAddress(t, s) })
	t.Run("forged", func(t *testing.T) {
		_, token := s.user(t, "free")
		header := http.Header{"X-User-Tier": {"admin"}, "X-Feature-Flags": {"x"}, "X-Ratelimit-Remaining": {"999"}}
		if got := left(t, s.want(t, http.StatusOK, ask{path: "/orders", token: token, header: header})); got != 9 {
			t.Errorf("%d left after one of ten", got)
		}
	})
}

// left reads how many tokens the answer says are left.
func left(t *testing.T, a answer) int {
	t.Helper()
	n, err := strconv.Atoi(a.header.Get("X-RateLimit-Remaining"))
	if err != nil {
		t.Fatalf("x-ratelimit-remaining is %q", a.header.Get("X-RateLimit-Remaining"))
	}
	return n
}

// within repeats what must happen before a bucket gets its next token, should the
// machine have been too slow for it.
func within(t *testing.T, refill time.Duration, attempt func() error) {
	t.Helper()
	var err error
	for range 5 {
		begin := time.Now()
		if err = attempt(); err == nil {
			return
		}
		if time.Since(begin) < refill {
			break
		}
	}
	t.Error(err)
}

// testTenAMinute: a free user's eleventh request is refused, another's is not, and
// every answer says how things stand.
func testTenAMinute(t *testing.T, s *system) {
	within(t, limitRefill, func() error {
		_, token := s.user(t, "free")
		for i := range 10 {
			a := s.do(t, ask{path: "/orders", token: token})
			if a.status != http.StatusOK || left(t, a) != 9-i {
				return fmt.Errorf("request %d: %d, %d left", i+1, a.status, left(t, a))
			}
			reset := a.header.Get("X-RateLimit-Reset")
			for name, want := range map[string]string{
				"RateLimit-Policy":  `"minute";q=10;w=60, "hour";q=100;w=3600`,
				"RateLimit":         fmt.Sprintf(`"minute";r=%d;t=%s`, 9-i, reset),
				"X-RateLimit-Limit": "10",
				"Retry-After":       "",
			} {
				if got := strings.Join(a.header.Values(name), "|"); got != want {
					t.Errorf("request %d: %s is %s instead of %s", i+1, name, got, want)
				}
			}
		}
		a := s.do(t, ask{path: "/orders", token: token})
		if a.status != http.StatusTooManyRequests {
			return fmt.Errorf("request 11: %d", a.status)
		}
		if err := a.problem(http.StatusTooManyRequests, "rate_limited"); err != nil {
			t.Errorf("request 11: %v: %s", err, excerpt(a.body))
		}
		wait, err := strconv.Atoi(a.header.Get("Retry-After"))
		if err != nil || wait < 1 || wait > 6 {
			t.Errorf("retry-after %q is not 1 to 6 s", a.header.Get("Retry-After"))
		}
		if got, want := a.header.Get("RateLimit"), fmt.Sprintf(`"minute";r=0;t=%d`, wait); got != want {
			t.Errorf("ratelimit is %s instead of %s", got, want)
		}
		if left(t, a) != 0 || a.header.Get("X-RateLimit-Limit") != "10" {
			t.Errorf("headers %v", a.header)
		}
		// Two users do not share.
		_, other := s.user(t, "free")
		if got := left(t, s.want(t, http.StatusOK, ask{path: "/orders", token: other})); got != 9 {
			t.Errorf("another user has %d left", got)
		}
		return nil
	})
}

// testCosts: the endpoint decides what a request costs.
func testCosts(t *testing.T, s *system) {
	for _, tc := range []struct {
		path string
		cost int
	}{
		{"/orders", 1}, {"/api/v1/ml/predict", 5}, {"/api/v1/nlp/languages", 1}, {"/api/v1/fraud/assess", 2},
		{"/api/v1/data/e2e/ok", 1}, {"/api/v1/blockchain/wallets/cluster", 10},
	} {
		within(t, time.Second, func() error { // premium: a token comes back every 1.2 s
			_, token := s.user(t, "premium")
			a := s.do(t, ask{path: tc.path, token: token}) // whatever the service says to a GET
			if got := 50 - left(t, a); got != tc.cost {
				return fmt.Errorf("%s took %d instead of %d", tc.path, got, tc.cost)
			}
			return nil
		})
	}
}

// testDeniedTakesNothing: what is left after a request that was too dear is still
// there for cheaper ones.
func testDeniedTakesNothing(t *testing.T, s *system) {
	within(t, limitRefill, func() error {
		_, token := s.user(t, "free")
		for range 8 {
			if a := s.do(t, ask{path: "/orders", token: token}); a.status != http.StatusOK {
				return fmt.Errorf("before: %d", a.status)
			}
		}
		for range 3 {
			if a := s.do(t, ask{path: "/api/v1/ml/predict", token: token}); a.status != http.StatusTooManyRequests || left(t, a) != 2 {
				return fmt.Errorf("an ML call with two tokens left: %d, %d left", a.status, left(t, a))
			}
		}
		for i := range 3 {
			want := http.StatusOK
			if i == 2 {
				want = http.StatusTooManyRequests
			}
			if a := s.do(t, ask{path: "/orders", token: token}); a.status != want {
				return fmt.Errorf("plain request %d after it: %d instead of %d", i+1, a.status, want)
			}
		}
		return nil
	})
}

// testAnonymousLimit: who has no token is limited by address, and requests that
// authz refuses take nothing.
func testAnonymousLimit(t *testing.T, s *system) {
	within(t, 2*limitRefill, func() error {
		address := newAddress()
		for range 20 {
			if a := s.do(t, ask{path: "/orders", from: address}); a.status != http.StatusUnauthorized {
				return fmt.Errorf("without a token: %d", a.status)
			}
		}
		for i := range 6 {
			// Forwarded addresses are the client's word.
			header := http.Header{"X-Forwarded-For": {newAddress()}, "X-Envoy-External-Address": {newAddress()}}
			a := s.do(t, ask{path: "/public/x", from: address, header: header})
			if want := map[bool]int{true: http.StatusOK, false: http.StatusTooManyRequests}[i < 5]; a.status != want {
				return fmt.Errorf("anonymous request %d: %d instead of %d", i+1, a.status, want)
			}
			if left(t, a) != max(0, 4-i) {
				return fmt.Errorf("anonymous request %d: %d left", i+1, left(t, a))
			}
		}
		s.want(t, http.StatusOK, ask{path: "/public/x", from: newAddress()})
		return nil
	})
}

// testUnknownAddress: a request whose client is not known even by address is
// limited all the same.
func testUnknownAddress(t *testing.T, s *system) {
	authz := authv3.NewAuthorizationClient(dial(t, s.Ports().Address(stack.AuthzGRPC)))
	answer, err := authz.Check(t.Context(), &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{Method: http.MethodGet, Path: "/public/x", Host: "h"}},
	}})
	if err != nil || answer.GetOkResponse() == nil {
		t.Fatalf("%v, %v", answer, err)
	}
	said := answer.GetDynamicMetadata().GetFields()
	address := said["remote_address"].GetStringValue()
	if said["user"] != nil || address == "" || said["tier"].GetStringValue() != "anonymous" || said["endpoint"].GetStringValue() == "" || said["cost"].GetNumberValue() != 1 {
		t.Fatalf("metadata %v", said)
	}
	limits := rlsv3.NewRateLimitServiceClient(dial(t, s.Ports().Address(stack.RatelimitGRPC)))
	within(t, 2*limitRefill, func() error {
		denied := 0
		for range 12 {
			a, err := limits.ShouldRateLimit(t.Context(), &rlsv3.RateLimitRequest{Domain: "tollgate", Descriptors: []*commonv3.RateLimitDescriptor{{
				Entries: []*commonv3.RateLimitDescriptor_Entry{
					{Key: "tier", Value: "anonymous"}, {Key: "remote_address", Value: address}, {Key: "endpoint", Value: said["endpoint"].GetStringValue()},
				},
			}}})
			if err != nil {
				return err
			}
			if a.GetOverallCode() == rlsv3.RateLimitResponse_OVER_LIMIT {
				denied++
			}
		}
		if denied != 7 && denied != 12 { // all, where an earlier attempt has used it up
			return fmt.Errorf("%d of 12 were denied", denied)
		}
		return nil
	})
}

// checkRequest is what Envoy asks authz about a request.
func checkRequest(method, path, token string) *authv3.CheckRequest {
	headers := map[string]string{"x-request-id": "e2e", "x-envoy-external-address": "192.0.2.7"}
	if token != "" {
		headers["authorization"] = "Bearer " + token
	}
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Source: &authv3.AttributeContext_Peer{Address: &corev3.Address{Address: &corev3.Address_SocketAddress{
			SocketAddress: &corev3.SocketAddress{Address: "192.0.2.7", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 4711}},
		}}},
		Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
			Method: method, Path: path, Host: "gateway", Headers: headers,
		}},
	}}
}

// rateLimitRequest is what Envoy asks ratelimit.
func rateLimitRequest(tier, user, endpoint string) *rlsv3.RateLimitRequest {
	return &rlsv3.RateLimitRequest{Domain: "tollgate", Descriptors: []*commonv3.RateLimitDescriptor{{
		Entries: []*commonv3.RateLimitDescriptor_Entry{{Key: "tier", Value: tier}, {Key: "user", Value: user}, {Key: "endpoint", Value: endpoint}},
	}}}
}
