package authn

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestVerifyStatement(t *testing.T) {
	envoy := issuerConfig(t, "RS256")
	envoy.Name, envoy.Issuer, envoy.Keys = "envoy", "https://envoy.test", KeysConfig{Envoy: true}
	v := verifier(t, issuerConfig(t, "ES256"), envoy)
	gateway := func(string) []string { return []string{"gateway"} }
	rules := StatementRules{Types: []string{"secevent+jwt"}, Audiences: gateway}
	logout := StatementRules{Types: []string{"logout+jwt", "absent"}, Audiences: gateway, Expires: true, MaxLifetime: 10 * time.Minute}
	set := func(changes ...object) object {
		c := claims(append([]object{{"aud": "gateway", "sub": nil, "exp": nil, "events": object{"e": object{}}}}, changes...)...)
		return c
	}
	soon := object{"exp": testNow.Add(time.Minute).Unix()}
	typ := object{"typ": "secevent+jwt"}
	for name, c := range map[string]struct {
		token string
		rules StatementRules
		cause error // or:
		code  string
	}{
		"good":                  {sign(t, "ES256", p256(), typ, set()), rules, nil, ""},
		"long media type":       {sign(t, "ES256", p256(), object{"typ": "application/secevent+JWT"}, set()), rules, nil, ""},
		"audience in a list":    {sign(t, "ES256", p256(), typ, set(object{"aud": []string{"x", "gateway"}})), rules, nil, ""},
		"good logout":           {sign(t, "ES256", p256(), object{"typ": "logout+jwt"}, set(soon)), logout, nil, ""},
		"logout without typ":    {sign(t, "ES256", p256(), nil, set(soon)), logout, nil, ""},
		"an access token":       {sign(t, "ES256", p256(), object{"typ": "at+jwt"}, claims(object{"aud": "gateway"})), rules, ErrSignature, CodeInvalid},
		"without typ":           {sign(t, "ES256", p256(), nil, set()), rules, ErrSignature, CodeInvalid},
		"another audience":      {sign(t, "ES256", p256(), typ, set(object{"aud": "us"})), rules, ErrAudience, CodeInvalid},
		"no audience":           {sign(t, "ES256", p256(), typ, set(object{"aud": nil})), rules, ErrAudience, CodeInvalid},
		"another issuer":        {sign(t, "ES256", p256(), typ, set(object{"iss": "https://evil.test"})), rules, ErrIssuer, CodeInvalid},
		"an issuer for Envoy":   {sign(t, "ES256", p256(), typ, set(object{"iss": "https://envoy.test"})), rules, ErrIssuer, CodeInvalid},
		"another key":           {sign(t, "ES384", p384(), typ, set()), rules, ErrSignature, CodeInvalid},
		"an embedded key":       {sign(t, "ES256", p256(), object{"typ": "secevent+jwt", "jku": "https://evil.test"}, set()), rules, ErrSignature, CodeInvalid},
		"none":                  {b64(`{"alg":"none","typ":"secevent+jwt"}`) + "." + b64(`{"iss":"`+testIssuer+`"}`) + "." + b64("x"), rules, ErrSignature, CodeInvalid},
		"no jti":                {sign(t, "ES256", p256(), typ, set(object{"jti": nil})), rules, nil, CodeInvalid},
		"no iat":                {sign(t, "ES256", p256(), typ, set(object{"iat": nil})), rules, nil, CodeInvalid},
		"iat is text":           {sign(t, "ES256", p256(), typ, set(object{"iat": "now"})), rules, nil, CodeInvalid},
		"from the future":       {sign(t, "ES256", p256(), typ, set(object{"iat": testNow.Add(time.Hour).Unix()})), rules, nil, CodeInvalid},
		"not yet":               {sign(t, "ES256", p256(), typ, set(object{"nbf": testNow.Add(time.Hour).Unix()})), rules, nil, CodeInvalid},
		"expired":               {sign(t, "ES256", p256(), typ, set(object{"exp": testNow.Add(-time.Hour).Unix()})), rules, nil, CodeExpired},
		"logout without exp":    {sign(t, "ES256", p256(), nil, set()), logout, nil, CodeInvalid},
		"logout for a day":      {sign(t, "ES256", p256(), nil, set(object{"exp": testNow.Add(24 * time.Hour).Unix()})), logout, nil, CodeInvalid},
		"not a token":           {"x", rules, nil, CodeMalformed},
		"long":                  {strings.Repeat("x", 10_000), rules, nil, CodeMalformed},
		"two members of a name": {signRaw(t, `{"alg":"ES256","typ":"secevent+jwt"}`, `{"iss":"`+testIssuer+`","iss":"x"}`), rules, nil, CodeMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := v.VerifyStatement(c.token, c.rules, testNow)
			if c.code == "" {
				if err != nil {
					t.Fatal(err)
				}
				var events struct {
					Events map[string]any `json:"events"`
				}
				if err := s.Decode(&events); err != nil || len(events.Events) != 1 || !s.Has("events") || s.Has("sub") {
					t.Errorf("%+v, %v", events, err)
				}
				if s.ID != "t1" || s.Issuer != testIssuer || !s.IssuedAt.Equal(testNow) {
					t.Errorf("%+v", s)
				}
				return
			}
			var e *Error
			if !errors.As(err, &e) || e.Code != c.code || s != nil || c.cause != nil && !errors.Is(err, c.cause) {
				t.Errorf("%v, want %s because of %v", err, c.code, c.cause)
			}
		})
	}
	if _, err := v.Verify(sign(t, "ES256", p256(), typ, claims()), testNow); err == nil {
		t.Error("a security event lets somebody in")
	}
}
