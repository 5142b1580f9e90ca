package authn

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

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
		{"not yet with a fraction", object{"nbf": json.Number("1772366430.5")}, CodeInvalid},
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
	if diff := cmp.Diff(want, p, cmpopts.IgnoreFields(Principal{}, "Claims")); diff != "" {
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
