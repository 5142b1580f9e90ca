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
	"github.com/google/go-cmp/cmp/cmpopts"
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
	if got.Claims["device_id"] != "phone" || got.Claims["ver"] != 7.0 {
		t.Errorf("claims %v", got.Claims)
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(Principal{}, "Claims")); diff != "" {
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
