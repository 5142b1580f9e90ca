package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/echo"
	"github.com/tollgate-proxy/tollgate/internal/flag"
)

// forged are spellings of Tollgate's header names that some backend folds into
// them, and that nothing refuses outright.
func forged() []string {
	spellings := []string{"X-Feature-Foo", "x-user-anything", "X-Risk-Anything", "x-tollgate-traceparent"}
	for _, name := range []string{
		"X-User-Id", "X-User-Tier", "X-User-Roles", "X-Session-Id", "X-Feature-Flags", "X-Feature-Ml-V2", "X-Consent",
		"X-Risk-Score", "X-Risk-Reasons", "X-Envoy-External-Address",
	} {
		spellings = append(spellings, name, strings.ToLower(name), strings.ToUpper(name))
		if !strings.HasPrefix(name, "X-Envoy-") {
			spellings = append(spellings, strings.ReplaceAll(name, "-", "."), strings.Replace(strings.ToLower(name), "-", "!", 1))
		}
	}
	return spellings
}

// contractNames are the headers that only the gateway may set.
var contractNames = regexp.MustCompile(`(?i)^x[^a-z0-9](user|feature|risk)([^a-z0-9].*)?$|^x[^a-z0-9](consent|session[^a-z0-9]id)$`)

var uuid = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)

// testHeaders: backends learn who calls from the gateway and from nobody else.
func testHeaders(t *testing.T, s *system) {
	t.Run("what the backend sees", func(t *testing.T) { testContractHeaders(t, s) })
	t.Run("forged", func(t *testing.T) { testForgedHeaders(t, s) })
	t.Run("trailers", func(t *testing.T) { testForgedTrailers(t, s) })
	t.Run("underscores", func(t *testing.T) {
		_, token := s.user(t, "premium")
		for _, name := range []string{"x_user_id", "X_User_Id", "X-User_Id", "x_feature_flags", "any_thing"} {
			for _, path := range []string{"/orders", "/public/x", "/api/v1/data/e2e/ok"} {
				s.refused(t, http.StatusBadRequest, "request_refused", ask{path: path, token: token, header: http.Header{name: {"mallory"}}})
			}
		}
	})
	t.Run("request id", func(t *testing.T) { testRequestID(t, s) })
}

func testContractHeaders(t *testing.T, s *system) {
	const key, reason = "e2e-banner", "end-to-end test"
	banner := flag.Definition{Key: key, State: flag.Enabled, Variants: map[string]any{"on": true, "off": false}, DefaultVariant: "off"}
	if err := errors.Join(s.api.PutFlag(t.Context(), banner, reason), s.api.SetFlag(t.Context(), key, "on", reason)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.api.DeleteFlag(context.WithoutCancel(t.Context()), key, reason); err != nil {
			t.Error(err)
		}
	})
	user := "e2e-contract-" + strings.ToLower(newAddress())
	token := s.mint(t, authn.MintOptions{
		User: user, Tier: "admin", Roles: []string{"writer", "admin", "auditor"}, Session: "session-7", Consents: []string{"marketing", "analytics"},
	})
	for _, path := range []string{"/orders", "/api/v1/data/e2e/ok"} {
		var seen echo.Seen
		await(t, "the flag to arrive", func() error {
			seen = s.want(t, http.StatusOK, ask{path: path, token: token}).seen(t)
			if !slices.Contains(strings.Split(seen.Headers.Get("X-Feature-Flags"), ","), key+"=on") {
				return fmt.Errorf("flags %q", seen.Headers.Get("X-Feature-Flags"))
			}
			return nil
		})
		for name, want := range map[string]string{
			"X-User-Id": user, "X-User-Tier": "admin", "X-User-Roles": "admin,auditor,writer",
			"X-Session-Id": "session-7", "X-Consent": "analytics,marketing",
		} {
			if got := seen.Headers.Values(name); !slices.Equal(got, []string{want}) {
				t.Errorf("%s: %s is %q instead of %q", path, name, got, want)
			}
		}
		flags := strings.Split(seen.Headers.Get("X-Feature-Flags"), ",")
		if !slices.IsSorted(flags) || len(seen.Headers.Values("X-Feature-Flags")) != 1 {
			t.Errorf("%s: flags %q are not one sorted header", path, seen.Headers.Values("X-Feature-Flags"))
		}
		if id := seen.Headers.Get("X-Request-Id"); !uuid.MatchString(id) {
			t.Errorf("%s: request id %q", path, id)
		}
		if !strings.HasPrefix(seen.Headers.Get("Traceparent"), "00-") {
			t.Errorf("%s: traceparent %q", path, seen.Headers.Get("Traceparent"))
		}
	}
	// Nobody is named where nobody is known, and a session is found where none is named.
	seen := s.want(t, http.StatusOK, ask{path: "/public/x", token: token}).seen(t)
	if seen.Headers.Get("X-User-Id") != "" || seen.Headers.Get("X-User-Tier") != "anonymous" || seen.Headers.Get("X-Session-Id") != "" {
		t.Errorf("public route: %v", seen.Headers)
	}
	_, token = s.user(t, "free")
	if seen := s.want(t, http.StatusOK, ask{path: "/orders", token: token}).seen(t); seen.Headers.Get("X-Session-Id") == "" {
		t.Error("a token without sid has no session")
	}
}

func testForgedHeaders(t *testing.T, s *system) {
	user, token := s.user(t, "enterprise")
	headers := http.Header{}
	for _, name := range forged() {
		headers[name] = []string{"mallory", "mallory"} // repeated
	}
	// Few at a time: together they would be too many.
	var groups []http.Header
	for name, values := range headers {
		if len(groups) == 0 || len(groups[len(groups)-1]) == 10 {
			groups = append(groups, http.Header{})
		}
		groups[len(groups)-1][name] = values
	}
	for _, group := range groups {
		for _, a := range []ask{
			{path: "/orders", token: token}, {path: "/orders", token: token, http2: true},
			{path: "/public/x"}, {path: "/public/x", token: token}, {path: "/api/v1/data/e2e/ok", token: token},
		} {
			a.header = group.Clone()
			if a.http2 {
				a.header = http.Header{}
				for name, values := range group { // HTTP/2 knows lower case only
					a.header[strings.ToLower(name)] = values
				}
			}
			seen := s.want(t, http.StatusOK, a).seen(t)
			wantUser := user
			if strings.HasPrefix(a.path, "/public") {
				wantUser = ""
			}
			if got := strings.Join(seen.Headers.Values("X-User-Id"), ";"); got != wantUser {
				t.Errorf("%s: the backend saw user %q instead of %q", a.path, got, wantUser)
			}
			noMallory(t, a.path, seen)
		}
	}
}

// noMallory fails where any header or trailer holds what the client forged.
func noMallory(t *testing.T, path string, seen echo.Seen) {
	t.Helper()
	for _, fields := range []http.Header{seen.Headers, seen.Trailers} {
		for name, values := range fields {
			if strings.Contains(strings.Join(values, ","), "mallory") && (contractNames.MatchString(name) || strings.HasPrefix(strings.ToLower(name), "x-envoy-")) {
				t.Errorf("%s: the client's %s: %q reached the backend", path, name, values)
			}
		}
	}
}

func testForgedTrailers(t *testing.T, s *system) {
	_, token := s.user(t, "enterprise")
	trailers := http.Header{}
	for _, name := range []string{"X-User-Id", "X-User-Tier", "X.user.id", "X-Feature-Flags", "X-Session-Id", "X-Consent", "X-Risk-Score"} {
		trailers[name] = []string{"mallory"}
	}
	for _, http2 := range []bool{false, true} {
		for _, path := range []string{"/orders", "/public/x", "/api/v1/data/e2e/ok"} {
			seen := s.want(t, http.StatusOK, ask{path: path, token: token, body: `{"a":1}`, trailer: trailers.Clone(), http2: http2}).seen(t)
			if seen.BodyBytes != 7 {
				t.Errorf("%s: %d bytes of body arrived", path, seen.BodyBytes)
			}
			noMallory(t, path, seen)
		}
	}
}

func testRequestID(t *testing.T, s *system) {
	_, token := s.user(t, "premium")
	own := "11111111-2222-3333-4444-555555555555"
	for _, path := range []string{"/orders", "/public/x", "/api/v1/data/e2e/ok"} {
		a := s.want(t, http.StatusOK, ask{path: path, token: token, header: http.Header{"X-Request-Id": {own}}})
		id := a.header.Get("X-Request-Id")
		if id == own || !uuid.MatchString(id) {
			t.Errorf("%s: the answer's request id is %q", path, id)
		}
		if got := a.seen(t).Headers.Values("X-Request-Id"); !slices.Equal(got, []string{id}) {
			t.Errorf("%s: the backend saw request id %q, the client %q", path, got, id)
		}
		if n := len(a.header.Values("X-Request-Id")); n != 1 {
			t.Errorf("%s: %d request ids", path, n)
		}
	}
	// A refusal has one too.
	if id := s.refused(t, http.StatusUnauthorized, "token_missing", ask{path: "/orders"}).header.Get("X-Request-Id"); !uuid.MatchString(id) {
		t.Errorf("the refusal's request id is %q", id)
	}
}
