package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/tollgate-proxy/tollgate/internal/stack"
)

// logged is a request, and what the access log is to tell of it.
type logged struct {
	name, id string
	want     map[string]any
}

// testLogged sends the requests that testLogs looks for: Envoy writes its log
// every ten seconds.
func testLogged(t *testing.T, s *system) {
	user, token := s.user(t, "premium")
	for _, tc := range []struct {
		name string
		ask  ask
		want map[string]any
	}{
		{"allowed", ask{path: "/orders?card=4111111111111111", token: token}, map[string]any{
			"status": 200.0, "user": user, "tier": "premium", "endpoint": "default", "cost": 1.0, "path": "/orders", "route": "backend",
		}},
		{"ml", ask{path: "/api/v1/ml/predict", token: token, body: "{}"}, map[string]any{
			"status": 422.0, "user": user, "endpoint": "ml", "cost": 5.0, "route": "ml",
		}},
		{"refused", ask{path: "/admin", token: token}, map[string]any{"status": 403.0, "details": "ext_authz_denied", "flags": "UAEX"}},
		{"anonymous", ask{path: "/public/x"}, map[string]any{"status": 200.0, "user": nil, "tier": "anonymous"}},
	} {
		s.logged = append(s.logged, logged{name: tc.name, id: s.do(t, tc.ask).header.Get("X-Request-Id"), want: tc.want})
	}
}

// testLogs: what was decided about a request is found by the id that its client
// was given, and what was done to the system by who did it.
func testLogs(t *testing.T, s *system) {
	for _, request := range s.logged {
		t.Run(request.name, func(t *testing.T) {
			var entry map[string]any
			await(t, "the access log to tell of the request", func() error {
				for line := range strings.Lines(s.log(t, stack.Envoy)) {
					if strings.Contains(line, `"request_id":"`+request.id+`"`) && strings.HasSuffix(line, "}\n") {
						return json.Unmarshal([]byte(line), &entry)
					}
				}
				return fmt.Errorf("no line with %s", request.id)
			})
			for key, want := range request.want {
				if got := entry[key]; got != want {
					t.Errorf("%s is %v instead of %v", key, got, want)
				}
			}
			for _, key := range []string{"time", "trace_id", "client", "decision_id", "duration_ms"} {
				if entry[key] == nil || entry[key] == "" {
					t.Errorf("no %s", key)
				}
			}
			if text := fmt.Sprint(entry); strings.Contains(text, "4111111111111111") {
				t.Error("the query is logged")
			}
		})
	}
	user, token := s.user(t, "premium")
	t.Run("audit", func(t *testing.T) {
		reason := "lost phone " + user
		if err := s.api.RevokeToken(t.Context(), token, reason); err != nil {
			t.Fatal(err)
		}
		s.want(t, http.StatusUnauthorized, ask{path: "/orders", token: token})
		for line := range strings.Lines(s.log(t, stack.Authz)) {
			if strings.Contains(line, reason) {
				if !holdsAll(line, []string{`"msg":"audit"`, `"actor":"` + s.Operator().Name + `"`, `"action":"token.revoke"`, user}) {
					t.Errorf("audit: %s", line)
				}
				return
			}
		}
		t.Error("the revocation is in no audit")
	})
}
