package e2e

import (
	"net/http"
	"slices"
	"testing"

	"github.com/tollgate-proxy/tollgate/internal/authn"
)

// testPaths: however /admin is spelt, nobody without the role gets there, and
// what authz judged is what the backend is asked for.
func testPaths(t *testing.T, s *system) {
	_, premium := s.user(t, "enterprise")
	admin := s.mint(t, authn.MintOptions{User: "e2e-admin", Tier: "admin", Roles: []string{"admin"}})
	s.want(t, http.StatusOK, ask{path: "/admin/users", token: admin})
	s.refused(t, http.StatusForbidden, "role_required", ask{path: "/admin/users", token: premium})
	s.refused(t, http.StatusUnauthorized, "token_missing", ask{path: "/admin/users"})

	send := func(path, token string) answer {
		request := "GET " + path + " HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n"
		if token != "" {
			request += "Authorization: Bearer " + token + "\r\n"
		}
		return s.raw(t, request+"\r\n")
	}
	for _, path := range []string{
		"//admin", "/admin/", "/admin//users", "///admin///", "/./admin", "/x/../admin", "/public/../admin", "/public/./../admin/users",
		"/public/%2e%2e/admin", "/public/%2E%2E/admin", "/%61dmin", "/%61%64%6d%69%6e/users", "/public/..;/admin", "/public/..;x=1/admin",
		`/public\..\admin`, `\admin`, "/admin;x=1", "/admin;/users", "/admin?x=/public", "/admin%3Fx", "/ADMIN", "/Admin/users",
		"/public/%2e%2e%2fadmin", "/public/..%2fadmin", "/%2fadmin", "/public%5c..%5cadmin", "/admin%2fusers", "/admin%00", "/admin#x",
		"/public/%252e%252e/admin", "/public/..%c0%afadmin", "http://gateway/admin", "http://gateway//public/../admin",
	} {
		for _, token := range []string{"", premium} {
			a := send(path, token)
			if slices.Contains([]int{http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound}, a.status) {
				continue
			}
			// What did pass must be something else than /admin for every backend.
			if a.status != http.StatusOK || !harmless(a.seen(t).URI) {
				t.Errorf("%q passed (token: %t): %d %s", path, token != "", a.status, excerpt(a.body))
			}
		}
	}
	for _, path := range []string{"/admin%2fusers", "/public/..%2fadmin", "/x%5cy", "/x%00"} {
		if a := send(path, admin); a.status != http.StatusBadRequest {
			t.Errorf("%q: %d instead of 400", path, a.status)
		} else if err := a.problem(http.StatusBadRequest, "request_refused"); err != nil {
			t.Errorf("%q: %v", path, err)
		}
	}
	// The backend is asked for the path that was judged.
	for path, want := range map[string]string{
		"/public/a/../b": "/public/b", "//public//c": "/public/c", "/public/%61": "/public/a", "/public/x?y=%2e%2e/": "/public/x?y=%2e%2e/",
	} {
		if got := send(path, "").seen(t).URI; got != want {
			t.Errorf("%q reached the backend as %q instead of %q", path, got, want)
		}
	}
	// Which service answers is decided by the same path: /api/v1/ml is not free of charge.
	for _, path := range []string{"//api/v1/ml/predict", "/public/../api/v1/ml/predict", "/api/v1/./ml/predict", "/api/v1/ml%2fpredict"} {
		if a := send(path, ""); a.status != http.StatusUnauthorized && a.status != http.StatusBadRequest {
			t.Errorf("%q without a token: %d", path, a.status)
		}
	}
}

// harmless tells whether a path is another one than /admin to backends that know
// neither double escapes nor overlong ones. Case, too, is the backend's: for one
// that takes /Admin for /admin the rules are told so (case_insensitive).
func harmless(uri string) bool {
	return slices.Contains([]string{"/public/%252e%252e/admin", "/public/..%c0%afadmin", "/ADMIN", "/Admin/users"}, uri)
}
