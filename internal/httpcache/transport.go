package httpcache

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// name is how this cache is called in Cache-Status (RFC 9211).
const name = "tollgate"

// The Cache-Status of answers that a cache has not seen: of a route without a
// policy, and in the place of an answer that did not come.
const (
	Bypassed = name + "; fwd=bypass"
	Missed   = name + "; fwd=miss"
)

// Transport returns a RoundTripper that answers from the cache where the policy
// allows, and asks next otherwise. Requests reach it with their hop-by-hop
// headers removed.
func (c *Cache) Transport(p Policy, next http.RoundTripper) http.RoundTripper {
	c.mu.Lock()
	c.names[p.Route] = true
	for _, t := range p.Tags {
		c.names[t] = true
	}
	c.mu.Unlock()
	return &transport{cache: c, policy: p, next: next, results: c.metrics.route(p.Route)}
}

type transport struct {
	cache   *Cache
	policy  Policy
	next    http.RoundTripper
	results [results]prometheus.Counter
}

// RoundTrip answers a request.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	want := askedBy(r.Header)
	if !t.takes(r) || want.noStore || r.Header.Get("Upgrade") != "" {
		return t.bypass(r)
	}
	body, ok, err := t.body(r)
	if err != nil {
		return nil, err
	}
	if !ok {
		return t.bypass(r)
	}
	c := t.cache
	now := c.options.Now()
	k, header := t.policy.request(r, body, c.epochs.Load().of(&t.policy, r.URL.Path))
	e := c.get(r.Context(), k, now)
	switch {
	case e != nil && e.pass:
		if now.Before(e.Fresh) && !want.onlyIfCached && r.Method != http.MethodHead {
			return t.alone(r, header, body, "miss; detail=pass")
		}
		e = nil
	case e != nil && now.Before(e.Fresh) && want.takes(e, now):
		return t.found(r, e, hit, fmt.Sprintf("%s; hit; ttl=%d", name, seconds(e.Fresh.Sub(now))), now), nil
	case e != nil && now.Before(e.SWR) && r.Method != http.MethodHead && !want.onlyIfCached && want.takes(e, now):
		if f, first := c.fly(t, k, r, header, body, e); first {
			f.leave(first) // nobody waits for it
		}
		return t.found(r, e, stale, fmt.Sprintf("%s; hit; ttl=%d; detail=stale-while-revalidate", name, seconds(e.Fresh.Sub(now))), now), nil
	}
	switch {
	case want.onlyIfCached:
		return t.notCached(r), nil
	case r.Method == http.MethodHead:
		return t.bypass(r) // nothing to keep
	}
	return t.fetch(r, k, header, body, e)
}

func (t *transport) takes(r *http.Request) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		return !t.policy.Body
	case http.MethodPost:
		return t.policy.Body
	default:
		return false
	}
}

// body reads a request's body where it is part of the key; false where it is
// too large for that, and then it is whole again.
func (t *transport) body(r *http.Request) ([]byte, bool, error) {
	if r.Body == nil || r.Body == http.NoBody {
		return nil, true, nil
	}
	most := t.cache.options.MaxKeyBody
	if !t.policy.Body || r.ContentLength > most {
		return nil, false, nil // a GET with a body is not a question that others ask
	}
	b, err := io.ReadAll(io.LimitReader(r.Body, most+1))
	if err != nil {
		return nil, false, &BodyError{err}
	}
	if int64(len(b)) > most {
		r.Body = struct {
			io.Reader
			io.Closer
		}{io.MultiReader(bytes.NewReader(b), r.Body), r.Body}
		return nil, false, nil
	}
	return b, true, nil
}

// BodyError is a client's body that could not be read.
type BodyError struct{ err error }

// Error names the cause.
func (e *BodyError) Error() string { return "request body: " + e.err.Error() }

// Unwrap returns the cause.
func (e *BodyError) Unwrap() error { return e.err }

func (t *transport) found(r *http.Request, e *entry, how result, status string, now time.Time) *http.Response {
	t.results[how].Inc()
	resp := e.response(r, status, now)
	if how != hit && how != stale && e.Age < time.Second {
		delete(resp.Header, "Age") // it would say that the service was not asked (RFC 9111, section 5.1)
	}
	return resp
}

func (t *transport) bypass(r *http.Request) (*http.Response, error) {
	t.results[bypass].Inc()
	resp, err := t.next.RoundTrip(r)
	if err == nil {
		resp.Header.Add("Cache-Status", Bypassed)
	}
	return resp, err
}

func (t *transport) notCached(r *http.Request) *http.Response {
	t.results[miss].Inc()
	return &http.Response{StatusCode: http.StatusGatewayTimeout, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: r, Body: http.NoBody,
		Header: http.Header{"Content-Length": {"0"}, "Cache-Status": {name + "; fwd=request; detail=only-if-cached"}}}
}

// fetch asks the service, together with whoever asks the same; e is the stale
// entry, if there is one.
func (t *transport) fetch(r *http.Request, k key, header http.Header, body []byte, e *entry) (*http.Response, error) {
	why := "miss"
	switch {
	case e != nil && t.cache.options.Now().Before(e.Fresh):
		why = "request" // it was not good enough for the client
	case e != nil:
		why = "stale"
	}
	f, first := t.cache.fly(t, k, r, header, body, e)
	select {
	case <-r.Context().Done():
		f.leave(first)
		return nil, context.Cause(r.Context())
	case <-f.done:
	}
	now := t.cache.options.Now()
	switch {
	case f.stale:
		return t.found(r, f.entry, stale, fmt.Sprintf("%s; hit; ttl=%d; detail=stale-if-error", name, seconds(f.entry.Fresh.Sub(now))), now), nil
	case f.entry != nil && !first:
		return t.found(r, f.entry, collapsed, fmt.Sprintf("%s; fwd=%s; collapsed", name, why), now), nil
	case f.entry != nil && f.fwdStatus == http.StatusNotModified:
		return t.found(r, f.entry, revalidated, fmt.Sprintf("%s; fwd=%s; fwd-status=304; stored", name, why), now), nil
	case f.entry != nil:
		return t.found(r, f.entry, miss, fmt.Sprintf("%s; fwd=%s; stored", name, why), now), nil
	case f.err != nil:
		t.results[miss].Inc()
		return nil, f.err
	case first:
		t.results[miss].Inc()
		resp := f.take(r)
		resp.Header.Add("Cache-Status", fmt.Sprintf("%s; fwd=%s", name, why))
		return resp, nil
	}
	return t.alone(r, header, body, why) // the answer was the first caller's
}

// alone asks the service for one caller.
func (t *transport) alone(r *http.Request, header http.Header, body []byte, why string) (*http.Response, error) {
	t.results[miss].Inc()
	resp, err := t.next.RoundTrip(t.upstream(r.Context(), r, header, body, nil))
	if err == nil {
		resp.Header.Add("Cache-Status", fmt.Sprintf("%s; fwd=%s", name, why))
	}
	return resp, err
}

// upstream is the request as the service gets it: nothing but what is keyed.
func (t *transport) upstream(ctx context.Context, r *http.Request, header http.Header, body []byte, e *entry) *http.Request {
	out := r.WithContext(ctx)
	out.Header = header.Clone()
	out.Body, out.ContentLength = nil, 0
	if len(body) > 0 {
		out.Body = io.NopCloser(bytes.NewReader(body))
		out.ContentLength = int64(len(body))
	}
	if e != nil && !t.policy.Body {
		if v := e.Header.Get("Etag"); v != "" {
			out.Header.Set("If-None-Match", v)
		}
		if v := e.Header.Get("Last-Modified"); v != "" {
			out.Header.Set("If-Modified-Since", v)
		}
	}
	return out
}

func seconds(d time.Duration) int64 { return int64(d / time.Second) }
