package account

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

func oauthParts(s *system) []Part {
	return []Part{&OAuth{
		Revoker: s.store, Checker: s.store, Inspector: s.verifier, Leeway: 30 * time.Second, Auditor: s.audit,
		Now: func() time.Time { return s.now },
	}}
}

func (s *system) form(status int, out any, path, bearer, token string) string {
	s.t.Helper()
	body := url.Values{"token": {token}, "token_type_hint": {"access_token"}}.Encode()
	return s.want(status, out, "POST", path, bearer, body, "Content-Type", "application/x-www-form-urlencoded")
}

func TestOAuthRevocationAndIntrospection(t *testing.T) {
	s := newSystem(t, redistest.Server(t), nil, oauthParts)
	token := s.mint(authn.MintOptions{User: "ada", Session: "s-1", Tier: "premium", Scopes: []string{"b", "a"}, Roles: []string{"x"}, TokenID: "t-1"})
	var got introspection
	s.form(200, &got, "/oauth2/introspect", serviceSecret, token)
	want := introspection{
		Active: true, Scope: "a b", ClientID: "tollgate-cli", TokenType: "Bearer", ExpiresAt: s.now.Add(time.Hour).Unix(), IssuedAt: s.now.Unix(),
		Subject: "ada", Issuer: authn.DevelopmentIssuerURL, TokenID: "t-1", Session: "s-1", Tier: "premium", Roles: []string{"x"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, bad := range []string{"garbage", token[:len(token)-6] + "AAAAAA", s.mint(authn.MintOptions{User: "a", TTL: -time.Hour}), s.mint(authn.MintOptions{User: "a", Now: s.now.Add(time.Hour)})} {
		if text := s.form(200, nil, "/oauth2/introspect", operatorSecret, bad); text != `{"active":false}`+"\n" {
			t.Errorf("%s", text)
		}
	}
	for _, bad := range []string{"garbage", s.mint(authn.MintOptions{User: "a", TTL: -time.Hour})} {
		s.form(200, nil, "/oauth2/revoke", serviceSecret, bad)
	}
	if text := s.form(200, nil, "/oauth2/revoke", serviceSecret, token); text != "" {
		t.Errorf("revocation answers %q", text)
	}
	if text := s.form(200, nil, "/oauth2/introspect", serviceSecret, token); text != `{"active":false}`+"\n" {
		t.Errorf("after the revocation: %s", text)
	}
	if got := s.refused(token); got != "token" {
		t.Errorf("refused as %s", got)
	}
	if n := len(s.audit.events); n != 3 || !strings.HasSuffix(s.audit.events[2].Target, "of ada at "+authn.DevelopmentIssuerURL) {
		t.Errorf("audit %+v", s.audit.events)
	}
}

func TestOAuthErrors(t *testing.T) {
	s := newSystem(t, redistest.FreeAddr(t), nil, oauthParts)
	const form = "application/x-www-form-urlencoded"
	for name, c := range map[string]struct {
		status             int
		code, secret, body string
		kind               string
	}{
		"nobody":      {401, "invalid_client", "", "token=x", form},
		"wrong":       {401, "invalid_client", "nobody's", "token=x", form},
		"no token":    {400, "invalid_request", serviceSecret, "", form},
		"two tokens":  {400, "invalid_request", serviceSecret, "token=a&token=b", form},
		"JSON":        {400, "invalid_request", serviceSecret, `{"token":"x"}`, "application/json"},
		"not a form":  {400, "invalid_request", serviceSecret, "token=%zz", form},
		"large":       {400, "invalid_request", serviceSecret, "token=" + strings.Repeat("x", maxTokenBody), form},
		"Redis away":  {503, "temporarily_unavailable", serviceSecret, "token=" + s.mint(authn.MintOptions{User: "a"}), form},
		"a user's":    {401, "invalid_client", s.mint(authn.MintOptions{User: "a", Roles: []string{"service"}}), "token=x", form},
		"no type set": {400, "invalid_request", serviceSecret, "token=x", ""},
	} {
		for _, path := range []string{"/oauth2/revoke", "/oauth2/introspect"} {
			t.Run(name+path, func(t *testing.T) {
				var e oauthError
				if s.want(c.status, &e, "POST", path, c.secret, c.body, "Content-Type", c.kind); e.Error != c.code || e.Description == "" {
					t.Errorf("%+v", e)
				}
			})
		}
	}
	answer, _ := s.do("POST", "/oauth2/revoke", "", "token=x", "Content-Type", form)
	if challenges := answer.Header.Values("WWW-Authenticate"); len(challenges) != 2 || !strings.HasPrefix(challenges[0], "Basic") {
		t.Errorf("challenges %v", challenges)
	}
}

// What a token is bound to is told, so that whoever introspects it here can ask
// its bearer for that.
func TestIntrospectionTellsTheBinding(t *testing.T) {
	s := newSystem(t, redistest.Embedded(t), nil, oauthParts)
	for cnf, want := range map[string]string{
		"jkt":      `"token_type":"DPoP"`,
		"x5t#S256": `"token_type":"Bearer"`,
	} {
		token := s.provider.sign("JWT", map[string]any{
			"iss": providerURL, "aud": "api", "sub": "ada", "iat": s.now.Unix(), "exp": s.now.Add(time.Hour).Unix(), "cnf": claims{cnf: "thumb"},
		})
		text := s.form(200, nil, "/oauth2/introspect", serviceSecret, token)
		if !strings.Contains(text, want) || !strings.Contains(text, `"cnf":{"`+cnf+`":"thumb"}`) {
			t.Errorf("%s: %s", cnf, text)
		}
	}
}
