package tokentest_test

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"os"
	"testing"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/tollgate-proxy/tollgate/internal/tokentest"
)

// What is signed verifies with the key in the file, and has the type.
func TestSign(t *testing.T) {
	of, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for algorithm, key := range map[jose.SignatureAlgorithm]crypto.Signer{jose.RS256: of, jose.ES256: tokentest.Key(t)} {
		text, err := os.ReadFile(string(tokentest.PublicKeyFile(t, key)))
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(text)
		public, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		for _, typ := range []string{"", "at+jwt"} {
			jws, err := jose.ParseSignedCompact(tokentest.Sign(t, key, typ, map[string]any{"sub": "ada"}), []jose.SignatureAlgorithm{algorithm})
			if err != nil {
				t.Fatal(err)
			}
			payload, err := jws.Verify(public)
			if got, _ := jws.Signatures[0].Header.ExtraHeaders[jose.HeaderType].(string); err != nil || got != typ || string(payload) != `{"sub":"ada"}` {
				t.Errorf("%s: %s of type %q, %v", algorithm, payload, got, err)
			}
		}
	}
}
