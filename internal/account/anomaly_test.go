package account

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/anomaly"
	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/credential"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
	"github.com/tollgate-proxy/tollgate/internal/session"
)

// anomalyAPI is the part over a watch on a Redis.
type anomalyAPI struct {
	t       *testing.T
	watch   *anomaly.Watch
	audit   *auditTrail
	handler http.Handler
	now     time.Time
}

func newAnomalyAPI(t *testing.T, addr string) *anomalyAPI {
	t.Helper()
	a := &anomalyAPI{t: t, audit: &auditTrail{}, now: time.Date(2027, 1, 15, 12, 0, 0, 0, time.UTC)}
	now := func() time.Time { return a.now }
	c := anomaly.DefaultConfig()
	c.Wait, c.Timeout = time.Second, 5*time.Second
	c.Actions = []anomaly.ActionConfig{{Score: 1, Action: "header"}, {Score: 50, Action: "deny"}}
	client := redis.NewClient(&redis.Options{Addr: addr, MaxRetries: -1, DialerRetries: 1})
	t.Cleanup(func() { _ = client.Close() })
	var err error
	if a.watch, err = anomaly.NewWatch(c, anomaly.Options{Store: anomaly.NewRedis(client), Now: now}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- a.watch.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	auth, err := credential.New([]credential.Client{
		{Name: "desk", SecretSHA256: sha256Hex(operatorSecret), Roles: []string{credential.Operator}},
		{Name: "root", SecretSHA256: sha256Hex(adminSecret), Roles: []string{credential.Admin}},
		{Name: "login", SecretSHA256: sha256Hex(serviceSecret), Roles: []string{credential.Service}},
	})
	if err != nil {
		t.Fatal(err)
	}
	a.handler = New(auth, &Anomaly{Watch: a.watch, Self: &Self{}, Auditor: a.audit, Now: now})
	return a
}

func (a *anomalyAPI) call(method, path, secret, body string) (int, string) {
	a.t.Helper()
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer "+secret)
	w := httptest.NewRecorder()
	a.handler.ServeHTTP(w, r)
	text, err := io.ReadAll(w.Result().Body)
	if err != nil {
		a.t.Fatal(err)
	}
	return w.Code, string(text)
}

// saw lets a request of ada's be seen.
func (a *anomalyAPI) saw(ago time.Duration, token, address string, place anomaly.PlaceText) {
	a.watch.Observe(a.t.Context(), &anomaly.Sighting{
		User: "ada", Session: "s-" + token, Token: sha256.Sum256([]byte(token)), Address: netip.MustParseAddr(address),
		Agent: "Firefox", Place: place, At: a.now.Add(-ago),
	})
}

func TestAnomalyAPI(t *testing.T) {
	berlin := anomaly.PlaceText{Country: "DE", Network: "64496", Latitude: "52.5", Longitude: "13.4", Radius: "20"}
	newYork := anomaly.PlaceText{Country: "US", Network: "64497", Latitude: "40.7", Longitude: "-74", Radius: "20"}
	redistest.Each(t, func(t *testing.T, c *redis.Client) {
		a := newAnomalyAPI(t, c.Options().Addr)
		a.saw(72*time.Hour, "t1", "192.0.2.1", berlin)
		a.saw(time.Hour, "t2", "192.0.2.1", berlin)
		a.saw(30*time.Minute, "t3", "198.51.100.1", newYork)

		status, text := a.call("GET", "/v1/users/ada/suspicious-events", operatorSecret, "")
		var list suspiciousEvents
		if err := json.Unmarshal([]byte(text), &list); err != nil || status != 200 || len(list.Events) != 1 || list.User != "ada" {
			t.Fatalf("%d %s: %v", status, text, err)
		}
		e := list.Events[0]
		if e.Session != "s-t3" || e.Action != anomaly.Deny || e.Score != 80 || e.Country != "US" || e.Range != "198.51.100.0/24" || len(e.Signals) != 3 {
			t.Errorf("%s", text)
		}
		if strings.Contains(text, "198.51.100.1") || strings.Contains(text, "Firefox") || !strings.Contains(text, `"action":"deny"`) {
			t.Errorf("the answer says too much: %s", text)
		}
		if status, text := a.call("GET", "/v1/users/nobody/suspicious-events", operatorSecret, ""); status != 200 || !strings.Contains(text, `"events":[]`) {
			t.Errorf("%d %s", status, text)
		}

		for body, want := range map[string]string{
			`{"address":"203.0.113.1","user_agent":"Firefox","place":{"country":"US","asn":64497,"latitude":40.7,"longitude":-74,"radius":20}}`: `"score":80,"action":"deny","signals":[{"code":"impossible_travel"`,
			`{"at":"2027-01-14T12:00:00Z","address":"203.0.113.1","user_agent":"Firefox","place":{"country":"US"}}`:                             `"at":"2027-01-14T12:00:00Z","score":20,"action":"header","signals":[{"code":"new_country"`,
			`{"at":"2027-01-10T12:00:00Z","address":"203.0.113.1","user_agent":"curl"}`:                                                         `"score":0,"action":"none","signals":[],"settled":false`,
			`{"user_agent":"curl","authenticated":"2027-01-15T11:59:00Z"}`:                                                                      `"settled":true`,
		} {
			if status, text := a.call("POST", "/v1/users/ada/suspicious-events/detect", operatorSecret, body); status != 200 || !strings.Contains(text, want) {
				t.Errorf("%s: %d %s", body, status, text)
			}
		}
		if status, text := a.call("DELETE", "/v1/users/ada/suspicious-events?reason=asked", adminSecret, ""); status != 204 {
			t.Errorf("%d %s", status, text)
		}
		want := Event{Actor: "root", Action: "suspicious_events.erase", Target: "ada", Reason: "asked", Outcome: "done", At: a.now}
		if diff := cmp.Diff(want, a.audit.last()); diff != "" {
			t.Errorf("audit (-want +got):\n%s", diff)
		}
		if status, text := a.call("GET", "/v1/users/ada/suspicious-events", operatorSecret, ""); status != 200 || !strings.Contains(text, `"events":[]`) {
			t.Errorf("after erasure: %d %s", status, text)
		}
	})
}

// told is a Suspicions that knows what it is told.
type told struct {
	Suspicions

	events map[string][]anomaly.Event
	err    error
}

func (f *told) Events(_ context.Context, user string) ([]anomaly.Event, error) {
	return f.events[user], f.err
}

// Users see what was suspicious about themselves, and no more than they may know.
func TestOwnSuspiciousEvents(t *testing.T) {
	f := &told{}
	s := newSystem(t, redistest.Embedded(t), nil, func(s *system) []Part {
		now := func() time.Time { return s.now }
		self := &Self{Verifier: s.verifier, Checker: s.store, Revoker: s.store, Manager: s.manager, Auditor: s.audit, Now: now}
		return []Part{self, &Anomaly{Watch: f, Self: self, Auditor: s.audit, Now: now}}
	})
	const path = "/v1/me/suspicious-events"
	token := s.mint(authn.MintOptions{User: "ada", Session: "s-1"})
	if text := s.want(200, nil, "GET", path, token, ""); !strings.Contains(text, `"events":[]`) {
		t.Errorf("nothing happened: %s", text)
	}
	signals := []anomaly.Signal{{Code: anomaly.ImpossibleTravel, Weight: 50, Evidence: "6000 km"}, {Code: anomaly.NewCountry, Weight: 20}}
	f.events = map[string][]anomaly.Event{
		"ada": {
			{At: s.now, Session: "s-1", Issuer: authn.DevelopmentIssuerURL, Score: 70, Action: anomaly.Deny, Signals: signals, Country: "US", ASN: 64496, Range: "192.0.2.0/24"},
			{At: s.now.Add(-time.Hour), Session: "s-2", Score: 20, Action: anomaly.Header, Signals: signals[1:], Settled: true},
			{At: s.now.Add(-time.Hour), Session: "s-3", Issuer: "https://elsewhere.test", Signals: signals}, // another ada
		},
		"bob": {{At: s.now, Session: "s-4", Signals: signals}},
	}
	var got ownEvents
	text := s.want(200, &got, "GET", path, token, "")
	want := ownEvents{User: "ada", Events: []ownEvent{
		{
			At: s.now.UTC(), Session: "s-1", Current: true, Reasons: []anomaly.Code{"impossible_travel", "new_country"}, Refused: true,
			Country: "US", ASN: 64496, Range: "192.0.2.0/24",
		},
		{At: s.now.Add(-time.Hour).UTC(), Session: "s-2", Reasons: []anomaly.Code{"new_country"}, Settled: true},
	}}
	if diff := cmp.Diff(want, got); diff != "" || strings.Contains(text, "6000 km") || strings.Contains(text, "score") {
		t.Errorf("%s (-want +got):\n%s", text, diff)
	}
	f.err = anomaly.ErrUnavailable
	s.want(503, nil, "GET", path, token, "")
	f.err = nil
	s.want(401, nil, "GET", path, "", "")
	s.want(401, nil, "GET", path, operatorSecret, "")
	if err := s.manager.End(t.Context(), "ada", session.Ref{Issuer: authn.DevelopmentIssuerURL, ID: "s-1"}); err != nil && !errors.Is(err, session.ErrNotFound) {
		t.Fatal(err)
	}
	s.want(401, nil, "GET", path, token, "")
}

func TestAnomalyAPIRefuses(t *testing.T) {
	a := newAnomalyAPI(t, redistest.Embedded(t))
	const events, detect = "/v1/users/ada/suspicious-events", "/v1/users/ada/suspicious-events/detect"
	for name, c := range map[string]struct {
		method, path, secret, body string
		status                     int
		contains                   string
	}{
		"a service lists":          {"GET", events, serviceSecret, "", 403, "role_required"},
		"a service detects":        {"POST", detect, serviceSecret, "{}", 403, "role_required"},
		"an operator erases":       {"DELETE", events, operatorSecret, "", 403, "role_required"},
		"nobody":                   {"GET", events, "wrong", "", 401, "credentials"},
		"no address":               {"POST", detect, operatorSecret, `{"address":"home"}`, 400, "address is no IP address"},
		"the future":               {"POST", detect, operatorSecret, `{"at":"2028-01-01T00:00:00Z"}`, 400, "future"},
		"a place without address":  {"POST", detect, operatorSecret, `{"place":{"country":"DE"}}`, 400, "place goes with address"},
		"an unknown member":        {"POST", detect, operatorSecret, `{"ip":"192.0.2.1"}`, 400, "unknown field"},
		"too much":                 {"POST", detect, operatorSecret, `{"device":"` + strings.Repeat("x", maxAnomalyBody) + `"}`, 413, "request_too_large"},
		"a reason that is a novel": {"DELETE", events + "?reason=" + strings.Repeat("x", 300), adminSecret, "", 400, "reason"},
	} {
		t.Run(name, func(t *testing.T) {
			if status, text := a.call(c.method, c.path, c.secret, c.body); status != c.status || !strings.Contains(text, c.contains) {
				t.Errorf("%d %s", status, text)
			}
		})
	}
}

func TestAnomalyAPIWithoutRedis(t *testing.T) {
	a := newAnomalyAPI(t, redistest.FreeAddr(t))
	for _, c := range []struct{ method, path string }{
		{"GET", "/v1/users/ada/suspicious-events"},
		{"POST", "/v1/users/ada/suspicious-events/detect"},
		{"DELETE", "/v1/users/ada/suspicious-events"},
	} {
		if status, text := a.call(c.method, c.path, adminSecret, "{}"); status != 503 || !strings.Contains(text, "dependency_unavailable") {
			t.Errorf("%s %s: %d %s", c.method, c.path, status, text)
		}
	}
	if got := a.audit.last().Outcome; got != "dependency_unavailable" {
		t.Errorf("audited as %s", got)
	}
}
