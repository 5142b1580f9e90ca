package apiclient

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/flag"
)

// Flag is a feature flag as stored.
type Flag struct {
	Key       string    `json:"key"`
	Version   int64     `json:"version"`
	Updated   time.Time `json:"updated"`
	UpdatedBy string    `json:"updated_by"`
	// Summary says in a few words who gets what.
	Summary string `json:"summary"`
	// Owner is the team or person to ask; Expired flags should be gone.
	Owner      string          `json:"owner"`
	Expired    bool            `json:"expired"`
	Definition flag.Definition `json:"definition"`
}

// FlagChange says what becomes of a flag: exactly one of State, Variant and
// Rollout is set.
type FlagChange struct {
	// State is "on" or "off": that variant for everyone.
	State string `json:"state,omitempty"`
	// Variant is served to everyone.
	Variant string `json:"variant,omitempty"`
	// Rollout is the percentage, 0 to 100, of the audience that gets the on
	// variant.
	Rollout *float64 `json:"rollout,omitempty"`
	// Reason is for the flag's history.
	Reason string `json:"reason,omitempty"`
	// Version, where set, is the version that the flag must be at.
	Version *int64 `json:"version,omitempty"`
}

// Flags returns all feature flags, sorted by key.
func (c *Client) Flags(ctx context.Context) ([]Flag, error) {
	var list struct {
		Flags []Flag `json:"flags"`
	}
	err := c.do(ctx, http.MethodGet, "/v1/flags", nil, &list)
	return list.Flags, err
}

// ChangeFlag changes a flag and returns what it is now.
func (c *Client) ChangeFlag(ctx context.Context, key string, change FlagChange) (Flag, error) {
	var now Flag
	err := c.do(ctx, http.MethodPatch, "/v1/flags/"+url.PathEscape(key), change, &now)
	if err != nil {
		return Flag{}, fmt.Errorf("flag %s: %w", key, err)
	}
	return now, nil
}

// PutFlag writes a whole definition, under its key, whatever was there.
func (c *Client) PutFlag(ctx context.Context, definition flag.Definition, reason string) error {
	body := map[string]any{"definition": definition, "reason": reason}
	if err := c.do(ctx, http.MethodPut, "/v1/flags/"+url.PathEscape(definition.Key), body, nil); err != nil {
		return fmt.Errorf("flag %s: %w", definition.Key, err)
	}
	return nil
}

// DeleteFlag removes a flag; its history stays.
func (c *Client) DeleteFlag(ctx context.Context, key, reason string) error {
	path := "/v1/flags/" + url.PathEscape(key)
	if err := c.call(ctx, http.MethodDelete, path, url.Values{"reason": {reason}}, nil, nil); err != nil {
		return fmt.Errorf("flag %s: %w", key, err)
	}
	return nil
}

// SetFlag turns a flag "on" or "off" for everyone.
func (c *Client) SetFlag(ctx context.Context, key, value, reason string) error {
	_, err := c.ChangeFlag(ctx, key, FlagChange{State: value, Reason: reason})
	return err
}
