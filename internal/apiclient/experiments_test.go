package apiclient_test

import (
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tollgate-proxy/tollgate/internal/apiclient"
	"github.com/tollgate-proxy/tollgate/internal/experiment"
)

func TestExperimentCalls(t *testing.T) {
	const (
		definition = `{"key":"button","version":2,"variants":[{"name":"control","weight":1},{"name":"bold","weight":1}],"traffic":1,"primary":{"name":"bought","kind":"rate"},"minimum_users":100}`
		record     = `"definition":` + definition + `,"revision":5,"updated":"2026-01-02T03:04:05Z","updated_by":"ada","state":"running"`
	)
	when, revision := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), int64(5)
	d := experiment.Definition{
		Key: "button", Version: 2, Variants: []experiment.Variant{{Name: "control", Weight: 1}, {Name: "bold", Weight: 1}},
		Traffic: 1, Primary: experiment.Metric{Name: "bought", Kind: experiment.Rate}, MinimumUsers: 100,
	}
	want := apiclient.Experiment{Definition: d, Revision: 5, Updated: when, UpdatedBy: "ada", State: experiment.Started}
	terms := apiclient.Terms{Reason: "why", At: &revision}
	for _, tc := range []struct {
		name, answer string
		call         func(c *apiclient.Client) (any, error)
		request      string
		want         any
	}{
		{"list", `{"experiments":[{` + record + `}],"broken":["odd"]}`, func(c *apiclient.Client) (any, error) { return c.Experiments(t.Context()) },
			`GET /v1/experiments`, apiclient.ExperimentList{Experiments: []apiclient.Experiment{want}, Broken: []string{"odd"}}},
		{"one", `{` + record + `}`, func(c *apiclient.Client) (any, error) { return c.Experiment(t.Context(), "a/b") },
			`GET /v1/experiments/a%2Fb`, want},
		{"as it is", `{"later":1}`, func(c *apiclient.Client) (any, error) { return c.ExperimentJSON(t.Context(), "a/b") },
			`GET /v1/experiments/a%2Fb`, json.RawMessage(`{"later":1}`)},
		{"create", `{` + record + `}`, func(c *apiclient.Client) (any, error) { return c.CreateExperiment(t.Context(), d, "why") },
			`POST /v1/experiments {"definition":` + definition + `,"reason":"why"}`, want},
		{"put", `{` + record + `}`, func(c *apiclient.Client) (any, error) { return c.PutExperiment(t.Context(), d, terms) },
			`PUT /v1/experiments/button {"definition":` + definition + `,"reason":"why","revision":5}`, want},
		{"start", `{` + record + `}`, func(c *apiclient.Client) (any, error) {
			return c.StartExperiment(t.Context(), "a/b", apiclient.Terms{})
		}, `POST /v1/experiments/a%2Fb/start {}`, want},
		{"stop", `{` + record + `}`, func(c *apiclient.Client) (any, error) { return c.StopExperiment(t.Context(), "button", terms) },
			`POST /v1/experiments/button/stop {"reason":"why","revision":5}`, want},
		{"revert", `{` + record + `}`, func(c *apiclient.Client) (any, error) { return c.RevertExperiment(t.Context(), "a/b", 2, terms) },
			`POST /v1/experiments/a%2Fb/revert {"reason":"why","revision":5,"to":2}`, want},
		{"delete", ``, func(c *apiclient.Client) (any, error) { return nil, c.DeleteExperiment(t.Context(), "button", terms) },
			`DELETE /v1/experiments/button?reason=why&revision=5`, nil},
		{"history", `{"key":"button","history":[{"revision":6,"at":"2026-01-02T03:04:05Z","actor":"ada","action":"delete","definition":null},{"revision":5,"at":"2026-01-02T03:04:05Z","actor":"ada","action":"start","definition":` + definition + `}]}`,
			func(c *apiclient.Client) (any, error) { return c.ExperimentHistory(t.Context(), "button") }, `GET /v1/experiments/button/history`,
			[]experiment.Entry{{Revision: 6, At: when, Actor: "ada", Action: "delete"}, {Revision: 5, At: when, Actor: "ada", Action: "start", Definition: &d}}},
		{"results", `{` + record + `,"at":"2026-01-02T03:04:05Z","report":{"experiment":"button","version":2},"quantile_relative_error":0.01}`,
			func(c *apiclient.Client) (any, error) { return c.ExperimentResults(t.Context(), "button") }, `GET /v1/experiments/button/results`,
			apiclient.ExperimentResults{Experiment: want, At: when, Report: experiment.Report{Experiment: "button", Version: 2}, QuantileError: 0.01}},
		{"page", `<!doctype html>`, func(c *apiclient.Client) (any, error) { return c.ExperimentPage(t.Context(), "button") },
			`GET /v1/experiments/button/results?format=html`, []byte("<!doctype html>")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := &server{status: http.StatusOK, body: tc.answer}
			got, err := tc.call(start(t, s))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
			if s.request != tc.request {
				t.Errorf("request %s, want %s", s.request, tc.request)
			}
		})
	}
}
