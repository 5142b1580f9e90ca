package account

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/config"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

const revocationURL = "https://api.example.com/global-token-revocation"

func signalParts(s *system) []Part {
	now := func() time.Time { return s.now }
	return append(sessionParts(s), &Signals{
		Config: SignalsConfig{
			Audiences: []string{"gateway"}, RevocationURL: revocationURL, EmailIsUser: true,
			SpeaksFor: []SpeaksForConfig{{Issuer: authn.DevelopmentIssuerURL, Issuers: []string{providerURL}}},
		},
		Verifier: s.verifier, Replays: NewRedisReplays(s.client), Revoker: s.store, Manager: s.manager, Auditor: s.audit, Now: now,
	})
}

type claims = map[string]any

// signed are the claims of a statement of the provider, changed by each; a nil
// value takes one away.
func (s *system) signed(changes ...claims) claims {
	c := claims{"iss": providerURL, "aud": "gateway", "iat": s.now.Unix(), "jti": rand.Text()}
	for _, change := range changes {
		maps.Copy(c, change)
	}
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
	return c
}

func (s *system) logout(typ string, c claims) (int, string) {
	s.t.Helper()
	form := url.Values{"logout_token": {s.provider.sign(typ, c)}}
	answer, text := s.do("POST", "/oidc/backchannel-logout", "", form.Encode(), "Content-Type", "application/x-www-form-urlencoded")
	return answer.StatusCode, text
}

func TestBackChannelLogout(t *testing.T) {
	s := newSystem(t, redistest.Server(t), nil, signalParts)
	event := claims{logoutEvent: claims{}}
	good := func(changes ...claims) claims {
		return s.signed(append([]claims{{"sid": "s-1", "exp": s.now.Add(2 * time.Minute).Unix(), "events": event}}, changes...)...)
	}
	for name, c := range map[string]struct {
		typ    string
		claims claims
	}{
		"nonce":                {"logout+jwt", good(claims{"nonce": "n"})},
		"no events":            {"logout+jwt", good(claims{"events": nil})},
		"another event":        {"logout+jwt", good(claims{"events": claims{"x": claims{}}})},
		"event is no object":   {"logout+jwt", good(claims{"events": claims{logoutEvent: true}})},
		"neither sub nor sid":  {"logout+jwt", good(claims{"sid": nil})},
		"sid is a number":      {"logout+jwt", good(claims{"sid": 1})},
		"no jti":               {"logout+jwt", good(claims{"jti": nil})},
		"no exp":               {"logout+jwt", good(claims{"exp": nil})},
		"expired":              {"logout+jwt", good(claims{"iat": s.now.Add(-time.Hour).Unix(), "exp": s.now.Add(-50 * time.Minute).Unix()})},
		"lives too long":       {"logout+jwt", good(claims{"exp": s.now.Add(24 * time.Hour).Unix()})},
		"another audience":     {"logout+jwt", good(claims{"aud": "api"})},
		"another issuer":       {"logout+jwt", good(claims{"iss": authn.DevelopmentIssuerURL})},
		"an access token":      {"at+jwt", good()},
		"a security event":     {"secevent+jwt", good()},
		"from the future":      {"logout+jwt", good(claims{"iat": s.now.Add(10 * time.Minute).Unix(), "exp": s.now.Add(20 * time.Minute).Unix()})},
		"unknown issuer, none": {"logout+jwt", good(claims{"iss": nil})},
	} {
		t.Run(name, func(t *testing.T) {
			if status, text := s.logout(c.typ, c.claims); status != 400 || !strings.Contains(text, "invalid_request") {
				t.Errorf("%d %s", status, text)
			}
		})
	}
	for _, c := range [][2]string{{"application/json", "{}"}, {"application/x-www-form-urlencoded", "logout_token=a&logout_token=b"}, {"application/x-www-form-urlencoded", "%zz"}} {
		s.want(400, nil, "POST", "/oidc/backchannel-logout", "", c[1], "Content-Type", c[0])
	}

	one, two, other := s.access("ada", "s-1"), s.access("ada", "s-2"), s.access("bob", "s-3")
	s.want(201, nil, "POST", "/v1/sessions", serviceSecret, `{"user":"ada","session":"s-1","iss":"`+providerURL+`"}`)
	s.want(201, nil, "POST", "/v1/sessions", serviceSecret, `{"user":"ada","session":"s-2","iss":"`+providerURL+`"}`)
	again := good(claims{"sub": "ada"})
	if status, text := s.logout("logout+jwt", again); status != 200 || text != "" {
		t.Fatalf("%d %s", status, text)
	}
	if a, b := s.refused(one), s.refused(two); a != "session" || b != "none" {
		t.Errorf("the session: %s, another of the user: %s", a, b)
	}
	if got := s.list("ada"); len(got) != 1 || got[0] != "s-2" {
		t.Errorf("sessions %v", got)
	}
	if status, text := s.logout("logout+jwt", again); status != 400 || !strings.Contains(text, "before") {
		t.Errorf("a replay: %d %s", status, text)
	}
	// The session alone, of whomever: it ends in the registry too, and another's of
	// the same id with another issuer does not.
	carol, dave := s.access("carol", "s-9"), s.mint(authn.MintOptions{User: "dave", Session: "s-9"})
	s.want(201, nil, "POST", "/v1/sessions", serviceSecret, `{"user":"carol","session":"s-9"}`)
	s.want(201, nil, "POST", "/v1/sessions", serviceSecret, `{"user":"dave","session":"s-9","iss":"`+authn.DevelopmentIssuerURL+`"}`)
	if status, text := s.logout("logout+jwt", good(claims{"sid": "s-9"})); status != 200 {
		t.Fatalf("%d %s", status, text)
	}
	if a, b := s.refused(carol), s.refused(dave); a != "session" || b != "none" {
		t.Errorf("carol's: %s, dave's: %s", a, b)
	}
	if a, b := s.list("carol"), s.list("dave"); len(a) != 0 || len(b) != 1 {
		t.Errorf("sessions of carol %v, of dave %v", a, b)
	}
	s.now = s.now.Add(10 * time.Second)
	later := s.access("ada", "s-4")
	s.now = s.now.Add(-5 * time.Second)
	if status, text := s.logout("JWT", good(claims{"sid": nil, "sub": "ada"})); status != 200 {
		t.Fatalf("%d %s", status, text)
	}
	if a, b, c := s.refused(two), s.refused(other), s.refused(later); a != "session" && a != "user" || b != "none" || c != "none" {
		t.Errorf("the user: %s, another: %s, the next login: %s", a, b, c)
	}
}

func (s *system) push(c claims) (int, map[string]string) {
	s.t.Helper()
	answer, text := s.do("POST", "/ssf/events", "", s.provider.sign("secevent+jwt", c), "Content-Type", "application/secevent+jwt")
	var body map[string]string
	if text != "" {
		if err := json.Unmarshal([]byte(text), &body); err != nil {
			s.t.Fatal(err)
		}
	}
	if (answer.StatusCode == 202) != (text == "") || answer.StatusCode == 400 && (body["err"] == "" || body["description"] == "") {
		s.t.Errorf("%d %s", answer.StatusCode, text)
	}
	return answer.StatusCode, body
}

func TestSecurityEvents(t *testing.T) {
	issSub := claims{"format": "iss_sub", "iss": providerURL, "sub": "ada"}
	opaqueSession := claims{"format": "opaque", "id": "s-1"}
	for name, c := range map[string]struct {
		kind    string
		payload claims
		subject any
		// what becomes of ada's token in s-1, her token in s-2, and bob's; left are
		// the sessions that ada has then.
		one, two, bob, left string
	}{
		"session-revoked of a session":  {caep + "session-revoked", nil, opaqueSession, "session", "none", "none", "s-2"},
		"session-revoked, complex":      {caep + "session-revoked", nil, claims{"format": "complex", "session": opaqueSession, "user": issSub}, "session", "none", "none", "s-2"},
		"session-revoked of a user":     {caep + "session-revoked", nil, issSub, "session", "session", "none", ""},
		"by e-mail":                     {caep + "session-revoked", nil, claims{"format": "email", "email": "ada"}, "session", "session", "none", ""},
		"opaque user":                   {caep + "session-revoked", nil, claims{"format": "opaque", "id": "ada"}, "session", "session", "none", ""},
		"aliases":                       {caep + "session-revoked", nil, claims{"format": "aliases", "identifiers": []any{claims{"format": "phone_number"}, issSub}}, "session", "session", "none", ""},
		"as drafts wrote it":            {caep + "session-revoked", claims{"subject": claims{"subject_type": "iss-sub", "iss": providerURL, "sub": "ada"}, "event_timestamp": int64(1e12)}, nil, "none", "none", "none", "s-1 s-2"},
		"credential-change":             {caep + "credential-change", claims{"change_type": "update"}, claims{"session": opaqueSession, "user": issSub}, "session", "session", "none", ""},
		"credential-change, a new one":  {caep + "credential-change", claims{"change_type": "create"}, issSub, "none", "none", "none", "s-1 s-2"},
		"token-claims-change":           {caep + "token-claims-change", claims{"claims": claims{"role": "x"}}, issSub, "user", "user", "none", "s-1 s-2"},
		"account-disabled":              {risc + "account-disabled", claims{"reason": "hijacking"}, issSub, "session", "session", "none", ""},
		"before the tokens were issued": {caep + "session-revoked", claims{"event_timestamp": 1700000000}, issSub, "none", "none", "none", "s-1 s-2"},
		"verification":                  {ssf + "verification", claims{"state": "x"}, opaqueSession, "none", "none", "none", "s-1 s-2"},
		"something else":                {"https://example.com/other", nil, issSub, "none", "none", "none", "s-1 s-2"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSystem(t, redistest.Embedded(t), nil, signalParts)
			one, two, bob := s.access("ada", "s-1"), s.access("ada", "s-2"), s.access("bob", "s-3")
			for _, id := range []string{"s-1", "s-2"} {
				s.want(201, nil, "POST", "/v1/sessions", serviceSecret, fmt.Sprintf(`{"user":"ada","session":%q,"iss":%q}`, id, providerURL))
			}
			s.now = s.now.Add(5 * time.Second)
			payload := c.payload
			if payload == nil {
				payload = claims{}
			}
			set := s.signed(claims{"sub_id": c.subject, "events": claims{c.kind: payload}})
			for range 2 { // the second time it is a replay
				if status, body := s.push(set); status != 202 {
					t.Fatalf("%d %v", status, body)
				}
			}
			if a, b, o := s.refused(one), s.refused(two), s.refused(bob); a != c.one || b != c.two || o != c.bob {
				t.Errorf("ada's: %s, her other: %s, bob's: %s", a, b, o)
			}
			if got := strings.Join(s.list("ada"), " "); got != c.left {
				t.Errorf("sessions left: %s", got)
			}
			if last := s.audit.events[len(s.audit.events)-1]; last.Outcome != "replayed" || last.Actor != providerURL {
				t.Errorf("audit %+v", last)
			}
		})
	}
}

func TestSecurityEventsThatAreRefused(t *testing.T) {
	s := newSystem(t, redistest.Embedded(t), nil, signalParts)
	good := func(changes ...claims) claims {
		return s.signed(append([]claims{{
			"sub_id": claims{"format": "iss_sub", "iss": providerURL, "sub": "ada"}, "events": claims{caep + "session-revoked": claims{}},
		}}, changes...)...)
	}
	ada := s.access("ada", "s-1")
	for name, c := range map[string]struct {
		claims claims
		err    string
	}{
		"audience":           {good(claims{"aud": "api"}), setInvalidAudience},
		"issuer":             {good(claims{"iss": "https://evil.test"}), setInvalidIssuer},
		"key":                {good(claims{"iss": authn.DevelopmentIssuerURL}), setInvalidKey},
		"no jti":             {good(claims{"jti": nil}), setInvalidRequest},
		"no events":          {good(claims{"events": claims{}}), setInvalidRequest},
		"events is a list":   {good(claims{"events": []any{}}), setInvalidRequest},
		"event is a text":    {good(claims{"events": claims{caep + "session-revoked": "x"}}), setInvalidRequest},
		"no subject":         {good(claims{"sub_id": nil}), setInvalidRequest},
		"unknown format":     {good(claims{"sub_id": claims{"format": "did", "url": "did:x"}}), setInvalidRequest},
		"empty complex":      {good(claims{"sub_id": claims{"format": "complex"}}), setInvalidRequest},
		"foreign subject":    {good(claims{"sub_id": claims{"format": "iss_sub", "iss": authn.DevelopmentIssuerURL, "sub": "ada"}}), setAccessDenied},
		"subject without a":  {good(claims{"sub_id": claims{"format": "iss_sub", "iss": providerURL}}), setInvalidRequest},
		"nested without end": {good(claims{"sub_id": claims{"user": claims{"user": claims{"user": claims{"user": claims{}}}}}}), setInvalidRequest},
	} {
		t.Run(name, func(t *testing.T) {
			if status, body := s.push(c.claims); status != 400 || body["err"] != c.err {
				t.Errorf("%d %v, want %s", status, body, c.err)
			}
		})
	}
	s.want(400, nil, "POST", "/ssf/events", "", s.provider.sign("secevent+jwt", good()), "Content-Type", "application/jwt")
	s.want(400, nil, "POST", "/ssf/events", "", s.provider.sign("JWT", good()), "Content-Type", "application/secevent+jwt")
	s.want(400, nil, "POST", "/ssf/events", "", strings.Repeat("x", maxTokenBody+1), "Content-Type", "application/secevent+jwt")
	if got := s.refused(ada); got != "none" {
		t.Errorf("ada is refused: %s", got)
	}
}

func TestSignalsWithoutRedisAreSentAgain(t *testing.T) {
	s := newSystem(t, redistest.FreeAddr(t), nil, signalParts)
	set := s.signed(claims{"sub_id": claims{"format": "opaque", "id": "ada"}, "events": claims{caep + "session-revoked": claims{}}})
	answer, _ := s.do("POST", "/ssf/events", "", s.provider.sign("secevent+jwt", set), "Content-Type", "application/secevent+jwt")
	if answer.StatusCode != 503 || answer.Header.Get("Retry-After") == "" {
		t.Errorf("a security event: %d", answer.StatusCode)
	}
	status, text := s.logout("logout+jwt", s.signed(claims{"sub": "ada", "exp": s.now.Add(time.Minute).Unix(), "events": claims{logoutEvent: claims{}}}))
	if status != 400 || !strings.Contains(text, "temporarily_unavailable") {
		t.Errorf("a logout: %d %s", status, text)
	}
}

func TestGlobalTokenRevocation(t *testing.T) {
	s := newSystem(t, redistest.Server(t), nil, signalParts)
	const body = `{"sub_id":{"format":"iss_sub","iss":"` + providerURL + `","sub":"ada"}}`
	assertion := func(changes ...claims) string {
		return s.provider.sign("JWT", s.signed(append([]claims{{"aud": revocationURL, "sub": "client", "exp": s.now.Add(5 * time.Minute).Unix()}}, changes...)...))
	}
	for name, c := range map[string]struct {
		status       int
		bearer, body string
	}{
		"nobody":                {401, "", body},
		"a service":             {403, serviceSecret, body},
		"a user":                {401, s.access("ada", "s"), body},
		"an ID token's aud":     {401, assertion(claims{"aud": "gateway"}), body},
		"an assertion for long": {401, assertion(claims{"exp": s.now.Add(48 * time.Hour).Unix()}), body},
		"an eternal assertion":  {401, assertion(claims{"exp": nil}), body},
		"no subject":            {400, operatorSecret, `{}`},
		"unknown format":        {400, operatorSecret, `{"sub_id":{"format":"did"}}`},
		"a session":             {400, operatorSecret, `{"sub_id":{"format":"complex","user":{"format":"opaque","id":"ada"},"session":{"format":"opaque","id":"s"}}}`},
		"somebody else's user":  {403, assertion(), `{"sub_id":{"format":"iss_sub","iss":"https://else.test","sub":"ada"}}`},
		"two members":           {400, operatorSecret, `{"sub_id":{"format":"opaque","id":"ada"},"x":1}`},
	} {
		t.Run(name, func(t *testing.T) { s.want(c.status, nil, "POST", "/global-token-revocation", c.bearer, c.body) })
	}
	ada, dev := s.access("ada", "s-1"), s.mint(authn.MintOptions{User: "ada"})
	if got := s.refused(ada); got != "none" {
		t.Fatalf("refused before: %s", got)
	}
	s.want(201, nil, "POST", "/v1/sessions", serviceSecret, `{"user":"ada","session":"s-1","iss":"`+providerURL+`"}`)
	once := assertion()
	s.want(204, nil, "POST", "/global-token-revocation", once, body)
	s.want(401, nil, "POST", "/global-token-revocation", once, body)
	if a, b := s.refused(ada), s.refused(dev); a == "none" || b != "none" || len(s.list("ada")) != 0 {
		t.Errorf("the provider's token: %s, another issuer's: %s, sessions %v", a, b, s.list("ada"))
	}
	s.want(204, nil, "POST", "/global-token-revocation", operatorSecret, `{"sub_id":{"format":"opaque","id":"ada"}}`)
	if got := s.refused(dev); got != "user" {
		t.Errorf("by an operator, whichever issuer: %s", got)
	}
}

func TestSignalsConfig(t *testing.T) {
	for text, want := range map[string]string{
		"audiences: ['']": "audiences",
		"{audiences: ['https://a/r'], revocation_url: 'https://a/r'}":                               "audiences",
		"revocation_url: http://x":                                                                  "revocation_url",
		"speaks_for: [{issuer: '', issuers: [a]}]":                                                  "speaks_for[0].issuer",
		"speaks_for: [{issuer: a}]":                                                                 "speaks_for[0].issuers",
		"speaks_for: [{issuer: a, issuers: [b]}, {issuer: a, issuers: [c]}]":                        "speaks_for",
		"{audiences: [a], revocation_url: 'https://x/r', speaks_for: [{issuer: a, issuers: [b]}]} ": "",
	} {
		_, err := config.Decode("x.yaml", []byte(text), SignalsConfig{})
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
