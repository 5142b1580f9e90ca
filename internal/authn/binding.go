package authn

import (
	"errors"
)

// binding is the cnf claim: the key that a client must show it has.
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
