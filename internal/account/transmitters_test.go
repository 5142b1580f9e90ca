package account

import (
	"crypto/rand"
	"errors"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/config"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

const watcherURL = "https://watcher.test"

// eitherVerifier asks for the transmitter's keys first.
type eitherVerifier [2]*authn.Verifier

func (e eitherVerifier) VerifyStatement(token string, rules authn.StatementRules, now time.Time) (*authn.Statement, error) {
	st, err := e[0].VerifyStatement(token, rules, now)
	if errors.Is(err, authn.ErrIssuer) {
		return e[1].VerifyStatement(token, rules, now)
	}
	return st, err
}

// watched is a system with a transmitter that may end the provider's users.
func watched(t *testing.T) (*system, *provider) {
	t.Helper()
	watcher := newProvider(t)
	entry := TransmitterConfig{
		Name: "watcher", Issuer: watcherURL, Algorithms: watcher.config.Algorithms, Audiences: []string{"for-watchers"}, Keys: watcher.config.Keys,
		Issuers: []string{providerURL},
	}
	own := authn.Default()
	own.Issuers = []authn.IssuerConfig{entry.IssuerConfig()}
	keys, err := authn.New(own, authn.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return newSystem(t, redistest.Embedded(t), nil, func(s *system) []Part {
		return append(sessionParts(s), &Signals{
			Config:   SignalsConfig{Audiences: []string{"gateway"}, RevocationURL: revocationURL, Transmitters: []TransmitterConfig{entry}},
			Verifier: eitherVerifier{keys, s.verifier}, Replays: NewRedisReplays(s.client), Revoker: s.store, Manager: s.manager, Auditor: s.audit,
			Now: func() time.Time { return s.now },
		})
	}), watcher
}

// A transmitter with keys of its own ends the users of the issuers that it is
// configured for, under its name for them or the issuer's, and nobody else.
func TestTransmitters(t *testing.T) {
	for name, c := range map[string]struct {
		subject claims
		change  claims
		// status and err are the answer's, ada and bob what becomes of their tokens:
		// hers is the provider's, his another issuer's.
		status   int
		err      string
		ada, bob string
	}{
		"its own subject":           {claims{"format": "iss_sub", "iss": watcherURL, "sub": "ada"}, nil, 202, "", "session", "none"},
		"the issuer's subject":      {claims{"format": "iss_sub", "iss": providerURL, "sub": "ada"}, nil, 202, "", "session", "none"},
		"opaque":                    {claims{"format": "opaque", "id": "ada"}, nil, 202, "", "session", "none"},
		"another issuer's subject":  {claims{"format": "iss_sub", "iss": authn.DevelopmentIssuerURL, "sub": "bob"}, nil, 400, "access_denied", "none", "none"},
		"its own, of both":          {claims{"format": "iss_sub", "iss": watcherURL, "sub": "bob"}, nil, 202, "", "none", "none"},
		"for tokens' issuers' eyes": {claims{"format": "opaque", "id": "ada"}, claims{"aud": "gateway"}, 400, "invalid_audience", "none", "none"},
		"under the provider's name": {claims{"format": "opaque", "id": "ada"}, claims{"iss": providerURL, "aud": "gateway"}, 400, "invalid_key", "none", "none"},
		"of nobody":                 {claims{"format": "opaque", "id": "ada"}, claims{"iss": "https://nobody.test"}, 400, "invalid_issuer", "none", "none"},
	} {
		t.Run(name, func(t *testing.T) {
			s, watcher := watched(t)
			ada, bob := s.access("ada", "s-1"), s.mint(authn.MintOptions{User: "bob", Session: "s-2"})
			s.want(201, nil, "POST", "/v1/sessions", serviceSecret, `{"user":"ada","session":"s-1","iss":"`+providerURL+`"}`)
			s.now = s.now.Add(5 * time.Second)
			set := s.signed(claims{"iss": watcherURL, "aud": "for-watchers", "sub_id": c.subject, "events": claims{caep + "session-revoked": claims{}}}, c.change)
			answer, text := s.do("POST", "/ssf/events", "", watcher.sign("secevent+jwt", set), "Content-Type", "application/secevent+jwt")
			if answer.StatusCode != c.status || !strings.Contains(text, c.err) {
				t.Errorf("%d %s", answer.StatusCode, text)
			}
			if a, b := s.refused(ada), s.refused(bob); a != c.ada || b != c.bob {
				t.Errorf("ada's token: %s, bob's: %s", a, b)
			}
			if left := len(s.list("ada")); (left == 0) != (c.ada != "none") {
				t.Errorf("%d sessions left", left)
			}
		})
	}
}

// A logout token of a transmitter names the session as the tokens do; and it lets
// nobody in.
func TestTransmitterLogout(t *testing.T) {
	s, watcher := watched(t)
	token, other := s.access("ada", "s-1"), s.mint(authn.MintOptions{User: "ada", Session: "s-1"})
	s.want(201, nil, "POST", "/v1/sessions", serviceSecret, `{"user":"ada","session":"s-1","iss":"`+providerURL+`"}`)
	logout := watcher.sign("logout+jwt", s.signed(claims{
		"iss": watcherURL, "aud": "for-watchers", "sid": "s-1", "exp": s.now.Add(time.Minute).Unix(), "events": claims{logoutEvent: claims{}},
	}))
	form := url.Values{"logout_token": {logout}}.Encode()
	s.want(200, nil, "POST", "/oidc/backchannel-logout", "", form, "Content-Type", "application/x-www-form-urlencoded")
	if a, b := s.refused(token), s.refused(other); a != "session" || b != "none" || len(s.list("ada")) != 0 {
		t.Errorf("the session: %s, another issuer's of that id: %s, left: %v", a, b, s.list("ada"))
	}
	access := watcher.sign("JWT", map[string]any{
		"iss": watcherURL, "aud": watcherURL, "sub": "ada", "iat": s.now.Unix(), "exp": s.now.Add(time.Hour).Unix(), "jti": rand.Text(),
	})
	s.want(401, nil, "GET", "/v1/me/sessions", access, "")
}

// An assertion authenticates once, however many bring it at the same moment.
func TestAssertionsServeOnce(t *testing.T) {
	s, watcher := watched(t)
	assertion := watcher.sign("JWT", s.signed(claims{"iss": watcherURL, "aud": revocationURL, "exp": s.now.Add(time.Minute).Unix()}))
	var served sync.Map
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			answer, _ := s.do("POST", "/global-token-revocation", assertion, `{"sub_id":{"format":"iss_sub","iss":"`+watcherURL+`","sub":"ada"}}`, "Content-Type", "application/json")
			if answer.StatusCode == 204 {
				served.Store(i, true)
			}
		})
	}
	wg.Wait()
	n := 0
	served.Range(func(any, any) bool { n++; return true })
	if n != 1 {
		t.Errorf("served %d times", n)
	}
}

func TestTransmitterConfig(t *testing.T) {
	const good = "{name: w, issuer: 'https://w', algorithms: [ES256], keys: {jwks_url: 'https://w/keys'}, issuers: [i]}"
	for body, ok := range map[string]bool{
		"audiences: [a]\ntransmitters: [" + good + "]": true,
		"transmitters: [" + good + "]":                 false, // for whom?
		"audiences: [a]\ntransmitters: [" + good + ", {name: v, issuer: 'https://w', algorithms: [ES256], keys: {jwks_url: 'https://v/keys'}, issuers: [i]}]":                          false,
		"audiences: [a]\ntransmitters: [{name: w, issuer: 'https://w', algorithms: [ES256], keys: {jwks_url: 'https://w/keys'}}]":                                                      false,
		"audiences: [a]\ntransmitters: [{name: w, issuer: 'https://w', algorithms: [none], keys: {jwks_url: 'https://w/keys'}, issuers: [i]}]":                                         false,
		"audiences: [a]\ntransmitters: [{name: w, issuer: 'https://w', algorithms: [ES256], keys: {envoy: true}, issuers: [i]}]":                                                       false,
		"audiences: [a]\ntransmitters: [{name: w, issuer: 'https://w', algorithms: [ES256], issuers: [i]}]":                                                                            false,
		"revocation_url: 'https://r'\ntransmitters: [{name: w, issuer: 'https://w', audiences: ['https://r'], algorithms: [ES256], keys: {jwks_url: 'https://w/keys'}, issuers: [i]}]": false,
	} {
		if _, err := config.Decode("signals.yaml", []byte(body+"\n"), SignalsConfig{}); (err == nil) != ok {
			t.Errorf("%s: %v", body, err)
		}
	}
}
