package main

import (
	"crypto/ecdsa"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/account"
	"github.com/tollgate-proxy/tollgate/internal/anomaly"
	"github.com/tollgate-proxy/tollgate/internal/app"
	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/config"
	"github.com/tollgate-proxy/tollgate/internal/session"
	"github.com/tollgate-proxy/tollgate/internal/tokentest"
)

// A signal from or about an issuer that is misspelt would end nothing.
func TestSignalsNameIssuers(t *testing.T) {
	const transmitter = "transmitters: [{name: w, issuer: 'https://w', audiences: [a], algorithms: [ES256], keys: {jwks_url: 'https://w/keys'}, issuers: ['%']}]"
	for signals, want := range map[string]string{
		strings.ReplaceAll(transmitter, "%", authn.DevelopmentIssuerURL):                                                "",
		strings.ReplaceAll(transmitter, "%", authn.DevelopmentIssuerURL+"/"):                                            "signals.transmitters[0].issuers[0]",
		strings.ReplaceAll(transmitter, "https://w'", authn.DevelopmentIssuerURL+"'"):                                   "signals.transmitters[0].issuer",
		"speaks_for: [{issuer: '" + authn.DevelopmentIssuerURL + "', issuers: [nobody]}]":                               "signals.speaks_for[0].issuers[0]",
		"speaks_for: [{issuer: nobody, issuers: ['" + authn.DevelopmentIssuerURL + "']}]":                               "signals.speaks_for[0].issuer",
		"speaks_for: [{issuer: '" + authn.DevelopmentIssuerURL + "', issuers: ['" + authn.DevelopmentIssuerURL + "']}]": "",
	} {
		path := filepath.Join(t.TempDir(), "authz.yaml")
		if err := os.WriteFile(path, []byte("mode: development\ndevelopment: {key_file: k}\nsignals: {"+signals+"}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := config.Load(path, nil, defaults())
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want a fault at %q", signals, err, want)
		}
	}
}

// Each issuer is verified by its own keys, and by no other's.
func TestStatements(t *testing.T) {
	const tokens, watcher = "https://tokens", "https://watcher"
	ours, theirs := tokentest.Key(t), tokentest.Key(t)
	sign := func(key *ecdsa.PrivateKey, issuer string) string {
		return tokentest.Sign(t, key, "secevent+jwt", map[string]any{"iss": issuer, "aud": "us", "jti": "1", "iat": time.Now().Unix()})
	}
	c := defaults()
	c.Tokens.Issuers = []authn.IssuerConfig{{Name: "t", Issuer: tokens, Algorithms: []string{"ES256"}, Audiences: []string{"api"}, Keys: authn.KeysConfig{PEMFile: tokentest.PublicKeyFile(t, ours)}}}
	verifier, err := authn.New(c.Tokens, authn.Options{})
	if err != nil {
		t.Fatal(err)
	}
	rt := &app.Runtime{Log: slog.New(slog.DiscardHandler)}
	if alone, err := newStatements(c, rt, verifier); alone != account.StatementVerifier(verifier) || err != nil {
		t.Errorf("without transmitters: %v, %v", alone, err)
	}
	c.Signals.Transmitters = []account.TransmitterConfig{{Name: "w", Issuer: watcher, Algorithms: []string{"ES256"}, Keys: authn.KeysConfig{PEMFile: tokentest.PublicKeyFile(t, theirs)}}}
	both, err := newStatements(c, rt, verifier)
	if err != nil {
		t.Fatal(err)
	}
	rules := authn.StatementRules{Types: []string{"secevent+jwt"}, Audiences: func(string) []string { return []string{"us"} }}
	for token, want := range map[string]error{
		sign(ours, tokens): nil, sign(theirs, watcher): nil,
		sign(theirs, tokens): authn.ErrSignature, sign(ours, watcher): authn.ErrSignature, sign(theirs, "https://nobody"): authn.ErrIssuer,
	} {
		if st, err := both.VerifyStatement(token, rules, time.Now()); !errors.Is(err, want) {
			t.Errorf("%+v, %v, want %v", st, err, want)
		}
	}
	c.Signals.Transmitters[0].Keys = authn.KeysConfig{PEMFile: "none"}
	if _, err := newStatements(c, rt, verifier); err == nil {
		t.Error("without keys")
	}
}

// Where a session is comes from the files that suspicion is judged by.
func TestSessionPlaces(t *testing.T) {
	c := anomaly.DefaultConfig().Places
	for _, name := range []string{"GeoLite2-ASN-Test", "GeoIP2-City-Test"} {
		c.Databases = append(c.Databases, config.Path("../../internal/anomaly/testdata/maxmind/"+name+".mmdb"))
	}
	places, err := anomaly.OpenPlaces(c, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for address, want := range map[string]session.Place{
		"81.2.69.142": {Country: "GB", City: "London"}, "89.160.20.112": {Country: "SE", City: "Linköping"},
		"2001:218::1": {Country: "JP"}, "127.0.0.1": {},
	} {
		if got := (sessionPlaces{places}).Place(netip.MustParseAddr(address)); got != want {
			t.Errorf("%s: %+v, want %+v", address, got, want)
		}
	}
}
