// Package apiclient calls Tollgate's management API, authz's and pyproxy's, for
// the operator's command, the demo and tests.
package apiclient

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/problem"
)

// Client calls one API server. It may be used by several goroutines.
type Client struct {
	base  *url.URL
	token string
	http  *http.Client
}

// raw takes an answer as it is.
type raw []byte

// maxAnswer bounds what is read of an answer, in bytes.
const maxAnswer = 16 << 20

// New returns a client of the API at base (http or https, without a path) that
// sends the secret token as a bearer token. Each call ends after timeout.
func New(base, token string, timeout time.Duration) (*Client, error) {
	u, err := url.Parse(base)
	if err != nil {
		return nil, fmt.Errorf("API address %q: %w", base, err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" {
		return nil, fmt.Errorf("API address %q: must be http://host:port or https://host:port", u.Redacted())
	}
	if strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, errors.New("the API token must be printable ASCII without spaces")
	}
	return &Client{
		base:  u,
		token: token,
		http: &http.Client{
			Timeout: timeout,
			// The secret goes to the configured address and nowhere else.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// Error is a refusal by the API.
type Error struct {
	Status int
	// Code, Detail and RequestID are the problem's, empty where the answer was
	// none.
	Code, Detail, RequestID string
	// Faults are what is wrong with the request, one an entry.
	Faults []problem.FieldError
}

// Error tells it in one line.
func (e *Error) Error() string {
	text := fmt.Sprintf("the API answered %d %s", e.Status, http.StatusText(e.Status))
	if e.Code != "" {
		text += " (" + e.Code + ")"
	}
	if e.Detail != "" {
		text += ": " + e.Detail
	}
	if len(e.Faults) > 0 {
		faults := make([]string, len(e.Faults))
		for i, f := range e.Faults {
			faults[i] = strings.TrimPrefix(f.Field+": "+f.Detail, ": ")
		}
		text += " " + strings.Join(faults, "; ")
	}
	if e.RequestID != "" {
		text += " [request " + e.RequestID + "]"
	}
	return text
}

// do is call without a query.
func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	return c.call(ctx, method, path, nil, in, out)
}

// call sends in as JSON (nothing where nil) and decodes the answer into out
// (where not nil). An answer other than 2xx is an *Error.
func (c *Client) call(ctx context.Context, method, path string, query url.Values, in, out any) error {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("%s %s: %w", method, path, err)
		}
		body = bytes.NewReader(data)
	}
	target := c.base.JoinPath(path)
	target.RawQuery = query.Encode()
	request, err := http.NewRequestWithContext(ctx, method, target.String(), body)
	if err != nil {
		return err
	}
	request.Header.Set("Accept", "application/json")
	if in != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		request.Header.Set("Authorization", "Bearer "+c.token)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return err
	}
	data, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err := errors.Join(err, response.Body.Close()); err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	if response.StatusCode/100 != 2 {
		return refusal(response, data)
	}
	if out == nil {
		return nil
	}
	if page, ok := out.(*raw); ok {
		*page = data
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("%s %s: the answer is not what was expected: %w", method, path, err)
	}
	return nil
}

// refusal reads the problem (RFC 9457) of an answer, if it has one.
func refusal(response *http.Response, data []byte) *Error {
	e := &Error{Status: response.StatusCode}
	kind, _, err := mime.ParseMediaType(response.Header.Get("Content-Type"))
	if err != nil || kind != problem.ContentType {
		return e
	}
	var p problem.Problem
	if err := json.Unmarshal(data, &p); err == nil {
		e.Code, e.Detail, e.RequestID, e.Faults = p.Code, p.Detail, p.RequestID, p.Errors
	}
	return e
}

// RevokeToken refuses a token from now on, everywhere. The reason is for the
// audit trail and may be empty.
func (c *Client) RevokeToken(ctx context.Context, token, reason string) error {
	return c.do(ctx, http.MethodPost, "/v1/tokens/revoke", map[string]string{"token": token, "reason": reason}, nil)
}
