package authn

import (
	"errors"
	"strings"
	"testing"

	"github.com/tollgate-proxy/tollgate/internal/config"
)

func TestConfigFaults(t *testing.T) {
	const good = "name: a, issuer: i, algorithms: [ES256], audiences: [us], keys: {pem_file: x}"
	one := func(s string) string { return "issuers: [{" + s + "}]" }
	for _, c := range []struct{ yaml, key string }{
		{"leeway: 6m", "leeway"},
		{"leeway: -1s", "leeway"},
		{"max_lifetime: 25h", "max_lifetime"},
		{"max_lifetime: 0s", "max_lifetime"},
		{"max_token_size: 100", "max_token_size"},
		{"max_token_size: 1MiB", "max_token_size"},
		{"signature_cache: 9GiB", "signature_cache"},
		{"sources: {authorization: false}", "sources"},
		{"sources: {header: X-Token}", "sources.header"},
		{"sources: {header: authorization}", "sources.header"},
		{"sources: {header: a b}", "sources.header"},
		{"sources: {cookie: a=b}", "sources.cookie"},
		{"jwks: {refresh: 1s}", "jwks.refresh"},
		{"jwks: {timeout: 2m}", "jwks.timeout"},
		{"jwks: {unknown_key: 1ms}", "jwks.unknown_key"},
		{one("name: A, issuer: i, algorithms: [ES256], audiences: [us], keys: {pem_file: x}"), "issuers[0].name"},
		{one("name: a, algorithms: [ES256], audiences: [us], keys: {pem_file: x}"), "issuers[0].issuer"},
		{one("name: a, issuer: 'https://dev.tollgate.invalid', algorithms: [ES256], audiences: [us], keys: {pem_file: x}"), "issuers[0].issuer"},
		{one("name: a, issuer: i, audiences: [us], keys: {pem_file: x}"), "issuers[0].algorithms"},
		{one("name: a, issuer: i, algorithms: [none], audiences: [us], keys: {pem_file: x}"), "issuers[0].algorithms[0]"},
		{one("name: a, issuer: i, algorithms: [HS256], audiences: [us], keys: {pem_file: x}"), "issuers[0].algorithms[0]"},
		{one("name: a, issuer: i, algorithms: [HS256], audiences: [us], keys: {jwks_url: 'https://x.test'}"), "issuers[0].algorithms[0]"},
		{one("name: a, issuer: i, algorithms: [RS256], audiences: [us], keys: {secret_file: x}"), "issuers[0].algorithms[0]"},
		{one("name: a, issuer: i, algorithms: [RS256, HS256], audiences: [us], keys: {jwks_file: x}"), "issuers[0].algorithms[1]"},
		{one("name: a, issuer: i, algorithms: [ES256], keys: {pem_file: x}"), "issuers[0].audiences"},
		{one("name: a, issuer: i, algorithms: [ES256], audiences: [''], keys: {pem_file: x}"), "issuers[0].audiences[0]"},
		{one("name: a, issuer: i, algorithms: [ES256], audiences: [us]"), "issuers[0].keys"},
		{one("name: a, issuer: i, algorithms: [ES256], audiences: [us], keys: {pem_file: x, jwks_file: y}"), "issuers[0].keys"},
		{one("name: a, issuer: i, algorithms: [ES256], audiences: [us], keys: {jwks_url: 'http://x.test'}"), "issuers[0].keys.jwks_url"},
		{one("name: a, issuer: i, algorithms: [ES256], audiences: [us], keys: {jwks_url: 'ftp://x.test'}"), "issuers[0].keys.jwks_url"},
		{one("name: a, issuer: i, algorithms: [ES256], audiences: [us], keys: {jwks_url: 'https://u:p@x.test'}"), "issuers[0].keys.jwks_url"},
		{one("name: a, issuer: i, algorithms: [ES256], audiences: [us], keys: {jwks_url: ':'}"), "issuers[0].keys.jwks_url"},
		{one(good + ", leeway: 10m"), "issuers[0].leeway"},
		{one(good + ", max_lifetime: 48h"), "issuers[0].max_lifetime"},
		{one(good + ", require: [sub]"), "issuers[0].require[0]"},
		{one(good + ", claims: {roles: /a//b}"), "issuers[0].claims.roles"},
		{one(good + ", claims: {tier: /a~2}"), "issuers[0].claims.tier"},
		{one(good + ", tiers: {missing: gold}"), "issuers[0].tiers.missing"},
		{one(good + ", tiers: {unknown: anonymous}"), "issuers[0].tiers.unknown"},
		{one(good + ", tiers: {mapping: [{name: '', tier: free}]}"), "issuers[0].tiers.mapping[0].name"},
		{one(good + ", tiers: {mapping: [{name: x, tier: y}]}"), "issuers[0].tiers.mapping[0].tier"},
		{"introspection: {url: 'http://x.test', client_id: a, secret_file: b, issuer: c}", "introspection.url"},
		{"introspection: {url: 'https://x.test', secret_file: b, issuer: c}", "introspection.client_id"},
		{"introspection: {url: 'https://x.test', client_id: a, issuer: c}", "introspection.secret_file"},
		{"introspection: {url: 'https://x.test', client_id: a, secret_file: b}", "introspection.issuer"},
		{"introspection: {url: 'https://x.test', client_id: a, secret_file: b, issuer: c, timeout: 1m}", "introspection.timeout"},
		{"introspection: {url: 'https://x.test', client_id: a, secret_file: b, issuer: c, ttl: 1h}", "introspection.ttl"},
		{"introspection: {url: 'https://x.test', client_id: a, secret_file: b, issuer: c, cache: 1KiB}", "introspection.cache"},
		{"introspection: {url: 'https://x.test', client_id: a, secret_file: b, issuer: c, concurrent: 0}", "introspection.concurrent"},
		{"proofs: {algorithms: [HS256]}", "proofs.algorithms[0]"},
		{"proofs: {max_age: 1h}", "proofs.max_age"},
		{"proofs: {remember: 1}", "proofs.remember"},
		{one("name: a, issuer: i, algorithms: [ES256], audiences: [us], keys: {pem_file: x, envoy: true}"), "issuers[0].keys"},
		{"issuers: [{" + good + "}, {name: a, issuer: j, algorithms: [ES256], audiences: [us], keys: {pem_file: x}}]", "issuers[1].name"},
		{"issuers: [{" + good + "}, {name: b, issuer: i, algorithms: [ES256], audiences: [us], keys: {pem_file: x}}]", "issuers[1].issuer"},
	} {
		_, err := config.Decode("authn.yaml", []byte(c.yaml), Default())
		var faults config.Faults
		if !errors.As(err, &faults) {
			t.Errorf("%s: error %v, want a fault of %s", c.yaml, err, c.key)
			continue
		}
		if len(faults) != 1 || faults[0].Key != c.key || faults[0].Allowed == "" {
			t.Errorf("%s: faults\n%v\nwant one of %s", c.yaml, faults, c.key)
		}
	}
}

func TestConfigAccepted(t *testing.T) {
	for _, yaml := range []string{
		"",
		"sources: {authorization: false, header: x-token, cookie: __Host-session}",
		"issuers: [{name: a-1, issuer: 'https://a.test', algorithms: [RS256, ES512, EdDSA], audiences: [us], keys: {jwks_url: 'https://a.test/jwks'}, leeway: 1m, max_lifetime: 1h, require: [jti], claims: {roles: /realm_access/roles}, tiers: {missing: premium, unknown: free, mapping: [{name: x, tier: admin}]}}]",
		"issuers: [{name: a, issuer: i, algorithms: [RS256], audiences: [us], keys: {jwks_url: 'http://127.0.0.1:80/jwks'}}, {name: b, issuer: j, algorithms: [RS256], audiences: [us], keys: {jwks_url: 'http://idp/jwks', allow_http: true}}]",
		"issuers: [{name: a, issuer: i, algorithms: [RS256], audiences: [us], keys: {envoy: true}}]",
		"introspection: {url: 'https://x.test', client_id: a, secret_file: b, issuer: c}\nproofs: {algorithms: [ES256]}",
		"issuers: [{name: a, issuer: i, algorithms: [HS256], audiences: [us], keys: {secret_file: x}}]",
	} {
		if _, err := config.Decode("authn.yaml", []byte(yaml), Default()); err != nil {
			t.Errorf("%s: %v", yaml, err)
		}
	}
}

func TestNames(t *testing.T) {
	if isName(strings.Repeat("a", 65)) || isName("") || !isName("a-1") {
		t.Error("names")
	}
}

func TestEveryKeyIsExplained(t *testing.T) {
	if missing := config.Undocumented[Config](); len(missing) > 0 {
		t.Errorf("no doc tag: %v", missing)
	}
}
