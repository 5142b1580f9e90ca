package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
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
	// edit changes what is done for the rest of the test.
	edit := func(t *testing.T, change func(section map[string]any)) {
		t.Helper()
		s.reload(t, stack.AuthzOperations, "done", s.config(stack.Authz), func(old string) string {
			changed, err := editYAML([]byte(old), func(root map[string]any) error {
				section, ok := root["anomaly"].(map[string]any)
				if !ok {
					return errors.New("no section anomaly")
				}
				change(section)
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			return string(changed)
		})
	}
	until := func(t *testing.T, actions ...any) {
		t.Helper()
		edit(t, func(section map[string]any) { section["actions"] = actions })
	}
	// Each request waits until it was judged, or the second could be judged first.
	edit(t, func(section map[string]any) { section["wait"], section["timeout"] = "1s", "10s" })
	s.want(t, http.StatusOK, with("browser/1", "/orders"))
	s.want(t, http.StatusOK, with("script/1", "/orders")) // the audit mode
	t.Run("tell the backend", func(t *testing.T) {
		until(t, map[string]any{"score": 1, "action": "header"})
		forged := http.Header{"User-Agent": {"script/1"}, "X-Risk-Score": {"1"}, "X-Risk-Reasons": {"nothing"}}
		seen := s.want(t, http.StatusOK, ask{path: "/orders", token: token, header: forged}).seen(t)
		if score, reasons := seen.Headers["X-Risk-Score"], seen.Headers["X-Risk-Reasons"]; !slices.Equal(score, []string{"15"}) || !slices.Equal(reasons, []string{"new_device"}) {
			t.Errorf("the backend saw the score %q for %q", score, reasons)
		}
		forged["User-Agent"] = []string{"browser/1"}
		seen = s.want(t, http.StatusOK, ask{path: "/orders", token: token, header: forged}).seen(t)
		if seen.Headers["X-Risk-Score"] != nil || seen.Headers["X-Risk-Reasons"] != nil {
			t.Errorf("the backend saw a risk where none is: %v", seen.Headers)
		}
	})
	t.Run("deny", func(t *testing.T) {
		until(t, map[string]any{"score": 1, "action": "deny"})
		s.want(t, http.StatusOK, with("browser/1", "/orders"))
		s.refused(t, http.StatusForbidden, "risk_denied", with("script/1", "/orders"))
		s.refused(t, http.StatusForbidden, "risk_denied", with("another/1", "/orders"))
	})
	t.Run("challenge", func(t *testing.T) {
		until(t, map[string]any{"score": 1, "action": "step_up"})
		a := s.refused(t, http.StatusUnauthorized, "step_up_required", with("third/1", "/orders"))
		if c := a.header.Get("Www-Authenticate"); !strings.Contains(c, `error="insufficient_user_authentication"`) {
			t.Errorf("challenged with %s", c)
		}
	})
	s.want(t, http.StatusOK, with("script/1", "/orders"))     // the audit mode again
	await(t, "the user to see what there was", func() error { // it is written behind
		a := s.want(t, http.StatusOK, with("browser/1", "/tollgate/v1/me/suspicious-events"))
		for _, want := range []string{`"reasons":["new_device"]`, `"refused":true`} {
			if !strings.Contains(string(a.body), want) {
				return fmt.Errorf("no %s: %s", want, excerpt(a.body))
			}
		}
		return nil
	})
}
