package apiclient

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

func TestSessionsTokensAndExplanations(t *testing.T) {
	var asked string
	answers := map[string]string{
		"GET /v1/users/a%2Fb/sessions":               `{"user":"a/b","sessions":[{"id":"s-1","device":{"name":"Phone"},"place":{"country":"DE"},"created":"2026-01-01T00:00:00Z"}]}`,
		"DELETE /v1/users/ada/sessions/s-1?reason=r": "",
		"DELETE /v1/users/ada/sessions/s-1?iss=i":    "",
		"DELETE /v1/users/ada/sessions":              `{"ended":3}`,
		"POST /v1/tokens/revoke":                     `{"revoked":"user","changed":true,"sessions_ended":2}`,
		"POST /v1/users/ada/sessions/end-others":     `{"ended":2}`,
		"POST /v1/tokens/status":                     `{"active":false,"code":"session_ended"}`,
		"POST /v1/explain":                           `{"allowed":true,"status":200,"tier":"free","steps":[{"step":"route","passed":true}]}`,
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.Method + " " + r.URL.RequestURI()
		text, ok := answers[asked]
		switch {
		case !ok:
			w.WriteHeader(http.StatusNotFound)
		case text == "":
			w.WriteHeader(http.StatusNoContent)
		case r.Method == http.MethodPost && json.NewDecoder(r.Body).Decode(new(map[string]any)) != nil:
			w.WriteHeader(http.StatusBadRequest)
		default:
			_, _ = w.Write([]byte(text))
		}
	}))
	t.Cleanup(server.Close)
	c, err := New(server.URL, "x", 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if all, err := c.Sessions(t.Context(), "a/b"); err != nil || len(all) != 1 || all[0].Device.Name != "Phone" || all[0].Place.Country != "DE" {
		t.Errorf("%s: %+v, %v", asked, all, err)
	}
	if err := c.EndSession(t.Context(), "ada", "s-1", "", "r"); err != nil {
		t.Errorf("%s: %v", asked, err)
	}
	if err := c.EndSession(t.Context(), "ada", "s-1", "i", ""); err != nil {
		t.Errorf("%s: %v", asked, err)
	}
	if r, err := c.Revoke(t.Context(), Revocation{User: "ada", Reason: "breach"}); err != nil || r != (Revoked{"user", 2}) {
		t.Errorf("%s: %+v, %v", asked, r, err)
	}
	if n, err := c.EndSessions(t.Context(), "ada", "", "", ""); n != 3 || err != nil {
		t.Errorf("%s: %d, %v", asked, n, err)
	}
	if n, err := c.EndSessions(t.Context(), "ada", "s-2", "i", "r"); n != 2 || err != nil {
		t.Errorf("%s: %d, %v", asked, n, err)
	}
	if s, err := c.TokenStatus(t.Context(), "t"); err != nil || s.Active || s.Code != "session_ended" {
		t.Errorf("%s: %+v, %v", asked, s, err)
	}
	if e, err := c.Explain(t.Context(), Question{Method: "GET", Path: "/"}); err != nil || !e.Allowed || len(e.Steps) != 1 {
		t.Errorf("%s: %+v, %v", asked, e, err)
	}
}
