package main

import (
	"log/slog"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/app"
	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/config"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
	"github.com/tollgate-proxy/tollgate/internal/revocation"
)

// Tokens with an audience of their own, and the roles that the configuration
// gives a meaning, manage; users' tokens never do.
func TestTokenCallers(t *testing.T) {
	c := defaults()
	c.Mode, c.Development.KeyFile = development, config.Path(filepath.Join(t.TempDir(), "key.pem"))
	c.Management.Tokens.Issuers = []string{development}
	c.Management.Tokens.Roles = []RoleConfig{{Value: "gateway-operators", Role: "operator"}, {Value: "logins", Role: "service"}}
	rt := &app.Runtime{Log: slog.New(slog.DiscardHandler)}
	store, err := revocation.NewStore(redistest.Client(t, redistest.Embedded(t)), nil, revocation.Options{})
	if err != nil {
		t.Fatal(err)
	}
	callers, err := newTokenCallers(c, rt, store)
	if err != nil {
		t.Fatal(err)
	}
	mint := func(o authn.MintOptions) string {
		o.User, o.TokenID = "ada", o.TokenID+"x"
		token, err := authn.Mint(string(c.Development.KeyFile), o)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	const audience = "tollgate-management"
	good := authn.MintOptions{Audience: audience, Roles: []string{"gateway-operators", "admin"}, Tier: "operations"}
	if got, ok := callers.Caller(t.Context(), mint(good)); !ok || got.Name != "ada at "+authn.DevelopmentIssuerURL || !slices.Equal(got.Roles, []string{"operator"}) {
		t.Errorf("%+v %v", got, ok)
	}
	if got, ok := callers.Caller(t.Context(), mint(authn.MintOptions{Audience: audience, Roles: []string{"admin", "operator"}})); !ok || len(got.Roles) > 0 {
		t.Errorf("roles that mean nothing here: %+v %v", got, ok)
	}
	for name, o := range map[string]authn.MintOptions{
		"a user's": {Roles: good.Roles},
		"expired":  {Audience: audience, Roles: good.Roles, TTL: -time.Hour},
	} {
		if got, ok := callers.Caller(t.Context(), mint(o)); ok {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if _, err := store.Revoke(t.Context(), revocation.Revocation{Kind: revocation.KindUser, ID: "ada"}); err != nil {
		t.Fatal(err)
	}
	if got, ok := callers.Caller(t.Context(), mint(authn.MintOptions{Audience: audience, Roles: good.Roles, Now: time.Now().Add(-time.Minute)})); ok {
		t.Errorf("a revoked one: %+v", got)
	}
	c.Management.Tokens.Issuers = nil
	if callers, err := newTokenCallers(c, rt, store); callers != nil || err != nil {
		t.Errorf("without issuers: %v, %v", callers, err)
	}
}
