package policy

import (
	"errors"
	"strings"
	"testing"

	"github.com/tollgate-proxy/tollgate/internal/config"
)

func TestConfigFaults(t *testing.T) {
	for _, c := range []struct{ yaml, key string }{
		{"unmatched: allow", "unmatched"},
		{"endpoints: [{name: a b, cost: 1}]", "endpoints[0].name"},
		{"endpoints: [{name: a, cost: 0}]", "endpoints[0].cost"},
		{"endpoints: [{name: a, cost: 2}, {name: a, cost: 1}]", "endpoints[1].name"},
		{"routes: [{name: }]", "routes[0].name"},
		{"routes: [{name: unmatched}]", "routes[0].name"},
		{"routes: [{name: 'a '}]", "routes[0].name"},
		{"routes: [{name: \"a\\tb\"}]", "routes[0].name"},
		{"routes: [{name: a, match: {path: /a}}, {name: a, match: {path: /b}}]", "routes[1].name"},
		{"routes: [{name: a, endpoint: nlp}]", "routes[0].endpoint"},
		{"routes: [{name: a, access: none}]", "routes[0].access"},
		{"routes: [{name: a, access: public, require: {roles_any: [x]}}]", "routes[0].require"},
		{"routes: [{name: a, on_stale: open}]", "routes[0].on_stale"},
		{"routes: [{name: a, no_flags: true, flags: [x]}]", "routes[0].no_flags"},
		{"routes: [{name: a, match: {hosts: [A.example.com]}}]", "routes[0].match.hosts[0]"},
		{"routes: [{name: a, match: {hosts: ['a.example.com:80']}}]", "routes[0].match.hosts[0]"},
		{"routes: [{name: a, match: {hosts: ['*']}}]", "routes[0].match.hosts[0]"},
		{"routes: [{name: a, match: {methods: [get]}}]", "routes[0].match.methods[0]"},
		{"routes: [{name: a, match: {methods: ['']}}]", "routes[0].match.methods[0]"},
		{"routes: [{name: a, match: {path: /a, prefix: /b}}]", "routes[0].match.prefix"},
		{"routes: [{name: a, match: {path: a}}]", "routes[0].match"},
		{"routes: [{name: a, match: {path: /a/*}}]", "routes[0].match"},
		{"routes: [{name: a, match: {path: '/a?b'}}]", "routes[0].match"},
		{"routes: [{name: a, match: {path: '/a;b'}}]", "routes[0].match"},
		{"routes: [{name: a, match: {path: '/a//b'}}]", "routes[0].match"},
		{"routes: [{name: a, match: {path: '/a/../b'}}]", "routes[0].match"},
		{"routes: [{name: a, match: {path: '/a%2Fb'}}]", "routes[0].match"},
		{"routes: [{name: a, match: {path: '/a%'}}]", "routes[0].match"},
		{"routes: [{name: a, match: {path: '/users/{id}'}}]", "routes[0].match"},
		{"routes: [{name: a, match: {template: '/users/x{id}'}}]", "routes[0].match"},
		{"routes: [{name: a, match: {template: '/users/{}'}}]", "routes[0].match"},
		{"routes: [{name: a, match: {template: '/users/{...}'}}]", "routes[0].match"},
		{"routes: [{name: a, match: {template: '/users/{rest...}/x'}}]", "routes[0].match"},
		{"routes: [{name: a, require: {roles_all: ['a,b']}}]", "routes[0].require.roles_all[0]"},
		{"routes: [{name: a, require: {tiers: [anonymous]}}]", "routes[0].require.tiers[0]"},
		{"routes: [{name: a, require: {addresses: [10.0.0.1/8]}}]", "routes[0].require.addresses[0]"},
		{"routes: [{name: a, require: {addresses: [localhost]}}]", "routes[0].require.addresses[0]"},
		{"routes: [{name: a, require: {addresses: ['::ffff:10.0.0.0/104']}}]", "routes[0].require.addresses[0]"},
		{"routes: [{name: all, match: {prefix: /}}, {name: a, match: {path: /a}}]", "routes[1]"},
		{"routes: [{name: all, match: {prefix: /a}}, {name: a, match: {template: '/a/{id}', hosts: [a.test]}}]", "routes[1]"},
		{"routes: [{name: all, match: {template: '/{x}', hosts: ['*.test']}}, {name: a, match: {path: /a, hosts: [a.test, a.b.test], methods: [GET]}}]", "routes[1]"},
		{"routes: [{name: a, match: {methods: [GET, PURGE]}}, {name: b, match: {methods: [HEAD, PURGE]}}]", "routes[1]"},
	} {
		_, err := config.Decode("routes.yaml", []byte(c.yaml), Default())
		var faults config.Faults
		if !errors.As(err, &faults) {
			t.Errorf("%s: error %v, want a fault of %s", c.yaml, err, c.key)
			continue
		}
		if len(faults) != 1 || faults[0].Key != c.key || faults[0].Allowed == "" {
			t.Errorf("%s: faults %v, want one of %s", c.yaml, faults, c.key)
		}
	}
}

func TestConfigAccepted(t *testing.T) {
	for _, yaml := range []string{
		"routes: []",
		"unmatched: required\nroutes: [{name: a, match: {prefix: /a/}}, {name: b, match: {prefix: /ab}}]",
		"endpoints: [{name: default, cost: 3}, {name: nlp, cost: 2}]\nroutes: [{name: a, endpoint: nlp}]",
		"routes: [{name: a b, shadow: true}, {name: b}]",
		"routes: [{name: a, match: {methods: [POST]}}, {name: b, match: {methods: [GET]}}, {name: c}]",
		"routes: [{name: a, match: {hosts: [a.test]}}, {name: b, match: {hosts: ['*.test']}}, {name: c}]",
		"routes: [{name: a, match: {template: '/a/{id}'}}, {name: b, match: {prefix: /a}}]",
		"routes: [{name: a, access: optional, match: {path: /a, methods: [GET, PURGE]}, require: {addresses: [10.0.0.0/8, '2001:db8::1', '::ffff:192.0.2.1']}, on_stale: serve_stale, no_flags: true}]",
		"routes: [{name: a, require: {roles_any: [a], roles_all: [b], scopes_any: [c], scopes_all: [d], tiers: [admin], consents: [e f]}, flags: [x]}]",
	} {
		c, err := config.Decode("routes.yaml", []byte(yaml), Default())
		if err != nil {
			t.Errorf("%s: %v", yaml, err)
			continue
		}
		if _, err := Compile(c); err != nil {
			t.Errorf("%s: compile: %v", yaml, err)
		}
	}
}

// Compile refuses what Validate would, for callers that build a Config
// themselves.
func TestCompileErrors(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"unmatched": func(c *Config) { c.Unmatched = "x" },
		"endpoint":  func(c *Config) { c.Routes[0].Endpoint = "x" },
		"access":    func(c *Config) { c.Routes[0].Access = "x" },
		"on_stale":  func(c *Config) { c.Routes[0].OnStale = "x" },
		"go with":   func(c *Config) { c.Routes[0].Access, c.Routes[0].Require.Tiers = "public", []string{"free"} },
		"address":   func(c *Config) { c.Routes[0].Require.Addresses = []string{"x"} },
		"host":      func(c *Config) { c.Routes[0].Match.Hosts = []string{"a/b"} },
		"path":      func(c *Config) { c.Routes[0].Match.Prefix = "x" },
	} {
		c := routes(RouteConfig{Name: "a"})
		change(&c)
		if _, err := Compile(c); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func TestEveryKeyIsExplained(t *testing.T) {
	if missing := config.Undocumented[Config](); len(missing) > 0 {
		t.Errorf("no doc tag: %v", missing)
	}
}
