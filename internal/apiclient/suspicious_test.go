package apiclient_test

import (
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/apiclient"
)

func TestSuspicions(t *testing.T) {
	s := &server{status: 200, kind: "application/json", body: `{"events":[{"at":"2026-01-01T00:00:00Z","score":70,"action":"deny","signals":[{"code":"new_country","weight":20}],"country":"US"}]}`}
	c := start(t, s)
	all, err := c.Suspicions(t.Context(), "a/b")
	if err != nil || len(all) != 1 || all[0].Score != 70 || all[0].Signals[0].Code != "new_country" || s.request != "GET /v1/users/a%2Fb/suspicious-events" {
		t.Errorf("%s: %+v, %v", s.request, all, err)
	}
	s.body = `{"score":20,"action":"log"}`
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	v, err := c.Detect(t.Context(), "ada", apiclient.Described{At: at, Address: "192.0.2.1"})
	if err != nil || v.Score != 20 || s.request != `POST /v1/users/ada/suspicious-events/detect {"at":"2026-01-01T00:00:00Z","address":"192.0.2.1"}` {
		t.Errorf("%s: %+v, %v", s.request, v, err)
	}
	if _, err := c.Detect(t.Context(), "ada", apiclient.Described{}); err != nil || s.request != `POST /v1/users/ada/suspicious-events/detect {}` {
		t.Errorf("%s: %v", s.request, err)
	}
	s.status, s.body = 204, ""
	if err := c.ForgetSuspicions(t.Context(), "ada", "asked"); err != nil || s.request != "DELETE /v1/users/ada/suspicious-events?reason=asked" {
		t.Errorf("%s: %v", s.request, err)
	}
}
