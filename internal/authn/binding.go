package authn

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"net/url"
	"strings"
)

// binding is the cnf claim: what a client must show that it has.
type binding struct {
	// jkt is the thumbprint of the key of a DPoP proof (RFC 9449).
	jkt string
	// x5t is the SHA-256 of a client certificate (RFC 8705).
	x5t string
}

// bindingOf reads cnf; nil where the token is not bound. A confirmation by
// other methods alone is an error: we could not honour it.
func bindingOf(cnf any) (*binding, error) {
	if cnf == nil {
		return nil, nil
	}
	m, ok := cnf.(map[string]any)
	if !ok {
		return nil, errors.New("claim cnf is not an object")
	}
	b := &binding{}
	b.jkt, _ = m["jkt"].(string)
	b.x5t, _ = m["x5t#S256"].(string)
	if b.jkt == "" && b.x5t == "" {
		return nil, errors.New("claim cnf has no method that is known here")
	}
	return b, nil
}

// checkCertificate checks that the certificate, in PEM and perhaps URL-encoded,
// has the thumbprint. That it is valid is for the TLS handshake to say.
func checkCertificate(text, thumbprint string) error {
	if text == "" {
		return errors.New("bound to a certificate, and presented without one")
	}
	if strings.HasPrefix(text, "-----BEGIN%20") {
		plain, err := url.PathUnescape(text)
		if err != nil {
			return errors.New("the client's certificate is not URL-encoded")
		}
		text = plain
	}
	block, _ := pem.Decode([]byte(text))
	if block == nil || block.Type != "CERTIFICATE" {
		return errors.New("the client's certificate is not PEM")
	}
	sum := sha256.Sum256(block.Bytes)
	if base64.RawURLEncoding.EncodeToString(sum[:]) != thumbprint {
		return errors.New("bound to another certificate")
	}
	return nil
}
