package authn

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"maps"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// structOf is what Envoy makes of a payload: a structure whose numbers are
// float64.
func structOf(t *testing.T, claims object) object {
	t.Helper()
	var out object
	if err := json.Unmarshal(must(json.Marshal(claims)), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func trusting(t *testing.T) *Verifier {
	t.Helper()
	ic := issuerConfig(t, "ES256")
	ic.Keys = KeysConfig{Envoy: true}
	local := issuerConfig(t, "EdDSA")
	local.Name, local.Issuer = "local", "https://local.test"
	return verifier(t, ic, local)
}

func TestAuthenticateForwarded(t *testing.T) {
	v := trusting(t)
	full := claims(object{"ver": 3, "x": []any{1, object{"y": 1.5}}, "roles": []string{"a"}})
	token := sign(t, "ES256", p256(), nil, full)
	forged := token[:strings.LastIndexByte(token, '.')] + "." + b64(strings.Repeat("x", 64))
	local := claims(object{"iss": "https://local.test"})
	for _, c := range []struct {
		name    string
		token   string
		payload object
		code    string
	}{
		{"token and payload", token, full, ""},
		// Envoy has vouched for header and payload, whatever the signature's bytes.
		{"signature not looked at", forged, full, ""},
		{"payload alone", "", full, ""},
		{"token alone", token, nil, CodeInvalid},
		{"nothing", "", nil, CodeMissing},
		{"another token", sign(t, "ES256", p256(), nil, claims(object{"sub": "mallory"})), full, CodeInvalid},
		{"another token with more", sign(t, "ES256", p256(), nil, claims(object{"roles": []string{"admin"}})), claims(), CodeInvalid},
		{"alg none", b64(`{"alg":"none"}`) + "." + strings.Split(token, ".")[1] + ".AA", full, CodeInvalid},
		{"no token", "x", full, CodeMalformed},
		{"long token", strings.Repeat("x", 9000), full, CodeMalformed},
		{"expired", "", claims(object{"iat": testNow.Unix() - 100, "exp": testNow.Unix() - 31}), CodeExpired},
		{"not for us", "", claims(object{"aud": "them"}), CodeInvalid},
		{"bound", "", claims(object{"cnf": object{"jkt": "x"}}), CodeInvalid},
		{"payload of an issuer with keys here", "", local, CodeMissing},
		{"payload of a stranger", "", claims(object{"iss": "https://stranger.test"}), CodeMissing},
		{"payload beside a token verified here", sign(t, "EdDSA", ed(), nil, local), claims(object{"iss": "https://stranger.test"}), ""},
		{"number too large", b64(`{"alg":"ES256"}`) + "." + b64(`{"iss":"i","exp":1e999}`) + ".AA", full, CodeInvalid},
	} {
		r := &Request{}
		if c.token != "" {
			r.Authorization = "Bearer " + c.token
		}
		if c.payload != nil {
			r.Payload = structOf(t, c.payload)
		}
		p, err := v.Authenticate(t.Context(), r, testNow)
		wantCode(t, c.name, p, err, c.code)
	}

	got, err := v.Authenticate(t.Context(), &Request{Authorization: "Bearer " + token, Payload: structOf(t, full)}, testNow)
	if err != nil {
		t.Fatal(err)
	}
	want, err := verifier(t, issuerConfig(t, "ES256")).Verify(token, testNow)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(Principal{}, "Claims")); diff != "" {
		t.Error(diff)
	}
	alone, err := v.Authenticate(t.Context(), &Request{Payload: structOf(t, full)}, testNow)
	if err != nil || alone.Subject != "alice" || alone.Version != 3 || alone.SigningInput == [32]byte{} || alone.SigningInput == got.SigningInput {
		t.Errorf("principal of a payload alone: %+v, %v", alone, err)
	}
}

func thumbprint(t *testing.T, key any) string {
	t.Helper()
	sum, err := (&jose.JSONWebKey{Key: publicOf(key)}).Thumbprint(crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	return base64.RawURLEncoding.EncodeToString(sum)
}

// prove makes a proof for a token; changes are made to the claims, headers to
// the header.
func prove(t *testing.T, alg string, key any, token string, headers, changes object) string {
	t.Helper()
	sum := sha256.Sum256([]byte(token))
	c := object{
		"jti": rand.Text(), "htm": "POST", "htu": "https://api.test/things", "iat": testNow.Unix(),
		"ath": base64.RawURLEncoding.EncodeToString(sum[:]),
	}
	for name, v := range changes {
		if c[name] = v; v == nil {
			delete(c, name)
		}
	}
	h := object{"typ": "dpop+jwt", "jwk": jose.JSONWebKey{Key: publicOf(key)}}
	maps.Copy(h, headers)
	return sign(t, alg, key, h, c)
}

func TestAuthenticateProof(t *testing.T) {
	v := verifier(t, issuerConfig(t, "ES256"))
	bound := func(cnf object) string { return sign(t, "ES256", p256(), nil, claims(object{"cnf": cnf})) }
	token := bound(object{"jkt": thumbprint(t, ed())})
	plain := sign(t, "ES256", p256(), nil, claims())
	request := func(token, proof string) *Request {
		return &Request{Authorization: "DPoP " + token, Proof: proof, Method: "POST", Scheme: "https", Host: "api.test", Path: "/things?a=b"}
	}
	good := func(headers, changes object) *Request {
		return request(token, prove(t, "EdDSA", ed(), token, headers, changes))
	}
	change := func(r *Request, f func(*Request)) *Request { f(r); return r }
	twice := good(nil, nil)
	es := bound(object{"jkt": thumbprint(t, p256())})
	rs := bound(object{"jkt": thumbprint(t, rsaKey())})
	const badProof = "the proof's fault"
	ask := func(name string, r *Request, code string) {
		t.Helper()
		want := Challenge{Algorithms: "ES256 EdDSA"}
		if strings.HasPrefix(r.Authorization, "DPoP ") {
			want.Scheme = DPoP
		} else if code == "" {
			want.Algorithms = "" // bound to no key
		}
		if code == badProof {
			code, want.BadProof = CodeInvalid, true
		}
		p, err := v.Authenticate(t.Context(), r, testNow)
		wantCode(t, name, p, err, code)
		if r.Challenge != want {
			t.Errorf("%s: challenge %+v, want %+v", name, r.Challenge, want)
		}
	}
	expired := sign(t, "ES256", p256(), nil, claims(object{"iat": testNow.Unix() - 100, "exp": testNow.Unix() - 31}))
	for _, c := range []struct {
		name string
		r    *Request
		code string
	}{
		{"good", twice, ""},
		{"the same again", twice, badProof},
		{"another", good(nil, nil), ""},
		{"ES256", request(es, prove(t, "ES256", p256(), es, nil, nil)), ""},
		{"algorithm not configured", request(rs, prove(t, "RS256", rsaKey(), rs, nil, nil)), badProof},
		{"as bearer", change(good(nil, nil), func(r *Request) { r.Authorization = "Bearer " + token }), CodeInvalid},
		{"unbound token with a proof", request(plain, prove(t, "EdDSA", ed(), plain, nil, nil)), CodeInvalid},
		{"unbound token as bearer, proof beside it", change(request(plain, "x"), func(r *Request) { r.Authorization = "Bearer " + plain }), ""},
		{"no proof", request(token, ""), badProof},
		{"two proofs", change(good(nil, nil), func(r *Request) { r.Proof += "," + r.Proof }), badProof},
		{"long proof", good(nil, object{"x": strings.Repeat("x", maxProof)}), badProof},
		{"no proof at all", request(token, "x.y"), badProof},
		{"somebody else's key", request(token, prove(t, "ES256", p256(), token, nil, nil)), CodeInvalid},
		{"key and signature differ", request(token, prove(t, "ES256", p256(), token, object{"jwk": jose.JSONWebKey{Key: ed().Public()}}, nil)), badProof},
		{"for another token", request(token, prove(t, "EdDSA", ed(), plain, nil, nil)), badProof},
		{"without ath", good(nil, object{"ath": nil}), badProof},
		{"without jti", good(nil, object{"jti": nil}), badProof},
		{"jti a number", good(nil, object{"jti": 1}), badProof},
		{"without iat", good(nil, object{"iat": nil}), badProof},
		{"old", good(nil, object{"iat": testNow.Unix() - 61}), badProof},
		{"of the future", good(nil, object{"iat": testNow.Unix() + 6}), badProof},
		{"just in time", good(nil, object{"iat": testNow.Unix() - 60}), ""},
		{"other method", good(nil, object{"htm": "GET"}), badProof},
		{"other host", good(nil, object{"htu": "https://evil.test/things"}), badProof},
		{"other path", good(nil, object{"htu": "https://api.test/other"}), badProof},
		{"other scheme", good(nil, object{"htu": "http://api.test/things"}), badProof},
		{"no scheme", good(nil, object{"htu": "/things"}), badProof},
		{"strange scheme", change(good(nil, object{"htu": "ftp://api.test/things"}), func(r *Request) { r.Scheme = "" }), badProof},
		{"user in address", good(nil, object{"htu": "https://x@api.test/things"}), badProof},
		{"address not one", good(nil, object{"htu": "https://%zz"}), badProof},
		{"address a number", good(nil, object{"htu": 1}), badProof},
		{"address in capitals with port and query", good(nil, object{"htu": "HTTPS://API.test:443/things?c=d"}), ""},
		{"scheme not known", change(good(nil, object{"htu": "http://api.test:80/things"}), func(r *Request) { r.Scheme = "" }), ""},
		{"root", change(good(nil, object{"htu": "https://api.test"}), func(r *Request) { r.Path = "/" }), ""},
		{"other type", good(object{"typ": "JWT"}, nil), badProof},
		{"crit", good(object{"crit": []string{"x"}, "x": 1}, nil), badProof},
		{"key private", good(object{"jwk": jose.JSONWebKey{Key: ed()}}, nil), badProof},
		{"key secret", good(object{"jwk": jose.JSONWebKey{Key: secret}}, nil), badProof},
		{"no key", good(object{"jwk": nil}, nil), badProof},
		{"expired token", request(expired, "x"), CodeExpired},
		{"no token", request("", "x"), CodeMalformed},
		{"two tokens", request(token+", "+token, "x"), CodeMalformed},
		{"key a text", good(object{"jwk": "x"}, nil), badProof},
	} {
		ask(c.name, c.r, c.code)
	}
	// A signature with another key's algorithm, and one that is broken.
	proof := prove(t, "EdDSA", ed(), token, nil, nil)
	c := must(parseCompact(proof))
	c.signature[0] ^= 1
	ask("broken signature", request(token, c.input+"."+b64(string(c.signature))), badProof)
	header := string(must(json.Marshal(object{"typ": "dpop+jwt", "alg": "ES256", "jwk": jose.JSONWebKey{Key: ed().Public()}})))
	ask("algorithm that the key is not for", request(token, signRaw(t, header, "{}")), badProof)
}

// A proof is refused a second time for as long as it is valid, and what is
// remembered is bounded.
func TestProofsAreRemembered(t *testing.T) {
	p := must(newProofs(ProofsConfig{MaxAge: time.Minute, Remember: 20}, nil))
	id := func(i int) (out [32]byte) { out[0], out[1] = byte(i), byte(i>>8); return out }
	for i := range 5 {
		if !p.first(id(i), testNow) || p.first(id(i), testNow.Add(65*time.Second)) {
			t.Fatalf("proof %d", i)
		}
	}
	later := testNow.Add(66 * time.Second)
	if !p.first(id(10), later) || p.first(id(1), later) {
		t.Error("the older generation is forgotten at once")
	}
	if later = later.Add(66 * time.Second); !p.first(id(1), later) {
		t.Error("a proof is remembered forever")
	}
	if n := testutil.ToFloat64(p.forgotten); n != 0 {
		t.Errorf("%v proofs that nobody could use are counted as forgotten", n)
	}
	before := len(p.young) + len(p.old)
	for i := range 1000 {
		p.first(id(100+i), later)
	}
	kept := len(p.young) + len(p.old)
	if n := testutil.ToFloat64(p.forgotten); kept > 20 || int(n) != before+1000-kept {
		t.Errorf("%d of %d proofs remembered, want 20 at most, and %v counted as forgotten", kept, before+1000, n)
	}
}

func TestAuthenticateCertificate(t *testing.T) {
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der := must(x509.CreateCertificate(rand.Reader, template, template, p256().Public(), p256()))
	sum := sha256.Sum256(der)
	text := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	other := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: append(der, 0)}))
	v := verifier(t, issuerConfig(t, "ES256"))
	x5t := base64.RawURLEncoding.EncodeToString(sum[:])
	token := sign(t, "ES256", p256(), nil, claims(object{"cnf": object{"x5t#S256": x5t}}))
	for _, c := range []struct{ name, scheme, certificate, code string }{
		{"plain", "Bearer", text, ""},
		{"URL-encoded", "Bearer", url.PathEscape(text), ""},
		{"none", "Bearer", "", CodeInvalid},
		{"another", "Bearer", other, CodeInvalid},
		{"nonsense", "Bearer", "x", CodeInvalid},
		{"a key", "Bearer", string(pemOf(t, p256().Public())), CodeInvalid},
		{"badly encoded", "Bearer", "-----BEGIN%20%zz", CodeInvalid},
		{"DPoP scheme", "DPoP", text, CodeInvalid},
	} {
		p, err := v.Authenticate(t.Context(), &Request{Authorization: c.scheme + " " + token, Certificate: c.certificate}, testNow)
		wantCode(t, c.name, p, err, c.code)
	}

	both := sign(t, "ES256", p256(), nil, claims(object{"cnf": object{"x5t#S256": x5t, "jkt": thumbprint(t, ed())}}))
	r := &Request{
		Authorization: "DPoP " + both, Proof: prove(t, "EdDSA", ed(), both, nil, nil), Method: "POST", Scheme: "https", Host: "api.test", Path: "/things",
	}
	p, err := v.Authenticate(t.Context(), r, testNow)
	wantCode(t, "proof without certificate", p, err, CodeInvalid)
	r.Certificate = text
	p, err = v.Authenticate(t.Context(), r, testNow)
	wantCode(t, "proof and certificate", p, err, "")
	r.Authorization = "Bearer " + both
	p, err = v.Authenticate(t.Context(), r, testNow)
	wantCode(t, "certificate without proof", p, err, CodeInvalid)
}

// FuzzProof: no text but a true proof is one.
func FuzzProof(f *testing.F) {
	v := verifier(f, issuerConfig(f, "ES256"))
	token := sign(f, "ES256", p256(), nil, claims(object{"cnf": object{"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}}))
	f.Add("a.b.c", "https://api.test/")
	f.Add(signRaw(f, `{"typ":"dpop+jwt","alg":"ES256","jwk":{"kty":"EC"}}`, `{}`), "https://api.test/%zz")
	f.Fuzz(func(t *testing.T, proof, htu string) {
		r := &Request{Authorization: "DPoP " + token, Proof: proof, Method: "GET", Host: "api.test", Path: "/"}
		if p, err := v.Authenticate(t.Context(), r, testNow); err == nil {
			t.Fatalf("accepted as %+v", p)
		}
		sameTarget(htu, r)
	})
}

func BenchmarkAuthenticate(b *testing.B) {
	v := verifier(b, issuerConfig(b, "ES256"))
	r := &Request{Authorization: "Bearer " + sign(b, "ES256", p256(), nil, claims())}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Authenticate(b.Context(), r, testNow); err != nil {
			b.Fatal(err)
		}
	}
}
