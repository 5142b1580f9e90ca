package pyproxy

import (
	"bufio"
	"context"
	"crypto/rand"
	"net"
	"net/http"
	"net/http/httputil"
	"strconv"
	"strings"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/httpcache"
	"github.com/tollgate-proxy/tollgate/internal/problem"
)

// statusClientGone is what a request whose client went away counts as; nobody
// receives it.
const statusClientGone = 499

const (
	requestIDHeader = "X-Request-Id"
	cacheStatus     = "Cache-Status" // RFC 9211
)

// served is one route ready to answer: its caller beneath a ReverseProxy.
type served struct {
	reverse *httputil.ReverseProxy
	metrics *routeMetrics
}

// ServeHTTP finds the request's route and answers it.
func (p *setup) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !isRequestID(r.Header[requestIDHeader]) {
		r.Header[requestIDHeader] = []string{rand.Text()} // Envoy gives every request one
	}
	// A path that reads differently when decoded could be one route to us and
	// another to the service.
	if r.URL.RawPath != "" || strings.Contains(r.URL.Path, "//") {
		p.metrics.refused.Inc()
		refuse(w, r, http.StatusBadRequest, "path_refused", "the path has escaped or empty segments")
		return
	}
	rt, allow := p.router.match(r.Method, r.URL.Path)
	if rt == nil {
		p.metrics.unrouted.Inc()
		if len(allow) > 0 {
			w.Header().Set("Allow", strings.Join(allow, ", "))
			refuse(w, r, http.StatusMethodNotAllowed, "method_not_allowed", "the path takes "+strings.Join(allow, ", "))
			return
		}
		refuse(w, r, http.StatusNotFound, "route_not_found", "no route takes this path")
		return
	}
	if err := sanitise(r.Header, p.peers.trusts(r.RemoteAddr)); err != nil {
		p.metrics.refused.Inc()
		refuse(w, r, http.StatusBadRequest, "header_refused", err.Error())
		return
	}
	rt.serve(p, w, r)
}

// isRequestID says whether values are one that logs, here and in the services, can
// take: 1 to 128 visible characters.
func isRequestID(values []string) bool {
	return len(values) == 1 && values[0] != "" && len(values[0]) <= 128 &&
		!strings.ContainsFunc(values[0], func(r rune) bool { return r <= ' ' || r > '~' })
}

func (rt *route) serve(p *setup, w http.ResponseWriter, r *http.Request) {
	start := p.now()
	p.metrics.inFlight.Inc()
	rec := &recorder{ResponseWriter: w, within: p.config.Timeouts.Body}
	if isUpgrade(r.Header) {
		ctx, end := context.WithCancel(r.Context())
		defer end()
		r = r.WithContext(ctx)
		rec.carry = func(c net.Conn, early *bufio.Reader) net.Conn { return p.tunnel(ctx, end, c, early) }
	}
	if rt.invalidates {
		rec.done = func() { p.invalidate(rt, r, w.Header()) }
	}
	ended := false
	defer func() {
		if !ended && rec.status == 0 { // by a panic, which is answered above us
			rec.status = http.StatusInternalServerError
		}
		p.metrics.inFlight.Dec()
		rt.served.metrics.answered(rec.status, p.now().Sub(start))
	}()
	limit := int64(rt.BodyLimit)
	if r.ContentLength > limit {
		refuse(rec, r, http.StatusRequestEntityTooLarge, "body_too_large", tooLargeDetail(rt))
		return
	}
	if r.ContentLength != 0 {
		body := r.Body
		if r.ContentLength < 0 {
			body = http.MaxBytesReader(w, body, limit)
		}
		// The server decides by its own request's body what is left to be read.
		r = r.WithContext(r.Context())
		r.Body = newTimedBody(body, w, rt.Timeout)
	}
	rt.served.reverse.ServeHTTP(rec, r)
	ended = true
}

// rewrite makes the request that goes to the service.
func (p *setup) rewrite(rt *route) func(*httputil.ProxyRequest) {
	return func(pr *httputil.ProxyRequest) {
		pr.Out.URL.Path = rt.upstreamPath(pr.Out.URL.Path)
		pr.Out.Header.Del("Expect") // the server has seen to it
		pr.Out.Trailer = nil        // a service could take a trailer for an identity header
		for _, name := range []string{"X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host"} {
			if v := pr.In.Header[name]; v != nil { // the edge's word, which ReverseProxy has removed
				pr.Out.Header[name] = v
			}
		}
	}
}

// complete adds to an answer what every answer has: its request's id, and how it
// met the cache.
func (rt *route) complete(resp *http.Response) error {
	if rt.Cache == nil {
		resp.Header.Add(cacheStatus, httpcache.Bypassed)
	}
	if resp.Header[requestIDHeader] == nil {
		resp.Header[requestIDHeader] = resp.Request.Header[requestIDHeader]
	}
	return nil
}

// answerFailure tells the client why there is no answer from the service.
func (p *setup) answerFailure(rt *route) func(http.ResponseWriter, *http.Request, error) {
	return func(w http.ResponseWriter, r *http.Request, err error) {
		f := whyNot(r, err)
		if f.retryAfter > 0 {
			w.Header().Set("Retry-After", problem.RetryAfter(f.retryAfter))
		}
		w.Header().Set(cacheStatus, missed(rt.Cache != nil))
		service := "the " + rt.Upstream + " service "
		if f.cause == causeMalformed && r.Context().Err() != nil {
			f.cause = causeClientGone
		}
		switch f.cause {
		case causeClientGone:
			w.WriteHeader(statusClientGone)
		case causeMalformed:
			writeProblem(w, r, http.StatusBadRequest, "request_malformed", "the request body is not what its headers say")
		case causeClientSlow:
			w.Header().Set("Connection", "close")
			_ = http.NewResponseController(w).SetReadDeadline(time.Now()) // the server would wait for the rest before it answers
			writeProblem(w, r, http.StatusRequestTimeout, "request_timeout", "the request body did not arrive in time")
		case causeTooLarge:
			writeProblem(w, r, http.StatusRequestEntityTooLarge, "body_too_large", tooLargeDetail(rt))
		case causeCircuit:
			writeProblem(w, r, http.StatusServiceUnavailable, "circuit_open", service+"is failing and is left alone for a while")
		case causeOverload:
			writeProblem(w, r, http.StatusServiceUnavailable, "dependency_unavailable", service+"has as many requests as it can take")
		case causePanic:
			writeProblem(w, r, http.StatusInternalServerError, "internal_error", "") // as what is above us answers
		case causeStreams:
			writeProblem(w, r, http.StatusServiceUnavailable, "dependency_unavailable", service+"has as many streams as it can take")
		case causeTimeout:
			writeProblem(w, r, http.StatusGatewayTimeout, "upstream_timeout", service+"did not answer in time")
		default:
			writeProblem(w, r, http.StatusBadGateway, "upstream_failed", service+"did not give an answer")
		}
	}
}

// missed is the Cache-Status where no answer came from the service.
func missed(cached bool) string {
	if cached {
		return httpcache.Missed
	}
	return httpcache.Bypassed
}

// refuse answers a request that goes nowhere.
func refuse(w http.ResponseWriter, r *http.Request, status int, code, detail string) {
	w.Header().Set(cacheStatus, httpcache.Bypassed)
	writeProblem(w, r, status, code, detail)
}

func tooLargeDetail(rt *route) string {
	return "the request body is larger than " + rt.BodyLimit.String()
}

func writeProblem(w http.ResponseWriter, r *http.Request, status int, code, detail string) {
	id := r.Header.Get(requestIDHeader)
	if id != "" {
		w.Header().Set(requestIDHeader, id)
	}
	problem.Write(w, problem.New(status, code, detail).WithRequestID(id))
}

// recorder remembers the status of an answer, and bounds how long the client may
// take to read it: one that stops reading must not hold a place of the
// concurrency limit for ever. No answer is small enough to go without: a client
// that asks again and again and reads nothing fills every buffer. The deadline
// stays, for what the server sends once the handler has returned; it lifts it then. Of an event
// stream each part has the time.
type recorder struct {
	http.ResponseWriter
	status int
	left   int64 // of the body's length, where it has one
	within time.Duration
	stream bool
	carry  func(net.Conn, *bufio.Reader) net.Conn // what becomes of the connection once it is upgraded
	done   func()                                 // called before the client hears of success; may be nil
}

// WriteHeader remembers the final status, with which the client's time begins.
func (r *recorder) WriteHeader(status int) {
	if status >= 200 {
		r.status = status
		n, _ := strconv.ParseInt(r.Header().Get("Content-Length"), 10, 64)
		r.left, r.stream = n, isEventStream(r.Header())
		r.bound(time.Now().Add(r.within))
	}
	if r.done != nil && status >= 200 && status < 400 {
		r.done()
	}
	r.ResponseWriter.WriteHeader(status)
}

// Write passes on what has come; more is waited for, so it must not be. Of answers
// without a length ReverseProxy takes the same care.
func (r *recorder) Write(p []byte) (int, error) {
	if r.stream {
		r.bound(time.Now().Add(r.within))
	}
	n, err := r.ResponseWriter.Write(p)
	if r.left -= int64(n); r.left > 0 && err == nil {
		_ = http.NewResponseController(r.ResponseWriter).Flush() // the next Write says what is wrong
	}
	return n, err
}

// bound sets the deadline of writes; a connection that has none is left without.
func (r *recorder) bound(at time.Time) {
	_ = http.NewResponseController(r.ResponseWriter).SetWriteDeadline(at)
}

// Hijack gives an upgraded connection away.
func (r *recorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, rw, err := http.NewResponseController(r.ResponseWriter).Hijack()
	if err != nil || r.carry == nil {
		return c, rw, err
	}
	r.status = http.StatusSwitchingProtocols
	return r.carry(c, rw.Reader), rw, nil
}

// Unwrap lets http.ResponseController flush.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
