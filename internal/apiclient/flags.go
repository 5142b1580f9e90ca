package apiclient

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
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
	Owner   string `json:"owner,omitempty"`
	Expired bool   `json:"expired"`
	// Definition is a [flag.Definition] as the server wrote it, with members that
	// this program may not know.
	Definition json.RawMessage `json:"definition"`
}

// FlagList is all feature flags, sorted by key.
type FlagList struct {
	Flags []Flag `json:"flags"`
	// Broken are the keys of those that are stored in a form that the server
	// cannot read.
	Broken []string `json:"broken"`
}

// Terms go with a change of a flag or an experiment.
type Terms struct {
	// Reason is for the history; at most 500 bytes.
	Reason string
	// At, where set, is the flag's version or the experiment's revision without
	// which nothing is changed; 0 is that of one that does not exist.
	At *int64
}

// body is in, with the terms; version is what the API calls At.
func (t Terms) body(version string, in map[string]any) map[string]any {
	if t.Reason != "" {
		in["reason"] = t.Reason
	}
	if t.At != nil {
		in[version] = *t.At
	}
	return in
}

// query is the terms where there is no body.
func (t Terms) query(version string) url.Values {
	v := because(t.Reason)
	if t.At != nil {
		v.Set(version, strconv.FormatInt(*t.At, 10))
	}
	return v
}

// FlagChange says what becomes of a flag: at most one of State, Variant and
// Rollout is set, or whom it means.
type FlagChange struct {
	flag.Targets
	// State is "on" or "off", that variant for everyone, or "auto": the rules
	// decide again.
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

// Flags returns all feature flags.
func (c *Client) Flags(ctx context.Context) (FlagList, error) {
	var list FlagList
	err := c.do(ctx, http.MethodGet, "/v1/flags", nil, &list)
	return list, err
}

// Flag returns one flag.
func (c *Client) Flag(ctx context.Context, key string) (Flag, error) {
	return c.flag(ctx, http.MethodGet, key, "", nil)
}

// FlagHistory returns at most limit changes of a flag, the newest first; those
// of a deleted flag too. The limit is from 1 to [flag.MaxHistory].
func (c *Client) FlagHistory(ctx context.Context, key string, limit int) ([]flag.Entry, error) {
	var list struct {
		History []flag.Entry `json:"history"`
	}
	query := url.Values{"limit": {strconv.Itoa(limit)}}
	if err := c.call(ctx, http.MethodGet, flagPath(key)+"/history", query, nil, &list); err != nil {
		return nil, fmt.Errorf("flag %s: %w", key, err)
	}
	return list.History, nil
}

// ChangeFlag changes a flag and returns what it is now.
func (c *Client) ChangeFlag(ctx context.Context, key string, change FlagChange) (Flag, error) {
	return c.flag(ctx, http.MethodPatch, key, "", change)
}

// FlagSubject is whom a flag is decided for.
type FlagSubject struct {
	// Key is the user's.
	Key   string   `json:"key,omitempty"`
	Tier  string   `json:"tier,omitempty"`
	Roles []string `json:"roles,omitempty"`
	// Anonymous callers have no key, or one of their own making.
	Anonymous bool           `json:"anonymous,omitempty"`
	Claims    map[string]any `json:"claims,omitempty"`
}

// FlagDecision is what a subject gets, and why.
type FlagDecision struct {
	// Variant is empty where the flag has no value for the subject.
	Variant string `json:"variant"`
	Value   any    `json:"value"`
	// Reason is OpenFeature's, such as TARGETING_MATCH; ErrorCode goes with ERROR.
	Reason    string `json:"reason"`
	ErrorCode string `json:"error_code"`
}

// EvaluateFlag decides a flag as the API's process would now.
func (c *Client) EvaluateFlag(ctx context.Context, key string, s FlagSubject) (FlagDecision, error) {
	var d FlagDecision
	if err := c.do(ctx, http.MethodPost, flagPath(key)+"/evaluate", map[string]any{"subject": s}, &d); err != nil {
		return FlagDecision{}, fmt.Errorf("flag %s: %w", key, err)
	}
	return d, nil
}

// WriteFlag writes a whole definition, which encodes as JSON.
func (c *Client) WriteFlag(ctx context.Context, key string, definition any, t Terms) (Flag, error) {
	return c.flag(ctx, http.MethodPut, key, "", t.body("version", map[string]any{"definition": definition}))
}

// RevertFlag brings back the definition of an earlier version, as a new version.
func (c *Client) RevertFlag(ctx context.Context, key string, to int64, t Terms) (Flag, error) {
	return c.flag(ctx, http.MethodPost, key, "/revert", t.body("version", map[string]any{"to": to}))
}

// RemoveFlag removes a flag; its history stays.
func (c *Client) RemoveFlag(ctx context.Context, key string, t Terms) error {
	if err := c.call(ctx, http.MethodDelete, flagPath(key), t.query("version"), nil, nil); err != nil {
		return fmt.Errorf("flag %s: %w", key, err)
	}
	return nil
}

// PutFlag is [Client.WriteFlag] under the definition's key, whatever was there.
func (c *Client) PutFlag(ctx context.Context, definition flag.Definition, reason string) error {
	_, err := c.WriteFlag(ctx, definition.Key, definition, Terms{Reason: reason})
	return err
}

// DeleteFlag is [Client.RemoveFlag] whatever the flag's version.
func (c *Client) DeleteFlag(ctx context.Context, key, reason string) error {
	return c.RemoveFlag(ctx, key, Terms{Reason: reason})
}

// SetFlag turns a flag "on" or "off" for everyone.
func (c *Client) SetFlag(ctx context.Context, key, value, reason string) error {
	_, err := c.ChangeFlag(ctx, key, FlagChange{State: value, Reason: reason})
	return err
}

func flagPath(key string) string { return "/v1/flags/" + url.PathEscape(key) }

func (c *Client) flag(ctx context.Context, method, key, action string, in any) (Flag, error) {
	var now Flag
	if err := c.do(ctx, method, flagPath(key)+action, in, &now); err != nil {
		return Flag{}, fmt.Errorf("flag %s: %w", key, err)
	}
	return now, nil
}
