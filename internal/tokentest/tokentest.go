// Package tokentest signs tokens as their issuers do, with go-jose, for the
// tests of what verifies them.
package tokentest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/tollgate-proxy/tollgate/internal/config"
)

// Key is a new key on P-256.
func Key(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// PublicKeyFile is a PEM file with the public half of the key; it is there until
// the test ends.
func PublicKeyFile(t testing.TB, key crypto.Signer) config.Path {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return config.Path(file)
}

// Sign makes a JSON Web Token of the type, "" for none: RS256 with an RSA key,
// else ES256.
func Sign(t testing.TB, key crypto.Signer, typ string, claims map[string]any) string {
	t.Helper()
	algorithm := jose.ES256
	if _, ok := key.(*rsa.PrivateKey); ok {
		algorithm = jose.RS256
	}
	o := &jose.SignerOptions{}
	if typ != "" {
		o.WithType(jose.ContentType(typ))
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: key}, o)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}
