package main

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const (
	buttonRecord = `{"definition":{"key":"button","version":2,"state":"running","variants":[{"name":"control","weight":1},{"name":"bold","weight":3}],` +
		`"traffic":0.5,"primary":{"name":"bought","kind":"rate"},"minimum_users":100},"revision":5,"later":1,"updated":"2026-05-04T03:02:01Z","updated_by":"ada","state":"stopped"`
	buttonReport = `,"at":"2026-05-04T03:02:01Z","report":{"experiment":"button","version":2,"status":"decided","verdict":"bold better on bought",` +
		`"variants":[{"name":"control","users":1000,"metrics":[{"metric":{"name":"bought","kind":"rate"},"users":1000,"mean":0.1,"median":0,"p95":1,"p99":1}]},` +
		`{"name":"bold","users":3000,"metrics":[{"metric":{"name":"bought","kind":"rate"},"users":3000,"mean":0.2,"median":0,"p95":1,"p99":1,` +
		`"against":{"planned":{"difference":0.1,"low":0.05,"high":0.15,"p":0.001},"sequential":{"difference":0.1,"low":0.04,"high":0.16,"p":0.002},"adjusted_p":0.002,"relative":1,"better":true,"adjusted_for_before":true}}]}],` +
		`"sample_ratio_p":0.9,"sample_ratio_sequential_p":1,"warnings":["3.0 % are missing"]},"quantile_relative_error":0.01`
)

// experimentsAPI answers as authz would, and notes what it was asked.
func experimentsAPI(t *testing.T) (environment []string, asked *[]string) {
	t.Helper()
	asked = &[]string{}
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		*asked = append(*asked, strings.TrimSpace(r.Method+" "+r.URL.String()+" "+string(body)))
		answer := buttonRecord + "}"
		switch {
		case strings.Contains(r.URL.Path, "none"):
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(http.StatusNotFound)
			answer = `{"code":"experiment_not_found"}`
		case r.URL.Query().Get("format") == "html":
			answer = "<!doctype html>"
		case strings.HasSuffix(r.URL.Path, "/results"):
			answer = buttonRecord + buttonReport + "}"
		case r.URL.Path == "/v1/experiments" && r.Method == http.MethodGet:
			answer = `{"version":1,"experiments":[` + buttonRecord + `}],"broken":["odd"]}`
		}
		_, _ = io.WriteString(w, answer)
	}))
	t.Cleanup(api.Close)
	return []string{urlVariable + "=" + api.URL, tokenVariable + "=secret"}, asked
}

func TestExperimentCommands(t *testing.T) {
	environment, asked := experimentsAPI(t)
	dir := t.TempDir()
	page := filepath.Join(dir, "page.html")
	file := filepath.Join(dir, "button.json")
	broken := filepath.Join(dir, "broken.json")
	for name, text := range map[string]string{
		file:   `{"key":"button","variants":[{"name":"control","weight":1},{"name":"bold","weight":3}],"traffic":0.5,"primary":{"name":"bought","kind":"rate"},"minimum_users":100}`,
		broken: `{"key":"button","wieght":1}`,
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		arguments string
		code      int
		says      []string
		asks      string
	}{
		{"list", 0, []string{"button", "stopped", "control:1 bold:3", "50%", "bought", "ada", "odd is stored in a form that the server cannot read: `tollgate experiment show odd` says why"}, "GET /v1/experiments"},
		{"show button", 0, []string{`"revision": 5`, `"later": 1`}, "GET /v1/experiments/button"},
		{"create " + file + " -reason why", 0, []string{"button: stopped (version 2, revision 5)"}, `"reason":"why"}`},
		{"create -start " + file, 0, []string{"button: stopped"}, "POST /v1/experiments/button/start"},
		{"start button", 0, []string{"button: stopped"}, "POST /v1/experiments/button/start"},
		{"stop button -reason enough", 0, []string{"button: stopped"}, `POST /v1/experiments/button/stop {"reason":"enough"}`},
		{"results button", 0, []string{"bold better on bought", "+100.00%", "0.04 to 0.16", "better", "control", "p = 1", "button, stopped, version 2", "Warning: 3.0 % are missing.", "CUPED"}, "GET /v1/experiments/button/results"},
		{"results button -html " + page, 0, []string{"bold better"}, "GET /v1/experiments/button/results?format=html"},
		{"results none", 1, []string{"experiment_not_found"}, "/none/"},
		{"show none", 1, []string{"experiment_not_found"}, "/none"},
		{"stop none", 1, []string{"experiment_not_found"}, "/none"},
		{"create " + broken, 1, []string{"wieght"}, ""},
		{"create " + dir + "/nothing", 1, []string{"no such file"}, ""},
		{"create", 2, []string{"a file"}, ""},
		{"list x", 2, []string{"unexpected argument"}, ""},
		{"results", 2, []string{"key is needed"}, ""},
		{"show", 2, []string{"key is needed"}, ""},
		{"stop", 2, []string{"key is needed"}, ""},
	} {
		t.Run(tt.arguments, func(t *testing.T) {
			*asked = nil
			var out bytes.Buffer
			p := &process{environ: environment, stdin: strings.NewReader(""), stdout: &out, stderr: &out}
			if code := run(t.Context(), p, append([]string{"experiment"}, strings.Fields(tt.arguments)...)); code != tt.code {
				t.Errorf("code %d, want %d", code, tt.code)
			}
			for _, want := range tt.says {
				if !strings.Contains(out.String(), want) {
					t.Errorf("%q is not in:\n%s", want, &out)
				}
			}
			if tt.asks != "" && (len(*asked) == 0 || !strings.Contains((*asked)[len(*asked)-1], tt.asks)) {
				t.Errorf("asked %q, want %s", *asked, tt.asks)
			}
		})
	}
	if data, err := os.ReadFile(page); err != nil || string(data) != "<!doctype html>" {
		t.Errorf("page %q, %v", data, err)
	}
}
