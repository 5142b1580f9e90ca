package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/account"
	"github.com/tollgate-proxy/tollgate/internal/app"
	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/config"
	"github.com/tollgate-proxy/tollgate/internal/credential"
	"github.com/tollgate-proxy/tollgate/internal/gate"
	"github.com/tollgate-proxy/tollgate/internal/revocation"
)

// HTTPConfig is the section "http".
type HTTPConfig struct {
	Listen string        `yaml:"listen" doc:"host:port, or unix:///path of a socket."`
	TLS    app.TLSConfig `yaml:"tls" doc:"TLS, and with it client certificates; without a certificate plain HTTP is served."`
}

// Validate checks the section.
func (c HTTPConfig) Validate(r *config.Report) { ListenConfig{c.Listen}.Validate(r) }

// ManagementConfig is the section "management".
type ManagementConfig struct {
	Clients []credential.Client    `yaml:"clients" reload:"true" doc:"Callers of the HTTP API with a secret or a certificate; without these and tokens the API refuses everybody but users."`
	Tokens  ManagementTokensConfig `yaml:"tokens" doc:"Callers of the HTTP API with a token of an issuer."`
	Audit   account.TrailConfig    `yaml:"audit" doc:"The trail of management actions that GET /v1/audit reads; the log has it too."`
}

// Validate checks the section.
func (c ManagementConfig) Validate(r *config.Report) {
	type known struct{ key, value string }
	seen := map[known]bool{}
	for i, client := range c.Clients {
		for _, k := range []known{
			{"name", client.Name}, {"secret_sha256", strings.ToLower(client.SecretSHA256)},
			{"certificate_sha256", strings.ToLower(client.CertificateSHA256)}, {"certificate_san", client.CertificateSAN},
		} {
			if k.value != "" && seen[k] {
				var value any = k.value
				if k.key == "secret_sha256" {
					value = config.NewSecret(k.value)
				}
				r.Fault(fmt.Sprintf("clients[%d].%s", i, k.key), value, "one that no other client has")
			}
			seen[k] = true
		}
	}
}

// ManagementTokensConfig is the section "management.tokens".
type ManagementTokensConfig struct {
	Issuers    []string     `yaml:"issuers" doc:"Names of the issuers, of those under tokens, whose tokens may manage; empty refuses all tokens."`
	Audience   string       `yaml:"audience" doc:"Value of aud that such a token must have, and that no user's token may have."`
	RolesClaim string       `yaml:"roles_claim" doc:"Claim with the roles, a name or a JSON pointer; the issuer's own where empty."`
	Roles      []RoleConfig `yaml:"roles" doc:"What the roles of the claim mean here; others mean nothing."`
}

// RoleConfig maps one role of a token.
type RoleConfig struct {
	Value string `yaml:"value" doc:"Role in the token."`
	Role  string `yaml:"role" doc:"Role here: admin, operator or service."`
}

// Validate checks the element.
func (c RoleConfig) Validate(r *config.Report) {
	if c.Value == "" {
		r.Fault("value", c.Value, "a role in the token")
	}
	if !slices.Contains([]string{credential.Admin, credential.Operator, credential.Service}, c.Role) {
		r.Fault("role", c.Role, "admin, operator or service")
	}
}

// check checks what concerns the issuers.
func (c ManagementTokensConfig) check(r *config.Report, issuers []authn.IssuerConfig, dev bool) {
	if len(c.Issuers) == 0 {
		return
	}
	if c.Audience == "" {
		r.Fault("management.tokens.audience", c.Audience, "a value of aud")
	}
	if len(c.Roles) == 0 {
		r.Fault("management.tokens.roles", nil, "at least one role")
	}
	for i, name := range c.Issuers {
		at := slices.IndexFunc(issuers, func(ic authn.IssuerConfig) bool { return ic.Name == name })
		key := fmt.Sprintf("management.tokens.issuers[%d]", i)
		switch {
		case at < 0 && (!dev || name != development):
			r.Fault(key, name, "the name of one of tokens.issuers")
		case at >= 0 && slices.Contains(issuers[at].Audiences, c.Audience):
			r.Fault("management.tokens.audience", c.Audience, "an audience that the tokens of users of "+name+" do not have")
		case at >= 0 && issuers[at].Keys.Envoy:
			r.Fault(key, name, "an issuer whose keys are here and not with Envoy")
		}
	}
}

// newTokenCallers makes what recognises callers by tokens; nil where none are.
func newTokenCallers(c Config, rt *app.Runtime, checker account.TokenChecker) (credential.Tokens, error) {
	m := c.Management.Tokens
	if len(m.Issuers) == 0 {
		return nil, nil
	}
	tokens := c.Tokens
	tokens.Introspection = authn.IntrospectionConfig{}
	tokens.Proofs = authn.ProofsConfig{} // a bound token is refused here
	tokens.Issuers = nil
	known := slices.Clone(c.Tokens.Issuers)
	if c.Mode == development {
		dev, err := authn.DevelopmentIssuer(string(c.Development.KeyFile))
		if err != nil {
			return nil, err
		}
		known = append(known, dev)
	}
	for _, ic := range known {
		if !slices.Contains(m.Issuers, ic.Name) {
			continue
		}
		ic.Audiences = []string{m.Audience}
		ic.Tiers.Unknown = "free" // an operator has no tier
		if m.RolesClaim != "" {
			ic.Claims.Roles = m.RolesClaim
		}
		tokens.Issuers = append(tokens.Issuers, ic)
	}
	verifier, err := authn.New(tokens, authn.Options{Development: c.Mode == development, Log: rt.Log, Now: time.Now})
	if err != nil {
		return nil, fmt.Errorf("management.tokens: %w", err)
	}
	rt.Background("management token keys", verifier.Run)
	rt.OnReload("management token keys", verifier.PrepareReload)
	return &tokenCallers{verifier: verifier, checker: checker, roles: m.Roles, now: time.Now}, nil
}

// tokenCallers recognises callers by tokens with an audience of their own.
type tokenCallers struct {
	verifier *authn.Verifier
	checker  account.TokenChecker
	roles    []RoleConfig
	now      func() time.Time
}

// Caller implements credential.Tokens. A token whose revocation cannot be found
// out about is refused.
func (t *tokenCallers) Caller(ctx context.Context, token string) (credential.Caller, bool) {
	p, err := t.verifier.Verify(token, t.now())
	if err != nil {
		return credential.Caller{}, false
	}
	known := gate.RevocationToken(p)
	var verdict revocation.Verdict
	if verdict, err = t.checker.Check(ctx, &known); err != nil || verdict.Revoked {
		return credential.Caller{}, false
	}
	caller := credential.Caller{Name: p.Subject + " at " + p.Issuer}
	for _, r := range t.roles {
		if slices.Contains(p.Roles, r.Value) {
			caller.Roles = append(caller.Roles, r.Role)
		}
	}
	return caller, true
}
