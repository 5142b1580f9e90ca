package pyproxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/resilience"
)

// cause is how an attempt ended: the label of its metric, and what the breaker
// and the client make of it.
type cause uint8

const (
	causeOK         cause = iota
	causeStatus           // an answer that counts as failure: 500 and above but 501
	causeThrottled        // 429: neither success nor failure
	causeConnect          // no connection
	causeTimeout          // no headers in time
	causeBroken           // reset, closed or not HTTP before the headers were whole
	causeBody             // broken or stalled within the body
	causeClientGone       // the client went away
	causeClientSlow       // the client did not send its body in time
	causeTooLarge         // the client sent more than the route takes
	causeMalformed        // what the client sent is no body
	causeCircuit          // not sent: circuit open
	causeOverload         // not sent: concurrency limit
	causeStreams          // as many streams as are allowed: not sent, or answered with one too many
	causePanic            // a fault of this program
	causes                // how many there are
)

// String is the cause as metrics and spans show it.
func (c cause) String() string {
	return [causes]string{"ok", "error_status", "throttled", "connect", "timeout", "broken", "body", "client_gone", "client_slow", "too_large", "malformed", "circuit_open", "overload", "streams", "panic"}[c]
}

// outcome is what the breaker is told.
func (c cause) outcome() resilience.Outcome {
	switch c {
	case causeOK:
		return resilience.Success
	case causeStatus, causeConnect, causeTimeout, causeBroken, causeBody:
		return resilience.Failure
	default:
		return resilience.Ignored
	}
}

// causeOf classifies an answer by its status alone. 501 says what the service
// cannot do, not that it is ill.
func causeOf(status int) cause {
	switch {
	case status == http.StatusTooManyRequests:
		return causeThrottled
	case status >= 500 && status != http.StatusNotImplemented:
		return causeStatus
	default:
		return causeOK
	}
}

// What the deadline timer cancels an attempt with.
var errDeadline = errors.New("no answer in time")

// What the end of the process cancels an event stream with.
var errStopping = errors.New("the process stops")

var (
	errStreams  = errors.New("as many streams as are allowed")
	errProtocol = errors.New("another protocol than was asked for")
)

var errPanic = errors.New("the attempt ended in a panic")

// failure is why a request gets no answer from its upstream.
type failure struct {
	cause      cause
	retryAfter time.Duration // 0 for none
	err        error         // never shown to the client
}

// Error is for logs and spans.
func (f *failure) Error() string { return fmt.Sprintf("%s: %v", f.cause, f.err) }

// Unwrap returns the underlying error.
func (f *failure) Unwrap() error { return f.err }

// classify says why a round trip under ctx, a child of the client's, failed, that
// had so much time.
func classify(client, ctx context.Context, err error, body *requestBody, timeout time.Duration) cause {
	var tooLarge *http.MaxBytesError
	var op *net.OpError
	var dns *net.DNSError
	switch {
	case errors.As(err, &tooLarge), errors.As(body.failed(), &tooLarge):
		return causeTooLarge
	case isTimeout(body.failed()):
		return causeClientSlow
	case client.Err() != nil:
		return causeClientGone
	case errors.Is(context.Cause(ctx), errDeadline):
		if body.slow(timeout) {
			return causeClientSlow
		}
		return causeTimeout
	case body.failed() != nil:
		return clientCause(body.failed())
	case errors.As(err, &dns), errors.As(err, &op) && op.Op == "dial":
		return causeConnect
	default:
		return causeBroken
	}
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}
