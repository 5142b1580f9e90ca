package account

import (
	"context"
	"encoding/json"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/config"
	"github.com/tollgate-proxy/tollgate/internal/credential"
	"github.com/tollgate-proxy/tollgate/internal/flag"
	"github.com/tollgate-proxy/tollgate/internal/gate"
	"github.com/tollgate-proxy/tollgate/internal/policy"
)

// asked is an Explainer that remembers the question. What a gate answers is
// shown by the gate's own tests, and by those of the whole system.
type asked struct {
	request gate.Request
	answer  gate.Explanation
}

func (a *asked) Explain(_ context.Context, r *gate.Request) gate.Explanation {
	a.request = *r
	return a.answer
}

// reader is a RequestReader that takes what it is given.
type reader struct{ headers map[string]string }

func (r *reader) Request(method, host, path string, headers map[string]string) gate.Request {
	r.headers = headers
	return gate.Request{Request: authn.Request{Method: method, Host: host, Path: path}}
}

func TestExplain(t *testing.T) {
	auth, err := credential.New([]credential.Client{{Name: "desk", SecretSHA256: sha256Hex(deskSecret), Roles: []string{credential.Operator}}})
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Decode("r.yaml", []byte("endpoints: [{name: ml, cost: 5}]\nroutes: [{name: predictions, endpoint: ml, match: {prefix: /a}}, {name: one, match: {prefix: /b}, flags: [beta]}, {name: none, no_flags: true}]"), policy.Default())
	if err != nil {
		t.Fatal(err)
	}
	routes, err := policy.Compile(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defs, err := flag.Parse("f.yaml", []byte(`flags: {beta: {state: ENABLED, variants: {on: true, off: false}, defaultVariant: "on"}, other: {state: ENABLED, variants: {on: true, off: false}, defaultVariant: "off"}}`))
	if err != nil {
		t.Fatal(err)
	}
	flags, err := flag.Compile(defs)
	if err != nil {
		t.Fatal(err)
	}
	x := &asked{answer: gate.Explanation{
		Outcome: gate.Outcome{
			Allowed: true, Tier: "premium", Principal: &authn.Principal{Subject: "ada"}, Route: routes.Routes()[0],
			FlagSet: flags, Subject: flag.Subject{Key: "ada"},
		},
		Steps: []gate.Step{{Name: "route", Passed: true}},
	}}
	read := &reader{}
	h := New(auth, &Explain{Explainer: x, Reader: read})
	post := func(body string) (int, string) {
		r := httptest.NewRequest("POST", "/v1/explain", strings.NewReader(body))
		r.Header.Set("Authorization", "Bearer "+deskSecret)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w.Code, w.Body.String()
	}
	code, body := post(`{"method":"get","host":"h","path":"/x?y","token":"t","address":"::ffff:192.0.2.1","headers":{"Cookie":"c","X-Other":"o"},"certificate":"pem","claims":{"sub":"ada"}}`)
	var a explainAnswer
	if err := json.Unmarshal([]byte(body), &a); err != nil || code != 200 {
		t.Fatalf("%d %s", code, body)
	}
	if !a.Allowed || a.Status != 200 || a.User != "ada" || a.Route != "predictions" || a.Cost != 5 || a.Flags["beta"].Variant != "on" || len(a.Steps) != 1 {
		t.Errorf("got %s", body)
	}
	r := x.request
	if r.Method != "GET" || r.Host != "h" || r.Path != "/x?y" || r.Certificate != "pem" || r.Payload["sub"] != "ada" || r.Address.String() != "192.0.2.1" {
		t.Errorf("asked %+v", r)
	}
	if diff := cmp.Diff(map[string]string{"authorization": "Bearer t", "cookie": "c", "x-other": "o"}, read.headers); diff != "" {
		t.Errorf("headers (-want +got):\n%s", diff)
	}
	for i, want := range []string{`"flags":{"beta":{"variant":"on","reason":"STATIC"},"other":{"variant":"off","reason":"STATIC"}}`, `"flags":{"beta":{"variant":"on","reason":"STATIC"}}`, `"steps":[{"step":"route","passed":true}]}`} {
		x.answer.Outcome.Route = routes.Routes()[i]
		if _, body := post(`{"method":"GET","path":"/x"}`); !strings.Contains(body, want) {
			t.Errorf("route %d: %s", i, body)
		}
	}
	x.answer = gate.Explanation{Outcome: gate.Outcome{Status: 401, Code: "token_missing", Tier: "anonymous"}}
	if code, body := post(`{"method":"GET","path":"/","headers":{"authorization":"Bearer z"}}`); code != 200 || !strings.Contains(body, `"status":401`) || read.headers["authorization"] != "Bearer z" {
		t.Errorf("%d %s", code, body)
	}
	for _, bad := range []string{`{}`, `{"method":"GET"}`, `{"method":"GET","path":"x"}`, `{"method":"GET","path":"/","address":"here"}`, `{"method":"GET","path":"/","headers":{"Cookie":"a","cookie":"b"}}`, `{`} {
		if code, body := post(bad); code != 400 || !strings.Contains(body, "request_invalid") {
			t.Errorf("%s: %d %s", bad, code, body)
		}
	}
}
