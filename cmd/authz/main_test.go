package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tollgate-proxy/tollgate/internal/config"
	"github.com/tollgate-proxy/tollgate/internal/configtest"
)

func TestConfiguration(t *testing.T) { configtest.Process(t, process()) }

func TestFaults(t *testing.T) {
	for name, c := range map[string]struct {
		yaml string
		env  []string
		want string
	}{
		"production without an issuer":   {"mode: production", nil, "tokens.issuers"},
		"development without a key":      {"mode: development", nil, "development.key_file"},
		"unknown mode":                   {"mode: test", nil, `mode: "test": production or development`},
		"bad listen":                     {"mode: development\ndevelopment: {key_file: k}\ngrpc: {listen: here}", nil, "grpc.listen"},
		"bad revocation":                 {"mode: development\ndevelopment: {key_file: k}\nrevocation: {mode: maybe, max_staleness: 1ms, heartbeat: 1m, max_entries: 1}", nil, "revocation.heartbeat"},
		"bad poll":                       {"mode: development\ndevelopment: {key_file: k}\nflags: {poll: 1ns}", nil, "flags.poll"},
		"twin clients":                   {"mode: development\ndevelopment: {key_file: k}\nmanagement: {clients: [{name: a, secret_sha256: " + strings.Repeat("a", 64) + ", roles: [admin]}, {name: a, secret_sha256: " + strings.Repeat("b", 64) + ", roles: [admin]}]}", nil, "management.clients[1].name"},
		"twin secrets":                   {"mode: development\ndevelopment: {key_file: k}\nmanagement: {clients: [{name: a, secret_sha256: " + strings.Repeat("a", 64) + ", roles: [admin]}, {name: b, secret_sha256: " + strings.Repeat("A", 64) + ", roles: [admin]}]}", nil, `management.clients[1].secret_sha256: "[redacted]"`},
		"twin certificates":              {"mode: development\ndevelopment: {key_file: k}\nmanagement: {clients: [{name: a, certificate_sha256: " + strings.Repeat("a", 64) + ", roles: [admin]}, {name: b, certificate_sha256: " + strings.Repeat("A", 64) + ", roles: [admin]}]}", nil, "management.clients[1].certificate_sha256"},
		"twin certificate names":         {"mode: development\ndevelopment: {key_file: k}\nmanagement: {clients: [{name: a, certificate_san: x.test, roles: [admin]}, {name: b, certificate_san: x.test, roles: [admin]}]}", nil, "management.clients[1].certificate_san"},
		"tokens of an unknown issuer":    {"mode: development\ndevelopment: {key_file: k}\nmanagement: {tokens: {issuers: [x], roles: [{value: a, role: admin}]}}", nil, "management.tokens.issuers[0]"},
		"tokens without roles":           {"mode: development\ndevelopment: {key_file: k}\nmanagement: {tokens: {issuers: [development]}}", nil, "management.tokens.roles"},
		"tokens of everybody":            {"tokens: {issuers: [{name: m, issuer: i, algorithms: [ES256], audiences: [api], keys: {pem_file: p}}]}\nmanagement: {tokens: {issuers: [m], audience: api, roles: [{value: a, role: admin}]}}", nil, "management.tokens.audience"},
		"a role that is none":            {"mode: development\ndevelopment: {key_file: k}\nmanagement: {tokens: {issuers: [development], roles: [{value: a, role: god}]}}", nil, "management.tokens.roles[0].role"},
		"TLS without a key":              {"mode: development\ndevelopment: {key_file: k}\nhttp: {tls: {cert_file: c}}", nil, "http.tls.cert_file"},
		"signals by http":                {"mode: development\ndevelopment: {key_file: k}\nsignals: {revocation_url: 'http://x'}", nil, "signals.revocation_url"},
		"a variable that is no key":      {"mode: development\ndevelopment: {key_file: k}", []string{"TOLLGATE_GRCP_LISTEN=x"}, "TOLLGATE_GRPC_LISTEN"},
		"a development key in the wrong": {"mode: development\ndevelopment: {key_file: k}\ntokens: {development: {key_file: k}}", nil, "tokens.development"},
		"flags that are not there":       {"mode: development\ndevelopment: {key_file: k}\nflags: {file: none.yaml}", nil, "flags.file"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "authz.yaml")
			if err := os.WriteFile(path, []byte(c.yaml), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := config.Load(path, c.env, defaults()); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}
