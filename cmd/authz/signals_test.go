package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/tollgate-proxy/tollgate/internal/account"
	"github.com/tollgate-proxy/tollgate/internal/anomaly"
	"github.com/tollgate-proxy/tollgate/internal/app"
	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/config"
	"github.com/tollgate-proxy/tollgate/internal/session"
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

// signer is an issuer with a key of its own.
type signer struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	file config.Path
}

func newSigner(t *testing.T) signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return signer{t, key, config.Path(file)}
}

func (s signer) statement(issuer string) string {
	s.t.Helper()
	by, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: s.key}, (&jose.SignerOptions{}).WithType("secevent+jwt"))
	if err != nil {
		s.t.Fatal(err)
	}
	jws, err := by.Sign(fmt.Appendf(nil, `{"iss":%q,"aud":"us","jti":"1","iat":%d}`, issuer, time.Now().Unix()))
	if err != nil {
		s.t.Fatal(err)
	}
	token, err := jws.CompactSerialize()
	if err != nil {
		s.t.Fatal(err)
	}
	return token
}

// Each issuer is verified by its own keys, and by no other's.
func TestStatements(t *testing.T) {
	const tokens, watcher = "https://tokens", "https://watcher"
	ours, theirs := newSigner(t), newSigner(t)
	c := defaults()
	c.Tokens.Issuers = []authn.IssuerConfig{{Name: "t", Issuer: tokens, Algorithms: []string{"ES256"}, Audiences: []string{"api"}, Keys: authn.KeysConfig{PEMFile: ours.file}}}
	verifier, err := authn.New(c.Tokens, authn.Options{})
	if err != nil {
		t.Fatal(err)
	}
	rt := &app.Runtime{Log: slog.New(slog.DiscardHandler)}
	if alone, err := newStatements(c, rt, verifier); alone != account.StatementVerifier(verifier) || err != nil {
		t.Errorf("without transmitters: %v, %v", alone, err)
	}
	c.Signals.Transmitters = []account.TransmitterConfig{{Name: "w", Issuer: watcher, Algorithms: []string{"ES256"}, Keys: authn.KeysConfig{PEMFile: theirs.file}}}
	both, err := newStatements(c, rt, verifier)
	if err != nil {
		t.Fatal(err)
	}
	rules := authn.StatementRules{Types: []string{"secevent+jwt"}, Audiences: func(string) []string { return []string{"us"} }}
	for token, want := range map[string]error{
		ours.statement(tokens): nil, theirs.statement(watcher): nil,
		theirs.statement(tokens): authn.ErrSignature, ours.statement(watcher): authn.ErrSignature, theirs.statement("https://nobody"): authn.ErrIssuer,
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
