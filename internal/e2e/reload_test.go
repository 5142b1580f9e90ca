package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/tollgate-proxy/tollgate/internal/stack"
)

// testReload: rules change while requests are served; faulty ones change nothing
// and say why.
func testReload(t *testing.T, s *system) {
	t.Run("route rules", func(t *testing.T) { testReloadPolicy(t, s) })
	t.Run("limits", func(t *testing.T) { testReloadLimits(t, s) })
	t.Run("suspicions", func(t *testing.T) { testReloadSuspicions(t, s) })
	t.Run("hangup", func(t *testing.T) { testReloadSignal(t, s) })
}

// replace writes a file the way editors and Kubernetes do, and puts the old
// content back after the test.
func replace(t *testing.T, path string, content func(old string) string) {
	t.Helper()
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	changed := content(string(old))
	if changed == string(old) {
		t.Fatalf("%s was not changed", path)
	}
	write := func(text string) {
		next := path + ".next"
		if err := errors.Join(os.WriteFile(next, []byte(text), 0o600), os.Rename(next, path)); err != nil {
			t.Fatal(err)
		}
	}
	write(changed)
	t.Cleanup(func() { write(string(old)) })
}

// reload is replace, and waits until the process has taken the file, or refused
// it; and after the test until it has taken the old one, so that no later test
// takes that reload for its own.
func (s *system) reload(t *testing.T, e stack.Endpoint, result, path string, content func(old string) string) {
	t.Helper()
	done := 0.0
	t.Cleanup(func() { s.awaitReload(t, e, "done", done) })
	before := s.reloads(t, e, result)
	replace(t, path, content)
	s.awaitReload(t, e, result, before)
	done = s.reloads(t, e, "done")
}

func (s *system) reloads(t *testing.T, e stack.Endpoint, result string) float64 {
	t.Helper()
	return s.metric(t, e, "tollgate_reloads_total", `result="`+result+`"`)
}

// awaitReload waits until one more reload had the result.
func (s *system) awaitReload(t *testing.T, e stack.Endpoint, result string, before float64) {
	t.Helper()
	await(t, "a reload that is "+result, func() error {
		if n := s.reloads(t, e, result); n <= before {
			return fmt.Errorf("%v, as before", n)
		}
		return nil
	})
}

func testReloadPolicy(t *testing.T, s *system) {
	path := s.config(stack.Authz)
	edit := func(change func(policy map[string]any)) func(string) string {
		return func(old string) string {
			changed, err := editYAML([]byte(old), func(root map[string]any) error {
				policy, ok := root["policy"].(map[string]any)
				if !ok {
					return errors.New("no section policy")
				}
				change(policy)
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			return string(changed)
		}
	}
	addRoute := func(access string) func(string) string {
		return edit(func(policy map[string]any) {
			routes, _ := policy["routes"].([]any)
			rule := map[string]any{"name": "e2e", "match": map[string]any{"prefix": "/reloaded"}, "access": access}
			policy["routes"] = append([]any{rule}, routes...)
		})
	}
	s.refused(t, http.StatusUnauthorized, "token_missing", ask{path: "/reloaded"})
	t.Run("good", func(t *testing.T) {
		s.reload(t, stack.AuthzOperations, "done", path, addRoute("public"))
		s.want(t, http.StatusOK, ask{path: "/reloaded"})
	})
	s.want(t, http.StatusUnauthorized, ask{path: "/reloaded"}) // by the old rules
	t.Run("for a backend that knows no case", func(t *testing.T) {
		_, token := s.user(t, "admin")
		s.want(t, http.StatusOK, ask{path: "/ADMIN", token: token})
		s.reload(t, stack.AuthzOperations, "done", path, edit(func(policy map[string]any) { policy["case_insensitive"] = true }))
		s.refused(t, http.StatusForbidden, "role_required", ask{path: "/ADMIN", token: token})
	})
	t.Run("bad", func(t *testing.T) {
		s.reload(t, stack.AuthzOperations, "refused", path, addRoute("everybody"))
		s.refused(t, http.StatusUnauthorized, "token_missing", ask{path: "/reloaded"})
		if log := s.log(t, stack.Authz); !strings.Contains(log, "reload refused, nothing changed") || !strings.Contains(log, "everybody") {
			t.Error("authz's log does not say why")
		}
	})
}

func testReloadLimits(t *testing.T, s *system) {
	path := filepath.Join(s.work, "config", "limits", "tollgate.yaml")
	first := func() answer {
		_, token := s.user(t, "free")
		return s.want(t, http.StatusOK, ask{path: "/orders", token: token})
	}
	t.Run("good", func(t *testing.T) {
		s.reload(t, stack.RatelimitOps, "done", path, func(old string) string {
			return strings.Replace(old, "{unit: minute, requests_per_unit: 10}", "{unit: minute, requests_per_unit: 7}", 1)
		})
		if n := left(t, first()); n != 6 {
			t.Errorf("%d left after one of seven", n)
		}
	})
	if n := left(t, first()); n != 9 {
		t.Errorf("%d left by the old limits", n)
	}
	t.Run("bad", func(t *testing.T) {
		s.reload(t, stack.RatelimitOps, "refused", path, func(old string) string {
			return strings.Replace(old, "requests_per_unit: 10}", "requests_per_unit: many}", 1)
		})
		if n := left(t, first()); n != 9 {
			t.Errorf("%d left: the faulty file changed something", n)
		}
		if log := s.log(t, stack.Ratelimit); !strings.Contains(log, "reload refused, nothing changed") || !strings.Contains(log, "many") {
			t.Error("ratelimit's log does not say why")
		}
	})
}

// testReloadSignal: SIGHUP does the same, and ends nothing.
func testReloadSignal(t *testing.T, s *system) {
	for part, e := range map[string]stack.Endpoint{stack.Authz: stack.AuthzOperations, stack.Ratelimit: stack.RatelimitOps} {
		before := s.reloads(t, e, "done")
		if err := syscall.Kill(s.pid(t, part), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		s.awaitReload(t, e, "done", before)
	}
}

func (s *system) pid(t *testing.T, part string) int {
	t.Helper()
	for _, status := range s.Status() {
		if status.Name == part && status.PID != 0 {
			return status.PID
		}
	}
	t.Fatalf("%s does not run", part)
	return 0
}
