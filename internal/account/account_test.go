package account

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/credential"
)

type echoPart struct{}

func (echoPart) Register(mux Routes, auth *credential.Authenticator) {
	mux.Handle("POST /v1/echo", auth.Require(credential.Operator, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body struct {
			Name  string `json:"name"`
			Count int    `json:"count"`
		}
		if err := decodeJSON(w, r, 100, &body); err != nil {
			writeError(w, r, err)
			return
		}
		if body.Name == "boom" {
			writeError(w, r, errors.New("dial tcp 10.0.0.1: secret cause"))
			return
		}
		writeJSON(w, http.StatusOK, map[string]string{"actor": actor(r.Context()), "name": body.Name})
	})))
}

const deskSecret = "correct horse"

func sha256Hex(s string) string {
	h := sha256.Sum256([]byte(s))
	return hex.EncodeToString(h[:])
}

func TestSharedParts(t *testing.T) {
	auth, err := credential.New([]credential.Client{{Name: "desk", SecretSHA256: sha256Hex(deskSecret), Roles: []string{credential.Operator}}})
	if err != nil {
		t.Fatal(err)
	}
	h := New(auth, echoPart{})
	for name, c := range map[string]struct {
		method, path, body, secret string
		status                     int
		contains                   string
	}{
		"good":             {"POST", "/v1/echo", `{"name":"a","count":1}`, deskSecret, 200, `"actor":"desk"`},
		"no credentials":   {"POST", "/v1/echo", `{}`, "", 401, "credentials_required"},
		"unknown path":     {"GET", "/nope", ``, deskSecret, 404, "not_found"},
		"wrong method":     {"GET", "/v1/echo", ``, deskSecret, 405, "method_not_allowed"},
		"unknown member":   {"POST", "/v1/echo", `{"nam":"hunter2"}`, deskSecret, 400, `unknown field \"nam\"`},
		"wrong type":       {"POST", "/v1/echo", `{"count":"hunter2"}`, deskSecret, 400, `member \"count\" wants a int`},
		"syntax":           {"POST", "/v1/echo", `{"name":hunter2`, deskSecret, 400, "syntax error at byte 9"},
		"cut short":        {"POST", "/v1/echo", `{"name":`, deskSecret, 400, "ends too soon"},
		"empty":            {"POST", "/v1/echo", ``, deskSecret, 400, "it is empty"},
		"two values":       {"POST", "/v1/echo", `{} {}`, deskSecret, 400, "more than one"},
		"too large":        {"POST", "/v1/echo", `{"name":"` + strings.Repeat("x", 100) + `"}`, deskSecret, 413, "request_too_large"},
		"an inner failure": {"POST", "/v1/echo", `{"name":"boom"}`, deskSecret, 500, "internal_error"},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest(c.method, c.path, strings.NewReader(c.body))
			r.Header.Set("X-Request-Id", "r-1")
			if c.secret != "" {
				r.Header.Set("Authorization", "Bearer "+c.secret)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code != c.status || !strings.Contains(w.Body.String(), c.contains) {
				t.Errorf("got %d %s", w.Code, w.Body)
			}
			if strings.Contains(w.Body.String(), "hunter2") || strings.Contains(w.Body.String(), "secret cause") {
				t.Errorf("the answer says too much: %s", w.Body)
			}
			if w.Code >= 400 && !strings.Contains(w.Body.String(), `"request_id":"r-1"`) {
				t.Errorf("no request id: %s", w.Body)
			}
		})
	}
}

func TestLogAuditor(t *testing.T) {
	var b bytes.Buffer
	LogAuditor{slog.New(slog.NewTextHandler(&b, nil))}.Audit(t.Context(),
		Event{Actor: "desk", Action: "token.revoke", Target: "jti 7", Reason: "lost", Outcome: "done", At: time.Unix(0, 0)})
	for _, want := range []string{"actor=desk", "action=token.revoke", `target="jti 7"`, "reason=lost", "outcome=done", "at=1970-01-01T00:00:00Z"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("missing %s in %s", want, &b)
		}
	}
}
