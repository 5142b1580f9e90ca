package apiclient

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"
)

// LimitSubject is whose limits a call of ratelimit's API is about.
type LimitSubject struct {
	// Name is the user's, or the value of another entry.
	Name string
	// Entry is the descriptor entry that holds it, Domain the rules' domain;
	// empty for the API's own, user and tollgate.
	Entry, Domain string
}

func (s LimitSubject) query(more ...string) url.Values {
	query := url.Values{}
	pairs := slices.Concat(more, []string{"entry", s.Entry, "domain", s.Domain})
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			query.Set(pairs[i], pairs[i+1])
		}
	}
	return query
}

func (s LimitSubject) path(end string) string { return "/v1/limits/" + url.PathEscape(s.Name) + end }

// LimitBucket is the state of one bucket.
type LimitBucket struct {
	Name          string  `json:"name"`
	Limit         uint32  `json:"limit"` // tokens in a window
	WindowSeconds float64 `json:"window_seconds"`
	Size          uint32  `json:"size"` // tokens when full
	Remaining     uint32  `json:"remaining"`
	FullInSeconds float64 `json:"full_in_seconds"`
	System        bool    `json:"system"` // shared by all users
}

// LimitOverride is a tier that a subject has for a while.
type LimitOverride struct {
	Domain  string    `json:"domain"`
	Entry   string    `json:"entry"`
	Subject string    `json:"subject"`
	Tier    string    `json:"tier"`
	Until   time.Time `json:"until"`
}

// Limits returns the state of the buckets of a subject of that tier, without
// charging them.
func (c *Client) Limits(ctx context.Context, s LimitSubject, tier string) ([]LimitBucket, error) {
	var state struct {
		Buckets []LimitBucket `json:"buckets"`
	}
	if err := c.call(ctx, http.MethodGet, s.path(""), s.query("tier", tier), nil, &state); err != nil {
		return nil, fmt.Errorf("limits of %s: %w", s.Name, err)
	}
	return state.Buckets, nil
}

// ResetLimits makes a subject's buckets full. The reason is for the audit log.
func (c *Client) ResetLimits(ctx context.Context, s LimitSubject, reason string) error {
	if err := c.call(ctx, http.MethodPost, s.path("/reset"), s.query("reason", reason), nil, nil); err != nil {
		return fmt.Errorf("limits of %s: %w", s.Name, err)
	}
	return nil
}

// OverrideTier gives a subject another tier until then.
func (c *Client) OverrideTier(ctx context.Context, s LimitSubject, tier string, until time.Time, reason string) (LimitOverride, error) {
	var now LimitOverride
	body := map[string]any{"tier": tier, "until": until.UTC()}
	if err := c.call(ctx, http.MethodPut, s.path("/override"), s.query("reason", reason), body, &now); err != nil {
		return LimitOverride{}, fmt.Errorf("tier of %s: %w", s.Name, err)
	}
	return now, nil
}

// EndOverride ends a subject's override, if there is one.
func (c *Client) EndOverride(ctx context.Context, s LimitSubject, reason string) error {
	if err := c.call(ctx, http.MethodDelete, s.path("/override"), s.query("reason", reason), nil, nil); err != nil {
		return fmt.Errorf("tier of %s: %w", s.Name, err)
	}
	return nil
}

// LimitOverrides returns the overrides in force.
func (c *Client) LimitOverrides(ctx context.Context) ([]LimitOverride, error) {
	var list struct {
		Overrides []LimitOverride `json:"overrides"`
	}
	err := c.do(ctx, http.MethodGet, "/v1/limit-overrides", nil, &list)
	return list.Overrides, err
}
