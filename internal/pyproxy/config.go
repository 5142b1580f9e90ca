package pyproxy

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/config"
	"github.com/tollgate-proxy/tollgate/internal/resilience"
)

// Config is everything the proxy is told. Sections apply to all upstreams and
// routes; a route may set its own time-outs.
type Config struct {
	TrustedPeers []netip.Prefix  `yaml:"trusted_peers" reload:"true" doc:"Networks whose requests may carry identity headers (x-user-id and the like); from anywhere else these headers are removed."`
	Timeouts     TimeoutConfig   `yaml:"timeouts" reload:"true" doc:"How long calls may take; a route may set its own."`
	Retry        RetryConfig     `yaml:"retry" reload:"true" doc:"When and how often a call that may be repeated is repeated."`
	Breaker      BreakerConfig   `yaml:"breaker" reload:"true" doc:"The circuit breaker of each upstream and route class."`
	Limit        LimitConfig     `yaml:"concurrency" reload:"true" doc:"The adaptive concurrency limit of each upstream and route class."`
	Health       HealthConfig    `yaml:"health" reload:"true" doc:"Health checks of every address of every upstream."`
	Ejection     EjectionConfig  `yaml:"ejection" reload:"true" doc:"Taking an address that fails its calls out of use for a while."`
	Streams      StreamConfig    `yaml:"streams" reload:"true" doc:"Event streams and upgraded connections (WebSockets), which last as long as their ends like."`
	Transport    TransportConfig `yaml:"transport" reload:"true" doc:"Connections to the upstreams."`
	Cache        CacheConfig     `yaml:"cache" doc:"Answers kept for the routes that declare a cache."`
	Upstreams    []Upstream      `yaml:"upstreams" reload:"true" doc:"The services behind the proxy."`
	Routes       []Route         `yaml:"routes" reload:"true" doc:"The requests that the proxy takes; every other one is answered with 404 or 405."`
}

// TimeoutConfig bounds calls.
type TimeoutConfig struct {
	Attempt  time.Duration `yaml:"attempt" doc:"From the start of one attempt to the answer's headers."`
	Total    time.Duration `yaml:"total" doc:"All attempts of one request and the waits between them, to the answer's headers."`
	BodyIdle time.Duration `yaml:"body_idle" doc:"The longest pause of the upstream within a body."`
	Body     time.Duration `yaml:"body" doc:"How long the upstream may be waited for within one body altogether, and how long the client may take to read it; event streams and upgraded connections have their own bounds (streams)."`
}

// RetryConfig bounds retries.
type RetryConfig struct {
	Max             int           `yaml:"max" doc:"Retries of one request at most; 0 never retries."`
	Base            time.Duration `yaml:"base" doc:"Bound of the first wait; it doubles with each retry, and the wait is a random part of it (full jitter)."`
	MaxWait         time.Duration `yaml:"max_wait" doc:"Bound of every wait; an answer whose Retry-After asks for more is passed on instead."`
	BudgetRatio     float64       `yaml:"budget_ratio" doc:"Retries allowed as a share of an upstream's requests, 0 to 1."`
	BudgetPerSecond float64       `yaml:"budget_per_second" doc:"Retries allowed each second besides."`
	BodyLimit       config.Bytes  `yaml:"body_limit" doc:"Request bodies up to this size are kept for a retry; larger ones are streamed and never retried."`
	Statuses        []int         `yaml:"statuses" doc:"Answers that are worth a retry."`
}

// BreakerConfig is resilience.BreakerConfig as configured.
type BreakerConfig struct {
	FailureRate  float64       `yaml:"failure_rate" doc:"Share of failed calls that opens the circuit, above 0 to 1."`
	SlowCall     time.Duration `yaml:"slow_call" doc:"A call whose headers take longer counts as slow; \"0s\" counts none."`
	SlowRate     float64       `yaml:"slow_rate" doc:"Share of slow calls that opens the circuit, above 0 to 1."`
	MinimumCalls int           `yaml:"minimum_calls" doc:"Finished calls within the window before a share counts."`
	Window       time.Duration `yaml:"window" doc:"How far back calls are counted."`
	Reset        time.Duration `yaml:"reset" doc:"How long the circuit stays open before probes may pass."`
	Probes       int           `yaml:"probes" doc:"Successful probes that close the circuit; also the most at once."`
	ProbeTimeout time.Duration `yaml:"probe_timeout" doc:"A probe without a result after this long gives its place to another."`
}

// LimitConfig is resilience.LimitConfig as configured.
type LimitConfig struct {
	Enabled   bool    `yaml:"enabled" doc:"Whether calls in flight are limited by the latency they show."`
	Initial   int     `yaml:"initial" doc:"Calls in flight before anything is known."`
	Min       int     `yaml:"min" doc:"The limit never falls below."`
	Max       int     `yaml:"max" doc:"The limit never rises above."`
	Tolerance float64 `yaml:"tolerance" doc:"How many times its usual latency a call may take before the limit falls, from 1."`
}

// HealthConfig is the active health checks.
type HealthConfig struct {
	Interval       time.Duration `yaml:"interval" doc:"Pause between checks of an address."`
	Timeout        time.Duration `yaml:"timeout" doc:"A check without an answer after this long has failed."`
	UnhealthyAfter int           `yaml:"unhealthy_after" doc:"Failed checks in a row that make an address unhealthy."`
	HealthyAfter   int           `yaml:"healthy_after" doc:"Good checks in a row that make it healthy again."`
}

// EjectionConfig is the passive health checks.
type EjectionConfig struct {
	Failures int           `yaml:"failures" doc:"Failed calls in a row that eject an address; never more than half of an upstream's addresses at once."`
	Base     time.Duration `yaml:"base" doc:"How long the first ejection lasts; each further one of the same address that long more."`
	Max      time.Duration `yaml:"max" doc:"The longest ejection."`
}

// StreamConfig bounds what has no end of its own.
type StreamConfig struct {
	Idle time.Duration `yaml:"idle_timeout" doc:"One is broken off when nothing has come for this long: of an event stream from the service, of an upgraded connection from either end."`
	Max  int           `yaml:"max" doc:"Event streams and upgraded connections of one upstream at once; one more is answered with 503."`
}

// TransportConfig is the connections.
type TransportConfig struct {
	Connect        time.Duration `yaml:"connect_timeout" doc:"How long establishing a connection may take."`
	Idle           time.Duration `yaml:"idle_timeout" doc:"How long an unused connection is kept; keep it below the upstream's own (uvicorn: 5s), or calls meet closed connections."`
	MaxIdle        int           `yaml:"max_idle" doc:"Unused connections kept for each address."`
	HeaderLimit    config.Bytes  `yaml:"header_limit" doc:"Largest header of an answer; a larger one counts as a failure."`
	ResolveEvery   time.Duration `yaml:"resolve_interval" doc:"How often host names of upstreams are looked up again."`
	ResolveTimeout time.Duration `yaml:"resolve_timeout" doc:"How long one look-up may take."`
}

// Upstream is one service.
type Upstream struct {
	Name       string   `yaml:"name" doc:"Lower-case name, used by routes, metrics and the management API."`
	Addresses  []string `yaml:"addresses" doc:"host:port of each replica; a host name stands for all its addresses and is looked up again and again."`
	HealthPath string   `yaml:"health_path" doc:"Path that answers 2xx while the service works (default /health)."`
}

// Route is one kind of request.
type Route struct {
	Name         string        `yaml:"name" doc:"Lower-case name, unique, used by metrics."`
	Upstream     string        `yaml:"upstream" doc:"Name of the upstream that answers."`
	Method       string        `yaml:"method" doc:"HTTP method."`
	Path         string        `yaml:"path" doc:"Path, matched whole; a segment {name} matches any one segment."`
	UpstreamPath string        `yaml:"upstream_path" doc:"Path to send instead, with the same {name} segments; empty sends the path as it came."`
	Class        string        `yaml:"class" doc:"Routes of one upstream and class share a breaker and a concurrency limit (default \"default\")."`
	Idempotent   bool          `yaml:"idempotent" doc:"Whether the request may be sent twice although its method does not say so."`
	Timeout      time.Duration `yaml:"timeout" doc:"Instead of timeouts.attempt; \"0s\" or absent takes that."`
	TotalTimeout time.Duration `yaml:"total_timeout" doc:"Instead of timeouts.total; \"0s\" or absent takes that."`
	BodyLimit    config.Bytes  `yaml:"body_limit" doc:"Largest request body (default 10MiB); a larger one is answered with 413."`
	HedgeAfter   time.Duration `yaml:"hedge_after" doc:"For requests that may be sent twice: ask a second address too when the first has not answered after this long; \"0s\" never."`
	Cache        *RouteCache   `yaml:"cache" doc:"Keep answers: of GET as RFC 9111 says, of POST by the request's body."`
	Purges       []string      `yaml:"purges" doc:"Routes and tags whose kept answers are void once a request of this route has succeeded."`
	Fallback     *Fallback     `yaml:"fallback" doc:"What to answer while the service cannot, instead of a problem."`
}

// managementPrefix begins the paths of the management API.
const managementPrefix = "/v1/"

const (
	defaultClass     = "default"
	defaultHealth    = "/health"
	defaultBodyLimit = 10 << 20
)

// Defaults is the configuration without upstreams and routes.
func Defaults() Config {
	return Config{
		TrustedPeers: privateNetworks(),
		Timeouts:     TimeoutConfig{Attempt: 30 * time.Second, Total: 60 * time.Second, BodyIdle: 30 * time.Second, Body: 10 * time.Minute},
		Retry: RetryConfig{Max: 3, Base: 100 * time.Millisecond, MaxWait: 5 * time.Second, BudgetRatio: 0.2, BudgetPerSecond: 10, BodyLimit: 64 << 10,
			Statuses: []int{http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout}},
		Breaker:   BreakerConfig{FailureRate: 0.5, SlowRate: 1, MinimumCalls: 20, Window: 10 * time.Second, Reset: 60 * time.Second, Probes: 3, ProbeTimeout: 30 * time.Second},
		Limit:     LimitConfig{Enabled: true, Initial: 100, Min: 20, Max: 1000, Tolerance: 2},
		Health:    HealthConfig{Interval: 5 * time.Second, Timeout: 2 * time.Second, UnhealthyAfter: 2, HealthyAfter: 1},
		Cache:     CacheConfig{Memory: 64 << 20, MaxEntry: 1 << 20, MaxKeyBody: 64 << 10, Redis: true, RedisMemory: 256 << 20, RedisTimeout: 50 * time.Millisecond, RedisRest: 5 * time.Second, Poll: time.Second},
		Streams:   StreamConfig{Idle: 5 * time.Minute, Max: 1000},
		Ejection:  EjectionConfig{Failures: 5, Base: 10 * time.Second, Max: 5 * time.Minute},
		Transport: TransportConfig{Connect: 2 * time.Second, Idle: 4 * time.Second, MaxIdle: 256, HeaderLimit: 64 << 10, ResolveEvery: 30 * time.Second, ResolveTimeout: 5 * time.Second},
	}
}

// privateNetworks are loopback and the networks that RFC 1918, 4193 and 6598 keep off the Internet.
func privateNetworks() []netip.Prefix {
	var ps []netip.Prefix
	for _, s := range []string{"127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"} {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}

var (
	namePattern    = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$`)
	segmentPattern = regexp.MustCompile(`^(\{[a-z][a-z0-9_]*\}|[A-Za-z0-9._~:@!$&'()*+,;=-]+)$`)
)

const nameAllowed = "1 to 64 of a-z, 0-9, '.', '_' and '-', beginning and ending with a letter or digit"

// check reports key unless ok.
func check(r *config.Report, ok bool, key string, value any, allowed string) {
	if !ok {
		r.Fault(key, value, allowed)
	}
}

func positive(r *config.Report, key string, d time.Duration) {
	check(r, d > 0, key, d, "more than 0s")
}

// Check reports what the parts cannot see alone. Whoever embeds a Config inline
// calls it from the root's Validate.
func (c Config) Check(r *config.Report) {
	check(r, len(c.Upstreams) > 0, "upstreams", nil, "at least one upstream")
	check(r, len(c.Routes) > 0, "routes", nil, "at least one route")
	upstreams := map[string]bool{}
	for i, u := range c.Upstreams {
		check(r, !upstreams[u.Name], fmt.Sprintf("upstreams[%d].name", i), u.Name, "a name that no other upstream has")
		upstreams[u.Name] = true
	}
	names, purgeable := map[string]bool{}, map[string]bool{}
	for _, rt := range c.Routes {
		if rt.Cache == nil {
			continue
		}
		purgeable[rt.Name] = true
		for _, tag := range rt.Cache.Tags {
			purgeable[tag] = true
		}
	}
	for i, rt := range c.Routes {
		at := fmt.Sprintf("routes[%d].", i)
		check(r, upstreams[rt.Upstream], at+"upstream", rt.Upstream, "the name of an upstream in upstreams")
		check(r, !names[rt.Name], at+"name", rt.Name, "a name that no other route has")
		names[rt.Name] = true
		for j, name := range rt.Purges {
			check(r, purgeable[name], fmt.Sprintf("%spurges[%d]", at, j), name, "a route with a cache, or a tag of one")
		}
		for _, earlier := range c.Routes[:i] {
			check(r, earlier.Method != rt.Method || !overlap(earlier.Path, rt.Path), at+"path", rt.Path,
				"a method and path that "+earlier.Name+" does not take already")
		}
	}
}

// Validate checks the time-outs.
func (c TimeoutConfig) Validate(r *config.Report) {
	positive(r, "attempt", c.Attempt)
	positive(r, "body_idle", c.BodyIdle)
	check(r, c.Total >= c.Attempt, "total", c.Total, "at least timeouts.attempt")
	check(r, c.Body >= c.BodyIdle, "body", c.Body, "at least timeouts.body_idle")
}

// Validate checks the retries.
func (c RetryConfig) Validate(r *config.Report) {
	check(r, c.Max >= 0 && c.Max <= 10, "max", c.Max, "0 to 10")
	positive(r, "base", c.Base)
	check(r, c.MaxWait >= c.Base, "max_wait", c.MaxWait, "at least retry.base")
	check(r, c.BudgetRatio >= 0 && c.BudgetRatio <= 1, "budget_ratio", c.BudgetRatio, "0 to 1")
	check(r, c.BudgetPerSecond >= 0, "budget_per_second", c.BudgetPerSecond, "0 or more")
	check(r, c.BodyLimit <= 16<<20, "body_limit", c.BodyLimit, "at most 16MiB, since it is kept in memory")
	for i, s := range c.Statuses {
		check(r, s == http.StatusTooManyRequests || s >= 500 && s <= 599, fmt.Sprintf("statuses[%d]", i), s, "429, or 500 to 599")
	}
}

// Validate checks the breaker.
func (c BreakerConfig) Validate(r *config.Report) {
	check(r, c.FailureRate > 0 && c.FailureRate <= 1, "failure_rate", c.FailureRate, "above 0, to 1")
	check(r, c.SlowRate > 0 && c.SlowRate <= 1, "slow_rate", c.SlowRate, "above 0, to 1")
	check(r, c.SlowCall >= 0, "slow_call", c.SlowCall, "0s or more")
	check(r, c.MinimumCalls > 0, "minimum_calls", c.MinimumCalls, "1 or more")
	check(r, c.Probes > 0, "probes", c.Probes, "1 or more")
	positive(r, "window", c.Window)
	positive(r, "reset", c.Reset)
	positive(r, "probe_timeout", c.ProbeTimeout)
}

// Validate checks the concurrency limit.
func (c LimitConfig) Validate(r *config.Report) {
	check(r, c.Min > 0, "min", c.Min, "1 or more")
	check(r, c.Max >= c.Min, "max", c.Max, "at least concurrency.min")
	check(r, c.Initial >= c.Min && c.Initial <= c.Max, "initial", c.Initial, "between concurrency.min and concurrency.max")
	check(r, c.Tolerance >= 1, "tolerance", c.Tolerance, "1 or more")
}

// Validate checks the health checks.
func (c HealthConfig) Validate(r *config.Report) {
	positive(r, "interval", c.Interval)
	positive(r, "timeout", c.Timeout)
	check(r, c.UnhealthyAfter > 0, "unhealthy_after", c.UnhealthyAfter, "1 or more")
	check(r, c.HealthyAfter > 0, "healthy_after", c.HealthyAfter, "1 or more")
}

// Validate checks the ejection.
func (c EjectionConfig) Validate(r *config.Report) {
	check(r, c.Failures > 0, "failures", c.Failures, "1 or more")
	positive(r, "base", c.Base)
	check(r, c.Max >= c.Base, "max", c.Max, "at least ejection.base")
}

// Validate checks the streams.
func (c StreamConfig) Validate(r *config.Report) {
	positive(r, "idle_timeout", c.Idle)
	check(r, c.Max > 0, "max", c.Max, "1 or more")
}

// Validate checks the connections.
func (c TransportConfig) Validate(r *config.Report) {
	positive(r, "connect_timeout", c.Connect)
	positive(r, "idle_timeout", c.Idle)
	positive(r, "resolve_interval", c.ResolveEvery)
	positive(r, "resolve_timeout", c.ResolveTimeout)
	check(r, c.MaxIdle > 0, "max_idle", c.MaxIdle, "1 or more")
	check(r, c.HeaderLimit >= 1<<10, "header_limit", c.HeaderLimit, "at least 1KiB")
}

// Validate checks one upstream.
func (u Upstream) Validate(r *config.Report) {
	check(r, namePattern.MatchString(u.Name), "name", u.Name, nameAllowed)
	check(r, len(u.Addresses) > 0, "addresses", nil, "at least one host:port")
	for i, a := range u.Addresses {
		host, port, err := net.SplitHostPort(a)
		check(r, err == nil && host != "" && port != "", fmt.Sprintf("addresses[%d]", i), a, "host:port")
		check(r, !slices.Contains(u.Addresses[:i], a), fmt.Sprintf("addresses[%d]", i), a, "an address that is not there already")
	}
	check(r, u.HealthPath == "" || strings.HasPrefix(u.HealthPath, "/"), "health_path", u.HealthPath, "a path that begins with /")
}

// Validate checks one route.
func (rt Route) Validate(r *config.Report) {
	check(r, namePattern.MatchString(rt.Name), "name", rt.Name, nameAllowed)
	check(r, rt.Class == "" || namePattern.MatchString(rt.Class), "class", rt.Class, nameAllowed)
	known := true
	switch rt.Method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
	default:
		known = false
		r.Fault("method", rt.Method, "GET, HEAD, POST, PUT, PATCH, DELETE or OPTIONS")
	}
	check(r, validTemplate(rt.Path) && !strings.HasPrefix(rt.Path, managementPrefix), "path", rt.Path, "outside /v1/ (the management API), a path of plain or {name} segments, beginning with /")
	check(r, rt.UpstreamPath == "" || validTemplate(rt.UpstreamPath) && len(unknownParameters(rt)) == 0, "upstream_path", rt.UpstreamPath,
		"a path whose {name} segments all stand in path")
	check(r, rt.Timeout >= 0, "timeout", rt.Timeout, "0s or more")
	check(r, rt.HedgeAfter >= 0, "hedge_after", rt.HedgeAfter, "0s or more")
	if rt.Cache != nil && known {
		check(r, rt.Method == http.MethodGet || rt.Method == http.MethodPost && rt.Idempotent && rt.Cache.TTL > 0, "cache", rt.Method,
			"on GET; or on POST with idempotent: true and a ttl")
	}
	check(r, rt.TotalTimeout >= 0 && (rt.TotalTimeout == 0 || rt.TotalTimeout >= rt.Timeout), "total_timeout", rt.TotalTimeout, "at least the route's timeout")
}

func (c BreakerConfig) decision() resilience.BreakerConfig {
	return resilience.BreakerConfig(c)
}
