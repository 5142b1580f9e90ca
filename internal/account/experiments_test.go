package account

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/credential"
	"github.com/tollgate-proxy/tollgate/internal/experiment"
	"github.com/tollgate-proxy/tollgate/internal/polltest"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

// experimentAPI is the API over a Redis, with a running watcher and recorder.
type experimentAPI struct {
	flagAPI
	recorder *experiment.Recorder
	watch    *experiment.Watcher
}

func newExperimentAPI(t *testing.T, c *redis.Client) *experimentAPI {
	t.Helper()
	auth, err := credential.New([]credential.Client{
		{Name: "desk", SecretSHA256: sha256Hex(flagOperator), Roles: []string{credential.Operator}},
		{Name: "app", SecretSHA256: sha256Hex(flagService), Roles: []string{credential.Service}},
	})
	if err != nil {
		t.Fatal(err)
	}
	now := func() time.Time { return flagTime }
	catalog, store := experiment.NewCatalog(c, now), experiment.NewStore(c)
	log := slog.New(slog.DiscardHandler)
	watcher, err := experiment.NewWatcher(experiment.WatcherOptions{Catalog: catalog, Poll: 10 * time.Millisecond, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	recorder, err := experiment.NewRecorder(experiment.RecorderOptions{Store: store, Flush: 10 * time.Millisecond, Log: log, Metrics: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- watcher.Run(ctx) }()
	go func() { done <- recorder.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done; <-done })
	a := &experimentAPI{flagAPI: flagAPI{audit: &auditTrail{}}, recorder: recorder, watch: watcher}
	a.handler = New(auth, NewExperiments(ExperimentsOptions{
		Catalog: catalog, Store: store, Watcher: watcher, Recorder: recorder, Audit: a.audit, Now: now,
		Fits: func(d *experiment.Definition) error {
			if d.FlagKey() == "secret" {
				return errors.New("flag secret is in no header")
			}
			return nil
		},
	}))
	return a
}

const buttonExperiment = `{"key": "button", "description": "Is <b> bolder?", "variants": [{"name": "control", "weight": 1}, {"name": "bold", "weight": 1}],
	"traffic": 1, "minimum_users": 50, "primary": {"name": "bought", "kind": "rate"},
	"guardrails": [{"name": "latency", "kind": "mean", "source": "latency", "lower_is_better": true}]}`

func (a *experimentAPI) must(t *testing.T, status int, method, path, body string) string {
	t.Helper()
	w := a.call(method, path, body, flagOperator)
	if w.Code != status {
		t.Fatalf("%s %s: got %d, want %d: %s", method, path, w.Code, status, w.Body)
	}
	return w.Body.String()
}

func (a *experimentAPI) running(t *testing.T) *experiment.Definition {
	t.Helper()
	a.must(t, http.StatusCreated, "POST", "/v1/experiments", `{"reason": "try", "definition": `+buttonExperiment+`}`)
	a.must(t, http.StatusOK, "POST", "/v1/experiments/button/start", "")
	polltest.Until(t, "the running experiment", func() bool { return len(a.watch.Current().Live()) == 1 })
	return a.watch.Current().Live()[0].Definition
}

func TestExperimentLife(t *testing.T) {
	redistest.Each(t, func(t *testing.T, c *redis.Client) {
		a := newExperimentAPI(t, c)
		if d := a.running(t); d.State != experiment.Started || !d.Start.Equal(flagTime) {
			t.Errorf("got %+v", d)
		}
		if e := a.audit.last(); e.Actor != "desk" || e.Action != "experiment.start" || e.Target != "button" || e.Outcome != "done" {
			t.Errorf("audited %+v", e)
		}
		a.must(t, http.StatusConflict, "POST", "/v1/experiments", `{"definition": `+buttonExperiment+`}`)
		if e := a.audit.last(); e.Outcome != "version_conflict" {
			t.Errorf("audited %+v", e)
		}
		a.must(t, http.StatusOK, "PATCH", "/v1/experiments/button", `{"traffic": 0.25, "auto_stop": true, "minimum_users": 10, "description": "x", "revision": 2}`)
		a.must(t, http.StatusOK, "PUT", "/v1/experiments/button", `{"definition": `+buttonExperiment+`, "revision": 3}`)
		a.must(t, http.StatusConflict, "PUT", "/v1/experiments/button", `{"definition": `+buttonExperiment+`, "revision": 3}`)
		for want, path := range map[string]string{
			`"experiments":[{"definition":{"key":"button"`: "/v1/experiments",
			`"revision":4`:      "/v1/experiments/button",
			`"action":"create"`: "/v1/experiments/button/history",
		} {
			if got := a.must(t, http.StatusOK, "GET", path, ""); !strings.Contains(got, want) {
				t.Errorf("%s: %s is not in %s", path, want, got)
			}
		}
		a.must(t, http.StatusUnprocessableEntity, "DELETE", "/v1/experiments/button", "")
		// The clock stands still, so the end is set beforehand.
		a.must(t, http.StatusOK, "POST", "/v1/experiments/button/stop", `{"reason": "enough"}`)
		a.must(t, http.StatusNoContent, "DELETE", "/v1/experiments/button?revision=5&reason=done", "")
		if got := a.must(t, http.StatusOK, "POST", "/v1/experiments/button/revert", `{"to": 5, "reason": "after all"}`); !strings.Contains(got, `"state":"draft"`) {
			t.Errorf("got %s", got)
		}
		if e := a.audit.last(); e.Action != "experiment.revert" || e.Target != "button" || e.Reason != "after all" || e.Outcome != "done" {
			t.Errorf("audited %+v", e)
		}
		a.must(t, http.StatusNoContent, "DELETE", "/v1/experiments/button", "")
		for _, path := range []string{"", "/results"} {
			a.must(t, http.StatusNotFound, "GET", "/v1/experiments/button"+path, "")
		}
		a.must(t, http.StatusNotFound, "GET", "/v1/experiments/none/history", "")
	})
}

func TestExperimentResults(t *testing.T) {
	a := newExperimentAPI(t, redistest.Client(t, redistest.Embedded(t)))
	d := a.running(t)
	var observations []string
	for i := range 400 {
		user := fmt.Sprintf("user-%d", i)
		arm, _ := d.Assign(user)
		a.recorder.Observe(d, user, arm, "latency", 0.1+float64(i%9)/100)
		if i%2 == arm {
			observations = append(observations, fmt.Sprintf(`{"user": %q, "metric": "bought"}`, user))
		}
	}
	body := `{"observations": [` + strings.Join(observations, ",") + `]}`
	if w := a.call("POST", "/v1/experiments/button/metrics", body, flagService); w.Code != http.StatusAccepted || !strings.Contains(w.Body.String(), fmt.Sprintf(`"recorded":%d`, len(observations))) {
		t.Fatalf("got %d: %s", w.Code, w.Body)
	}
	var got Results
	polltest.Until(t, "400 users", func() bool {
		if err := json.Unmarshal([]byte(a.must(t, http.StatusOK, "GET", "/v1/experiments/button/results", "")), &got); err != nil {
			t.Fatal(err)
		}
		v := got.Report.Variants
		return v[0].Users+v[1].Users == 400 && v[0].Metrics[0].Mean > 0 && v[1].Metrics[0].Mean > 0
	})
	if got.Definition.Key != "button" || got.QuantileError != 0.01 || got.Report.Verdict == "" || got.Report.Variants[1].Metrics[1].P95 < 0.1 {
		t.Errorf("got %+v", got)
	}
	r := httptest.NewRequest("GET", "/v1/experiments/button/results", nil)
	r.Header.Set("Authorization", "Bearer "+flagOperator)
	r.Header.Set("Accept", "text/html,*/*")
	page := httptest.NewRecorder()
	a.handler.ServeHTTP(page, r)
	for _, want := range []string{"<svg", "Is &lt;b&gt; bolder?", "bold", "primary metric, rate per user", "within 1 %"} {
		if !strings.Contains(page.Body.String(), want) {
			t.Errorf("%q is not on the page", want)
		}
	}
	if !strings.HasPrefix(page.Header().Get("Content-Type"), "text/html") || !strings.Contains(page.Header().Get("Content-Security-Policy"), "default-src 'none'") {
		t.Errorf("headers %v", page.Header())
	}
}

func TestExperimentRefusals(t *testing.T) {
	a := newExperimentAPI(t, redistest.Client(t, redistest.Embedded(t)))
	a.running(t)
	for name, c := range map[string]struct {
		method, path, body, secret string
		status                     int
		says                       string
	}{
		"nobody":                 {"GET", "", "", "", 401, ""},
		"a service lists":        {"GET", "", "", flagService, 403, ""},
		"an operator reports":    {"POST", "/button/metrics", "{}", flagOperator, 403, ""},
		"weights of nothing":     {"PUT", "/x", `{"definition": {}}`, flagOperator, 422, "2 to 16 variants"},
		"another key":            {"PUT", "/x", `{"definition": ` + buttonExperiment + `}`, flagOperator, 400, "another key"},
		"an unknown member":      {"PUT", "/x", `{"definition": {"wieght": 1}}`, flagOperator, 400, "wieght"},
		"the flag is hidden":     {"POST", "", `{"definition": ` + strings.Replace(strings.Replace(buttonExperiment, `"button"`, `"hidden"`, 1), `"traffic"`, `"flag": "secret", "traffic"`, 1) + `}`, flagOperator, 422, "no header"},
		"the flag is taken":      {"POST", "", `{"definition": ` + strings.Replace(strings.Replace(buttonExperiment, `"button"`, `"second"`, 1), `"traffic"`, `"flag": "button", "traffic"`, 1) + `}`, flagOperator, 422, "is taken"},
		"a wrong patch":          {"PATCH", "/button", `{"traffic": 7}`, flagOperator, 422, "traffic 7"},
		"no such one":            {"PATCH", "/none", `{"traffic": 1}`, flagOperator, 404, ""},
		"nor to start":           {"POST", "/none/start", "", flagOperator, 404, ""},
		"nor to delete":          {"DELETE", "/none", "", flagOperator, 404, ""},
		"back to nothing":        {"POST", "/button/revert", `{"to": 7}`, flagOperator, 404, ""},
		"back to what":           {"POST", "/button/revert", `{"to": "x"}`, flagOperator, 400, ""},
		"back by another way":    {"POST", "/button/revert", `{"to": 1, "revision": 1}`, flagOperator, 409, ""},
		"a wrong revision":       {"DELETE", "/button?revision=x", "", flagOperator, 400, ""},
		"a negative revision":    {"POST", "/button/stop", `{"revision": -1}`, flagOperator, 400, ""},
		"started twice":          {"POST", "/button/start", "{}", flagOperator, 422, "running already"},
		"reports to none":        {"POST", "/none/metrics", `{"observations": [{"user": "a", "metric": "bought"}]}`, flagService, 404, ""},
		"reports nothing":        {"POST", "/button/metrics", `{"observations": []}`, flagService, 400, ""},
		"reports of nobody":      {"POST", "/button/metrics", `{"observations": [{"metric": "bought"}]}`, flagService, 422, "observations[0].user"},
		"reports the gateway's":  {"POST", "/button/metrics", `{"observations": [{"user": "a", "metric": "latency"}]}`, flagService, 422, "observations[0].metric"},
		"reports too much":       {"POST", "/button/metrics", `{"observations": [{"user": "a", "metric": "bought"}, {"user": "a", "metric": "bought", "value": -2e15}]}`, flagService, 422, "observations[1].value"},
		"reports what is no sum": {"POST", "/button/metrics", `{"observations": [{"user": "a", "metric": "bought", "value": 1e999}]}`, flagService, 400, ""},
	} {
		w := a.call(c.method, "/v1/experiments"+c.path, c.body, c.secret)
		if w.Code != c.status || !strings.Contains(w.Body.String(), c.says) {
			t.Errorf("%s: got %d, want %d with %q: %s", name, w.Code, c.status, c.says, w.Body)
		}
	}
	a.must(t, http.StatusOK, "POST", "/v1/experiments/button/stop", "")
	polltest.Until(t, "the stopped experiment", func() bool { return len(a.watch.Current().Live()) == 0 })
	if w := a.call("POST", "/v1/experiments/button/metrics", `{"observations": [{"user": "a", "metric": "bought"}]}`, flagService); w.Code != http.StatusConflict {
		t.Errorf("a stopped experiment measures: %d", w.Code)
	}
}

// What cannot be read is deleted like any other, with what was measured of it:
// of the version that can still be read, or else of what this replica last knew.
func TestBrokenExperimentIsDeleted(t *testing.T) {
	redistest.Each(t, func(t *testing.T, c *redis.Client) {
		a := newExperimentAPI(t, c)
		d := a.running(t)
		newer := *d
		newer.Key, newer.Version = "newer", 3
		for _, d := range []*experiment.Definition{d, &newer} {
			if err := a.recorder.Report(d, "ann", 0, experiment.Value{Metric: "bought", Value: 1}); err != nil {
				t.Fatal(err)
			}
		}
		measured := func() int { return len(c.Keys(t.Context(), "*}:totals").Val()) }
		polltest.Until(t, "what is measured", func() bool { return measured() == 2 })
		for key, document := range map[string]string{
			"button": "{", "odd": "{", "newer": `{"definition":{"weather":"rain","key":"newer","version":3},"revision":3}`,
		} {
			if err := c.HSet(t.Context(), "tollgate:experiment:{experiments}:definitions", key, document).Err(); err != nil {
				t.Fatal(err)
			}
		}
		a.must(t, http.StatusConflict, "DELETE", "/v1/experiments/button?revision=1", "")
		for _, key := range []string{"button", "odd", "newer"} {
			a.must(t, http.StatusNoContent, "DELETE", "/v1/experiments/"+key, "")
			a.must(t, http.StatusNotFound, "DELETE", "/v1/experiments/"+key, "")
		}
		if got := measured(); got != 0 {
			t.Errorf("of %d what was measured is still there", got)
		}
		if got := a.must(t, http.StatusOK, "POST", "/v1/experiments/button/revert", `{"to": 2}`); !strings.Contains(got, `"state":"draft"`) {
			t.Errorf("got %s", got)
		}
	})
}

// Before the start, a draft that asks for it takes what services report; its
// results say how much that explains. One that does not ask takes nothing.
func TestExperimentBefore(t *testing.T) {
	c := redistest.Client(t, redistest.Embedded(t))
	a := newExperimentAPI(t, c)
	a.must(t, http.StatusCreated, "POST", "/v1/experiments", `{"reason": "try", "definition": `+buttonExperiment+`}`)
	report := func(value func(i int) int) int {
		var observations []string
		for i := range 200 {
			observations = append(observations, fmt.Sprintf(`{"user": "user-%d", "metric": "spent", "value": %d}`, i, value(i)))
		}
		return a.call("POST", "/v1/experiments/button/metrics", `{"observations": [`+strings.Join(observations, ",")+`]}`, flagService).Code
	}
	spent := strings.Replace(buttonExperiment, `"name": "bought", "kind": "rate"`, `"name": "spent", "kind": "sum"`, 1)
	a.must(t, http.StatusOK, "PUT", "/v1/experiments/button", `{"definition": `+spent+`}`)
	polltest.Until(t, "the draft", func() bool {
		r := a.watch.Current().Find("button")
		return r != nil && r.Definition.Primary.Name == "spent"
	})
	if code := report(func(i int) int { return i }); code != http.StatusConflict {
		t.Errorf("a draft that does not measure before took observations: %d", code)
	}
	a.must(t, http.StatusOK, "PATCH", "/v1/experiments/button", `{"measure_before": true, "maximum_users": 1000}`)
	polltest.Until(t, "the draft that measures", func() bool { return a.watch.Current().Find("button").Definition.MeasureBefore })
	if code := report(func(i int) int { return i }); code != http.StatusAccepted {
		t.Fatalf("got %d", code)
	}
	polltest.Until(t, "what was before", func() bool {
		keys := c.Keys(t.Context(), "*}:before").Val()
		return len(keys) == 1 && c.HLen(t.Context(), keys[0]).Val() == 200
	})
	a.must(t, http.StatusOK, "POST", "/v1/experiments/button/start", "")
	polltest.Until(t, "the experiment", func() bool { return len(a.watch.Current().Live()) == 1 })
	d := a.watch.Current().Live()[0].Definition
	for i := range 200 {
		user := fmt.Sprintf("user-%d", i)
		arm, _ := d.Assign(user)
		a.recorder.Expose(d, user, arm)
	}
	if code := report(func(i int) int { return i + i%3 }); code != http.StatusAccepted {
		t.Fatalf("got %d", code)
	}
	var results Results
	polltest.Until(t, "adjusted results", func() bool {
		if err := json.Unmarshal([]byte(a.must(t, http.StatusOK, "GET", "/v1/experiments/button/results", "")), &results); err != nil {
			t.Fatal(err)
		}
		against := results.Report.Variants[1].Metrics[0].Against
		return against.Adjusted && against.Explained > 0.9 && results.Report.Variants[0].Metrics[0].KnownBefore > 50
	})
	if results.State != experiment.Started || results.Report.Warnings == nil {
		t.Errorf("got %+v", results)
	}
	if page := a.must(t, http.StatusOK, "GET", "/v1/experiments/button/results?format=html", ""); !strings.Contains(page, "known of 200 users, explains ") || !strings.Contains(page, "State: running") {
		t.Error(page)
	}
}

func TestExperimentsWithoutRedis(t *testing.T) {
	server := redistest.NewProcess(t)
	c := redis.NewClient(&redis.Options{Addr: server.Addr(), MaxRetries: -1})
	t.Cleanup(func() { _ = c.Close() })
	a := newExperimentAPI(t, c)
	a.running(t)
	server.Kill()
	for _, call := range [][2]string{{"GET", ""}, {"GET", "/button"}, {"GET", "/button/results"}, {"GET", "/button/history"}, {"POST", "/button/stop"}} {
		w := a.call(call[0], "/v1/experiments"+call[1], "", flagOperator)
		if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
			t.Errorf("%v: got %d: %s", call, w.Code, w.Body)
		}
	}
}

// Experiments that are stored in a form of which something is not understood are
// named, say why, and cannot be edited.
func TestExperimentsListShowsBrokenOnes(t *testing.T) {
	c := redistest.Client(t, redistest.Embedded(t))
	a := newExperimentAPI(t, c)
	a.running(t)
	for key, document := range map[string]string{"odd": "{", "later": `{"definition":{"key":"later","weather":"rain"},"revision":1}`} {
		if err := c.HSet(t.Context(), "tollgate:experiment:{experiments}:definitions", key, document).Err(); err != nil {
			t.Fatal(err)
		}
	}
	if got := a.must(t, http.StatusOK, "GET", "/v1/experiments", ""); !strings.Contains(got, `"broken":["later","odd"]`) {
		t.Errorf("got %s", got)
	}
	for _, call := range [][3]string{{"GET", "", ""}, {"POST", "/stop", ""}, {"PATCH", "", `{"traffic": 0.5}`}} {
		if got := a.must(t, http.StatusUnprocessableEntity, call[0], "/v1/experiments/later"+call[1], call[2]); !strings.Contains(got, `weather`) {
			t.Errorf("got %s", got)
		}
	}
}

// A call with an id counts once, however often it is repeated, and has been
// written when it is answered.
func TestExperimentReportsOnce(t *testing.T) {
	c := redistest.Client(t, redistest.Embedded(t))
	a := newExperimentAPI(t, c)
	spent := strings.Replace(buttonExperiment, `"name": "bought", "kind": "rate"`, `"name": "spent", "kind": "sum"`, 1)
	a.must(t, http.StatusCreated, "POST", "/v1/experiments", `{"definition": `+spent+`}`)
	a.must(t, http.StatusOK, "POST", "/v1/experiments/button/start", "")
	polltest.Until(t, "the experiment", func() bool { return len(a.watch.Current().Live()) == 1 })
	report := func(id string) int {
		return a.call("POST", "/v1/experiments/button/metrics", fmt.Sprintf(`{"id": %q, "observations": [{"user": "ann", "metric": "spent", "value": 3}]}`, id), flagService).Code
	}
	for _, id := range []string{"order-1", "order-1", "order-2", "order-1"} {
		if code := report(id); code != http.StatusAccepted {
			t.Fatalf("got %d", code)
		}
	}
	keys := c.Keys(t.Context(), "*}:totals").Val()
	if len(keys) != 1 {
		t.Fatalf("keys %v", keys)
	}
	for user, sums := range c.HGetAll(t.Context(), keys[0]).Val() {
		if !strings.HasPrefix(sums, "2 6 2 ") {
			t.Errorf("%s: %s", user, sums)
		}
	}
	if code := report(strings.Repeat("x", 257)); code != http.StatusBadRequest {
		t.Errorf("a gigantic id: %d", code)
	}
	for observation, want := range map[string]int{`"value": 4`: http.StatusUnprocessableEntity, `"value": 3.0`: http.StatusAccepted} {
		body := `{"id": "order-1", "observations": [{"metric": "spent", "user": "ann", ` + observation + `}]}`
		if w := a.call("POST", "/v1/experiments/button/metrics", body, flagService); w.Code != want || w.Code >= 400 && !strings.Contains(w.Body.String(), "idempotency_key_reused") {
			t.Errorf("order-1 again with %s: %d %s", observation, w.Code, w.Body)
		}
	}
	if err := c.Set(t.Context(), keys[0], "not a hash", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if code := report("order-3"); code != http.StatusServiceUnavailable {
		t.Errorf("what was not written was taken: %d", code)
	}
	c.Del(t.Context(), keys[0])
	if code := report("order-3"); code != http.StatusAccepted || c.HLen(t.Context(), keys[0]).Val() != 1 {
		t.Errorf("a retry is not written: %d", code)
	}
}
