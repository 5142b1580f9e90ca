package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/config"
	featureflag "github.com/tollgate-proxy/tollgate/internal/flag"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"tollgate": main,
		"authz":    checkedAuthz,
	})
}

// checkedAuthz stands in for the authz beside tollgate: a file that says "bad" is
// refused, one that says "crash" ends it.
func checkedAuthz() {
	for _, variable := range os.Environ() {
		if strings.HasPrefix(variable, "TOLLGATE_") {
			fmt.Println("environment:", variable)
		}
	}
	fmt.Println("arguments:", strings.Join(os.Args[1:], " "))
	data, err := os.ReadFile(os.Args[2])
	switch {
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	case strings.Contains(string(data), "bad"):
		fmt.Fprintln(os.Stderr, os.Args[2]+":1: mode: bad: production or development")
		os.Exit(1)
	case strings.Contains(string(data), "crash"):
		os.Exit(9)
	}
}

// secret is what the fake API wants.
const secret = "the-operators-secret"

func TestScripts(t *testing.T) {
	const scripts = "testdata/script"
	if found, err := filepath.Glob(filepath.Join(scripts, "*.txtar")); err != nil || len(found) == 0 {
		t.Fatalf("%d scripts in %s: %v", len(found), scripts, err)
	}
	ofAuthz := realAPI(t)
	testscript.Run(t, testscript.Params{
		Dir: scripts,
		Setup: func(env *testscript.Env) error {
			api := httptest.NewServer(http.HandlerFunc(fakeAPI))
			env.Defer(api.Close)
			silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and never answers
			if err != nil {
				return err
			}
			env.Defer(func() { _ = silent.Close() })
			env.Setenv("API", api.URL)
			env.Setenv("REAL", ofAuthz)
			env.Setenv("SILENT", "http://"+silent.Addr().String())
			env.Setenv("SECRET", secret)
			// Under -race each command would else wait up to a second at its end.
			env.Setenv("GORACE", "atexit_sleep_ms=0")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"verify": verify},
	})
}

// verify checks that each line of a file is a token of its own that authz accepts
// in development mode: verify KEYFILE TOKENS USER TIER.
func verify(ts *testscript.TestScript, _ bool, arguments []string) {
	cfg := authn.Default()
	cfg.Development.KeyFile = config.Path(ts.MkAbs(arguments[0]))
	verifier, err := authn.New(cfg, authn.Options{Development: true})
	ts.Check(err)
	seen := map[string]bool{}
	for line := range strings.Lines(ts.ReadFile(arguments[1])) {
		principal, err := verifier.Verify(strings.TrimSpace(line), time.Now())
		ts.Check(err)
		if principal.Subject != arguments[2] || principal.Tier != arguments[3] || seen[principal.TokenID] {
			ts.Fatalf("principal %+v", principal)
		}
		seen[principal.TokenID] = true
	}
	if len(seen) == 0 {
		ts.Fatalf("no token")
	}
}

const nlpUpstream = `{"name":"nlp","addresses":[],"circuits":[{"class":"default","state":"half_open"}]}`

// fakeAPI plays the management API of authz and of pyproxy.
func fakeAPI(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	refuse := func(status int, code, detail string) {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]any{"status": status, "code": code, "detail": detail, "request_id": "r-1"})
	}
	if r.Header.Get("Authorization") != "Bearer "+secret {
		refuse(http.StatusUnauthorized, "credentials_required", "Present the secret of a management client.")
		return
	}
	const definition = `"state":"ENABLED","variants":{"on":true,"off":false},"defaultVariant":"off"`
	when := time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC).Format(time.RFC3339)
	flag := func(key, tollgate string, version int) string {
		whole := fmt.Sprintf(`{%s,"tollgate":%s}`, definition, tollgate)
		parsed, err := featureflag.ParseFlag("definition", key, []byte(whole))
		if err != nil {
			panic(err)
		}
		return fmt.Sprintf(`{"key":%q,"version":%d,"updated":%q,"updated_by":"ada","owner":%q,"summary":%q,"definition":%s}`,
			key, version, when, parsed.Extension.Owner, parsed.Summary(), whole)
	}
	switch r.Method + " " + r.URL.Path {
	case "POST /v1/tokens/revoke":
		switch string(body) {
		case `{"reason":"","token":"a.b.c"}`, `{"reason":"lost","token":"d.e.f"}`:
			w.WriteHeader(http.StatusNoContent)
		case `{"user":"ada","iss":"i","reason":"breach"}`:
			fmt.Fprintf(w, `{"revoked":"user","changed":true,"sessions_ended":3}`)
		default:
			refuse(http.StatusBadRequest, "token_malformed", "That is no token.")
		}
	case "GET /v1/users/ada/sessions":
		fmt.Fprintf(w, `{"user":"ada","sessions":[{"id":"s-1","device":{"name":"Phone"},"address":"192.0.2.7","place":{"country":"DE","city":"Ulm"},"created":%q,"last_seen":%q},{"id":"s-2","iss":"i","place":{"country":"FR"},"created":%q,"last_seen":%q}]}`, when, when, when, when)
	case "DELETE /v1/users/ada/sessions/s-1":
		w.WriteHeader(http.StatusNoContent)
	case "DELETE /v1/users/ada/sessions":
		fmt.Fprintf(w, `{"ended":3}`)
	case "POST /v1/users/ada/sessions/end-others":
		fmt.Fprintf(w, `{"ended":2}`)
	case "POST /v1/tokens/status":
		if strings.Contains(string(body), "a.b.c") {
			fmt.Fprintf(w, `{"active":true,"sub":"ada","iss":"i","exp":1777863721}`)
		} else {
			fmt.Fprintf(w, `{"active":false,"code":"token_expired"}`)
		}
	case "GET /v1/users/ada/suspicious-events":
		fmt.Fprintf(w, `{"user":"ada","events":[{"at":%q,"session":"s-1","score":70,"action":"deny","country":"US","range":"192.0.2.0/24","signals":[{"code":"impossible_travel","weight":50,"evidence":"6000 km"},{"code":"new_country","weight":20,"evidence":"US"}]},`+
			`{"at":%q,"score":0,"action":"none","settled":true,"signals":[]}]}`, when, when)
	case "POST /v1/users/ada/suspicious-events/detect":
		switch string(body) {
		case `{"at":"2026-05-04T03:02:01Z","address":"192.0.2.7","user_agent":"ua","device":"d","session":"s-1"}`:
			fmt.Fprint(w, `{"score":20,"action":"log","signals":[{"code":"new_country","weight":20,"evidence":"US"}],"settled":false}`)
		case `{}`:
			fmt.Fprint(w, `{"score":0,"action":"none","signals":[],"settled":true}`)
		default:
			refuse(http.StatusBadRequest, "request_invalid", string(body))
		}
	case "DELETE /v1/users/ada/suspicious-events":
		w.WriteHeader(http.StatusNoContent)
	case "POST /v1/explain":
		if strings.Contains(string(body), `"headers"`) {
			fmt.Fprintf(w, `{"allowed":false,"status":418,"code":"as_told","detail":%q,"tier":"free","steps":[]}`, body)
			return
		}
		if strings.Contains(string(body), "a.b.c") {
			fmt.Fprintf(w, `{"allowed":true,"status":200,"route":"rest","endpoint":"ml","cost":5,"user":"ada","tier":"free","steps":[{"step":"route","passed":true}],"flags":{"ml-v2":{"variant":"on","reason":"SPLIT"},"beta":{"reason":"DISABLED"}}}`)
		} else {
			fmt.Fprintf(w, `{"allowed":false,"status":401,"code":"token_missing","detail":"A token is required.","route":"rest","tier":"anonymous","steps":[{"step":"token","passed":false,"wanted":"a token"}]}`)
		}
	case "GET /v1/upstreams":
		fmt.Fprintf(w, `{"upstreams":[{"name":"ml","addresses":[{"address":"127.0.0.1:9201","state":"healthy"}],`+
			`"circuits":[{"class":"default","state":"closed"},{"class":"training","state":"open","retry_after_seconds":1.25}]},%s]}`, nlpUpstream)
	case "POST /v1/upstreams/nlp/trip", "POST /v1/upstreams/nlp/reset":
		fmt.Fprint(w, nlpUpstream)
	case "GET /v1/limits/ada":
		if r.URL.Query().Get("tier") != "free" {
			refuse(http.StatusBadRequest, "request_invalid", r.URL.RawQuery)
			return
		}
		fmt.Fprint(w, `{"subject":"ada","buckets":[{"name":"minute","limit":10,"window_seconds":60,"size":10,"remaining":3,"full_in_seconds":42.5,"system":false},`+
			`{"name":"system-second","limit":10000,"window_seconds":1,"size":10000,"remaining":9999,"full_in_seconds":0.0001,"system":true}]}`)
	case "POST /v1/limits/ada/reset":
		if r.URL.Query().Get("reason") != "our fault" {
			refuse(http.StatusBadRequest, "request_invalid", r.URL.RawQuery)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	case "PUT /v1/limits/ada/override":
		var wanted struct{ Tier, Until string }
		if json.Unmarshal(body, &wanted) != nil || wanted.Tier != "premium" {
			refuse(http.StatusBadRequest, "request_invalid", fmt.Sprintf("There is no tier %q.", wanted.Tier))
			return
		}
		fmt.Fprintf(w, `{"domain":"tollgate","entry":"user","subject":"ada","tier":"premium","until":%q}`, wanted.Until)
	case "DELETE /v1/limits/ada/override":
		w.WriteHeader(http.StatusNoContent)
	case "GET /v1/limit-overrides":
		fmt.Fprint(w, `{"overrides":[{"domain":"tollgate","entry":"user","subject":"ada","tier":"premium","until":"2030-01-02T15:04:05Z"}]}`)
	case "GET /v1/flags":
		fmt.Fprintf(w, `{"flags":[%s],"broken":["odd"]}`, strings.Join([]string{
			flag("checkout", `{"force":"on"}`, 7),
			flag("ml-v2", `{"owner":"ml","rollout":{"percentage":12.5},"audience":{"tiers":["premium"],"roles":["beta"]}}`, 1),
			flag("old", `{"killed":true}`, 2),
			flag("plain", `{}`, 3),
		}, ","))
	case "PATCH /v1/flags/checkout":
		switch string(body) {
		case `{"state":"on","reason":"launch","version":7}`:
			fmt.Fprint(w, flag("checkout", `{"force":"on"}`, 8))
		case `{"rollout":25.5}`:
			fmt.Fprint(w, flag("checkout", `{"rollout":{"percentage":25.5}}`, 8))
		case `{"variant":"blue"}`:
			fmt.Fprint(w, flag("checkout", `{"force":"off"}`, 9))
		default:
			refuse(http.StatusConflict, "flag_changed", "It was "+string(body)+".")
		}
	default:
		http.NotFound(w, r)
	}
}
