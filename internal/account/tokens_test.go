package account

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tollgate-proxy/tollgate/internal/credential"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
	"github.com/tollgate-proxy/tollgate/internal/revocation"
	"github.com/tollgate-proxy/tollgate/internal/session"
)

const (
	operatorSecret = "operator secret"
	adminSecret    = "admin secret"
	serviceSecret  = "service secret"
)

// fakeInspector knows tokens of the form "good.USER", "expired" and nothing else.
type fakeInspector struct{ now time.Time }

func (f fakeInspector) Inspect(token string) (revocation.Token, error) {
	user, good := strings.CutPrefix(token, "good.")
	switch {
	case token == "expired":
		return revocation.Token{}, fmt.Errorf("inspect: %w", ErrTokenExpired)
	case !good:
		return revocation.Token{}, errors.New("bad signature")
	}
	return revocation.Token{
		Digest: sha256.Sum256([]byte(token)), Issuer: "https://issuer.example", TokenID: "jti-" + user,
		Session: "sid-" + user, Subject: user, ClientID: "web", Version: 3,
		IssuedAt: f.now.Add(-time.Minute), ExpiresAt: f.now.Add(time.Hour),
	}, nil
}

// recorder keeps the audit trail in memory.
type recorder struct {
	mu     sync.Mutex
	events []Event
}

func (r *recorder) Audit(_ context.Context, e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}

type fakeSessions struct {
	ended []string
	err   error
}

func (f *fakeSessions) EndAll(_ context.Context, user, issuer string) (int, error) {
	f.ended = append(f.ended, describe(user, issuer))
	return 2, f.err
}

func (f *fakeSessions) EndWhosever(_ context.Context, r session.Ref) (int, error) {
	f.ended = append(f.ended, describe("session "+r.ID, r.Issuer))
	return 1, f.err
}

// tokensAPI is the API over a store on an embedded Redis.
type tokensAPI struct {
	t        *testing.T
	handler  http.Handler
	store    *revocation.Store
	audit    *recorder
	sessions *fakeSessions
	now      time.Time
}

func newTokensAPI(t *testing.T, addr string) *tokensAPI {
	t.Helper()
	auth, err := credential.New([]credential.Client{
		{Name: "desk", SecretSHA256: sha256Hex(operatorSecret), Roles: []string{credential.Operator}},
		{Name: "root", SecretSHA256: sha256Hex(adminSecret), Roles: []string{credential.Admin}},
		{Name: "login", SecretSHA256: sha256Hex(serviceSecret), Roles: []string{credential.Service}},
	})
	if err != nil {
		t.Fatal(err)
	}
	a := &tokensAPI{t: t, audit: &recorder{}, sessions: &fakeSessions{}, now: time.Now().Truncate(time.Second)}
	now := func() time.Time { return a.now }
	a.store, err = revocation.NewStore(redistest.Client(t, addr), nil, revocation.Options{Now: now})
	if err != nil {
		t.Fatal(err)
	}
	a.handler = New(auth, &Tokens{
		Revoker: a.store, Checker: a.store, Inspector: fakeInspector{a.now}, Sessions: a.sessions, Auditor: a.audit, Now: now,
	})
	return a
}

// call posts a body and returns the answer's status and members.
func (a *tokensAPI) call(path, secret, body string) (int, map[string]any) {
	a.t.Helper()
	r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer "+secret)
	w := httptest.NewRecorder()
	a.handler.ServeHTTP(w, r)
	checkAnswer(a.t, http.MethodPost, path, w.Code, w.Header().Get("Content-Type"), w.Body.String())
	if strings.Contains(w.Body.String(), "good.") {
		a.t.Errorf("POST %s: the answer repeats the token: %s", path, w.Body)
	}
	var answer map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
		a.t.Fatalf("POST %s: %d %s: %v", path, w.Code, w.Body, err)
	}
	return w.Code, answer
}

// refusedBecause asks the store why alice's token is refused.
func (a *tokensAPI) refusedBecause() string {
	a.t.Helper()
	token, _ := fakeInspector{a.now}.Inspect("good.alice")
	v, err := a.store.Check(a.t.Context(), &token)
	if err != nil {
		a.t.Fatal(err)
	}
	return v.Why.String()
}

func TestRevokeTokens(t *testing.T) {
	const token = `"token":"good.alice"`
	for name, c := range map[string]struct {
		body    string
		secret  string
		status  int
		want    map[string]any // members of the answer
		refused string         // why alice's token is then refused
		target  string
	}{
		"token": {
			`{` + token + `,"reason":"lost phone"}`, operatorSecret, 200,
			map[string]any{"revoked": "token", "changed": true}, "token",
			fmt.Sprintf("token %x of alice at https://issuer.example", digestOf("good.alice")),
		},
		"token without a reason": {`{` + token + `}`, operatorSecret, 200, map[string]any{"revoked": "token"}, "token", ""},
		"expired token":          {`{"token":"expired"}`, operatorSecret, 200, map[string]any{"changed": false, "expired": true}, "none", "expired token"},
		"unverifiable token":     {`{"token":"eyJ.forged"}`, operatorSecret, 422, map[string]any{"code": "token_invalid"}, "none", "unverifiable token"},
		"jti": {
			`{"jti":"jti-alice","iss":"https://issuer.example","exp":1}`, operatorSecret, 200,
			map[string]any{"revoked": "token_id"}, "token_id", "jti-alice at https://issuer.example",
		},
		"session": {`{"session":"sid-alice"}`, operatorSecret, 200, map[string]any{"revoked": "session", "sessions_ended": 1.0}, "session", "sid-alice"},
		"session of another issuer": {
			`{"session":"sid-alice","iss":"https://another.example"}`, operatorSecret, 200,
			map[string]any{"revoked": "session"}, "none", "sid-alice at https://another.example",
		},
		"user":       {`{"user":"alice"}`, operatorSecret, 200, map[string]any{"revoked": "user", "sessions_ended": 2.0}, "user", "alice"},
		"client":     {`{"client":"web"}`, adminSecret, 200, map[string]any{"revoked": "client"}, "client", "web"},
		"issuer":     {`{"iss":"https://issuer.example"}`, adminSecret, 200, map[string]any{"revoked": "issuer"}, "issuer", "https://issuer.example"},
		"everything": {`{"everything":true}`, adminSecret, 200, map[string]any{"revoked": "everything"}, "everything", ""},

		"client by an operator":     {`{"client":"web"}`, operatorSecret, 403, map[string]any{"code": "role_required"}, "none", "web"},
		"issuer by an operator":     {`{"iss":"https://issuer.example"}`, operatorSecret, 403, map[string]any{"code": "role_required"}, "none", "https://issuer.example"},
		"everything by an operator": {`{"everything":true}`, operatorSecret, 403, map[string]any{"code": "role_required"}, "none", ""},
		"anything by a service":     {`{` + token + `}`, serviceSecret, 403, nil, "none", ""},
		"anything by a stranger":    {`{` + token + `}`, "wrong", 401, nil, "none", ""},

		"nothing":             {`{}`, operatorSecret, 400, map[string]any{"code": "request_invalid"}, "none", ""},
		"two targets":         {`{"session":"s","user":"u"}`, operatorSecret, 400, nil, "none", ""},
		"jti without iss":     {`{"jti":"j"}`, operatorSecret, 400, nil, "none", ""},
		"token with iss":      {`{` + token + `,"iss":"x"}`, operatorSecret, 400, nil, "none", ""},
		"everything with iss": {`{"everything":true,"iss":"x"}`, adminSecret, 400, nil, "none", ""},
		"session with exp":    {`{"session":"s","exp":1}`, operatorSecret, 400, nil, "none", ""},
		"negative exp":        {`{"jti":"j","iss":"i","exp":-1}`, operatorSecret, 400, nil, "none", ""},
		"long session":        {`{"session":"` + strings.Repeat("s", 2000) + `"}`, operatorSecret, 400, nil, "none", ""},
		"unknown member":      {`{"tokens":"x"}`, operatorSecret, 400, nil, "none", ""},
		"not JSON":            {`token=x`, operatorSecret, 400, nil, "none", ""},
		"long reason":         {`{` + token + `,"reason":"` + strings.Repeat("r", 300) + `"}`, operatorSecret, 400, nil, "none", ""},
		"reason with newline": {`{` + token + `,"reason":"a\nb"}`, operatorSecret, 400, nil, "none", ""},
		"large body":          {`{"token":"` + strings.Repeat("x", maxTokenBody) + `"}`, operatorSecret, 413, nil, "none", ""},
	} {
		t.Run(name, func(t *testing.T) {
			a := newTokensAPI(t, redistest.Embedded(t))
			status, answer := a.call("/v1/tokens/revoke", c.secret, c.body)
			if status != c.status {
				t.Errorf("status %d, want %d: %v", status, c.status, answer)
			}
			for member, want := range c.want {
				if diff := cmp.Diff(want, answer[member]); diff != "" {
					t.Errorf("%s (-want +got):\n%s", member, diff)
				}
			}
			if got := a.refusedBecause(); got != c.refused {
				t.Errorf("alice's token is refused because of %s, want %s", got, c.refused)
			}
			if c.target == "" {
				return
			}
			if len(a.audit.events) != 1 || a.audit.events[0].Target != c.target || a.audit.events[0].Actor == "" {
				t.Errorf("audit %+v, want one event on %q", a.audit.events, c.target)
			}
		})
	}
}

func digestOf(token string) []byte {
	sum := sha256.Sum256([]byte(token))
	return sum[:8]
}

func TestEmergencyRevocation(t *testing.T) {
	a := newTokensAPI(t, redistest.Embedded(t))
	status, answer := a.call("/v1/users/alice/revoke", operatorSecret, `{"reason":"breach"}`)
	if status != 200 || answer["revoked"] != "user" || answer["sessions_ended"] != 2.0 {
		t.Errorf("%d %v: want the user revoked and two sessions ended", status, answer)
	}
	if got := a.refusedBecause(); got != "user" {
		t.Errorf("alice's token is refused because of %s, want user", got)
	}
	version, _ := answer["version"].(float64)
	if notBefore := answer["not_before"]; notBefore != float64(a.now.Unix()) || version < 1 {
		t.Errorf("not before %v, version %v: want %d and a version for the next login", notBefore, version, a.now.Unix())
	}
	token, _ := fakeInspector{a.now}.Inspect("good.alice")
	token.IssuedAt, token.Version = a.now, int64(version)
	if v, err := a.store.Check(t.Context(), &token); v.Revoked || err != nil {
		t.Errorf("a login in the same second: %+v, %v", v, err)
	}
	want := []Event{{Actor: "desk", Action: "user.revoke", Target: "alice", Reason: "breach", Outcome: "done", At: a.now}}
	if diff := cmp.Diff(want, a.audit.events); diff != "" {
		t.Errorf("audit (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"alice"}, a.sessions.ended); diff != "" {
		t.Errorf("sessions (-want +got):\n%s", diff)
	}
}

func TestEmergencyRevocationByVersionAndTime(t *testing.T) {
	a := newTokensAPI(t, redistest.Embedded(t))
	status, answer := a.call("/v1/users/a%2Fb%20c/revoke", operatorSecret,
		fmt.Sprintf(`{"reason":"password_change","iss":"i","version":8,"not_before":%d}`, a.now.Unix()-10))
	if status != 200 || answer["version"] != 8.0 || answer["not_before"] != float64(a.now.Unix()-10) {
		t.Errorf("%d %v", status, answer)
	}
	if got := a.audit.events[0].Target; got != "a/b c at i" {
		t.Errorf("target %q", got)
	}
	for name, body := range map[string]string{
		"no reason":    `{}`,
		"blank reason": `{"reason":" "}`,
		"future":       fmt.Sprintf(`{"reason":"r","not_before":%d}`, a.now.Unix()+3600),
		"bad version":  `{"reason":"r","version":-1}`,
		"unknown":      `{"reason":"r","users":1}`,
	} {
		if status, answer := a.call("/v1/users/alice/revoke", operatorSecret, body); status != 400 {
			t.Errorf("%s: %d %v, want 400", name, status, answer)
		}
	}
	a.sessions.err = errors.New("down")
	if status, answer := a.call("/v1/users/alice/revoke", operatorSecret, `{"reason":"r"}`); status != 503 {
		t.Errorf("sessions down: %d %v, want 503", status, answer)
	}
	if got := a.refusedBecause(); got != "user" {
		t.Errorf("sessions down: alice's token is refused because of %s, want user all the same", got)
	}
}

func TestTokenStatus(t *testing.T) {
	a := newTokensAPI(t, redistest.Embedded(t))
	ask := func(token string) map[string]any {
		t.Helper()
		status, answer := a.call("/v1/tokens/status", operatorSecret, `{"token":"`+token+`"}`)
		if status != 200 {
			t.Fatalf("status %d: %v", status, answer)
		}
		return answer
	}
	claims := map[string]any{
		"sub": "alice", "iss": "https://issuer.example", "jti": "jti-alice", "session": "sid-alice", "ver": 3.0,
		"iat": float64(a.now.Unix() - 60), "exp": float64(a.now.Unix() + 3600),
	}
	with := func(more map[string]any) map[string]any {
		maps.Copy(more, claims)
		return more
	}
	if diff := cmp.Diff(with(map[string]any{"active": true}), ask("good.alice")); diff != "" {
		t.Errorf("good (-want +got):\n%s", diff)
	}
	a.call("/v1/tokens/revoke", operatorSecret, `{"session":"sid-alice"}`)
	if diff := cmp.Diff(with(map[string]any{"active": false, "code": "session_ended", "why": "session"}), ask("good.alice")); diff != "" {
		t.Errorf("ended (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]any{"active": false, "code": "token_expired"}, ask("expired")); diff != "" {
		t.Errorf("expired (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]any{"active": false, "code": "token_invalid"}, ask("forged")); diff != "" {
		t.Errorf("forged (-want +got):\n%s", diff)
	}
	for _, body := range []string{`{}`, `{"token":1}`} {
		if status, _ := a.call("/v1/tokens/status", operatorSecret, body); status != 400 {
			t.Errorf("%s: %d, want 400", body, status)
		}
	}
}

// While Redis is away nobody is told that something was revoked.
func TestTokensWithoutRedis(t *testing.T) {
	a := newTokensAPI(t, redistest.FreeAddr(t))
	for path, body := range map[string]string{
		"/v1/tokens/revoke":      `{"token":"good.alice"}`,
		"/v1/users/alice/revoke": `{"reason":"breach"}`,
		"/v1/tokens/status":      `{"token":"good.alice"}`,
	} {
		status, answer := a.call(path, operatorSecret, body)
		if status != 503 || answer["code"] != "dependency_unavailable" {
			t.Errorf("%s: %d %v, want 503 dependency_unavailable", path, status, answer)
		}
	}
	if len(a.sessions.ended) != 0 {
		t.Errorf("sessions %v were ended without their tokens", a.sessions.ended)
	}
	for _, e := range a.audit.events {
		if e.Outcome != "dependency_unavailable" {
			t.Errorf("audit %+v: want the failure in it", e)
		}
	}
}
