package account

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/credential"
	"github.com/tollgate-proxy/tollgate/internal/flag"
	"github.com/tollgate-proxy/tollgate/internal/polltest"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

const (
	flagOperator = "operator secret of the flag tests"
	flagService  = "service secret of the flag tests"
)

var flagTime = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

// auditTrail remembers events.
type auditTrail struct {
	mu     sync.Mutex
	events []Event
}

func (a *auditTrail) Audit(_ context.Context, e Event) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.events = append(a.events, e)
}

func (a *auditTrail) last() Event {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.events) == 0 {
		return Event{}
	}
	return a.events[len(a.events)-1]
}

// flagAPI is the API over a Redis and a running watcher.
type flagAPI struct {
	handler http.Handler
	store   *flag.Store
	watcher *flag.Watcher
	audit   *auditTrail
}

const flagBootstrap = `
flags:
  shop: {variants: {"on": true, "off": false}, defaultVariant: "off", metadata: {team: shop}, tollgate: {owner: shop, expires: 2026-01-01, audience: {tiers: [premium]}, rollout: {percentage: 100}}}
  colour: {variants: {blue: "#00f", green: "#0f0"}, defaultVariant: green, targeting: {if: [{"==": [{var: theme}, cold]}, blue, null]}}
  gone: {state: DISABLED, defaultVariant: "true"}
`

func newFlagAPI(t *testing.T, c *redis.Client) *flagAPI {
	t.Helper()
	auth, err := credential.New([]credential.Client{
		{Name: "desk", SecretSHA256: sha256Hex(flagOperator), Roles: []string{credential.Operator}},
		{Name: "app", SecretSHA256: sha256Hex(flagService), Roles: []string{credential.Service}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defs, err := flag.Parse("bootstrap", []byte(flagBootstrap))
	if err != nil {
		t.Fatal(err)
	}
	now := func() time.Time { return flagTime }
	a := &flagAPI{store: flag.NewStore(c, now), audit: &auditTrail{}}
	a.watcher, err = flag.NewWatcher(flag.WatcherOptions{Store: a.store, Bootstrap: defs, Poll: 20 * time.Millisecond, Log: slog.New(slog.DiscardHandler), Now: now})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.watcher.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	a.handler = New(auth, NewFlags(a.store, a.watcher, a.audit, now), NewOFREP(a.watcher, now))
	return a
}

// call sends one request as the operator.
func (a *flagAPI) call(method, path, body, secret string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if secret != "" {
		r.Header.Set("Authorization", "Bearer "+secret)
	}
	w := httptest.NewRecorder()
	a.handler.ServeHTTP(w, r)
	return w
}

func (a *flagAPI) seeded(t *testing.T) {
	t.Helper()
	polltest.Until(t, "the bootstrap flags in the store", func() bool { return a.watcher.Current().Version() == 3 })
}

func TestFlagsAPI(t *testing.T) {
	redistest.Each(t, func(t *testing.T, c *redis.Client) {
		a := newFlagAPI(t, c)
		a.seeded(t)
		// In order: each step builds on those before.
		steps := []struct {
			name, method, path, body string
			status                   int
			contains                 string
		}{
			{"list", "GET", "/v1/flags", "", 200, `{"version":3,"flags":[{"key":"colour","version":1,"updated":"2026-03-04T05:06:07Z","updated_by":"bootstrap","summary":"targeting","expired":false,"definition":{`},
			{"get", "GET", "/v1/flags/shop", "", 200, `"summary":"100% of tiers premium","owner":"shop","expired":true`},
			{"get none", "GET", "/v1/flags/none", "", 404, "flag_not_found"},
			{"on", "PATCH", "/v1/flags/shop", `{"state":"on","reason":"launch","version":1}`, 200, `"version":2,`},
			{"on is stale", "PATCH", "/v1/flags/shop", `{"state":"off","version":1}`, 409, "version_conflict"},
			{"off", "PATCH", "/v1/flags/shop", `{"state":"off"}`, 200, `"summary":"off for everyone (killed)"`},
			{"share", "PATCH", "/v1/flags/shop", `{"rollout":12.5}`, 200, `"summary":"12.5% of tiers premium"`},
			{"too fine a share", "PATCH", "/v1/flags/shop", `{"rollout":12.00005}`, 422, "steps of 0.001"},
			{"variant", "PATCH", "/v1/flags/colour", `{"variant":"blue"}`, 200, `"summary":"blue for everyone"`},
			{"no variant", "PATCH", "/v1/flags/colour", `{"variant":"red"}`, 422, `no variant \"red\"`},
			{"on means nothing", "PATCH", "/v1/flags/colour", `{"state":"on"}`, 422, "flag_invalid"},
			{"patch none", "PATCH", "/v1/flags/none", `{"state":"on"}`, 404, "flag_not_found"},
			{"users", "PATCH", "/v1/flags/shop", `{"users":{"add":["ann"]},"tiers":{"add":["free"]},"rollout":5}`, 200, `"keys":["ann"]`},
			{"last tier", "PATCH", "/v1/flags/shop", `{"tiers":{"remove":["premium","free"]}}`, 422, "without its last tier"},
			{"wrong users", "PATCH", "/v1/flags/shop", `{"users":{"added":["ann"]}}`, 400, "request_invalid"},
			{"unknown member", "PATCH", "/v1/flags/shop", `{"stat":"on"}`, 400, "request_invalid"},
			{"long reason", "PATCH", "/v1/flags/shop", `{"state":"on","reason":"` + strings.Repeat("x", 501) + `"}`, 400, "request_invalid"},
			{"negative version", "PATCH", "/v1/flags/shop", `{"state":"on","version":-1}`, 400, "request_invalid"},
			{"create", "PUT", "/v1/flags/new", `{"definition":{"variants":{"on":true,"off":false},"defaultVariant":"off"},"version":0}`, 200, `"key":"new","version":1`},
			{"create again", "PUT", "/v1/flags/new", `{"definition":{"variants":{"on":true,"off":false},"defaultVariant":"off"},"version":0}`, 409, "version_conflict"},
			{"bad key", "PUT", "/v1/flags/New", `{"definition":{"defaultVariant":"true"}}`, 422, "flag_invalid"},
			{"bad definition", "PUT", "/v1/flags/bad", `{"definition":{"variants":{"a\r\nx-user-id: admin":true}}}`, 422, "allowed: a name of 1 to 64 of letters"},
			{"no definition", "PUT", "/v1/flags/bad", `{}`, 422, "flag_invalid"},
			{"not JSON", "PUT", "/v1/flags/bad", `{"definition":`, 400, "request_invalid"},
			{"needs another", "PUT", "/v1/flags/bad", `{"definition":{"defaultVariant":"true","tollgate":{"prerequisites":[{"flag":"nobody","variants":["x"]}]}}}`, 422, `"field":"flags.bad.tollgate.prerequisites[0].flag"`},
			{"history", "GET", "/v1/flags/shop/history?limit=2", "", 200, `{"history":[{"version":5,"at":"2026-03-04T05:06:07Z","actor":"desk","action":"update"`},
			{"history none", "GET", "/v1/flags/nobody/history", "", 404, "flag_not_found"},
			{"history limit", "GET", "/v1/flags/shop/history?limit=0", "", 400, "request_invalid"},
			{"revert", "POST", "/v1/flags/shop/revert", `{"to":1,"reason":"back"}`, 200, `"version":6,`},
			{"revert too far", "POST", "/v1/flags/shop/revert", `{"to":77}`, 404, "flag_not_found"},
			{"revert to what", "POST", "/v1/flags/shop/revert", `{"to":"x"}`, 400, "request_invalid"},
			{"delete stale", "DELETE", "/v1/flags/new?version=9", "", 409, "version_conflict"},
			{"delete badly", "DELETE", "/v1/flags/new?version=x", "", 400, "request_invalid"},
			{"delete negative", "DELETE", "/v1/flags/new?version=-2", "", 400, "request_invalid"},
			{"delete", "DELETE", "/v1/flags/new?version=1&reason=unused", "", 204, ""},
			{"history after", "GET", "/v1/flags/new/history", "", 200, `"action":"delete","reason":"unused","definition":null`},
		}
		for _, step := range steps {
			w := a.call(step.method, step.path, step.body, flagOperator)
			if w.Code != step.status || !strings.Contains(w.Body.String(), step.contains) {
				t.Errorf("%s: got %d %s, want %d %s", step.name, w.Code, w.Body, step.status, step.contains)
			}
		}
		want := Event{Actor: "desk", Action: "flag.delete", Target: "new", Reason: "unused", Outcome: "done", At: flagTime}
		if got := a.audit.last(); got != want {
			t.Errorf("audited %+v", got)
		}
	})
}

func TestFlagsEvaluate(t *testing.T) {
	a := newFlagAPI(t, redistest.Client(t, redistest.Embedded(t)))
	a.seeded(t)
	for _, tt := range []struct {
		path, body string
		status     int
		want       string
	}{
		{"/v1/flags/shop/evaluate", `{"subject":{"key":"ann","tier":"premium"}}`, 200, `{"error_code":"","key":"shop","reason":"TARGETING_MATCH","set_version":3,"value":true,"variant":"on"}`},
		{"/v1/flags/colour/evaluate", `{"subject":{"key":"ann","claims":{"theme":"cold"}},"at":"2026-01-01T00:00:00Z"}`, 200, `"value":"#00f","variant":"blue"`},
		{"/v1/flags/none/evaluate", `{}`, 404, "flag_not_found"},
		{"/v1/flags/shop/evaluate", `{"subject":{"kye":"ann"}}`, 400, "request_invalid"},
	} {
		if w := a.call("POST", tt.path, tt.body, flagOperator); w.Code != tt.status || !strings.Contains(w.Body.String(), tt.want) {
			t.Errorf("%s: got %d %s", tt.body, w.Code, w.Body)
		}
	}
}

func TestFlagsNeedTheOperator(t *testing.T) {
	a := newFlagAPI(t, redistest.Client(t, redistest.Embedded(t)))
	for _, route := range []string{
		"GET /v1/flags", "GET /v1/flags/shop", "PUT /v1/flags/shop", "PATCH /v1/flags/shop", "DELETE /v1/flags/shop",
		"POST /v1/flags/shop/evaluate", "GET /v1/flags/shop/history", "POST /v1/flags/shop/revert",
	} {
		method, path, _ := strings.Cut(route, " ")
		if w := a.call(method, path, "{}", ""); w.Code != http.StatusUnauthorized {
			t.Errorf("%s without credentials: %d", route, w.Code)
		}
		if w := a.call(method, path, "{}", flagService); w.Code != http.StatusForbidden {
			t.Errorf("%s as a service: %d", route, w.Code)
		}
	}
	if len(a.audit.events) != 0 {
		t.Errorf("refused calls were audited as changes: %+v", a.audit.events)
	}
}

func TestFlagsWithoutRedis(t *testing.T) {
	c := redis.NewClient(&redis.Options{Addr: redistest.FreeAddr(t), MaxRetries: -1})
	t.Cleanup(func() { _ = c.Close() })
	a := newFlagAPI(t, c)
	for _, route := range []string{"GET /v1/flags", "GET /v1/flags/shop", "PATCH /v1/flags/shop", "DELETE /v1/flags/shop", "GET /v1/flags/shop/history"} {
		method, path, _ := strings.Cut(route, " ")
		w := a.call(method, path, `{"state":"on"}`, flagOperator)
		if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") != "1" || strings.Contains(w.Body.String(), "127.0.0.1") {
			t.Errorf("%s: got %d %s", route, w.Code, w.Body)
		}
	}
	if got := a.audit.last(); got.Outcome != "dependency_unavailable" {
		t.Errorf("audited %+v", got)
	}
	// What is known is still decided.
	if w := a.call("POST", "/v1/flags/shop/evaluate", `{"subject":{"tier":"premium"}}`, flagOperator); w.Code != 200 || !strings.Contains(w.Body.String(), `"variant":"on"`) {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
}

func TestFlagsListShowsBrokenOnes(t *testing.T) {
	c := redistest.Client(t, redistest.Embedded(t))
	a := newFlagAPI(t, c)
	a.seeded(t)
	if err := c.HSet(t.Context(), "tollgate:flag:{flags}:definitions", "odd", "{").Err(); err != nil {
		t.Fatal(err)
	}
	if err := c.HSet(t.Context(), "tollgate:flag:{flags}:definitions", "later", `{"version":1,"definition":{"variants":{"on":true},"tollgate":{"weather":"rain"}}}`).Err(); err != nil {
		t.Fatal(err)
	}
	var answer struct{ Broken []string }
	w := a.call("GET", "/v1/flags", "", flagOperator)
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || !slices.Equal(answer.Broken, []string{"later", "odd"}) {
		t.Errorf("got %s, %v", w.Body, err)
	}
	// To edit one would lose what is not understood, so nothing is.
	for key, field := range map[string]string{"later": `"field":"tollgate.weather"`, "odd": `"field":"odd"`} {
		if w := a.call("PATCH", "/v1/flags/"+key, `{"users":{"add":["ann"]}}`, flagOperator); w.Code != 422 || !strings.Contains(w.Body.String(), field) {
			t.Errorf("got %d %s", w.Code, w.Body)
		}
	}
}
