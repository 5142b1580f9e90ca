package authn

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/tollgate-proxy/tollgate/internal/config"
)

func developer(t *testing.T, file string) *Verifier {
	t.Helper()
	cfg := Default()
	cfg.Development.KeyFile = config.Path(file)
	v, err := New(cfg, Options{Development: true})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestMint(t *testing.T) {
	file := filepath.Join(t.TempDir(), "sub", "key.pem")
	v := developer(t, file)
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("key file %v, %v", info, err)
	}
	token, err := Mint(file, MintOptions{
		User: "alice", Tier: "premium", Session: "s", Device: "d", Roles: []string{"b", "a"}, Scopes: []string{"x"},
		Consents: []string{"ads"}, TokenID: "t", Version: 2, TTL: time.Minute, Now: testNow,
	})
	if err != nil {
		t.Fatal(err)
	}
	got, err := v.Verify(token, testNow)
	if err != nil {
		t.Fatal(err)
	}
	want := &Principal{
		Subject: "alice", Issuer: DevelopmentIssuerURL, Session: "s", TokenID: "t", Tier: "premium", Device: "d", ClientID: "tollgate-cli",
		Roles: []string{"a", "b"}, Scopes: []string{"x"}, Consents: []string{"ads"}, RolesHeader: "a,b", ConsentHeader: "ads",
		IssuedAt: testNow, ExpiresAt: testNow.Add(time.Minute), Version: 2, SigningInput: got.SigningInput,
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(Principal{}, "Claims")); diff != "" {
		t.Error(diff)
	}

	m, err := NewMinter(file)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for range 3 {
		p, err := v.Verify(must(m.Mint(MintOptions{User: "bob"})), time.Now())
		if err != nil || p.Session == "" || seen[p.Session] || p.Tier != "free" {
			t.Errorf("principal %+v, %v", p, err)
			continue
		}
		seen[p.Session] = true
	}
	p, err := v.Verify(must(m.Mint(MintOptions{User: "bob", TTL: -time.Hour})), time.Now())
	wantCode(t, "negative lifetime", p, err, CodeExpired)
	p, err = v.Verify(must(m.Mint(MintOptions{User: "bob", Audience: "them"})), time.Now())
	wantCode(t, "other audience", p, err, CodeInvalid)
	if _, err := m.Mint(MintOptions{}); err == nil {
		t.Error("a token for nobody")
	}
}

// Processes that start at once agree on one key.
func TestDevelopmentKeyRace(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key.pem")
	var wg sync.WaitGroup
	tokens := make([]string, 8)
	for i := range tokens {
		wg.Go(func() {
			token, err := Mint(file, MintOptions{User: "alice"})
			if err != nil {
				t.Error(err)
			}
			tokens[i] = token
		})
	}
	wg.Wait()
	v := developer(t, file)
	for _, token := range tokens {
		p, err := v.Verify(token, time.Now())
		wantCode(t, "token", p, err, "")
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(file), "*"))
	hidden, _ := filepath.Glob(filepath.Join(filepath.Dir(file), ".*"))
	if err != nil || len(left) != 1 || len(hidden) != 0 {
		t.Errorf("files %v %v, %v", left, hidden, err)
	}
}

func TestDevelopmentKeyErrors(t *testing.T) {
	block := func(kind string, key any) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: must(x509.MarshalPKCS8PrivateKey(key))})
	}
	file := string(writeFile(t, nil))
	for want, name := range map[string]string{
		"PEM":            file,
		"private key":    string(writeFile(t, block("X", p256()))),
		"asn1":           string(writeFile(t, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY"}))),
		"P-256":          string(writeFile(t, block("PRIVATE KEY", p384()))),
		"curve":          string(writeFile(t, block("PRIVATE KEY", rsaKey()))),
		"make":           filepath.Join(file, "below", "a", "file"),
		"is a directory": t.TempDir(),
	} {
		for what, err := range map[string]error{
			"mint":   func() error { _, err := Mint(name, MintOptions{User: "x"}); return err }(),
			"issuer": func() error { _, err := DevelopmentIssuer(name); return err }(),
		} {
			if err == nil || !strings.Contains(err.Error(), want) && want != "make" {
				t.Errorf("%s with %s: error %v", what, want, err)
			}
		}
	}
	cfg := Default()
	cfg.Development.KeyFile = config.Path(file)
	if _, err := New(cfg, Options{Development: true}); err == nil {
		t.Error("a verifier without its key")
	}
}

// The issuer for development is refused outside development mode, also where
// somebody writes it down as an issuer of his own.
func TestDevelopmentRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key.pem")
	ic, err := DevelopmentIssuer(file)
	if err != nil {
		t.Fatal(err)
	}
	cfg := Default()
	cfg.Issuers = []IssuerConfig{ic}
	if _, err := New(cfg, Options{}); err == nil {
		t.Error("a development issuer in the list is accepted")
	}
	cfg = Default()
	cfg.Development.KeyFile = config.Path(file)
	if _, err := New(cfg, Options{}); err == nil {
		t.Error("a development key is accepted")
	}
}
