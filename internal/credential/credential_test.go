package credential

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/tollgate-proxy/tollgate/internal/config"
)

func hashed(secret string) string {
	h := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(h[:])
}

func TestRequire(t *testing.T) {
	a, err := New([]Client{
		{Name: "boss", SecretSHA256: hashed("s3cret-a"), Roles: []string{Admin}},
		{Name: "desk", SecretSHA256: hashed("s3cret-o"), Roles: []string{Operator}},
		{Name: "login", SecretSHA256: hashed("s3cret-s"), Roles: []string{Service}},
	})
	if err != nil {
		t.Fatal(err)
	}
	h := a.Require(Operator, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, ok := From(r.Context())
		if !ok {
			t.Error("no caller in the context")
		}
		_, _ = w.Write([]byte(c.Name))
	}))
	basic := func(user, pass string) func(*http.Request) {
		return func(r *http.Request) { r.SetBasicAuth(user, pass) }
	}
	header := func(values ...string) func(*http.Request) {
		return func(r *http.Request) { r.Header["Authorization"] = values }
	}
	for name, c := range map[string]struct {
		set    func(*http.Request)
		status int
		body   string
	}{
		"none":               {func(*http.Request) {}, 401, ""},
		"bearer":             {header("Bearer s3cret-o"), 200, "desk"},
		"scheme in any case": {header("bearer s3cret-o"), 200, "desk"},
		"admin may all":      {header("Bearer s3cret-a"), 200, "boss"},
		"wrong role":         {header("Bearer s3cret-s"), 403, ""},
		"wrong secret":       {header("Bearer nope"), 401, ""},
		"empty secret":       {header("Bearer "), 401, ""},
		"the hash itself":    {header("Bearer " + hashed("s3cret-o")), 401, ""},
		"two headers":        {header("Bearer s3cret-o", "Bearer s3cret-o"), 401, ""},
		"other scheme":       {header("Negotiate s3cret-o"), 401, ""},
		"basic":              {basic("desk", "s3cret-o"), 200, "desk"},
		"basic, other name":  {basic("boss", "s3cret-o"), 401, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest("GET", "/", nil)
			c.set(r)
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code != c.status || c.body != "" && w.Body.String() != c.body {
				t.Errorf("got %d %s", w.Code, w.Body)
			}
			if (w.Code == 401) != (w.Header().Get("WWW-Authenticate") != "") {
				t.Error("401 and WWW-Authenticate belong together")
			}
			if strings.Contains(w.Body.String(), "s3cret") {
				t.Error("the answer repeats the secret")
			}
		})
	}
	either := a.RequireAny([]string{Service, Operator}, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	for secret, want := range map[string]int{"s3cret-o": 200, "s3cret-s": 200, "s3cret-a": 200, "x": 401} {
		r := httptest.NewRequest("GET", "/", nil)
		r.SetBasicAuth(map[string]string{"s3cret-o": "desk", "s3cret-s": "login", "s3cret-a": "boss"}[secret], secret)
		w := httptest.NewRecorder()
		if either.ServeHTTP(w, r); w.Code != want {
			t.Errorf("service or operator, %s: %d", secret, w.Code)
		}
	}
	if _, ok := From(t.Context()); ok {
		t.Error("a caller out of nothing")
	}
}

func TestConfiguration(t *testing.T) {
	if _, err := New([]Client{{Name: "a", SecretSHA256: hashed("x"), Roles: nil}, {Name: "a", SecretSHA256: hashed("y"), Roles: nil}}); err == nil {
		t.Error("two clients of one name")
	}
	if _, err := New([]Client{{Name: "a", SecretSHA256: hashed("x"), Roles: nil}, {Name: "b", SecretSHA256: hashed("x"), Roles: nil}}); err == nil {
		t.Error("two clients of one secret")
	}
	if _, err := New([]Client{{Name: "a", SecretSHA256: "zz", Roles: nil}}); err == nil {
		t.Error("a bad hash")
	}
	type root struct {
		Clients []Client `yaml:"clients" doc:"Clients."`
	}
	for text, want := range map[string]string{
		"clients: [{name: 'a b', secret_sha256: " + hashed("x") + ", roles: [admin]}]": "clients[0].name",
		"clients: [{name: a, secret_sha256: hunter2, roles: [admin]}]":                 "clients[0].secret_sha256",
		"clients: [{name: a, secret_sha256: " + hashed("x") + "}]":                     "clients[0].roles",
		"clients: [{name: a, secret_sha256: " + hashed("x") + ", roles: [god]}]":       "clients[0].roles[0]",
	} {
		_, err := config.Decode("x.yaml", []byte(text), root{})
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: got %v", text, err)
		}
	}
}

type fixedTokens struct{}

func (fixedTokens) Caller(_ context.Context, token string) (Caller, bool) {
	return Caller{Name: "ada at idp", Roles: []string{Operator}}, token == "a.b.c"
}

func TestTokens(t *testing.T) {
	a, err := New([]Client{{Name: "desk", SecretSHA256: hashed("s"), Roles: []string{Operator}}})
	if err != nil {
		t.Fatal(err)
	}
	for header, want := range map[string]string{"Bearer a.b.c": "ada at idp", "Bearer s": "desk", "Bearer x.y.z": "", "Basic YTphLmIuYw==": "", "a.b.c": ""} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Authorization", header)
		if c, ok := a.WithTokens(fixedTokens{}).Authenticate(r); c.Name != want && ok || ok != (want != "") {
			t.Errorf("%s: %+v %v", header, c, ok)
		}
		if _, ok := a.Authenticate(r); ok && want != "desk" {
			t.Errorf("%s: let in without tokens", header)
		}
	}
}

func TestCertificates(t *testing.T) {
	uri, err := url.Parse("spiffe://example.com/login")
	if err != nil {
		t.Fatal(err)
	}
	login := &x509.Certificate{Raw: []byte("one"), URIs: []*url.URL{uri}, DNSNames: []string{"login.example.com"}}
	desk := &x509.Certificate{Raw: []byte("two"), DNSNames: []string{"spiffe"}}
	a, err := New([]Client{
		{Name: "login", CertificateSAN: uri.String(), Roles: []string{Service}},
		{Name: "desk", CertificateSHA256: hashed("two"), Roles: []string{Operator}},
	})
	if err != nil {
		t.Fatal(err)
	}
	state := func(c *x509.Certificate, verified bool) *tls.ConnectionState {
		s := &tls.ConnectionState{PeerCertificates: []*x509.Certificate{c}}
		if verified {
			s.VerifiedChains = [][]*x509.Certificate{{c}}
		}
		return s
	}
	for name, c := range map[string]struct {
		tls    *tls.ConnectionState
		header string
		want   string
	}{
		"by name":              {state(login, true), "", "login"},
		"by fingerprint":       {state(desk, true), "", "desk"},
		"not verified":         {state(login, false), "", ""},
		"unknown":              {state(&x509.Certificate{Raw: []byte("three")}, true), "", ""},
		"no certificate":       {&tls.ConnectionState{}, "", ""},
		"no TLS":               {nil, "", ""},
		"with a wrong secret":  {state(login, true), "Bearer x", ""},
		"the fingerprint told": {nil, "Bearer two", ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest("GET", "/", nil)
			r.TLS = c.tls
			if c.header != "" {
				r.Header.Set("Authorization", c.header)
			}
			if got, ok := a.Authenticate(r); got.Name != c.want || ok != (c.want != "") {
				t.Errorf("%+v %v, want %q", got, ok, c.want)
			}
		})
	}
	for _, bad := range [][]Client{
		{{Name: "a", CertificateSAN: "x"}, {Name: "b", CertificateSAN: "x"}},
		{{Name: "a", CertificateSAN: "x", SecretSHA256: hashed("x")}},
		{{Name: "a", CertificateSHA256: "x"}},
		{{Name: "a"}},
	} {
		if _, err := New(bad); err == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
	type root struct {
		Client Client `yaml:"client" doc:"Client."`
	}
	for text, want := range map[string]string{
		"client: {name: a, certificate_san: x, roles: [admin]}":                          "",
		"client: {name: a, certificate_sha256: zz, roles: [admin]}":                      "client.certificate_sha256",
		"client: {name: a, certificate_san: x, certificate_sha256: y, roles: [admin]}":   "client",
		"client: {name: a, certificate_sha256: " + hashed("two") + ", roles: [service]}": "",
	} {
		if _, err := config.Decode("x.yaml", []byte(text), root{}); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// Other clients take the place of those that were known at once, also where an
// authenticator with tokens was made of it, and a fault changes nothing.
func TestPrepare(t *testing.T) {
	client := func(name string) []Client {
		return []Client{{Name: name, SecretSHA256: hashed(name), Roles: []string{Operator}}}
	}
	before, err := New(client("old"))
	if err != nil {
		t.Fatal(err)
	}
	with := before.WithTokens(nil)
	known := func(a *Authenticator, secret string) bool {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header.Set("Authorization", "Bearer "+secret)
		_, ok := a.Authenticate(r)
		return ok
	}
	want := func(secret string, ok bool) {
		t.Helper()
		for _, a := range []*Authenticator{before, with} {
			if known(a, secret) != ok {
				t.Errorf("%s is known: %v, want %v", secret, !ok, ok)
			}
		}
	}
	if _, err := with.Prepare(append(client("new"), client("new")...)); err == nil {
		t.Error("two clients of one name")
	}
	use, err := with.Prepare(client("new"))
	if err != nil {
		t.Fatal(err)
	}
	want("old", true)
	want("new", false)
	use()
	want("old", false)
	want("new", true)
}
