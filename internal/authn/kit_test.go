package authn

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/tollgate-proxy/tollgate/internal/config"
)

// testNow is when the tests take place.
var testNow = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

const testIssuer = "https://issuer.test"

var (
	rsaKey   = sync.OnceValue(func() *rsa.PrivateKey { return must(rsa.GenerateKey(rand.Reader, 2048)) })
	otherRSA = sync.OnceValue(func() *rsa.PrivateKey { return must(rsa.GenerateKey(rand.Reader, 2048)) })
	smallRSA = sync.OnceValue(func() *rsa.PrivateKey { return must(rsa.GenerateKey(rand.Reader, 1024)) })
	p256     = sync.OnceValue(func() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) })
	p384     = sync.OnceValue(func() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)) })
	p521     = sync.OnceValue(func() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader)) })
	ed       = sync.OnceValue(func() ed25519.PrivateKey { return ed25519.NewKeyFromSeed(make([]byte, 32)) })
	secret   = []byte("a shared secret of at least sixty-four bytes, which HS512 asks for....")
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// signingKey is a key that fits the algorithm.
func signingKey(alg string) any {
	switch a := algorithms[alg]; a.family {
	case familyHMAC:
		return secret
	case familyRSA, familyPSS:
		return rsaKey()
	case familyEdDSA:
		return ed()
	default:
		switch a.curve {
		case "P-384":
			return p384()
		case "P-521":
			return p521()
		}
		return p256()
	}
}

func publicOf(key any) any {
	if s, ok := key.(crypto.Signer); ok {
		return s.Public()
	}
	return key
}

type object = map[string]any

// claims of a token that verifies, changed by each; a nil value takes a claim
// away.
func claims(changes ...object) object {
	c := object{
		"iss": testIssuer, "sub": "alice", "aud": "us", "jti": "t1", "sid": "s1", "tier": "premium",
		"iat": testNow.Unix(), "exp": testNow.Add(time.Hour).Unix(),
	}
	for _, change := range changes {
		maps.Copy(c, change)
	}
	for name, v := range c {
		if v == nil {
			delete(c, name)
		}
	}
	return c
}

// sign makes a token with go-jose, which is the oracle for signatures.
func sign(t testing.TB, alg string, key any, header, claims object) string {
	t.Helper()
	o := &jose.SignerOptions{ExtraHeaders: map[jose.HeaderKey]any{}}
	for name, v := range header {
		o.ExtraHeaders[jose.HeaderKey(name)] = v
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.SignatureAlgorithm(alg), Key: key}, o)
	if err != nil {
		t.Fatal(err)
	}
	jws, err := s.Sign(must(json.Marshal(claims)))
	if err != nil {
		t.Fatal(err)
	}
	return must(jws.CompactSerialize())
}

// signRaw signs the texts of a header and a payload with ES256, whatever they
// say.
func signRaw(t testing.TB, header, payload string) string {
	t.Helper()
	input := b64(header) + "." + b64(payload)
	r, s, err := ecdsa.Sign(rand.Reader, p256(), algorithms["ES256"].digest([]byte(input)))
	if err != nil {
		t.Fatal(err)
	}
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return input + "." + b64(string(sig))
}

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

func writeFile(t testing.TB, data []byte) config.Path {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return config.Path(name)
}

func pemOf(t testing.TB, keys ...any) []byte {
	t.Helper()
	var out []byte
	for _, k := range keys {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: must(x509.MarshalPKIXPublicKey(k))})...)
	}
	return out
}

func jwksOf(keys ...jose.JSONWebKey) []byte {
	return must(json.Marshal(jose.JSONWebKeySet{Keys: keys}))
}

// issuerConfig is an issuer with one algorithm, whose key is in a file.
func issuerConfig(t testing.TB, algs ...string) IssuerConfig {
	t.Helper()
	ic := IssuerConfig{Name: "test", Issuer: testIssuer, Algorithms: algs, Audiences: []string{"us", "also-us"}}
	if algorithms[algs[0]].family == familyHMAC {
		ic.Keys.SecretFile = writeFile(t, append(append([]byte{}, secret...), '\n'))
		return ic
	}
	seen := map[any]bool{}
	var keys []any
	for _, a := range algs {
		if k := publicOf(signingKey(a)); algorithms[a].family == familyEdDSA || !seen[k] {
			keys = append(keys, k)
			if algorithms[a].family != familyEdDSA {
				seen[k] = true
			}
		}
	}
	ic.Keys.PEMFile = writeFile(t, pemOf(t, keys...))
	return ic
}

func verifier(t testing.TB, ics ...IssuerConfig) *Verifier {
	t.Helper()
	cfg := Default()
	cfg.Issuers = ics
	v, err := New(cfg, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// wantCode checks an outcome: "" for a principal.
func wantCode(t testing.TB, what string, p *Principal, err error, code string) {
	t.Helper()
	if code == "" {
		if err != nil || p == nil {
			t.Errorf("%s: %v, want it accepted", what, err)
		}
		return
	}
	var e *Error
	if !errors.As(err, &e) || e.Code != code || e.Public == "" || p != nil {
		t.Errorf("%s: error %v, want %s", what, err, code)
	}
}

// pass lets time go by inside a bubble of synctest, where it takes none.
func pass(d time.Duration) { <-time.After(d) }
