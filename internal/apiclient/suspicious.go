package apiclient

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// Suspicion is something suspicious about a user, or the verdict about a
// request that was described.
type Suspicion struct {
	At      time.Time `json:"at"`
	Session string    `json:"session"`
	Score   int       `json:"score"`
	Action  string    `json:"action"`
	Signals []struct {
		Code     string `json:"code"`
		Weight   int    `json:"weight"`
		Evidence string `json:"evidence"`
	} `json:"signals"`
	Settled bool   `json:"settled"`
	Country string `json:"country"`
	ASN     uint32 `json:"asn"`
	Range   string `json:"range"`
}

// Described is a request to judge. What is empty is not judged; a zero At is
// now.
type Described struct {
	At        time.Time `json:"at,omitzero"`
	Address   string    `json:"address,omitempty"`
	UserAgent string    `json:"user_agent,omitempty"`
	Device    string    `json:"device,omitempty"`
	Session   string    `json:"session,omitempty"`
}

func suspicionsOf(user string) string {
	return "/v1/users/" + url.PathEscape(user) + "/suspicious-events"
}

// Suspicions returns what was suspicious about a user, the newest first.
func (c *Client) Suspicions(ctx context.Context, user string) ([]Suspicion, error) {
	var list struct {
		Events []Suspicion `json:"events"`
	}
	err := c.do(ctx, http.MethodGet, suspicionsOf(user), nil, &list)
	return list.Events, err
}

// Detect says what would be suspicious about a request of a user.
func (c *Client) Detect(ctx context.Context, user string, d Described) (Suspicion, error) {
	var s Suspicion
	err := c.do(ctx, http.MethodPost, suspicionsOf(user)+"/detect", d, &s)
	return s, err
}

// ForgetSuspicions forgets what was learned about a user, and the events.
func (c *Client) ForgetSuspicions(ctx context.Context, user, reason string) error {
	return c.call(ctx, http.MethodDelete, suspicionsOf(user), because(reason), nil, nil)
}
