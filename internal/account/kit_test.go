package account

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/config"
	"github.com/tollgate-proxy/tollgate/internal/credential"
	"github.com/tollgate-proxy/tollgate/internal/revocation"
	"github.com/tollgate-proxy/tollgate/internal/session"
	"github.com/tollgate-proxy/tollgate/internal/tokentest"
)

// system is the API over real parts: the development issuer, revocations and
// sessions in one Redis.
type system struct {
	t        *testing.T
	verifier *authn.Verifier
	minter   *authn.Minter
	provider *provider
	client   *redis.Client
	store    *revocation.Store
	manager  *session.Manager
	audit    *recorder
	handler  http.Handler
	auth     *credential.Authenticator
	// now is the clock of everything.
	now time.Time
}

// newSystem makes a system on the Redis at addr; parts adds what the API has.
func newSystem(t *testing.T, addr string, limits func(*session.Config), parts func(*system) []Part) *system {
	t.Helper()
	s := &system{t: t, audit: &recorder{}, now: time.Now().Truncate(time.Second)}
	now := func() time.Time { return s.now }
	key := filepath.Join(t.TempDir(), "key.pem")
	s.provider = newProvider(t)
	var err error
	if s.minter, err = authn.NewMinter(key); err != nil {
		t.Fatal(err)
	}
	tokens := authn.Default()
	tokens.Development.KeyFile = config.Path(key)
	tokens.Issuers = []authn.IssuerConfig{s.provider.config}
	if s.verifier, err = authn.New(tokens, authn.Options{Development: true, Now: now}); err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(&redis.Options{Addr: addr, MaxRetries: -1, DialerRetries: 1})
	t.Cleanup(func() { _ = client.Close() })
	s.client = client
	if s.store, err = revocation.NewStore(client, nil, revocation.Options{Now: now}); err != nil {
		t.Fatal(err)
	}
	c := session.DefaultConfig()
	if limits != nil {
		limits(&c)
	}
	s.manager, err = session.NewManager(session.NewRedis(client), c, session.Options{
		Now: now,
		Killer: session.KillerFunc(func(ctx context.Context, refs []session.Ref) error {
			for _, r := range refs {
				if _, err := s.store.Revoke(ctx, revocation.Revocation{Kind: revocation.KindSession, ID: r.ID, Issuer: r.Issuer}); err != nil {
					return err
				}
			}
			return nil
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	s.auth, err = credential.New([]credential.Client{
		{Name: "desk", SecretSHA256: sha256Hex(operatorSecret), Roles: []string{credential.Operator}},
		{Name: "root", SecretSHA256: sha256Hex(adminSecret), Roles: []string{credential.Admin}},
		{Name: "login", SecretSHA256: sha256Hex(serviceSecret), Roles: []string{credential.Service}},
	})
	if err != nil {
		t.Fatal(err)
	}
	s.handler = New(s.auth, parts(s)...)
	return s
}

func sessionParts(s *system) []Part {
	now := func() time.Time { return s.now }
	return []Part{
		&Sessions{Manager: s.manager, Issuers: s.verifier, Auditor: s.audit, Now: now},
		&Self{Verifier: s.verifier, Checker: s.store, Revoker: s.store, Manager: s.manager, Auditor: s.audit, Now: now},
	}
}

func (s *system) mint(o authn.MintOptions) string {
	s.t.Helper()
	if o.Now.IsZero() {
		o.Now = s.now
	}
	token, err := s.minter.Mint(o)
	if err != nil {
		s.t.Fatal(err)
	}
	return token
}

// refused tells whether a token is refused by revocation, and as what.
func (s *system) refused(token string) string {
	s.t.Helper()
	p, err := s.verifier.Inspect(s.t.Context(), token, s.now)
	if err != nil {
		s.t.Fatal(err)
	}
	v, err := s.store.Check(s.t.Context(), &revocation.Token{
		Digest: p.SigningInput, Issuer: p.Issuer, TokenID: p.TokenID, Session: p.Session, Subject: p.Subject,
		ClientID: p.ClientID, IssuedAt: p.IssuedAt, ExpiresAt: p.ExpiresAt, Version: p.Version,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return v.Why.String()
}

// do calls the API and returns the answer with its body read. Headers come in
// pairs.
func (s *system) do(method, target, bearer, body string, headers ...string) (*http.Response, string) {
	s.t.Helper()
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	if bearer != "" {
		r.Header.Set("Authorization", "Bearer "+bearer)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	s.handler.ServeHTTP(w, r)
	answer := w.Result()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	checkAnswer(s.t, method, target, answer.StatusCode, answer.Header.Get("Content-Type"), string(text))
	if bearer != "" && strings.Contains(string(text), bearer) {
		s.t.Errorf("%s %s repeats the credential: %s", method, target, text)
	}
	return answer, string(text)
}

// want calls the API, checks the status and decodes the answer into out, which
// may be nil.
func (s *system) want(status int, out any, method, target, bearer, body string, headers ...string) string {
	s.t.Helper()
	answer, text := s.do(method, target, bearer, body, headers...)
	if answer.StatusCode != status {
		s.t.Fatalf("%s %s: %d %s, want %d", method, target, answer.StatusCode, text, status)
	}
	if out != nil {
		if err := json.Unmarshal([]byte(text), out); err != nil {
			s.t.Fatalf("%s %s: %s: %v", method, target, text, err)
		}
	}
	return text
}

// provider is an identity provider with a key of its own.
type provider struct {
	t      *testing.T
	key    *ecdsa.PrivateKey
	config authn.IssuerConfig
}

const providerURL = "https://idp.test"

func newProvider(t *testing.T) *provider {
	t.Helper()
	key := tokentest.Key(t)
	return &provider{t, key, authn.IssuerConfig{
		Name: "idp", Issuer: providerURL, Algorithms: []string{"ES256"}, Audiences: []string{"api"},
		Keys: authn.KeysConfig{PEMFile: tokentest.PublicKeyFile(t, key)},
	}}
}

// sign makes a token of a type; "" leaves it out.
func (p *provider) sign(typ string, claims map[string]any) string {
	p.t.Helper()
	return tokentest.Sign(p.t, p.key, typ, claims)
}

// access is an access token of the provider, issued at the system's time.
func (s *system) access(user, sid string) string {
	return s.provider.sign("JWT", map[string]any{
		"iss": providerURL, "aud": "api", "sub": user, "sid": sid, "jti": rand.Text(),
		"iat": s.now.Unix(), "exp": s.now.Add(time.Hour).Unix(),
	})
}
