package authn

import (
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"maps"
	"math/big"
	"strings"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"
)

func allowed(names ...string) []*algorithm {
	var out []*algorithm
	for _, n := range names {
		out = append(out, algorithms[n])
	}
	return out
}

// with adds members to a key.
func with(t *testing.T, k jose.JSONWebKey, more object) []byte {
	t.Helper()
	var m object
	if err := json.Unmarshal(must(k.MarshalJSON()), &m); err != nil {
		t.Fatal(err)
	}
	maps.Copy(m, more)
	return must(json.Marshal(m))
}

func TestParseJWK(t *testing.T) {
	ec := jose.JSONWebKey{Key: p256().Public(), KeyID: "1"}
	for _, c := range []struct {
		name string
		raw  []byte
		algs []string
		want string // part of the error; "" for a key
	}{
		{"plain", with(t, ec, nil), []string{"ES256"}, ""},
		{"for signatures", with(t, ec, object{"use": "sig", "key_ops": []string{"verify"}, "alg": "ES256"}), []string{"ES256"}, ""},
		{"for encryption", with(t, ec, object{"use": "enc"}), []string{"ES256"}, "use"},
		{"for signing alone", with(t, ec, object{"key_ops": []string{"sign"}}), []string{"ES256"}, "key_ops"},
		{"for deriving", with(t, ec, object{"key_ops": []string{"deriveKey"}}), []string{"ES256"}, "key_ops"},
		{"for another algorithm", with(t, ec, object{"alg": "ES384"}), []string{"ES256"}, "alg"},
		{"for an unknown algorithm", with(t, ec, object{"alg": "ECDH-ES"}), []string{"ES256"}, "alg"},
		{"on another curve", with(t, jose.JSONWebKey{Key: p384().Public()}, nil), []string{"ES256"}, "P-384"},
		{"of another kind", with(t, ec, nil), []string{"RS256"}, "P-256"},
		{"RSA for Ed25519", with(t, jose.JSONWebKey{Key: rsaKey().Public()}, nil), []string{"EdDSA"}, "RSA"},
		{"Ed25519 for RSA", with(t, jose.JSONWebKey{Key: ed().Public()}, nil), []string{"RS256"}, "Ed25519"},
		{"secret for RSA", with(t, jose.JSONWebKey{Key: secret}, nil), []string{"RS256"}, "secret"},
		{"RSA for HS", with(t, jose.JSONWebKey{Key: rsaKey().Public()}, nil), []string{"HS256"}, "RSA"},
		{"RSA too short", with(t, jose.JSONWebKey{Key: smallRSA().Public()}, nil), []string{"RS256"}, "too short"},
		{"secret too short", with(t, jose.JSONWebKey{Key: []byte("short")}, nil), []string{"HS256"}, "too short"},
		{"private", with(t, jose.JSONWebKey{Key: p256()}, nil), []string{"ES256"}, "private"},
		{"a kind nobody knows", []byte(`{"kty":"XYZ"}`), []string{"ES256"}, "not a JSON Web Key"},
		{"off the curve", []byte(`{"kty":"EC","crv":"P-256","x":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA","y":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}`), []string{"ES256"}, "not a JSON Web Key"},
		{"not an object", []byte(`1`), []string{"ES256"}, "not a JSON Web Key"},
	} {
		k, err := parseJWK(c.raw, allowed(c.algs...))
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: key %v, error %v, want %q", c.name, k, err, c.want)
		}
	}
}

// A set keeps what it can use, as RFC 7517 asks.
func TestParseJWKS(t *testing.T) {
	good := jose.JSONWebKey{Key: p256().Public(), KeyID: "good"}
	doc := must(json.Marshal(object{"keys": []json.RawMessage{
		[]byte(`{"kty":"XYZ"}`), with(t, jose.JSONWebKey{Key: rsaKey().Public()}, nil), with(t, good, nil), with(t, good, nil),
		with(t, good, object{"use": "enc", "kid": "enc"}),
	}}))
	keys, err := parseJWKS(doc, allowed("ES256"))
	if err != nil || len(keys) != 1 || keys[0].id != "good" {
		t.Fatalf("keys %v, error %v", keys, err)
	}
	for _, bad := range []string{``, `[]`, `{}`, `{"keys":{}}`, `{"keys":[1]}`, `{"keys":[` + strings.Repeat(`{},`, maxKeys) + `{}]}`} {
		if keys, err := parseJWKS([]byte(bad), allowed("ES256")); err == nil {
			t.Errorf("%.40s: keys %v", bad, keys)
		}
	}
}

func TestParsePEM(t *testing.T) {
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "x"}, NotAfter: time.Unix(1, 0)}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: must(x509.CreateCertificate(rand.Reader, template, template, rsaKey().Public(), rsaKey()))})
	pkcs1 := pem.EncodeToMemory(&pem.Block{Type: "RSA PUBLIC KEY", Bytes: x509.MarshalPKCS1PublicKey(&rsaKey().PublicKey)})
	private := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must(x509.MarshalPKCS8PrivateKey(rsaKey()))})
	public := pemOf(t, rsaKey().Public())
	nine := []byte(strings.Repeat(string(public), maxAttempts+1))
	for _, c := range []struct {
		name    string
		data    []byte
		private bool
		keys    int
		want    string
	}{
		{"public key", public, false, 1, ""},
		{"two, with text between", append(append([]byte{}, public...), pkcs1...), false, 2, ""},
		{"certificate past its validity", cert, false, 1, ""},
		{"private key", private, false, 0, "neither"},
		{"private key of development", private, true, 1, ""},
		{"bad private key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY"}), true, 0, "block 0"},
		{"bad certificate", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE"}), false, 0, "block 0"},
		{"other block", pem.EncodeToMemory(&pem.Block{Type: "X"}), false, 0, "neither"},
		{"text", []byte("hello"), false, 0, "PEM"},
		{"text at the end", append(append([]byte{}, public...), "hello"...), false, 0, "PEM"},
		{"nothing", nil, false, 0, "PEM"},
		{"of another kind", pemOf(t, p256().Public()), false, 0, "P-256"},
		{"many", nine, false, 0, "more than"},
	} {
		keys, err := parsePEM(c.data, allowed("RS256", "PS256"), c.private)
		if len(keys) != c.keys || (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %d keys, error %v, want %d and %q", c.name, len(keys), err, c.keys, c.want)
		}
	}
}

func TestKeySetReplace(t *testing.T) {
	parse := func(keys ...jose.JSONWebKey) []*key {
		t.Helper()
		return must(parseJWKS(jwksOf(keys...), allowed("ES256", "RS256")))
	}
	a := jose.JSONWebKey{Key: p256().Public(), KeyID: "a"}
	b := jose.JSONWebKey{Key: rsaKey().Public(), KeyID: "b"}
	renamed := jose.JSONWebKey{Key: p256().Public(), KeyID: "c"}
	first := &keySet{keys: parse(a, b)}
	if again := first.replace(parse(b, a)); again != first {
		t.Error("the same keys make another set")
	}
	next := first.replace(parse(b, renamed))
	first.retire(next)
	if next == first || next.keys[0] != first.keys[1] || next.keys[0].retired.Load() || !first.keys[0].retired.Load() {
		t.Errorf("set after a change: %+v", next)
	}
}

func TestCandidates(t *testing.T) {
	set := &keySet{keys: must(parseJWKS(jwksOf(
		jose.JSONWebKey{Key: p256().Public(), KeyID: "a"},
		jose.JSONWebKey{Key: rsaKey().Public(), KeyID: "a"},
		jose.JSONWebKey{Key: otherRSA().Public(), KeyID: "b", Algorithm: "PS256"},
	), allowed("ES256", "RS256", "PS256")))}
	for _, c := range []struct {
		kid, alg string
		n        int
		known    bool
	}{
		{"a", "ES256", 1, true}, {"a", "RS256", 1, true}, {"b", "RS256", 0, true}, {"b", "PS256", 1, true},
		{"", "PS256", 2, true}, {"", "RS256", 1, true}, {"c", "RS256", 0, false},
	} {
		found, known := set.candidates(c.kid, algorithms[c.alg])
		if len(found) != c.n || known != c.known {
			t.Errorf("kid %q, %s: %d keys, known %t, want %d, %t", c.kid, c.alg, len(found), known, c.n, c.known)
		}
	}
}

func TestFitsStrangers(t *testing.T) {
	a := algorithms["ES256"]
	if a.fits("text") == nil || a.verify("text", nil, nil) {
		t.Error("a text is a key")
	}
	if _, err := newKey("", must(elliptic.P256(), nil), allowed("ES256")); err == nil {
		t.Error("a curve is a key")
	}
}
