package account

import (
	"context"
	"encoding/json"
	"net/http/httptest"
	"strings"
	"testing"

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

func TestExplain(t *testing.T) {
	auth, err := credential.New([]credential.Client{{Name: "desk", SecretSHA256: sha256Hex(deskSecret), Roles: []string{credential.Operator}}})
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Decode("r.yaml", []byte("endpoints: [{name: ml, cost: 5}]\nroutes: [{name: predictions, endpoint: ml}]"), policy.Default())
	if err != nil {
		t.Fatal(err)
	}
	routes, err := policy.Compile(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defs, err := flag.Parse("f.yaml", []byte(`flags: {beta: {state: ENABLED, variants: {on: true, off: false}, defaultVariant: "on"}}`))
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
	h := New(auth, &Explain{Explainer: x, TokenHeader: "x-token"})
	post := func(body string) (int, string) {
		r := httptest.NewRequest("POST", "/v1/explain", strings.NewReader(body))
		r.Header.Set("Authorization", "Bearer "+deskSecret)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w.Code, w.Body.String()
	}
	code, body := post(`{"method":"get","host":"h","path":"/x?y","token":"t","address":"::ffff:192.0.2.1","headers":{"Cookie":"c","DPoP":"p","X-Token":"v","X-Other":"o"}}`)
	var a explainAnswer
	if err := json.Unmarshal([]byte(body), &a); err != nil || code != 200 {
		t.Fatalf("%d %s", code, body)
	}
	if !a.Allowed || a.Status != 200 || a.User != "ada" || a.Route != "predictions" || a.Cost != 5 || a.Flags["beta"].Variant != "on" || len(a.Steps) != 1 {
		t.Errorf("got %s", body)
	}
	r := x.request
	if r.Method != "GET" || r.Authorization != "Bearer t" || r.Cookie != "c" || r.Proof != "p" || r.Header != "v" || r.Address.String() != "192.0.2.1" {
		t.Errorf("asked %+v", r)
	}
	x.answer = gate.Explanation{Outcome: gate.Outcome{Status: 401, Code: "token_missing", Tier: "anonymous"}}
	if code, body := post(`{"method":"GET","path":"/","headers":{"authorization":"Bearer z"}}`); code != 200 || !strings.Contains(body, `"status":401`) || x.request.Authorization != "Bearer z" {
		t.Errorf("%d %s", code, body)
	}
	for _, bad := range []string{`{}`, `{"method":"GET"}`, `{"method":"GET","path":"x"}`, `{"method":"GET","path":"/","address":"here"}`, `{`} {
		if code, body := post(bad); code != 400 || !strings.Contains(body, "request_invalid") {
			t.Errorf("%s: %d %s", bad, code, body)
		}
	}
}
