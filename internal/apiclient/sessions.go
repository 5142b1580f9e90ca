package apiclient

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// Session is one login of a user.
type Session struct {
	ID     string `json:"id"`
	Issuer string `json:"iss"`
	Device struct {
		ID        string `json:"id"`
		Name      string `json:"name"`
		UserAgent string `json:"user_agent"`
	} `json:"device"`
	Address string `json:"address"`
	Place   struct {
		Country string `json:"country"`
		City    string `json:"city"`
	} `json:"place"`
	Created  time.Time `json:"created"`
	LastSeen time.Time `json:"last_seen"`
}

func sessionsOf(user string) string { return "/v1/users/" + url.PathEscape(user) + "/sessions" }

// Sessions returns a user's sessions, the oldest first.
func (c *Client) Sessions(ctx context.Context, user string) ([]Session, error) {
	var list struct {
		Sessions []Session `json:"sessions"`
	}
	err := c.do(ctx, http.MethodGet, sessionsOf(user), nil, &list)
	return list.Sessions, err
}

// EndSession ends one session of a user, with all its tokens: of one issuer,
// unless that is empty.
func (c *Client) EndSession(ctx context.Context, user, id, issuer, reason string) error {
	return c.call(ctx, http.MethodDelete, sessionsOf(user)+"/"+url.PathEscape(id), values("iss", issuer, "reason", reason), nil, nil)
}

// EndSessions ends all sessions of a user, but the one to keep where that is not
// empty, and tells how many there were. The sessions with other issuers stay,
// unless issuer is empty.
func (c *Client) EndSessions(ctx context.Context, user, keep, issuer, reason string) (int, error) {
	var answer struct {
		Ended int `json:"ended"`
	}
	if keep == "" {
		err := c.call(ctx, http.MethodDelete, sessionsOf(user), values("iss", issuer, "reason", reason), nil, &answer)
		return answer.Ended, err
	}
	body := map[string]string{"keep": keep, "reason": reason}
	if issuer != "" {
		body["iss"] = issuer
	}
	err := c.do(ctx, http.MethodPost, sessionsOf(user)+"/end-others", body, &answer)
	return answer.Ended, err
}

func because(reason string) url.Values { return values("reason", reason) }

// values makes a query of pairs, without those that are empty.
func values(pairs ...string) url.Values {
	v := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			v.Set(pairs[i], pairs[i+1])
		}
	}
	return v
}

// Revocation names what is to be refused: one of the targets. Issuer narrows a
// session, a user or a client, goes with TokenID, and alone is a target too.
type Revocation struct {
	TokenID    string `json:"jti,omitempty"`
	Session    string `json:"session,omitempty"`
	User       string `json:"user,omitempty"`
	Client     string `json:"client,omitempty"`
	Everything bool   `json:"everything,omitempty"`
	Issuer     string `json:"iss,omitempty"`
	Reason     string `json:"reason,omitempty"`
}

// Revoked is what is refused from now on.
type Revoked struct {
	// Kind is token_id, session, user, client, issuer or everything.
	Kind          string `json:"revoked"`
	SessionsEnded int    `json:"sessions_ended"`
}

// Revoke revokes more than one token, or one by its id.
func (c *Client) Revoke(ctx context.Context, r Revocation) (Revoked, error) {
	var answer Revoked
	err := c.do(ctx, http.MethodPost, "/v1/tokens/revoke", r, &answer)
	return answer, err
}

// TokenStatus is what the gateway would make of a token.
type TokenStatus struct {
	Active bool `json:"active"`
	// Code is why not, as a client would be told; Why is which kind of revocation
	// covers it.
	Code      string `json:"code"`
	Why       string `json:"why"`
	Subject   string `json:"sub"`
	Issuer    string `json:"iss"`
	TokenID   string `json:"jti"`
	Session   string `json:"session"`
	ExpiresAt int64  `json:"exp"` // Unix seconds
}

// TokenStatus asks about a token.
func (c *Client) TokenStatus(ctx context.Context, token string) (TokenStatus, error) {
	var s TokenStatus
	err := c.do(ctx, http.MethodPost, "/v1/tokens/status", map[string]string{"token": token}, &s)
	return s, err
}

// Question is a request to explain.
type Question struct {
	Method  string            `json:"method"`
	Host    string            `json:"host,omitempty"`
	Path    string            `json:"path"`
	Token   string            `json:"token,omitempty"`
	Address string            `json:"address,omitempty"`
	Headers map[string]string `json:"headers,omitempty"`
	// Certificate is the client's, in PEM.
	Certificate string `json:"certificate,omitempty"`
}

// Explanation is what would become of it.
type Explanation struct {
	Allowed  bool   `json:"allowed"`
	Status   int    `json:"status"`
	Code     string `json:"code"`
	Detail   string `json:"detail"`
	Route    string `json:"route"`
	Endpoint string `json:"endpoint"`
	Cost     uint32 `json:"cost"`
	User     string `json:"user"`
	Tier     string `json:"tier"`
	Steps    []struct {
		Name   string `json:"step"`
		Passed bool   `json:"passed"`
		Detail string `json:"detail"`
		Wanted string `json:"wanted"`
		Got    string `json:"got"`
	} `json:"steps"`
	// Flags are what the backend would be told, where the request is allowed.
	Flags map[string]struct {
		Variant string `json:"variant"`
		Reason  string `json:"reason"`
	} `json:"flags"`
}

// Explain asks what would become of a request, and why.
func (c *Client) Explain(ctx context.Context, q Question) (Explanation, error) {
	var e Explanation
	err := c.do(ctx, http.MethodPost, "/v1/explain", q, &e)
	return e, err
}
