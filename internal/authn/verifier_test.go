package authn

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"math/big"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"pgregory.net/rapid"

	"github.com/tollgate-proxy/tollgate/internal/config"
)

func TestVerifyPrincipal(t *testing.T) {
	v := verifier(t, issuerConfig(t, "ES256"))
	token := sign(t, "ES256", p256(), object{"typ": "JWT"}, claims(object{
		"roles": []string{"b", "a", "b"}, "scope": "write read", "consents": []string{"ads"}, "ver": 7,
		"device_id": "phone", "azp": "web", "nbf": testNow.Unix() - 1, "aud": []string{"other", "also-us"},
	}))
	got, err := v.Verify(token, testNow)
	if err != nil {
		t.Fatal(err)
	}
	want := &Principal{
		Subject: "alice", Issuer: testIssuer, Session: "s1", TokenID: "t1", Tier: "premium", Device: "phone", ClientID: "web",
		Roles: []string{"a", "b"}, Scopes: []string{"read", "write"}, Consents: []string{"ads"}, RolesHeader: "a,b", ConsentHeader: "ads",
		IssuedAt: testNow, NotBefore: testNow.Add(-time.Second), ExpiresAt: testNow.Add(time.Hour), Version: 7,
		SigningInput: sha256.Sum256([]byte(token[:strings.LastIndexByte(token, '.')])),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	again, err := v.Verify(strings.Clone(token), testNow)
	if err != nil || again != got {
		t.Errorf("second time %p, %v, want the same principal %p", again, err, got)
	}
}

// Every algorithm verifies what go-jose signs, and refuses any other bytes and
// any other algorithm's token.
func TestVerifyAlgorithms(t *testing.T) {
	for name, a := range algorithms {
		t.Run(name, func(t *testing.T) {
			v := verifier(t, issuerConfig(t, name))
			token := sign(t, name, signingKey(name), nil, claims())
			p, err := v.Verify(token, testNow)
			wantCode(t, "good token", p, err, "")
			c, perr := parseCompact(token)
			if perr != nil {
				t.Fatal(perr)
			}
			for i := range c.signature {
				bad := bytes.Clone(c.signature)
				bad[i] ^= 1
				p, err = v.Verify(c.input+"."+b64(string(bad)), testNow)
				wantCode(t, "flipped bit", p, err, CodeInvalid)
			}
			p, err = v.Verify(c.input+"."+b64(string(c.signature[1:])), testNow)
			wantCode(t, "short signature", p, err, CodeInvalid)
			for other, o := range algorithms {
				if other == name {
					continue
				}
				key := signingKey(other)
				if o.family == a.family {
					key = signingKey(name)
				}
				if o.family == familyECDSA {
					key = signingKey(other)
				}
				p, err = v.Verify(sign(t, other, key, nil, claims()), testNow)
				wantCode(t, "token of "+other, p, err, CodeInvalid)
			}
		})
	}
}

func TestVerifySeveralAlgorithmsAndKeys(t *testing.T) {
	v := verifier(t, issuerConfig(t, "RS256", "PS256", "ES256", "EdDSA"))
	for _, alg := range []string{"RS256", "PS256", "ES256", "EdDSA"} {
		p, err := v.Verify(sign(t, alg, signingKey(alg), object{"kid": "whatever"}, claims()), testNow)
		wantCode(t, alg, p, err, "")
	}
	p, err := v.Verify(sign(t, "RS256", otherRSA(), nil, claims()), testNow)
	wantCode(t, "somebody else's key", p, err, CodeInvalid)
}

func TestVerifyHeader(t *testing.T) {
	v := verifier(t, issuerConfig(t, "ES256"))
	payload := string(must(json.Marshal(claims())))
	at := string(must(json.Marshal(claims(object{"client_id": "web"}))))
	public := string(must(json.Marshal(jose.JSONWebKey{Key: p256().Public()})))
	for _, c := range []struct{ header, payload, code string }{
		{`{"alg":"ES256"}`, payload, ""},
		{`{"alg":"ES256","typ":"JWT"}`, payload, ""},
		{`{"alg":"ES256","typ":"application/jwt"}`, payload, ""},
		{`{"alg":"ES256","typ":"at+jwt"}`, at, ""},
		{`{"alg":"ES256","typ":"application/at+JWT"}`, at, ""},
		{`{"alg":"ES256","x5t":"abc","kid":"1"}`, payload, ""},
		// A type that is not an access token's.
		{`{"alg":"ES256","typ":"dpop+jwt"}`, payload, CodeInvalid},
		{`{"alg":"ES256","typ":"logout+jwt"}`, payload, CodeInvalid},
		{`{"alg":"ES256","typ":"application/x/jwt"}`, payload, CodeInvalid},
		{`{"alg":"ES256","typ":"absent"}`, payload, CodeInvalid},
		{`{"alg":"ES256","typ":7}`, payload, CodeInvalid},
		// RFC 9068 wants a client.
		{`{"alg":"ES256","typ":"at+jwt"}`, payload, CodeInvalid},
		// The algorithm is not the token's choice.
		{`{}`, payload, CodeInvalid},
		{`{"alg":"none"}`, payload, CodeInvalid},
		{`{"alg":"None"}`, payload, CodeInvalid},
		{`{"alg":"es256"}`, payload, CodeInvalid},
		{`{"alg":"ES384"}`, payload, CodeInvalid},
		{`{"alg":["ES256"]}`, payload, CodeInvalid},
		{`{"alg":"HS256"}`, payload, CodeInvalid},
		// Keys come from the configuration alone, and nothing changes how to read.
		{`{"alg":"ES256","jwk":` + public + `}`, payload, CodeInvalid},
		{`{"alg":"ES256","jku":"https://evil.test/jwks"}`, payload, CodeInvalid},
		{`{"alg":"ES256","x5u":"https://evil.test/cert"}`, payload, CodeInvalid},
		{`{"alg":"ES256","x5c":["AAAA"]}`, payload, CodeInvalid},
		{`{"alg":"ES256","crit":["exp"],"exp":1}`, payload, CodeInvalid},
		{`{"alg":"ES256","crit":[]}`, payload, CodeInvalid},
		{`{"alg":"ES256","b64":false}`, payload, CodeInvalid},
		{`{"alg":"ES256","zip":"DEF"}`, payload, CodeInvalid},
		{`{"alg":"ES256","enc":"A256GCM"}`, payload, CodeInvalid},
		{`{"alg":"ES256","kid":1}`, payload, CodeInvalid},
		{`{"alg":"ES256","kid":"` + strings.Repeat("k", 300) + `"}`, payload, CodeInvalid},
		// What is not one JSON object, said once.
		{`{"alg":"none","alg":"ES256"}`, payload, CodeMalformed},
		{`{"alg":"ES256","\u0061lg":"ES256"}`, payload, CodeMalformed},
		{`["alg"]`, payload, CodeMalformed},
		{`null`, payload, CodeMalformed},
		{`{"alg":"ES256"`, payload, CodeMalformed},
		{`{"alg":"ES256"} {}`, payload, CodeMalformed},
		{"{\"alg\":\"ES256\",\"x\":\"\xff\"}", payload, CodeMalformed},
		{`{"alg":"ES256"}`, `{"sub":"a","sub":"b"}`, CodeMalformed},
		{`{"alg":"ES256"}`, `{"x":{"y":1,"y":2}}`, CodeMalformed},
		{`{"alg":"ES256"}`, `{"x":[{"y":1,"y":2}]}`, CodeMalformed},
		{`{"alg":"ES256"}`, `"text"`, CodeMalformed},
		{`{"alg":"ES256"}`, `{"x":` + strings.Repeat("[", 3000) + strings.Repeat("]", 3000) + `}`, CodeInvalid},
	} {
		p, err := v.Verify(signRaw(t, c.header, c.payload), testNow)
		wantCode(t, c.header+" "+c.payload[:min(60, len(c.payload))], p, err, c.code)
	}
}

// A key set's public key, used as an HMAC secret, signs nothing for us.
func TestVerifyAlgorithmConfusion(t *testing.T) {
	v := verifier(t, issuerConfig(t, "RS256"))
	for _, text := range [][]byte{pemOf(t, rsaKey().Public()), bytes.TrimSpace(pemOf(t, rsaKey().Public())), rsaKey().N.Bytes()} {
		p, err := v.Verify(sign(t, "HS256", text, nil, claims()), testNow)
		wantCode(t, "HS256 with the public key", p, err, CodeInvalid)
	}
	cfg := Default()
	ic := issuerConfig(t, "RS256")
	ic.Algorithms = []string{"RS256", "HS256"}
	cfg.Issuers = []IssuerConfig{ic}
	if _, err := New(cfg, Options{}); err == nil {
		t.Error("an issuer with RS256 and HS256 is accepted")
	}
}

// PS256 has one salt length; RSA's own verifier would take any.
func TestVerifyPSSSaltLength(t *testing.T) {
	v := verifier(t, issuerConfig(t, "PS256"))
	input := b64(`{"alg":"PS256"}`) + "." + b64(string(must(json.Marshal(claims()))))
	for _, salt := range []int{0, 20, 32, 64} {
		a := algorithms["PS256"]
		sig := must(rsa.SignPSS(rand.Reader, rsaKey(), a.hash, a.digest([]byte(input)), &rsa.PSSOptions{SaltLength: salt}))
		code := CodeInvalid
		if salt == 32 {
			code = ""
		}
		p, err := v.Verify(input+"."+b64(string(sig)), testNow)
		wantCode(t, "salt", p, err, code)
	}
}

// A token has one spelling. Another one would pass a list of revoked tokens,
// except the twin of an ECDSA signature, which has the same signing input.
func TestVerifyOneSpelling(t *testing.T) {
	v := verifier(t, issuerConfig(t, "ES256"))
	token := sign(t, "ES256", p256(), nil, claims())
	first, err := v.Verify(token, testNow)
	wantCode(t, "token", first, err, "")
	parts := strings.Split(token, ".")
	sig := parts[2]
	for what, spelling := range map[string]string{
		"padding":             token + "==",
		"line break":          token[:len(token)-4] + "\r\n" + token[len(token)-4:],
		"line break at end":   token + "\n",
		"trailing bits":       token[:len(token)-1] + string(nextBit(token[len(token)-1])),
		"standard alphabet":   parts[0] + "." + parts[1] + "." + strings.NewReplacer("-", "+", "_", "/").Replace(sig) + "+",
		"space":               parts[0] + "." + parts[1] + ". " + sig,
		"line break in front": "\n" + token,
		"in the header":       parts[0][:4] + "\n" + parts[0][4:] + "." + parts[1] + "." + sig,
		"in the payload":      parts[0] + "." + parts[1][:4] + "\r" + parts[1][4:] + "." + sig,
		"fourth part":         token + ".x",
		"two parts":           parts[0] + "." + parts[1],
		"no signature":        parts[0] + "." + parts[1] + ".",
		"no header":           "." + parts[1] + "." + sig,
		"no payload":          parts[0] + ".." + sig,
		"dots":                "..",
		"no dots":             "opaque",
		"NUL":                 token + "\x00",
	} {
		p, err := v.Verify(spelling, testNow)
		wantCode(t, what, p, err, CodeMalformed)
	}
	p, err := v.Verify("", testNow)
	wantCode(t, "empty", p, err, CodeMissing)

	c := must(parseCompact(token))
	s := new(big.Int).SetBytes(c.signature[32:])
	s.Sub(p256().Params().N, s).FillBytes(c.signature[32:])
	twin, err := v.Verify(c.input+"."+b64(string(c.signature)), testNow)
	wantCode(t, "twin", twin, err, "")
	if twin.SigningInput != first.SigningInput {
		t.Error("the twin of a signature has another signing input")
	}
}

func nextBit(c byte) byte {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return alphabet[strings.IndexByte(alphabet, c)^1]
}

func TestVerifySize(t *testing.T) {
	v := verifier(t, issuerConfig(t, "ES256"))
	long := sign(t, "ES256", p256(), nil, claims(object{"x": strings.Repeat("x", 8000)}))
	p, err := v.Verify(long, testNow)
	wantCode(t, "long", p, err, CodeMalformed)
	p, err = v.Verify(strings.Repeat("a", 100<<10), testNow)
	wantCode(t, "100 KiB", p, err, CodeMalformed)
	p, err = v.Verify(sign(t, "ES256", p256(), nil, claims(object{"x": strings.Repeat("x", 5000)})), testNow)
	wantCode(t, "under the bound", p, err, "")
}

func TestVerifyClaims(t *testing.T) {
	v := verifier(t, issuerConfig(t, "EdDSA"))
	unix := testNow.Unix()
	many := func(n int, text string) []string { return slices.Repeat([]string{text}, n) }
	for _, c := range []struct {
		name   string
		change object
		code   string
	}{
		{"issuer", object{"iss": "https://other.test"}, CodeInvalid},
		{"issuer with a slash", object{"iss": testIssuer + "/"}, CodeInvalid},
		{"no issuer", object{"iss": nil}, CodeInvalid},
		{"issuer not a text", object{"iss": []string{testIssuer}}, CodeInvalid},
		{"audience", object{"aud": "them"}, CodeInvalid},
		{"no audience", object{"aud": nil}, CodeInvalid},
		{"empty audience", object{"aud": []string{}}, CodeInvalid},
		{"audience not texts", object{"aud": []any{"us", 1}}, CodeInvalid},
		{"audience a number", object{"aud": 1}, CodeInvalid},
		{"no subject", object{"sub": nil}, CodeInvalid},
		{"empty subject", object{"sub": ""}, CodeInvalid},
		{"subject a number", object{"sub": 42}, CodeInvalid},
		{"subject with CR LF", object{"sub": "a\r\nx-user-tier: admin"}, CodeInvalid},
		{"subject with NUL", object{"sub": "a\x00"}, CodeInvalid},
		{"subject with DEL", object{"sub": "a\x7f"}, CodeInvalid},
		{"subject not ASCII", object{"sub": "älice"}, CodeInvalid},
		{"subject with a space at the end", object{"sub": "alice "}, CodeInvalid},
		{"subject with a space in front", object{"sub": " alice"}, CodeInvalid},
		{"subject with a space within", object{"sub": "alice b"}, ""},
		{"subject too long", object{"sub": strings.Repeat("a", 257)}, CodeInvalid},
		{"subject just long enough", object{"sub": strings.Repeat("a", 256)}, ""},
		{"session with LF", object{"sid": "a\n"}, CodeInvalid},
		{"session not a text", object{"sid": true}, CodeInvalid},
		{"jti with LF", object{"jti": "a\nb"}, CodeInvalid},
		{"device with LF", object{"device_id": "a\nb"}, CodeInvalid},
		{"client with LF", object{"client_id": "a\nb"}, CodeInvalid},
		{"tier unknown", object{"tier": "gold"}, CodeInvalid},
		{"tier anonymous", object{"tier": "anonymous"}, CodeInvalid},
		{"tier in capitals", object{"tier": "Premium"}, CodeInvalid},
		{"tier with LF", object{"tier": "free\n"}, CodeInvalid},
		{"role with a comma", object{"roles": []string{"a,admin"}}, CodeInvalid},
		{"role with LF", object{"roles": []string{"a\nb"}}, CodeInvalid},
		{"role not ASCII", object{"roles": []string{"ä"}}, CodeInvalid},
		{"role empty", object{"roles": []string{""}}, CodeInvalid},
		{"role too long", object{"roles": []string{strings.Repeat("a", 129)}}, CodeInvalid},
		{"role a number", object{"roles": []any{1}}, CodeInvalid},
		{"roles an object", object{"roles": object{"a": 1}}, CodeInvalid},
		{"too many roles", object{"roles": many(129, "a")}, CodeInvalid},
		{"roles as text", object{"roles": "a b,c"}, ""},
		{"roles as text with LF", object{"roles": "a\nb"}, CodeInvalid},
		{"no roles", object{"roles": []string{}}, ""},
		{"consent with LF", object{"consents": []string{"a\nb"}}, CodeInvalid},
		{"version a text", object{"ver": "1"}, CodeInvalid},
		{"version negative", object{"ver": -1}, CodeInvalid},
		{"version a fraction", object{"ver": 1.5}, CodeInvalid},
		{"version too large", object{"ver": json.Number("9223372036854775808")}, CodeInvalid},

		{"no expiry", object{"exp": nil}, CodeInvalid},
		{"expiry a text", object{"exp": "1"}, CodeInvalid},
		{"expiry null", object{"exp": json.RawMessage("null")}, CodeInvalid},
		{"expiry negative", object{"exp": -1}, CodeInvalid},
		{"expiry without end", object{"exp": json.Number("1e400")}, CodeInvalid},
		{"expiry far", object{"exp": json.Number("9223372036854775807")}, CodeInvalid},
		{"expired", object{"iat": unix - 100, "exp": unix - 30}, CodeExpired},
		{"expired within leeway", object{"iat": unix - 100, "exp": unix - 29}, ""},
		{"expiry with a fraction", object{"iat": unix - 100, "exp": json.Number("1772366370.9")}, CodeExpired},
		{"expired in 1970", object{"exp": 0, "iat": nil}, CodeExpired},
		{"not yet", object{"nbf": unix + 31}, CodeInvalid},
		{"not yet within leeway", object{"nbf": unix + 30}, ""},
		{"not yet a text", object{"nbf": "x"}, CodeInvalid},
		{"issued in future", object{"iat": unix + 31}, CodeInvalid},
		{"issued within leeway", object{"iat": unix + 30}, ""},
		{"no time of issue", object{"iat": nil}, ""},
		{"lifetime at most", object{"exp": unix + 24*3600}, ""},
		{"lifetime too long", object{"exp": unix + 24*3600 + 1}, CodeInvalid},
		{"lifetime too long without issue", object{"iat": nil, "exp": unix + 24*3600 + 31}, CodeInvalid},

		{"bound to a key", object{"cnf": object{"jkt": "abc"}}, CodeInvalid},
		{"bound to a certificate", object{"cnf": object{"x5t#S256": "abc"}}, CodeInvalid},
		{"bound in some other way", object{"cnf": object{"kid": "abc"}}, CodeInvalid},
		{"bound to nonsense", object{"cnf": "abc"}, CodeInvalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			token := sign(t, "EdDSA", ed(), nil, claims(c.change))
			for range 2 { // verified, and remembered
				p, err := v.Verify(token, testNow)
				wantCode(t, c.name, p, err, c.code)
			}
		})
	}
}

func TestVerifyFallbacks(t *testing.T) {
	ic := issuerConfig(t, "ES256")
	v := verifier(t, ic)
	get := func(v *Verifier, change object) *Principal {
		t.Helper()
		p, err := v.Verify(sign(t, "ES256", p256(), nil, claims(change)), testNow)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	if p := get(v, object{"sid": nil, "tier": nil}); p.Session != "t1" || p.Tier != "free" {
		t.Errorf("without sid and tier: session %q, tier %q", p.Session, p.Tier)
	}
	if p := get(v, object{"sid": nil, "jti": nil, "tier": ""}); p.Session != "" || p.Tier != "free" {
		t.Errorf("without sid and jti: session %q, tier %q", p.Session, p.Tier)
	}

	ic.Claims = ClaimsConfig{
		Subject: "user_id", Session: "/session/id", Tier: "https://us.test/tier", Roles: "/realm_access/roles",
		Scopes: "scp", Consents: "/a~1b/c~0d", Version: "v", Device: "dev", Client: "app", TokenID: "uti",
	}
	ic.Tiers = TiersConfig{Missing: "premium", Unknown: "free", Mapping: []TierConfig{{"gold", "enterprise"}}}
	v = verifier(t, ic)
	p := get(v, object{
		"user_id": "bob", "session": object{"id": "s9"}, "https://us.test/tier": "gold", "realm_access": object{"roles": []string{"r"}},
		"scp": []string{"x"}, "a/b": object{"c~d": "ads"}, "v": 3, "dev": "d", "app": "c", "uti": "u",
	})
	want := &Principal{
		Subject: "bob", Issuer: testIssuer, Session: "s9", TokenID: "u", Tier: "enterprise", Device: "d", ClientID: "c",
		Roles: []string{"r"}, Scopes: []string{"x"}, Consents: []string{"ads"}, RolesHeader: "r", ConsentHeader: "ads",
		IssuedAt: testNow, ExpiresAt: testNow.Add(time.Hour), Version: 3, SigningInput: p.SigningInput,
	}
	if diff := cmp.Diff(want, p); diff != "" {
		t.Error(diff)
	}
	if p := get(v, object{"user_id": "bob", "https://us.test/tier": "silver", "session": "s"}); p.Tier != "free" {
		t.Errorf("unknown tier became %q", p.Tier)
	}
	if p := get(v, object{"user_id": "bob"}); p.Tier != "premium" {
		t.Errorf("missing tier became %q", p.Tier)
	}
}

func TestVerifyRequired(t *testing.T) {
	ic := issuerConfig(t, "ES256")
	ic.Require = requirable
	v := verifier(t, ic)
	full := object{"nbf": testNow.Unix(), "client_id": "web", "ver": 0, "device_id": "d"}
	p, err := v.Verify(sign(t, "ES256", p256(), nil, claims(full)), testNow)
	wantCode(t, "full", p, err, "")
	for _, name := range requirable {
		p, err := v.Verify(sign(t, "ES256", p256(), nil, claims(full, object{name: nil})), testNow)
		wantCode(t, "without "+name, p, err, CodeInvalid)
	}
}

func TestVerifySeveralIssuers(t *testing.T) {
	a := issuerConfig(t, "RS256")
	b := issuerConfig(t, "ES256")
	b.Name, b.Issuer, b.Types, b.Leeway, b.MaxLifetime = "b", "https://b.test", []string{"at+jwt"}, time.Minute, 10*time.Minute
	v := verifier(t, a, b)
	at := object{"typ": "at+jwt"}
	of := object{"iss": b.Issuer, "client_id": "c", "exp": testNow.Unix() + 600}
	for _, c := range []struct{ name, token, code string }{
		{"a", sign(t, "RS256", rsaKey(), nil, claims()), ""},
		{"b", sign(t, "ES256", p256(), at, claims(of)), ""},
		{"b by a's key", sign(t, "RS256", rsaKey(), at, claims(of)), CodeInvalid},
		{"a by b's key", sign(t, "ES256", p256(), nil, claims()), CodeInvalid},
		{"b without type", sign(t, "ES256", p256(), nil, claims(of)), CodeInvalid},
		{"b living long", sign(t, "ES256", p256(), at, claims(of, object{"exp": testNow.Unix() + 601})), CodeInvalid},
		{"b with its leeway", sign(t, "ES256", p256(), at, claims(of, object{"iat": testNow.Unix() - 200, "exp": testNow.Unix() - 59})), ""},
	} {
		p, err := v.Verify(c.token, testNow)
		wantCode(t, c.name, p, err, c.code)
	}
	if v.Leeway() != time.Minute || v.MaxLifetime() != 24*time.Hour+time.Minute {
		t.Errorf("leeway %v, longest lifetime %v", v.Leeway(), v.MaxLifetime())
	}
}

// A remembered signature does not make a token live longer.
func TestVerifyTimesOfRememberedTokens(t *testing.T) {
	v := verifier(t, issuerConfig(t, "ES256"))
	token := sign(t, "ES256", p256(), nil, claims(object{"nbf": testNow.Unix()}))
	for _, c := range []struct {
		at   time.Duration
		code string
	}{{0, ""}, {time.Hour + 30*time.Second - 1, ""}, {time.Hour + 30*time.Second, CodeExpired}, {-31 * time.Second, CodeInvalid}, {-30 * time.Second, ""}} {
		p, err := v.Verify(token, testNow.Add(c.at))
		wantCode(t, c.at.String(), p, err, c.code)
	}
	if got := v.cache.count.Load(); got != 1 {
		t.Errorf("%d entries in the cache, want 1", got)
	}
}

func TestVerifyMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	cfg := Default()
	cfg.Issuers = []IssuerConfig{issuerConfig(t, "ES256")}
	ready := []bool{}
	v, err := New(cfg, Options{Metrics: reg, Ready: func(ok bool, _ string) { ready = append(ready, ok) }})
	if err != nil {
		t.Fatal(err)
	}
	token := sign(t, "ES256", p256(), nil, claims())
	for range 3 {
		p, err := v.Verify(token, testNow)
		wantCode(t, "token", p, err, "")
	}
	p, verr := v.Verify("x", testNow)
	wantCode(t, "x", p, verr, CodeMalformed)
	got := gather(t, reg)
	for name, want := range map[string]float64{
		"tollgate_authn_verifications_total accepted":        3,
		"tollgate_authn_verifications_total token_malformed": 1,
		"tollgate_authn_signatures_verified_total":           1,
		"tollgate_authn_signature_cache_entries":             1,
	} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v in %v", name, got[name], want, got)
		}
	}
	if !slices.Equal(ready, []bool{true}) {
		t.Errorf("ready reported %v", ready)
	}
	if _, err := New(cfg, Options{Metrics: reg}); err == nil {
		t.Error("a second verifier on one registry is accepted")
	}
}

// gather returns metrics by name and label values but the issuer's.
func gather(t testing.TB, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				if l.GetName() != "issuer" {
					name += " " + l.GetValue()
				}
			}
			out[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return out
}

func TestErrorText(t *testing.T) {
	cause := errors.New("cause")
	e := invalid(cause)
	if !errors.Is(e, cause) || e.Error() != "token_invalid: cause" || errMissing.Error() != "token_missing: A token is required." {
		t.Errorf("texts %q, %q", e, errMissing)
	}
}

// No change of any byte of a token is accepted.
func TestVerifyAnyChange(t *testing.T) {
	v := verifier(t, issuerConfig(t, "EdDSA"))
	token := sign(t, "EdDSA", ed(), nil, claims())
	rapid.Check(t, func(t *rapid.T) {
		b := []byte(token)
		i := rapid.IntRange(0, len(b)-1).Draw(t, "at")
		c := rapid.Byte().Draw(t, "byte")
		if b[i] == c {
			return
		}
		b[i] = c
		if p, err := v.Verify(string(b), testNow); err == nil {
			t.Fatalf("accepted as %+v", p)
		}
	})
}

// FuzzVerify sends any text; whatever is accepted has a safe principal, and
// what is signed by the fuzzer's own claims is one of those.
func FuzzVerify(f *testing.F) {
	v := verifier(f, issuerConfig(f, "ES256"))
	good := sign(f, "ES256", p256(), object{"typ": "JWT"}, claims())
	f.Add(good, `{"alg":"ES256"}`, string(must(json.Marshal(claims()))))
	f.Add("..", `{"alg":"none"}`, `{"exp":1e999}`)
	f.Add(good+"=", `{"alg":"ES256","crit":[]}`, `{"sub":"a\u000d","sub":1}`)
	f.Fuzz(func(t *testing.T, token, header, payload string) {
		for _, token := range []string{token, signRaw(t, header, payload)} {
			p, err := v.Verify(token, testNow)
			if err != nil {
				var e *Error
				if !errors.As(err, &e) || v.metrics.outcomes[e.Code] == nil {
					t.Fatalf("error %v", err)
				}
				continue
			}
			for _, s := range append([]string{p.Subject, p.Session, p.TokenID, p.Device, p.ClientID, p.RolesHeader, p.ConsentHeader}, p.Scopes...) {
				if !headerSafe(s) || len(s) > maxJoined {
					t.Fatalf("%q is not safe in a header", s)
				}
			}
			if p.Subject == "" || !slices.Contains(tiers, p.Tier) || p.ExpiresAt.Before(testNow.Add(-time.Minute)) {
				t.Fatalf("principal %+v", p)
			}
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	for _, alg := range []string{"RS256", "ES256", "EdDSA", "HS256"} {
		token := sign(b, alg, signingKey(alg), nil, claims(object{"roles": []string{"b", "a"}}))
		for _, cached := range []bool{true, false} {
			cfg := Default()
			cfg.Issuers = []IssuerConfig{issuerConfig(b, alg)}
			name := alg + "/remembered"
			if !cached {
				cfg.SignatureCache = 0
				name = alg + "/computed"
			}
			v, err := New(cfg, Options{})
			if err != nil {
				b.Fatal(err)
			}
			b.Run(name, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if _, err := v.Verify(token, testNow); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func TestVerifyRememberedDoesNotAllocate(t *testing.T) {
	v := verifier(t, issuerConfig(t, "ES256"))
	token := sign(t, "ES256", p256(), nil, claims())
	if n := testing.AllocsPerRun(100, func() {
		if _, err := v.Verify(token, testNow); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}

func TestNewErrors(t *testing.T) {
	good := issuerConfig(t, "ES256")
	for name, change := range map[string]func(*Config){
		"algorithm": func(c *Config) { c.Issuers[0].Algorithms = []string{"ES256K"} },
		"no such":   func(c *Config) { c.Issuers[0].Keys.PEMFile = "/does/not/exist" },
		"JSON":      func(c *Config) { c.Issuers[0].Keys = KeysConfig{JWKSFile: writeFile(t, []byte("x"))} },
		"usable":    func(c *Config) { c.Issuers[0].Keys = KeysConfig{JWKSFile: writeFile(t, []byte(`{"keys":[]}`))} },
		"curve":     func(c *Config) { c.Issuers[0].Keys = KeysConfig{PEMFile: writeFile(t, pemOf(t, p384().Public()))} },
		"PEM":       func(c *Config) { c.Issuers[0].Keys = KeysConfig{PEMFile: writeFile(t, nil)} },
		"pointer":   func(c *Config) { c.Issuers[0].Claims.Tier = "/a//b" },
		"already":   func(c *Config) { c.Issuers = append(c.Issuers, c.Issuers[0]) },
		"secret": func(c *Config) {
			c.Issuers[0].Algorithms, c.Issuers[0].Keys = []string{"HS256"}, KeysConfig{JWKSURL: "https://x.test"}
		},
		"too short": func(c *Config) {
			c.Issuers[0].Algorithms, c.Issuers[0].Keys = []string{"HS256"}, KeysConfig{SecretFile: writeFile(t, []byte("short"))}
		},
		"development": func(c *Config) { c.Development.KeyFile = config.Path(filepath.Join(t.TempDir(), "key.pem")) },
		"more than": func(c *Config) {
			c.Issuers[0].Keys = KeysConfig{PEMFile: writeFile(t, bytes.Repeat([]byte(" "), maxKeyFile+1))}
		},
	} {
		cfg := Default()
		cfg.Issuers = []IssuerConfig{good}
		change(&cfg)
		if _, err := New(cfg, Options{}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}
