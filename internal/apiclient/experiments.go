package apiclient

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/experiment"
)

// Experiment is an experiment as stored.
type Experiment = experiment.Record

// ExperimentResults is what an experiment has come to.
type ExperimentResults struct {
	Experiment
	At     time.Time         `json:"at"`
	Report experiment.Report `json:"report"`
	// QuantileError is the relative error of medians and percentiles.
	QuantileError float64 `json:"quantile_relative_error"`
}

// ExperimentList is all experiments, sorted by key.
type ExperimentList struct {
	Experiments []Experiment `json:"experiments"`
	// Broken are the keys of those that are stored in a form that the server
	// cannot read.
	Broken []string `json:"broken"`
}

// Experiments returns all experiments.
func (c *Client) Experiments(ctx context.Context) (ExperimentList, error) {
	var list ExperimentList
	err := c.do(ctx, http.MethodGet, "/v1/experiments", nil, &list)
	return list, err
}

// Experiment returns one experiment.
func (c *Client) Experiment(ctx context.Context, key string) (Experiment, error) {
	return c.experiment(ctx, http.MethodGet, key, "", nil)
}

// ExperimentJSON is [Client.Experiment] as the server wrote it, with members
// that this program may not know.
func (c *Client) ExperimentJSON(ctx context.Context, key string) (json.RawMessage, error) {
	var now json.RawMessage
	if err := c.do(ctx, http.MethodGet, experimentPath(key), nil, &now); err != nil {
		return nil, fmt.Errorf("experiment %s: %w", key, err)
	}
	return now, nil
}

// CreateExperiment makes a new experiment, a draft.
func (c *Client) CreateExperiment(ctx context.Context, d experiment.Definition, reason string) (Experiment, error) {
	var now Experiment
	if err := c.do(ctx, http.MethodPost, "/v1/experiments", map[string]any{"definition": d, "reason": reason}, &now); err != nil {
		return Experiment{}, fmt.Errorf("experiment %s: %w", d.Key, err)
	}
	return now, nil
}

// PutExperiment writes a whole definition under its key. Unless the terms say
// otherwise it makes the experiment where there is none.
func (c *Client) PutExperiment(ctx context.Context, d experiment.Definition, t Terms) (Experiment, error) {
	return c.experiment(ctx, http.MethodPut, d.Key, "", t.body("revision", map[string]any{"definition": d}))
}

// StartExperiment assigns users from now on.
func (c *Client) StartExperiment(ctx context.Context, key string, t Terms) (Experiment, error) {
	return c.experiment(ctx, http.MethodPost, key, "/start", t.body("revision", map[string]any{}))
}

// StopExperiment assigns no users any more; the results stay.
func (c *Client) StopExperiment(ctx context.Context, key string, t Terms) (Experiment, error) {
	return c.experiment(ctx, http.MethodPost, key, "/stop", t.body("revision", map[string]any{}))
}

// RevertExperiment brings back the definition of an earlier revision, as a new
// revision. Its state stays; one that was deleted comes back as a draft.
func (c *Client) RevertExperiment(ctx context.Context, key string, to int64, t Terms) (Experiment, error) {
	return c.experiment(ctx, http.MethodPost, key, "/revert", t.body("revision", map[string]any{"to": to}))
}

// DeleteExperiment removes an experiment that is not running, and what was
// measured; its history stays.
func (c *Client) DeleteExperiment(ctx context.Context, key string, t Terms) error {
	if err := c.call(ctx, http.MethodDelete, experimentPath(key), t.query("revision"), nil, nil); err != nil {
		return fmt.Errorf("experiment %s: %w", key, err)
	}
	return nil
}

// ExperimentHistory returns the changes of an experiment, the newest first;
// those of a deleted one too.
func (c *Client) ExperimentHistory(ctx context.Context, key string) ([]experiment.Entry, error) {
	var list struct {
		History []experiment.Entry `json:"history"`
	}
	if err := c.do(ctx, http.MethodGet, experimentPath(key)+"/history", nil, &list); err != nil {
		return nil, fmt.Errorf("experiment %s: %w", key, err)
	}
	return list.History, nil
}

// ExperimentResults returns what an experiment has come to.
func (c *Client) ExperimentResults(ctx context.Context, key string) (ExperimentResults, error) {
	var results ExperimentResults
	if err := c.do(ctx, http.MethodGet, experimentPath(key)+"/results", nil, &results); err != nil {
		return ExperimentResults{}, fmt.Errorf("experiment %s: %w", key, err)
	}
	return results, nil
}

// ExperimentPage returns the results as a page for people.
func (c *Client) ExperimentPage(ctx context.Context, key string) ([]byte, error) {
	var page raw
	path := "/v1/experiments/" + url.PathEscape(key) + "/results"
	if err := c.call(ctx, http.MethodGet, path, url.Values{"format": {"html"}}, nil, &page); err != nil {
		return nil, fmt.Errorf("experiment %s: %w", key, err)
	}
	return page, nil
}

func experimentPath(key string) string { return "/v1/experiments/" + url.PathEscape(key) }

func (c *Client) experiment(ctx context.Context, method, key, action string, in any) (Experiment, error) {
	var now Experiment
	if err := c.do(ctx, method, experimentPath(key)+action, in, &now); err != nil {
		return Experiment{}, fmt.Errorf("experiment %s: %w", key, err)
	}
	return now, nil
}
