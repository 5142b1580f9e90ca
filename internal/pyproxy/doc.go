// Package pyproxy is the reverse proxy in front of the Python services. A
// declarative list of routes says which requests it takes; each is stripped of
// what a client must not smuggle in, and sent to one address of its upstream
// behind a retry budget, a circuit breaker, an adaptive concurrency limit and an
// attempt deadline (package resilience decides, this package does).
//
// The copying itself is net/http/httputil's ReverseProxy: it knows hop-by-hop
// headers, trailers, flushing of event streams and protocol upgrades. Everything
// of ours sits in front of it as a handler, or beneath it as a RoundTripper that
// returns only once the answer to pass on is known.
package pyproxy
