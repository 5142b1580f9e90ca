package pyproxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/tollgate-proxy/tollgate/internal/resilience"
)

// attempt is one try at one endpoint, from leave to go until the end of the
// answer's body. It is the body of that answer, so that what happens while the
// body is read still counts.
type attempt struct {
	c        *caller
	client   context.Context // the client's request
	ctx      context.Context // the attempt's own
	cancel   context.CancelCauseFunc
	permit   resilience.Permit
	endpoint *endpoint
	span     trace.Span
	start    time.Time
	took     time.Duration // to the headers

	timer  *time.Timer   // cancels with errDeadline
	left   time.Duration // how much longer the body may be waited for
	stream bool          // or again and again: it has a place among the streams,
	keep   func() bool   // and this ends the wait for the process's end
	body   io.ReadCloser
	judged bool
	ended  bool
}

// try makes one attempt at an endpoint. The answer's body must be closed. The
// number counts from 1.
func (c *caller) try(x *exchange, number int, at *endpoint) tried {
	p, req := c.setup, x.req
	if isUpgrade(req.Header) && c.upstream.streams.Load() >= int64(p.config.Streams.Max) {
		c.metrics.attempts[causeStreams].Inc()
		return tried{at: at, fail: &failure{cause: causeStreams, retryAfter: time.Second, err: errStreams}}
	}
	permit, err := c.circuit.breaker.Acquire()
	if err != nil {
		return tried{at: at, fail: c.refused(err)}
	}
	if c.circuit.limit != nil && !c.circuit.limit.Acquire() {
		permit.Done(resilience.Ignored, 0)
		c.metrics.attempts[causeOverload].Inc()
		return tried{at: at, fail: &failure{cause: causeOverload, retryAfter: time.Second, err: errOverload}}
	}
	a := &attempt{c: c, client: req.Context(), permit: permit, endpoint: at, start: p.now()}
	at.inFlight.Add(1)

	ctx, span := p.tracer.Start(a.client, c.route.spanName, trace.WithSpanKind(trace.SpanKindClient))
	a.span = span
	if span.IsRecording() {
		span.SetAttributes(
			attribute.String("http.request.method", req.Method),
			attribute.String("url.path", req.URL.Path),
			attribute.String("server.address", a.endpoint.address),
			attribute.Int("http.request.resend_count", number-1),
			attribute.String("tollgate.upstream", c.upstream.Name),
			attribute.String("tollgate.route", c.route.Name),
		)
	}
	a.ctx, a.cancel = context.WithCancelCause(ctx)
	a.timer = time.AfterFunc(min(c.route.Timeout, x.deadline.Sub(a.start)), func() { a.cancel(errDeadline) })

	returned := false
	defer func() {
		if !returned { // a panic must not keep a place of the limit
			a.finish(causePanic, errPanic)
		}
	}()
	out := req.WithContext(a.ctx)
	url := *req.URL
	url.Scheme, url.Host = "http", a.endpoint.address
	out.URL, out.Host = &url, a.endpoint.host
	if x.replay != nil {
		out.Body = io.NopCloser(bytes.NewReader(x.replay))
	}
	if number > 1 || c.route.HedgeAfter > 0 { // another attempt may still be reading the headers
		out.Header = req.Header.Clone()
	}
	p.propagator.Inject(a.ctx, propagation.HeaderCarrier(out.Header))

	resp, err := p.transport.RoundTrip(out) //nolint:bodyclose // the attempt is the body that the client reads and closes
	a.took = p.now().Sub(a.start)
	c.metrics.attemptTime.Observe(a.took.Seconds())
	if err != nil {
		why := classify(a.client, a.ctx, err, x.streamed, c.route.Timeout)
		a.finish(why, err)
		returned = true
		return tried{at: at, fail: &failure{cause: why, err: err}}
	}
	if span.IsRecording() {
		span.SetAttributes(attribute.Int("http.response.status_code", resp.StatusCode))
	}
	fail := a.pass(req, resp)
	returned = true
	if fail != nil {
		return tried{at: at, fail: fail}
	}
	return tried{resp: resp, at: at}
}

// pass judges an answer by its headers as far as they tell, and prepares its
// body to be read by the client.
func (a *attempt) pass(req *http.Request, resp *http.Response) *failure {
	why := causeOf(resp.StatusCode)
	a.timer.Stop()
	switch {
	case resp.StatusCode == http.StatusSwitchingProtocols:
		if !isSwitch(req, resp) {
			return a.refuse(resp, &failure{cause: causeBroken, err: errProtocol})
		}
		if !a.enter() {
			return a.refuse(resp, &failure{cause: causeStreams, retryAfter: time.Second, err: errStreams})
		}
		// The connection belongs to its two ends from now on. Whatever becomes of
		// it, the end of the client's request is its end.
		a.judge(causeOK, nil)
		service := resp.Body
		context.AfterFunc(a.client, func() {
			_ = service.Close()
			a.finish(causeOK, nil)
		})
		return nil
	case resp.Body == http.NoBody:
		a.finish(why, nil)
		return nil
	case why == causeOK && isEventStream(resp.Header):
		if !a.enter() {
			return a.refuse(resp, &failure{cause: causeStreams, retryAfter: time.Second, err: errStreams})
		}
		a.keep = context.AfterFunc(a.c.setup.streaming, func() { a.cancel(errStopping) })
		a.judge(causeOK, nil) // it may last for hours
	default:
		a.left = a.c.setup.config.Timeouts.Body
		if why != causeOK {
			a.judge(why, nil)
		}
	}
	a.body = resp.Body
	resp.Body = a
	return nil
}

// enter takes a place among the upstream's streams.
func (a *attempt) enter() bool {
	u := a.c.upstream
	if u.streams.Add(1) > int64(a.c.setup.config.Streams.Max) {
		u.streams.Add(-1)
		return false
	}
	a.stream = true
	return true
}

// refuse ends an attempt whose answer is not passed on.
func (a *attempt) refuse(resp *http.Response, f *failure) *failure {
	a.finish(f.cause, f.err)
	_ = resp.Body.Close()
	return f
}

func isEventStream(h http.Header) bool {
	return strings.HasPrefix(h.Get("Content-Type"), "text/event-stream")
}

// Read passes the body on. The deadlines run only while the upstream is waited
// for: a client that reads slowly is not the upstream's fault. An event stream
// has one for each pause only.
func (a *attempt) Read(p []byte) (int, error) {
	n, err := a.read(p)
	switch {
	case err == nil:
	case errors.Is(err, io.EOF):
		a.finish(causeOK, nil)
	case a.client.Err() != nil:
		a.finish(causeClientGone, nil)
	default:
		a.finish(causeBody, err)
	}
	return n, err
}

func (a *attempt) read(p []byte) (int, error) {
	config := &a.c.setup.config
	if a.stream {
		a.timer.Reset(config.Streams.Idle)
		n, err := a.body.Read(p)
		a.timer.Stop()
		return n, err
	}
	start := a.c.setup.now()
	a.timer.Reset(min(config.Timeouts.BodyIdle, a.left))
	n, err := a.body.Read(p)
	a.timer.Stop()
	a.left -= a.c.setup.now().Sub(start)
	return n, err
}

// Close ends the attempt; before the body's end it is the client that gave up.
func (a *attempt) Close() error {
	err := a.body.Close()
	a.finish(causeClientGone, nil)
	return err
}

// finish ends the attempt, judged by why unless it has been judged already.
func (a *attempt) finish(why cause, err error) {
	if a.ended {
		return
	}
	a.timer.Stop()
	a.judge(why, err)
	a.release()
	a.cancel(context.Canceled)
}

// judge tells everyone who learns from attempts how this one went. Only the
// first call counts.
func (a *attempt) judge(why cause, err error) {
	if a.judged {
		return
	}
	a.judged = true
	c, o := a.c, why.outcome()
	a.permit.Done(o, a.took)
	if l := c.circuit.limit; l != nil {
		l.Release(a.took, o)
	}
	c.metrics.attempts[why].Inc()
	switch o {
	case resilience.Success:
		a.endpoint.succeeded()
	case resilience.Failure:
		c.upstream.failed(a.endpoint, c.setup.config.Ejection, c.setup.now(), why)
	case resilience.Ignored:
	}
	if !a.span.IsRecording() {
		return
	}
	if why != causeOK {
		a.span.SetAttributes(attribute.String("error.type", why.String()))
	}
	if o == resilience.Failure {
		a.span.SetStatus(codes.Error, why.String())
	}
	if err != nil {
		a.span.RecordError(err)
	}
}

// release gives back what the attempt holds.
func (a *attempt) release() {
	a.ended = true
	if a.keep != nil {
		a.keep()
	}
	if a.stream {
		a.c.upstream.streams.Add(-1)
	}
	a.endpoint.inFlight.Add(-1)
	a.span.End()
}
