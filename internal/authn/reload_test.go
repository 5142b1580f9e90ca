package authn

import (
	"os"
	"slices"
	"testing"
	"time"
)

func TestReload(t *testing.T) {
	ic := issuerConfig(t, "RS256")
	file := string(ic.Keys.PEMFile)
	v := verifier(t, ic)
	if got := v.Files(); !slices.Equal(got, []string{file}) {
		t.Errorf("files %v, want %s", got, file)
	}
	write := func(data []byte) {
		t.Helper()
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	reload := func() {
		t.Helper()
		commit, err := v.PrepareReload(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		commit()
	}
	first := sign(t, "RS256", rsaKey(), nil, claims())
	second := sign(t, "RS256", otherRSA(), nil, claims())
	expect := func(what, one, two string) {
		t.Helper()
		p, err := v.Verify(first, testNow)
		wantCode(t, what+", first key", p, err, one)
		p, err = v.Verify(second, testNow)
		wantCode(t, what+", second key", p, err, two)
	}
	expect("at start", "", CodeInvalid)
	reload()
	expect("unchanged", "", CodeInvalid)
	write(pemOf(t, rsaKey().Public(), otherRSA().Public()))
	expect("written and not reloaded", "", CodeInvalid)
	reload()
	expect("both keys", "", "")
	write([]byte("nonsense"))
	if _, err := v.PrepareReload(t.Context()); err == nil {
		t.Error("a file that is no key file is accepted")
	}
	expect("refused reload", "", "")
	write(pemOf(t, otherRSA().Public()))
	reload()
	expect("first key withdrawn", CodeInvalid, "")
	write(pemOf(t, rsaKey().Public()))
	reload()
	expect("first key back", "", CodeInvalid)
}

func TestInspect(t *testing.T) {
	v := verifier(t, issuerConfig(t, "ES256"))
	for _, c := range []struct {
		name   string
		change object
		code   string
	}{
		{"good", nil, ""},
		{"not valid yet", object{"nbf": testNow.Unix() + 600}, ""},
		{"bound", object{"cnf": object{"jkt": "x"}}, ""},
		{"expired", object{"iat": testNow.Unix() - 100, "exp": testNow.Unix() - 50}, CodeExpired},
		{"not for us", object{"aud": "them"}, CodeInvalid},
	} {
		p, err := v.Inspect(t.Context(), sign(t, "ES256", p256(), nil, claims(c.change)), testNow)
		wantCode(t, c.name, p, err, c.code)
	}
	p, err := v.Inspect(t.Context(), "opaque", testNow)
	wantCode(t, "opaque", p, err, CodeMalformed)
	p, err = trusting(t).Inspect(t.Context(), sign(t, "ES256", p256(), nil, claims()), testNow)
	wantCode(t, "only Envoy's to verify", p, err, CodeInvalid)

	in, s, _ := introspecting(t, nil)
	p, err = in.Inspect(t.Context(), "opaque", time.Now())
	wantCode(t, "opaque with introspection", p, err, "")
	s.set(func(string) (int, string) { return 200, "{}" })
	p, err = in.Inspect(t.Context(), "unknown", time.Now())
	wantCode(t, "unknown with introspection", p, err, CodeInvalid)
}
