package pyproxy_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/tollgate-proxy/tollgate/internal/config"
	"github.com/tollgate-proxy/tollgate/internal/pyproxy"
)

// root is a process's configuration with nothing but the proxy's.
type root struct {
	pyproxy.Config `yaml:",inline"`
}

// Validate is what a process does.
func (r root) Validate(report *config.Report) { r.Check(report) }

const (
	someUpstream = "upstreams: [{name: a, addresses: ['h:1']}]\n"
	someRoute    = "routes: [{name: r, upstream: a, method: GET, path: /x}]\n"
)

// Each rule of the configuration, broken alone.
func TestEveryRuleOfTheConfiguration(t *testing.T) {
	for _, tc := range []struct{ yaml, key string }{
		{someRoute, "upstreams"},
		{someUpstream, "routes"},
		{"upstreams: [{name: A, addresses: ['h:1']}]\n" + someRoute, "upstreams[0].name"},
		{"upstreams: [{name: a}]\n" + someRoute, "upstreams[0].addresses"},
		{"upstreams: [{name: a, addresses: [':1']}]\n" + someRoute, "upstreams[0].addresses[0]"},
		{"upstreams: [{name: a, addresses: ['h:1'], health_path: health}]\n" + someRoute, "upstreams[0].health_path"},
		{"upstreams: [{name: a, addresses: ['h:1']}, {name: a, addresses: ['h:2']}]\n" + someRoute, "upstreams[1].name"},
		{someUpstream + "routes: [{name: '', upstream: a, method: GET, path: /x}]", "routes[0].name"},
		{someUpstream + "routes: [{name: r, upstream: a, method: GET, path: /x}, {name: r, upstream: a, method: GET, path: /y}]", "routes[1].name"},
		{someUpstream + "routes: [{name: r, upstream: b, method: GET, path: /x}]", "routes[0].upstream"},
		{someUpstream + "routes: [{name: r, upstream: a, method: TRACE, path: /x}]", "routes[0].method"},
		{someUpstream + "routes: [{name: r, upstream: a, method: GET, path: '/x//y'}]", "routes[0].path"},
		{someUpstream + "routes: [{name: r, upstream: a, method: GET, path: /v1/x}]", "routes[0].path"},
		{someUpstream + "routes: [{name: r, upstream: a, method: GET, path: '/{a}'}, {name: s, upstream: a, method: GET, path: '/{b}'}]", "routes[1].path"},
		{someUpstream + "routes: [{name: r, upstream: a, method: GET, path: '/{a}', upstream_path: '/{b}'}]", "routes[0].upstream_path"},
		{someUpstream + "routes: [{name: r, upstream: a, method: GET, path: /x, class: A}]", "routes[0].class"},
		{someUpstream + "routes: [{name: r, upstream: a, method: GET, path: /x, timeout: -1s}]", "routes[0].timeout"},
		{someUpstream + "routes: [{name: r, upstream: a, method: GET, path: /x, timeout: 2s, total_timeout: 1s}]", "routes[0].total_timeout"},
		{someUpstream + "routes: [{name: r, upstream: a, method: GET, path: /x, hedge_after: -1s}]", "routes[0].hedge_after"},
		{someUpstream + "routes: [{name: r, upstream: a, method: PUT, path: /x, idempotent: true, cache: {ttl: 1s}}]", "routes[0].cache"},
		{someUpstream + "routes: [{name: r, upstream: a, method: POST, path: /x, cache: {ttl: 1s}}]", "routes[0].cache"},
		{someUpstream + "routes: [{name: r, upstream: a, method: GET, path: /x, cache: {ttl: -1s}}]", "routes[0].cache.ttl"},
		{someUpstream + "routes: [{name: r, upstream: a, method: GET, path: /x, cache: {stale_if_error: -1s}}]", "routes[0].cache.stale_if_error"},
		{someUpstream + "routes: [{name: r, upstream: a, method: GET, path: /x, cache: {stale_while_revalidate: -1s}}]", "routes[0].cache.stale_while_revalidate"},
		{someUpstream + "routes: [{name: r, upstream: a, method: GET, path: /x, cache: {vary: ['x user']}}]", "routes[0].cache.vary[0]"},
		{someUpstream + "routes: [{name: r, upstream: a, method: GET, path: /x, cache: {tags: [A]}}]", "routes[0].cache.tags[0]"},
		{someUpstream + "routes: [{name: r, upstream: a, method: GET, path: /x, purges: [t]}]", "routes[0].purges[0]"},
		{someUpstream + "routes: [{name: r, upstream: a, method: GET, path: /x, fallback: {status: 199, content_type: a/b}}]", "routes[0].fallback.status"},
		{someUpstream + "routes: [{name: r, upstream: a, method: GET, path: /x, fallback: {status: 200}}]", "routes[0].fallback.content_type"},
		{"timeouts: {attempt: 0s}", "timeouts.attempt"},
		{"timeouts: {total: 29s}", "timeouts.total"},
		{"timeouts: {body_idle: 0s}", "timeouts.body_idle"},
		{"timeouts: {body: 1s}", "timeouts.body"},
		{"retry: {max: 11}", "retry.max"},
		{"retry: {base: 0s}", "retry.base"},
		{"retry: {max_wait: 1ms}", "retry.max_wait"},
		{"retry: {budget_ratio: 1.1}", "retry.budget_ratio"},
		{"retry: {budget_per_second: -1}", "retry.budget_per_second"},
		{"retry: {body_limit: 17MiB}", "retry.body_limit"},
		{"retry: {statuses: [503, 404]}", "retry.statuses[1]"},
		{"breaker: {failure_rate: 0}", "breaker.failure_rate"},
		{"breaker: {slow_rate: 1.1}", "breaker.slow_rate"},
		{"breaker: {slow_call: -1s}", "breaker.slow_call"},
		{"breaker: {minimum_calls: 0}", "breaker.minimum_calls"},
		{"breaker: {probes: 0}", "breaker.probes"},
		{"breaker: {window: 0s}", "breaker.window"},
		{"breaker: {reset: 0s}", "breaker.reset"},
		{"breaker: {probe_timeout: 0s}", "breaker.probe_timeout"},
		{"concurrency: {min: 0}", "concurrency.min"},
		{"concurrency: {max: 1}", "concurrency.max"},
		{"concurrency: {initial: 1001}", "concurrency.initial"},
		{"concurrency: {tolerance: 0.9}", "concurrency.tolerance"},
		{"health: {interval: 0s}", "health.interval"},
		{"health: {timeout: 0s}", "health.timeout"},
		{"health: {unhealthy_after: 0}", "health.unhealthy_after"},
		{"health: {healthy_after: 0}", "health.healthy_after"},
		{"ejection: {failures: 0}", "ejection.failures"},
		{"ejection: {base: 0s}", "ejection.base"},
		{"ejection: {max: 1s}", "ejection.max"},
		{"transport: {connect_timeout: 0s}", "transport.connect_timeout"},
		{"transport: {idle_timeout: 0s}", "transport.idle_timeout"},
		{"transport: {resolve_interval: 0s}", "transport.resolve_interval"},
		{"transport: {resolve_timeout: 0s}", "transport.resolve_timeout"},
		{"transport: {max_idle: 0}", "transport.max_idle"},
		{"transport: {header_limit: 1B}", "transport.header_limit"},
		{"cache: {memory: 1KiB}", "cache.memory"},
		{"cache: {max_entry: 5MiB}", "cache.max_entry"},
		{"cache: {max_key_body: 17MiB}", "cache.max_key_body"},
		{"cache: {redis_memory: 1KiB}", "cache.redis_memory"},
		{"cache: {redis_timeout: 0s}", "cache.redis_timeout"},
		{"cache: {redis_rest: 0s}", "cache.redis_rest"},
		{"cache: {poll_interval: 0s}", "cache.poll_interval"},
	} {
		text := tc.yaml
		if !strings.Contains(text, "upstreams:") && !strings.Contains(text, "routes:") {
			text = someUpstream + someRoute + text
		}
		_, err := config.Decode("pyproxy.yaml", []byte(text), root{pyproxy.Defaults()})
		var faults config.Faults
		if !errors.As(err, &faults) || !slices.ContainsFunc(faults, func(f config.Fault) bool { return f.Key == tc.key && f.Allowed != "" }) {
			t.Errorf("%s: %v, want a fault of %s", tc.yaml, err, tc.key)
		}
	}
	if _, err := config.Decode("pyproxy.yaml", []byte(someUpstream+someRoute), root{pyproxy.Defaults()}); err != nil {
		t.Error(err)
	}
}
