package credential

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
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
		{"boss", hashed("s3cret-a"), []string{Admin}},
		{"desk", hashed("s3cret-o"), []string{Operator}},
		{"login", hashed("s3cret-s"), []string{Service}},
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
	if _, err := New([]Client{{"a", hashed("x"), nil}, {"a", hashed("y"), nil}}); err == nil {
		t.Error("two clients of one name")
	}
	if _, err := New([]Client{{"a", hashed("x"), nil}, {"b", hashed("x"), nil}}); err == nil {
		t.Error("two clients of one secret")
	}
	if _, err := New([]Client{{"a", "zz", nil}}); err == nil {
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
