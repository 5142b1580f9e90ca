package e2e

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/tollgate-proxy/tollgate/internal/stack"
)

// testReloadSuspicions: what is done about suspicious requests changes with the
// file, for requests that are known as well, and users see what there was.
func testReloadSuspicions(t *testing.T, s *system) {
	_, token := s.user(t, "admin")
	with := func(agent, path string) ask {
		return ask{path: path, token: token, header: http.Header{"User-Agent": {agent}}}
	}
	s.want(t, http.StatusOK, with("browser/1", "/orders"))
	s.want(t, http.StatusOK, with("script/1", "/orders")) // the audit mode
	t.Run("deny", func(t *testing.T) {
		before := s.reloads(t, stack.AuthzOperations, "done")
		replace(t, s.config(stack.Authz), func(old string) string {
			changed, err := editYAML([]byte(old), func(root map[string]any) error {
				section, ok := root["anomaly"].(map[string]any)
				if !ok {
					return errors.New("no section anomaly")
				}
				section["actions"] = []any{map[string]any{"score": 1, "action": "deny"}}
				section["wait"] = "500ms"
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			return string(changed)
		})
		s.awaitReload(t, stack.AuthzOperations, "done", before)
		s.want(t, http.StatusOK, with("browser/1", "/orders"))
		s.refused(t, http.StatusForbidden, "risk_denied", with("script/1", "/orders"))
		s.refused(t, http.StatusForbidden, "risk_denied", with("another/1", "/orders"))
	})
	await(t, "the audit mode to return", func() error {
		return wrong(s.do(t, with("script/1", "/orders")).status, http.StatusOK)
	})
	a := s.want(t, http.StatusOK, with("browser/1", "/tollgate/v1/me/suspicious-events"))
	for _, want := range []string{`"reasons":["new_device"]`, `"refused":true`} {
		if !strings.Contains(string(a.body), want) {
			t.Errorf("the user does not see %s: %s", want, excerpt(a.body))
		}
	}
}
