package account

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
	"github.com/tollgate-proxy/tollgate/internal/session"
)

func (s *system) ids(list sessionList) []string {
	ids := []string{}
	for _, v := range list.Sessions {
		ids = append(ids, v.ID)
	}
	return ids
}

func (s *system) list(user string) []string {
	s.t.Helper()
	var list sessionList
	s.want(200, &list, "GET", "/v1/users/"+user+"/sessions", operatorSecret, "")
	return s.ids(list)
}

func (s *system) register(user, id string) {
	s.t.Helper()
	s.want(201, nil, "POST", "/v1/sessions", serviceSecret, fmt.Sprintf(`{"user":%q,"session":%q}`, user, id))
	s.now = s.now.Add(time.Second)
}

func TestSessions(t *testing.T) {
	s := newSystem(t, redistest.Server(t), nil, sessionParts)
	var v sessionView
	s.want(201, &v, "POST", "/v1/sessions", serviceSecret, `{"user":"ada","session":"s-1","iss":"`+authn.DevelopmentIssuerURL+`","tier":"free","address":"::ffff:192.0.2.7",
		"device":{"id":"d-1","name":"Phone","user_agent":"ua"},"place":{"country":"DE","city":"Ulm"}}`)
	want := sessionView{
		ID: "s-1", Issuer: authn.DevelopmentIssuerURL, Address: "192.0.2.7", Device: session.Device{ID: "d-1", Name: "Phone", UserAgent: "ua"},
		Place: session.Place{Country: "DE", City: "Ulm"}, Created: s.now.UTC(), LastSeen: s.now.UTC(),
	}
	if diff := cmp.Diff(want, v); diff != "" {
		t.Errorf("registered (-want +got):\n%s", diff)
	}
	s.now = s.now.Add(time.Second)
	s.want(200, nil, "POST", "/v1/sessions", serviceSecret, `{"user":"ada","session":"s-1"}`)
	for _, id := range []string{"s-2", "s-3", "s-4"} {
		s.register("ada", id)
	}
	token := s.mint(authn.MintOptions{User: "ada", Session: "s-1"})
	s.want(204, nil, "DELETE", "/v1/users/ada/sessions/s-1?reason=lost", operatorSecret, "")
	if got := s.refused(token); got != "session" {
		t.Errorf("a token of the ended session is refused as %s", got)
	}
	if diff := cmp.Diff([]string{"s-2", "s-3", "s-4"}, s.list("ada")); diff != "" {
		t.Error(diff)
	}
	if text := s.want(409, nil, "POST", "/v1/sessions", serviceSecret, `{"user":"ada","session":"s-1"}`); !strings.Contains(text, "session_ended") {
		t.Error(text)
	}
	s.want(404, nil, "DELETE", "/v1/users/ada/sessions/none", operatorSecret, "")
	var n endedAnswer
	if s.want(200, &n, "POST", "/v1/users/ada/sessions/end-others", operatorSecret, `{"keep":"s-3","reason":"theft"}`); n.Ended != 2 {
		t.Errorf("ended %d others", n.Ended)
	}
	if s.want(200, &n, "DELETE", "/v1/users/ada/sessions", operatorSecret, ""); n.Ended != 1 || len(s.list("ada")) != 0 {
		t.Errorf("ended %d, left %v", n.Ended, s.list("ada"))
	}
	last := s.audit.events[len(s.audit.events)-2]
	if diff := cmp.Diff(Event{Actor: "desk", Action: "session.end_others", Target: "ada", Reason: "theft", Outcome: "done", At: s.now}, last); diff != "" {
		t.Errorf("audit (-want +got):\n%s", diff)
	}
}

func TestSessionLimit(t *testing.T) {
	s := newSystem(t, redistest.Embedded(t), func(c *session.Config) {
		c.Max, c.Policy = 1, string(session.RefuseNew)
		c.Tiers = []session.TierConfig{{Tier: "premium", Max: 2}}
	}, sessionParts)
	s.register("ada", "s-1")
	if text := s.want(409, nil, "POST", "/v1/sessions", serviceSecret, `{"user":"ada","session":"s-2"}`); !strings.Contains(text, "session_limit") {
		t.Error(text)
	}
	s.want(201, nil, "POST", "/v1/sessions", serviceSecret, `{"user":"ada","session":"s-2","tier":"premium"}`)
	if last := s.audit.events[1]; last.Outcome != "session_limit" || last.Actor != "login" || last.Target != "session s-2 of ada" {
		t.Errorf("audit %+v", last)
	}
}

func TestSessionRequestsThatAreRefused(t *testing.T) {
	s := newSystem(t, redistest.Embedded(t), nil, sessionParts)
	long := strings.Repeat("x", 300)
	for name, c := range map[string]struct {
		status               int
		method, path, secret string
		body                 string
	}{
		"no user":              {400, "POST", "/v1/sessions", serviceSecret, `{"session":"s"}`},
		"no session":           {400, "POST", "/v1/sessions", serviceSecret, `{"user":"u"}`},
		"long":                 {400, "POST", "/v1/sessions", serviceSecret, `{"user":"u","session":"` + long + `"}`},
		"address":              {400, "POST", "/v1/sessions", serviceSecret, `{"user":"u","session":"s","address":"here"}`},
		"unknown member":       {400, "POST", "/v1/sessions", serviceSecret, `{"user":"u","session":"s","uesr":1}`},
		"register by operator": {403, "POST", "/v1/sessions", operatorSecret, `{"user":"u","session":"s"}`},
		"list by service":      {403, "GET", "/v1/users/u/sessions", serviceSecret, ""},
		"end by nobody":        {401, "DELETE", "/v1/users/u/sessions/s", "", ""},
		"keep nothing":         {400, "POST", "/v1/users/u/sessions/end-others", operatorSecret, `{}`},
		"others of nothing":    {400, "POST", "/v1/users/u/sessions/end-others", operatorSecret, `{`},
		"long reason":          {400, "DELETE", "/v1/users/u/sessions?reason=" + long, operatorSecret, ""},
		"line break in reason": {400, "DELETE", "/v1/users/u/sessions/s?reason=a%0ab", operatorSecret, ""},
		"a user's token":       {401, "GET", "/v1/users/ada/sessions", s.mint(authn.MintOptions{User: "ada", Roles: []string{"admin"}}), ""},
		"a client as a user":   {401, "GET", "/v1/me/sessions", adminSecret, ""},
	} {
		t.Run(name, func(t *testing.T) { s.want(c.status, nil, c.method, c.path, c.secret, c.body) })
	}
}

func TestOwnSessions(t *testing.T) {
	s := newSystem(t, redistest.Server(t), nil, sessionParts)
	for _, id := range []string{"a-1", "a-2", "a-3"} {
		s.register("ada", id)
	}
	s.register("bob", "b-1")
	ada := s.mint(authn.MintOptions{User: "ada", Session: "a-1"})
	bob := s.mint(authn.MintOptions{User: "bob", Session: "b-1"})

	var list sessionList
	s.want(200, &list, "GET", "/v1/me/sessions", ada, "", "x-user-id", "bob")
	if list.User != "ada" || len(list.Sessions) != 3 || !list.Sessions[0].Current || list.Sessions[1].Current {
		t.Errorf("ada's list: %+v", list)
	}
	s.want(404, nil, "DELETE", "/v1/me/sessions/b-1", ada, "", "x-user-id", "bob")
	if got := s.refused(bob); got != "none" {
		t.Errorf("ada has ended bob's session: %s", got)
	}
	s.want(204, nil, "DELETE", "/v1/me/sessions/a-2", ada, "")
	var n endedAnswer
	if s.want(200, &n, "POST", "/v1/me/sessions/end-others", ada, ""); n.Ended != 1 {
		t.Errorf("ended %d others", n.Ended)
	}
	if diff := cmp.Diff([]string{"a-1"}, s.list("ada")); diff != "" {
		t.Error(diff)
	}
	elsewhere := s.mint(authn.MintOptions{User: "ada"}) // no session, and so not registered
	if s.want(200, &n, "DELETE", "/v1/me/sessions", ada, ""); n.Ended != 1 {
		t.Errorf("logged out of %d", n.Ended)
	}
	for _, token := range []string{ada, elsewhere} {
		if got := s.refused(token); got != "session" && got != "user" {
			t.Errorf("after logging out everywhere: %s", got)
		}
		s.want(401, nil, "GET", "/v1/me/sessions", token, "")
	}
	s.want(200, nil, "GET", "/v1/me/sessions", bob, "")
	if last := s.audit.events[len(s.audit.events)-1]; last.Action != "session.end_all" || last.Actor != "ada at "+authn.DevelopmentIssuerURL {
		t.Errorf("audit %+v", last)
	}
}

func TestWhoOwnSessionsAreOpenTo(t *testing.T) {
	s := newSystem(t, redistest.Embedded(t), nil, sessionParts)
	good := s.mint(authn.MintOptions{User: "ada", Session: "s"})
	expired := s.mint(authn.MintOptions{User: "ada", Now: s.now.Add(-2 * time.Hour)})
	foreign := s.mint(authn.MintOptions{User: "ada", Audience: "tollgate-management"})
	for name, c := range map[string]struct {
		headers []string
		code    string
	}{
		"nothing":              {nil, "token_missing"},
		"x-user-id alone":      {[]string{"x-user-id", "ada"}, "token_missing"},
		"a cookie":             {[]string{"Cookie", "token=" + good}, "token_missing"},
		"another scheme":       {[]string{"Authorization", "DPoP " + good}, "token_malformed"},
		"expired":              {[]string{"Authorization", "Bearer " + expired}, "token_expired"},
		"forged":               {[]string{"Authorization", "Bearer " + good[:len(good)-6] + "AAAAAA"}, "token_invalid"},
		"for another audience": {[]string{"Authorization", "Bearer " + foreign}, "token_invalid"},
	} {
		t.Run(name, func(t *testing.T) {
			answer, text := s.do("GET", "/v1/me/sessions", "", "", c.headers...)
			if answer.StatusCode != 401 || !strings.Contains(text, `"`+c.code+`"`) || answer.Header.Get("WWW-Authenticate") == "" {
				t.Errorf("%d %s", answer.StatusCode, text)
			}
		})
	}
	// A session that nobody registered can be left all the same.
	s.want(204, nil, "DELETE", "/v1/me/sessions/s", good, "")
	s.want(401, nil, "GET", "/v1/me/sessions", good, "")
}

func TestSessionsWithoutRedis(t *testing.T) {
	s := newSystem(t, redistest.FreeAddr(t), nil, sessionParts)
	for _, c := range [][3]string{
		{"POST", "/v1/sessions", serviceSecret},
		{"GET", "/v1/users/ada/sessions", operatorSecret},
		{"DELETE", "/v1/users/ada/sessions", operatorSecret},
		{"DELETE", "/v1/users/ada/sessions/s", operatorSecret},
		{"GET", "/v1/me/sessions", s.mint(authn.MintOptions{User: "ada"})},
	} {
		answer, text := s.do(c[0], c[1], c[2], `{"user":"ada","session":"s"}`)
		if answer.StatusCode != 503 || !strings.Contains(text, "dependency_unavailable") || answer.Header.Get("Retry-After") == "" {
			t.Errorf("%s %s: %d %s", c[0], c[1], answer.StatusCode, text)
		}
	}
}

// Two issuers may call sessions by the same id: the end of one is no end of the
// other, for whomever it is asked and by whomever.
func TestSessionsOfTwoIssuers(t *testing.T) {
	register := func(s *system, user, issuer string) {
		s.want(201, nil, "POST", "/v1/sessions", serviceSecret, fmt.Sprintf(`{"user":%q,"session":"1","iss":%q}`, user, issuer))
	}
	for name, end := range map[string]func(s *system, bearer string){
		"an operator, naming the issuer": func(s *system, _ string) {
			s.want(204, nil, "DELETE", "/v1/users/ada/sessions/1?iss="+providerURL, operatorSecret, "")
		},
		"an operator, all of an issuer's": func(s *system, _ string) {
			s.want(200, nil, "DELETE", "/v1/users/ada/sessions?iss="+providerURL, operatorSecret, "")
		},
		"an operator, all others of the issuer": func(s *system, _ string) {
			s.want(200, nil, "POST", "/v1/users/ada/sessions/end-others", operatorSecret, `{"keep":"2","iss":"`+providerURL+`"}`)
		},
		"by session": func(s *system, _ string) {
			text := s.want(200, nil, "POST", "/v1/tokens/revoke", operatorSecret, `{"session":"1","iss":"`+providerURL+`"}`)
			if !strings.Contains(text, `"sessions_ended":1`) {
				s.t.Error(text)
			}
		},
		"an emergency with the issuer": func(s *system, _ string) {
			s.want(200, nil, "POST", "/v1/users/ada/revoke", operatorSecret, `{"reason":"breach","iss":"`+providerURL+`"}`)
		},
		"the user": func(s *system, bearer string) {
			s.want(204, nil, "DELETE", "/v1/me/sessions/1", bearer, "")
		},
		"the user, everywhere": func(s *system, bearer string) {
			s.want(200, nil, "DELETE", "/v1/me/sessions", bearer, "")
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSystem(t, redistest.Embedded(t), nil, func(s *system) []Part {
				return append(sessionParts(s), &Tokens{
					Revoker: s.store, Checker: s.store, Inspector: fakeInspector{s.now}, Sessions: s.manager, Auditor: s.audit,
					Now: func() time.Time { return s.now },
				})
			})
			register(s, "ada", providerURL)
			register(s, "ada", authn.DevelopmentIssuerURL) // somebody else, or the same, by another issuer
			register(s, "bob", authn.DevelopmentIssuerURL)
			mine, others, bobs := s.access("ada", "1"), s.mint(authn.MintOptions{User: "ada", Session: "1"}), s.mint(authn.MintOptions{User: "bob", Session: "1"})
			end(s, mine)
			if a, b, c := s.refused(mine), s.refused(others), s.refused(bobs); a == "none" || b != "none" || c != "none" {
				t.Errorf("the token is refused as %s, the other issuer's as %s and %s", a, b, c)
			}
			var left sessionList
			if s.want(200, &left, "GET", "/v1/me/sessions", others, ""); len(left.Sessions) != 1 || left.Sessions[0].Issuer != authn.DevelopmentIssuerURL {
				t.Errorf("left: %+v", left)
			}
			s.want(200, nil, "GET", "/v1/me/sessions", bobs, "")
		})
	}
	s := newSystem(t, redistest.Embedded(t), nil, sessionParts)
	register(s, "ada", providerURL)
	register(s, "ada", authn.DevelopmentIssuerURL)
	var own sessionList
	if s.want(200, &own, "GET", "/v1/me/sessions", s.access("ada", "1"), ""); len(own.Sessions) != 1 || own.Sessions[0].Issuer != providerURL {
		t.Errorf("a user sees %+v", own)
	}
	text := s.want(400, nil, "POST", "/v1/sessions", serviceSecret, `{"user":"ada","session":"9","iss":"`+providerURL+`/"}`)
	if !strings.Contains(text, "exactly") {
		t.Error(text)
	}
}
