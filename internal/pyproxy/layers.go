package pyproxy

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/tollgate-proxy/tollgate/internal/httpcache"
)

// degradedHeader tells a client that an answer is a fallback.
const degradedHeader = "X-Tollgate-Degraded"

// layers puts what a route declares over its caller: the fallback, over the
// cache, over the calls; and what purges entries beside them.
func (p *setup) layers(c Route, calls http.RoundTripper) http.RoundTripper {
	rt := calls
	if len(c.Purges) > 0 {
		rt = &purger{next: rt, cache: p.cache, names: c.Purges}
	}
	if c.Cache != nil {
		policy := c.policy()
		policy.Changes = slices.ContainsFunc(p.config.Routes, Route.changes)
		rt = p.cache.Transport(policy, rt)
	}
	if c.Fallback != nil {
		rt = &fallback{next: rt, Fallback: *c.Fallback, cached: c.Cache != nil}
	}
	return rt
}

// fallback answers in the place of a service that cannot.
type fallback struct {
	Fallback
	next   http.RoundTripper
	cached bool
}

// RoundTrip asks, and answers itself where the service is to blame for having
// no answer.
func (f *fallback) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := f.next.RoundTrip(r)
	var why *failure
	if err == nil || !errors.As(err, &why) {
		return resp, err
	}
	switch why.cause {
	case causeCircuit, causeOverload, causeStreams, causeConnect, causeTimeout, causeBroken:
	default:
		return nil, err
	}
	resp = &http.Response{
		StatusCode: f.Status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: r,
		Header: http.Header{
			"Content-Type": {f.ContentType}, "Content-Length": {strconv.Itoa(len(f.Body))}, "Cache-Control": {"no-store"},
			degradedHeader: {"fallback; reason=" + why.cause.String()},
		},
		ContentLength: int64(len(f.Body)), Body: io.NopCloser(strings.NewReader(f.Body)),
	}
	if f.cached {
		resp.Header.Set(cacheStatus, httpcache.Missed)
	}
	if r.Method == http.MethodHead {
		resp.Body = http.NoBody
	}
	return resp, nil
}

// purger purges entries when a request that changes their base has succeeded.
type purger struct {
	next  http.RoundTripper
	cache *httpcache.Cache
	names []string
}

// RoundTrip asks; a store that does not hear of a purge is the cache's to count,
// and not the client's affair.
func (p *purger) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := p.next.RoundTrip(r)
	if err == nil && resp.StatusCode >= 200 && resp.StatusCode < 300 {
		for _, name := range p.names {
			_ = p.cache.Purge(context.WithoutCancel(r.Context()), name)
		}
	}
	return resp, err
}

// whyNot makes a failure of whatever a route's layers return as an error.
func whyNot(r *http.Request, err error) *failure {
	var f *failure
	var body *httpcache.BodyError
	switch {
	case errors.As(err, &f):
		return f
	case errors.As(err, &body):
		return &failure{cause: clientCause(err), err: err}
	case errors.Is(err, httpcache.ErrPanic):
		return &failure{cause: causePanic, err: err}
	case r.Context().Err() != nil:
		return &failure{cause: causeClientGone, err: err}
	default:
		// A body that broke while it was read for the cache.
		return &failure{cause: causeBroken, err: err}
	}
}
