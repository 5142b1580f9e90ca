package apiclient_test

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tollgate-proxy/tollgate/internal/apiclient"
	"github.com/tollgate-proxy/tollgate/internal/experiment"
	"github.com/tollgate-proxy/tollgate/internal/flag"
	"github.com/tollgate-proxy/tollgate/internal/pyproxy"
)

// server records the last request and gives the answer of a test.
type server struct {
	request string // method, path with query, and body
	header  http.Header
	status  int
	kind    string
	body    string
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.request, s.header = strings.TrimSpace(r.Method+" "+r.URL.String()+" "+string(body)), r.Header
	w.Header().Set("Content-Type", s.kind)
	if s.status/100 == 3 {
		w.Header().Set("Location", "/elsewhere")
	}
	w.WriteHeader(s.status)
	_, _ = io.WriteString(w, s.body)
}

func start(t *testing.T, s *server) *apiclient.Client {
	t.Helper()
	api := httptest.NewServer(s)
	t.Cleanup(api.Close)
	client, err := apiclient.New(api.URL, "secret", 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func TestCalls(t *testing.T) {
	definition := flag.Definition{
		Key: "a b", State: flag.Enabled, Variants: map[string]any{"on": true}, DefaultVariant: "on",
	}
	const stored = `{"key":"a","version":3,"updated":"2026-01-02T03:04:05Z","updated_by":"ada","summary":"on for everyone","owner":"web","expired":true,"definition":{"state":"ENABLED","variants":{"on":true},"defaultVariant":"on","later":1}}`
	want := apiclient.Flag{
		Key: "a", Version: 3, Updated: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), UpdatedBy: "ada",
		Summary: "on for everyone", Owner: "web", Expired: true,
		Definition: json.RawMessage(`{"state":"ENABLED","variants":{"on":true},"defaultVariant":"on","later":1}`),
	}
	const upstream = `{"name":"nlp","addresses":[{"address":"127.0.0.1:9202","state":"healthy","in_flight":1}],"circuits":[{"class":"default","state":"open","retry_after_seconds":1.5}]}`
	seen := pyproxy.UpstreamStatus{
		Name:      "nlp",
		Addresses: []pyproxy.AddressStatus{{Address: "127.0.0.1:9202", State: "healthy", InFlight: 1}},
		Circuits:  []pyproxy.CircuitStatus{{Class: "default", State: "open", RetryAfterSeconds: 1.5}},
	}
	percent, version := 12.5, int64(3)
	lent := apiclient.LimitOverride{Domain: "d", Entry: "user", Subject: "ada", Tier: "premium", Until: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)}
	for _, tc := range []struct {
		name, answer string
		call         func(c *apiclient.Client) (any, error)
		request      string
		want         any
	}{
		{"revoke", `{}`, func(c *apiclient.Client) (any, error) { return nil, c.RevokeToken(t.Context(), "t", "lost") },
			`POST /v1/tokens/revoke {"reason":"lost","token":"t"}`, nil},
		{"limits", `{"buckets":[{"name":"minute","limit":10,"window_seconds":60,"size":10,"remaining":3,"full_in_seconds":42.5}]}`,
			func(c *apiclient.Client) (any, error) {
				return c.Limits(t.Context(), apiclient.LimitSubject{Name: "a/b", Entry: "remote_address", Domain: "d"}, "free")
			},
			`GET /v1/limits/a%2Fb?domain=d&entry=remote_address&tier=free`,
			[]apiclient.LimitBucket{{Name: "minute", Limit: 10, WindowSeconds: 60, Size: 10, Remaining: 3, FullInSeconds: 42.5}}},
		{"reset limits", ``, func(c *apiclient.Client) (any, error) {
			return nil, c.ResetLimits(t.Context(), apiclient.LimitSubject{Name: "ada"}, "ours")
		}, `POST /v1/limits/ada/reset?reason=ours`, nil},
		{"override", `{"domain":"d","entry":"user","subject":"ada","tier":"premium","until":"2030-01-02T03:04:05Z"}`,
			func(c *apiclient.Client) (any, error) {
				return c.OverrideTier(t.Context(), apiclient.LimitSubject{Name: "ada"}, "premium", lent.Until, "trial")
			},
			`PUT /v1/limits/ada/override?reason=trial {"tier":"premium","until":"2030-01-02T03:04:05Z"}`, lent},
		{"end override", ``, func(c *apiclient.Client) (any, error) {
			return nil, c.EndOverride(t.Context(), apiclient.LimitSubject{Name: "ada"}, "")
		}, `DELETE /v1/limits/ada/override`, nil},
		{"overrides", `{"overrides":[{"domain":"d","entry":"user","subject":"ada","tier":"premium","until":"2030-01-02T03:04:05Z"}]}`,
			func(c *apiclient.Client) (any, error) { return c.LimitOverrides(t.Context()) },
			`GET /v1/limit-overrides`, []apiclient.LimitOverride{lent}},
		{"flags", `{"version":9,"flags":[` + stored + `],"broken":["odd"]}`, func(c *apiclient.Client) (any, error) { return c.Flags(t.Context()) },
			`GET /v1/flags`, apiclient.FlagList{Flags: []apiclient.Flag{want}, Broken: []string{"odd"}}},
		{"change", stored, func(c *apiclient.Client) (any, error) {
			return c.ChangeFlag(t.Context(), "a/b", apiclient.FlagChange{Rollout: &percent, Version: &version, Reason: "why"})
		}, `PATCH /v1/flags/a%2Fb {"rollout":12.5,"reason":"why","version":3}`, want},
		{"target", stored, func(c *apiclient.Client) (any, error) {
			return c.ChangeFlag(t.Context(), "a", apiclient.FlagChange{Targets: flag.Targets{Users: flag.UserEdits{Edits: flag.Edits{Add: []string{"ada"}}, Variant: "on"}, Tiers: flag.Edits{Remove: []string{"free"}}, Everyone: true}})
		}, `PATCH /v1/flags/a {"users":{"add":["ada"],"variant":"on"},"tiers":{"remove":["free"]},"everyone":true}`, want},
		{"set", stored, func(c *apiclient.Client) (any, error) { return nil, c.SetFlag(t.Context(), "a", "off", "") },
			`PATCH /v1/flags/a {"state":"off"}`, nil},
		{"put", stored, func(c *apiclient.Client) (any, error) { return nil, c.PutFlag(t.Context(), definition, "why") },
			`PUT /v1/flags/a%20b {"definition":{"state":"ENABLED","variants":{"on":true},"defaultVariant":"on"},"reason":"why"}`, nil},
		{"delete", ``, func(c *apiclient.Client) (any, error) { return nil, c.DeleteFlag(t.Context(), "a", "no more & out") },
			`DELETE /v1/flags/a?reason=no+more+%26+out`, nil},
		{"flag", stored, func(c *apiclient.Client) (any, error) { return c.Flag(t.Context(), "a/b") }, `GET /v1/flags/a%2Fb`, want},
		{"flag history", `{"key":"a","history":[{"version":3,"at":"2026-01-02T03:04:05Z","actor":"ada","action":"delete","reason":"why","definition":null}]}`,
			func(c *apiclient.Client) (any, error) { return c.FlagHistory(t.Context(), "a/b", 7) }, `GET /v1/flags/a%2Fb/history?limit=7`,
			[]flag.Entry{{Version: 3, At: want.Updated, Actor: "ada", Action: "delete", Reason: "why", Definition: json.RawMessage("null")}}},
		{"evaluate", `{"key":"a","variant":"on","value":true,"reason":"SPLIT","error_code":"","set_version":2}`, func(c *apiclient.Client) (any, error) {
			return c.EvaluateFlag(t.Context(), "a/b", apiclient.FlagSubject{Key: "ada", Tier: "free"})
		}, `POST /v1/flags/a%2Fb/evaluate {"subject":{"key":"ada","tier":"free"}}`, apiclient.FlagDecision{Variant: "on", Value: true, Reason: "SPLIT"}},
		{"write", stored, func(c *apiclient.Client) (any, error) {
			return c.WriteFlag(t.Context(), "a", json.RawMessage(`{}`), apiclient.Terms{At: new(int64)})
		}, `PUT /v1/flags/a {"definition":{},"version":0}`, want},
		{"revert", stored, func(c *apiclient.Client) (any, error) {
			return c.RevertFlag(t.Context(), "a/b", 2, apiclient.Terms{Reason: "why", At: &version})
		}, `POST /v1/flags/a%2Fb/revert {"reason":"why","to":2,"version":3}`, want},
		{"remove", ``, func(c *apiclient.Client) (any, error) {
			return nil, c.RemoveFlag(t.Context(), "a/b", apiclient.Terms{At: &version})
		}, `DELETE /v1/flags/a%2Fb?version=3`, nil},
		{"upstreams", `{"upstreams":[` + upstream + `]}`, func(c *apiclient.Client) (any, error) { return c.Upstreams(t.Context()) },
			`GET /v1/upstreams`, []pyproxy.UpstreamStatus{seen}},
		{"trip", upstream, func(c *apiclient.Client) (any, error) { return c.TripUpstream(t.Context(), "nlp") },
			`POST /v1/upstreams/nlp/trip`, seen},
		{"reset", upstream, func(c *apiclient.Client) (any, error) { return c.ResetUpstream(t.Context(), "a/b") },
			`POST /v1/upstreams/a%2Fb/reset`, seen},
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
			if s.header.Get("Authorization") != "Bearer secret" {
				t.Errorf("authorization %q", s.header.Get("Authorization"))
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	const problem = "application/problem+json"
	for _, tc := range []struct {
		name             string
		status           int
		kind, body, want string
	}{
		{"problem", 409, problem + "; charset=utf-8", `{"code":"version_conflict","detail":"Read it again.","request_id":"r-1"}`,
			"the API answered 409 Conflict (version_conflict): Read it again. [request r-1]"},
		{"faults", 422, problem, `{"code":"flag_invalid","detail":"It is not valid.","errors":[{"field":"state","detail":"allowed: ENABLED"},{"field":"","detail":"allowed: JSON"}]}`,
			"the API answered 422 Unprocessable Entity (flag_invalid): It is not valid. state: allowed: ENABLED; allowed: JSON"},
		{"plain", 502, "text/plain", "no", "the API answered 502 Bad Gateway"},
		{"broken problem", 500, problem, "{", "the API answered 500 Internal Server Error"},
		{"redirect", 302, "", "", "the API answered 302 Found"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			client := start(t, &server{status: tc.status, kind: tc.kind, body: tc.body})
			_, flagsErr := client.Flags(t.Context())
			_, changeErr := client.ChangeFlag(t.Context(), "a", apiclient.FlagChange{})
			_, upstreamsErr := client.Upstreams(t.Context())
			_, tripErr := client.TripUpstream(t.Context(), "nlp")
			_, flagHistoryErr := client.FlagHistory(t.Context(), "a", 1)
			_, experimentErr := client.Experiment(t.Context(), "a")
			_, experimentHistoryErr := client.ExperimentHistory(t.Context(), "a")
			_, createErr := client.CreateExperiment(t.Context(), experiment.Definition{Key: "a"}, "")
			_, resultsErr := client.ExperimentResults(t.Context(), "a")
			_, pageErr := client.ExperimentPage(t.Context(), "a")
			subject := apiclient.LimitSubject{Name: "ada"}
			_, limitsErr := client.Limits(t.Context(), subject, "")
			resetErr := client.ResetLimits(t.Context(), subject, "")
			_, overrideErr := client.OverrideTier(t.Context(), subject, "premium", time.Time{}, "")
			for _, err := range []error{
				flagsErr, changeErr, upstreamsErr, tripErr, client.RevokeToken(t.Context(), "t", ""),
				client.PutFlag(t.Context(), flag.Definition{Key: "a"}, ""), client.DeleteFlag(t.Context(), "a", ""), flagHistoryErr,
				experimentErr, experimentHistoryErr, createErr, resultsErr, pageErr, client.DeleteExperiment(t.Context(), "a", apiclient.Terms{}),
				limitsErr, resetErr, overrideErr, client.EndOverride(t.Context(), subject, ""),
			} {
				refusal := new(apiclient.Error)
				if !errors.As(err, &refusal) || refusal.Status != tc.status || refusal.Error() != tc.want {
					t.Errorf("error %v, want %s", err, tc.want)
				}
			}
		})
	}
}

func TestAnswerThatIsNone(t *testing.T) {
	client := start(t, &server{status: http.StatusOK, body: "<html>"})
	if _, err := client.Flags(t.Context()); err == nil || !strings.Contains(err.Error(), "GET /v1/flags: the answer is not what was expected") {
		t.Errorf("error %v", err)
	}
}

func TestNew(t *testing.T) {
	for _, base := range []string{"", "127.0.0.1:8101", "ftp://host", "http://", "http://user:pass@host", "http://host?x=1", "http://h\x00"} {
		if _, err := apiclient.New(base, "secret", time.Second); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: error %v", base, err)
		}
	}
	if _, err := apiclient.New("http://host", "two words", time.Second); err == nil || strings.Contains(err.Error(), "words") {
		t.Errorf("error %v", err)
	}
	if _, err := apiclient.New("https://host:1/base", "", time.Second); err != nil {
		t.Error(err)
	}
}
