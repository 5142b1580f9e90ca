package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/tollgate-proxy/tollgate/internal/stack"
)

// testProblems: every error that a client can meet has the same form, whoever
// made it.
func testProblems(t *testing.T, s *system) {
	_, token := s.user(t, "admin")
	for _, tc := range []struct {
		name, code string
		status     int
		ask        ask
		header     string // one that must be there
	}{
		{"no token", "token_missing", 401, ask{path: "/orders"}, "WWW-Authenticate"},
		{"role", "role_required", 403, ask{path: "/admin", token: token}, "WWW-Authenticate"},
		{"no such route", "route_not_found", 404, ask{path: "/api/v1/ml/nothing", token: token}, ""},
		{"method", "method_not_allowed", 405, ask{path: "/api/v1/ml/predict", token: token}, "Allow"},
		{"body too large", "request_refused", 413, ask{path: "/orders", token: token, body: strings.Repeat("x", 11<<20)}, ""},
		{"body not understood", "validation_failed", 422, ask{path: "/api/v1/ml/predict", token: token, body: `{"symbol":1}`}, ""},
		{"service hangs", "upstream_timeout", 504, ask{path: "/api/v1/data/e2e/hang", token: token, body: "{}"}, ""},
		{"service talks rubbish", "upstream_failed", 502, ask{path: "/api/v1/data/e2e/garbage", token: token, body: "{}"}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := s.refused(t, tc.status, tc.code, tc.ask)
			if a.header.Get("X-Request-Id") == "" {
				t.Error("no request id")
			}
			if tc.header != "" && a.header.Get(tc.header) == "" {
				t.Errorf("no %s", tc.header)
			}
		})
	}
	t.Run("CONNECT", func(t *testing.T) {
		a := s.raw(t, "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n")
		if a.status < 400 || a.status >= 500 {
			t.Errorf("%d", a.status)
		}
	})
	t.Run("the API's own", func(t *testing.T) {
		base := s.URL(stack.AuthzHTTP)
		for _, tc := range []struct {
			status int
			ask    ask
		}{
			{401, ask{base: base, path: "/v1/flags"}},
			{401, ask{base: base, path: "/v1/flags", token: "wrong"}},
			{404, ask{base: base, path: "/v1/nothing", token: s.Operator().Token}},
			{405, ask{base: base, path: "/v1/tokens/revoke", token: s.Operator().Token}},
			{400, ask{base: base, path: "/v1/tokens/revoke", token: s.Operator().Token, body: "{"}},
		} {
			a := s.do(t, tc.ask)
			if err := a.problem(tc.status, ""); err != nil {
				t.Errorf("%s: %v: %s", tc.ask.path, err, excerpt(a.body))
			}
		}
		// A user's token is no credential of the API's, and the other way round.
		s.refused(t, 401, "", ask{base: base, path: "/v1/flags", token: token})
		s.refused(t, 401, "", ask{path: "/orders", token: s.Operator().Token})
	})
}

// testOversize: what is too large or too many is refused early, and the next
// request is served.
func testOversize(t *testing.T, s *system) {
	_, token := s.user(t, "admin")
	many := http.Header{}
	for i := range 200 {
		many[fmt.Sprintf("X-Many-%d", i)] = []string{"x"}
	}
	nearly := http.Header{} // with authz's own beyond what Envoy passes on
	for i := range 95 {
		nearly[fmt.Sprintf("X-Many-%d", i)] = []string{"x"}
	}
	for _, tc := range []struct {
		name   string
		status int
		ask    ask
	}{
		{"a header of 64 KiB", 431, ask{path: "/orders", token: token, header: http.Header{"X-Large": {strings.Repeat("x", 64<<10)}}}},
		{"a token of 100 KiB", 431, ask{path: "/orders", token: strings.Repeat("a", 100<<10)}},
		{"200 headers", 431, ask{path: "/orders", token: token, header: many}},
		{"200 headers, public", 431, ask{path: "/public/x", header: many}},
		{"nearly too many headers", 431, ask{path: "/orders", token: token, header: nearly}},
		{"a path of 64 KiB", 431, ask{path: "/" + strings.Repeat("a", 64<<10), token: token}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := s.refused(t, tc.status, "request_refused", tc.ask)
			if len(a.body) > 2<<10 {
				t.Errorf("%d bytes of body", len(a.body))
			}
			s.want(t, http.StatusOK, ask{path: "/orders", token: token})
		})
	}
	// Large, but within the limits: served, or refused by whom it concerns.
	s.want(t, http.StatusOK, ask{path: "/orders", token: token, header: http.Header{"X-Large": {strings.Repeat("x", 40<<10)}}})
	s.refused(t, http.StatusUnauthorized, "token_malformed", ask{path: "/orders", token: strings.Repeat("a", 40<<10)})
	s.want(t, http.StatusOK, ask{path: "/" + strings.Repeat("a", 8<<10), token: token})
	if seen := s.want(t, http.StatusOK, ask{path: "/orders", token: token, body: strings.Repeat("x", 4<<20)}).seen(t); seen.BodyBytes != 4<<20 {
		t.Errorf("%d bytes of body arrived", seen.BodyBytes)
	}
}
