package apiclient

import (
	"context"
	"fmt"
	"net/http"
	"net/url"

	"github.com/tollgate-proxy/tollgate/internal/pyproxy"
)

// Upstreams returns the live state of the upstreams of one pyproxy.
func (c *Client) Upstreams(ctx context.Context) ([]pyproxy.UpstreamStatus, error) {
	var list struct {
		Upstreams []pyproxy.UpstreamStatus `json:"upstreams"`
	}
	err := c.do(ctx, http.MethodGet, "/v1/upstreams", nil, &list)
	return list.Upstreams, err
}

// TripUpstream opens the circuits of an upstream for their reset time.
func (c *Client) TripUpstream(ctx context.Context, name string) (pyproxy.UpstreamStatus, error) {
	return c.switchUpstream(ctx, name, "trip")
}

// ResetUpstream closes the circuits of an upstream.
func (c *Client) ResetUpstream(ctx context.Context, name string) (pyproxy.UpstreamStatus, error) {
	return c.switchUpstream(ctx, name, "reset")
}

func (c *Client) switchUpstream(ctx context.Context, name, how string) (pyproxy.UpstreamStatus, error) {
	var now pyproxy.UpstreamStatus
	if err := c.do(ctx, http.MethodPost, "/v1/upstreams/"+url.PathEscape(name)+"/"+how, nil, &now); err != nil {
		return pyproxy.UpstreamStatus{}, fmt.Errorf("upstream %s: %w", name, err)
	}
	return now, nil
}
