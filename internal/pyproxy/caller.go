package pyproxy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/resilience"
)

var (
	errOverload = errors.New("as many calls in flight as the service can take")
	errGone     = errors.New("the client went away")
)

// route is one configured route with its defaults filled in.
type route struct {
	Route
	spanName    string
	served      *served
	invalidates bool // kept answers may be void once a request has succeeded
}

// caller answers the requests of one route: it is the RoundTripper beneath the
// route's ReverseProxy, and returns once the answer to pass on is known.
type caller struct {
	setup    *setup
	route    *route
	upstream *upstream
	circuit  *circuit
	metrics  *routeMetrics
	backoff  resilience.Backoff
}

// RoundTrip makes as many attempts as are safe, allowed and of use. The error
// is a *failure.
func (c *caller) RoundTrip(req *http.Request) (*http.Response, error) {
	p := c.setup
	// What the headers decide is decided before the body is read.
	if s, wait := c.circuit.breaker.State(); s == resilience.Open {
		return nil, c.refused(&resilience.OpenError{State: s, RetryAfter: wait})
	}
	streamed, replay, fail := c.takeBody(req)
	if fail != nil {
		return nil, fail
	}
	deadline := p.now().Add(c.route.TotalTimeout) // what the client took to send its body leaves the service no less
	attempts := 1
	if c.repeatable(req) && (req.Body == nil || replay != nil) {
		attempts += p.config.Retry.Max
	}
	c.upstream.budget.Deposit()
	x := &exchange{req: req, streamed: streamed, replay: replay, deadline: deadline}
	var avoid []*endpoint
	for n := 1; ; n++ {
		var got tried
		if attempts > 1 && c.route.HedgeAfter > 0 {
			got = c.hedged(x, n, avoid)
		} else {
			got = c.try(x, n, c.pick(avoid))
		}
		if n < attempts && c.worthRepeating(got.resp, got.fail) {
			if wait, ok := c.wait(got.resp, n, deadline); ok && c.upstream.budget.Withdraw() {
				discard(got.resp)
				if sleep(req.Context(), wait) != nil {
					return nil, &failure{cause: causeClientGone, err: errGone}
				}
				c.metrics.retries.Inc()
				avoid = append(avoid, got.at)
				continue
			}
		}
		if got.fail != nil {
			return nil, got.fail
		}
		return got.resp, nil
	}
}

// exchange is a request on its way, attempt after attempt.
type exchange struct {
	req      *http.Request
	streamed *requestBody // a body that can be sent once, or nil
	replay   []byte       // a body that can be sent again, or nil
	deadline time.Time
}

func (c *caller) pick(avoid []*endpoint) *endpoint {
	return pick(c.upstream.current(), avoid, c.setup.now())
}

// takeBody keeps a body that may have to be sent again, or that is small enough
// for the client's pace not to become the upstream's; a larger one is watched
// while it streams.
func (c *caller) takeBody(req *http.Request) (*requestBody, []byte, *failure) {
	if req.Body == nil || req.Body == http.NoBody {
		req.Body = nil
		return nil, nil, nil
	}
	body := &requestBody{ReadCloser: req.Body, now: c.setup.now}
	req.Body = body
	most := int64(c.setup.config.Retry.BodyLimit)
	if req.ContentLength > most || req.ContentLength < 0 && !c.repeatable(req) {
		return body, nil, nil
	}
	kept, err := keep(body, req.ContentLength, most)
	if err != nil {
		return nil, nil, &failure{cause: clientCause(err), err: err}
	}
	if int64(len(kept)) > most {
		body.ReadCloser = readCloser{io.MultiReader(bytes.NewReader(kept), body.ReadCloser), body.ReadCloser}
		return body, nil, nil
	}
	req.ContentLength = int64(len(kept))
	// The transport itself sends again only what never reached the wire.
	req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(kept)), nil }
	return nil, kept, nil
}

// keep reads a body of the given length (-1: unknown) up to one byte past most.
func keep(body io.Reader, length, most int64) ([]byte, error) {
	if length >= 0 {
		kept := make([]byte, length)
		if _, err := io.ReadFull(body, kept); err != nil {
			return nil, fmt.Errorf("request body: %w", err)
		}
		return kept, nil
	}
	kept, err := io.ReadAll(io.LimitReader(body, most+1))
	if err != nil {
		return nil, fmt.Errorf("request body: %w", err)
	}
	return kept, nil
}

// clientCause says why a client's body could not be read.
func clientCause(err error) cause {
	var tooLarge *http.MaxBytesError
	var network net.Error
	switch {
	case errors.As(err, &tooLarge):
		return causeTooLarge
	case isTimeout(err):
		return causeClientSlow
	case errors.Is(err, io.ErrUnexpectedEOF), errors.As(err, &network), errors.Is(err, http.ErrBodyReadAfterClose):
		return causeClientGone
	default:
		return causeMalformed // the chunks are none
	}
}

type readCloser struct {
	io.Reader
	io.Closer
}

// repeatable says whether sending the request twice is as good as once: by its
// method (RFC 9110), because the route says so, or because the client says so.
func (c *caller) repeatable(req *http.Request) bool {
	if isUpgrade(req.Header) {
		return false
	}
	switch req.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return true
	}
	for _, name := range idempotencyKeys() {
		if req.Header[name] != nil {
			return true
		}
	}
	return c.route.Idempotent
}

// worthRepeating says whether another attempt may go better.
func (c *caller) worthRepeating(resp *http.Response, fail *failure) bool {
	if fail == nil {
		return slices.Contains(c.setup.config.Retry.Statuses, resp.StatusCode)
	}
	switch fail.cause {
	case causeConnect, causeTimeout, causeBroken:
		return true
	default:
		return false
	}
}

// wait is how long to wait before the next attempt, if there is time for it.
func (c *caller) wait(resp *http.Response, n int, deadline time.Time) (time.Duration, bool) {
	now := c.setup.now()
	d := c.backoff.Delay(n, rand.Float64()) //nolint:gosec // spreads load, guards nothing
	if resp != nil {
		if asked, ok := resilience.ParseRetryAfter(resp.Header.Get("Retry-After"), now); ok {
			if asked > c.backoff.Max {
				return 0, false
			}
			d = max(d, asked)
		}
	}
	return d, now.Add(d).Before(deadline)
}

// restWithin is how long the rest of an answer that nobody will see is waited for.
const restWithin = time.Second

// discard ends an answer that nobody will see. A short rest is read, so that its
// connection can be used again.
func discard(resp *http.Response) {
	if resp == nil {
		return
	}
	if a, ok := resp.Body.(*attempt); ok {
		a.left = min(a.left, restWithin) // whoever asked has waited enough
	}
	_, _ = io.CopyN(io.Discard, resp.Body, 4<<10)
	_ = resp.Body.Close()
}

// refused turns the breaker's refusal into a failure.
func (c *caller) refused(err error) *failure {
	c.metrics.attempts[causeCircuit].Inc()
	f := &failure{cause: causeCircuit, err: err}
	var open *resilience.OpenError
	if errors.As(err, &open) {
		f.retryAfter = open.RetryAfter
	}
	return f
}
