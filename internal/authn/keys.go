package authn

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"

	jose "github.com/go-jose/go-jose/v4"
)

// Bounds of key files and key sets.
const (
	maxKeyFile  = 1 << 20 // bytes
	maxKeys     = 256
	maxAttempts = 8 // signatures tried for one token
)

// key is one verification key. It is immutable but for retired.
type key struct {
	// id is the kid, empty for a key that has none.
	id string
	// algorithms are those of the issuer that the key may be used with.
	algorithms []*algorithm
	// material is a []byte, *rsa.PublicKey, *ecdsa.PublicKey or
	// ed25519.PublicKey.
	material any
	// print tells equal keys; it covers id, algorithms and material.
	print [sha256.Size]byte
	// retired is set when the key has left its set, so that signatures it
	// verified count no longer.
	retired atomic.Bool
}

// newKey returns the key of the material for the algorithms that it fits, or
// an error where it fits none.
func newKey(id string, material any, allowed []*algorithm) (*key, error) {
	k := &key{id: id, material: material}
	var errs []error
	for _, a := range allowed {
		if err := a.fits(material); err != nil {
			errs = append(errs, err)
			continue
		}
		k.algorithms = append(k.algorithms, a)
	}
	if len(k.algorithms) == 0 {
		return nil, errors.Join(errs...)
	}
	h := sha256.New()
	fmt.Fprintf(h, "%q", id)
	for _, a := range k.algorithms {
		fmt.Fprintf(h, " %s", a.name)
	}
	if secret, ok := material.([]byte); ok {
		h.Write(secret)
	} else {
		der, err := x509.MarshalPKIXPublicKey(material)
		if err != nil {
			return nil, fmt.Errorf("encode a %T: %w", material, err)
		}
		h.Write(der)
	}
	h.Sum(k.print[:0])
	return k, nil
}

// keySet is what an issuer signs with. It is immutable.
type keySet struct {
	keys []*key
}

// candidates returns the keys that may have signed a token with this kid and
// algorithm. known is false where the token names a key that the set has not:
// a newer set may.
func (s *keySet) candidates(kid string, a *algorithm) (found []*key, known bool) {
	add := func(match func(*key) bool) {
		for _, k := range s.keys {
			if !match(k) {
				continue
			}
			known = true
			if slices.Contains(k.algorithms, a) && len(found) < maxAttempts {
				found = append(found, k)
			}
		}
	}
	add(func(k *key) bool { return kid == "" || k.id == kid })
	if !known {
		// A key without an id, from a PEM or secret file, answers to every kid.
		add(func(k *key) bool { return k.id == "" })
	}
	return found, known
}

// replace returns the set that follows s when the issuer's keys are now keys:
// unchanged keys stay the same objects, and the others of s retire. An
// unchanged set is s itself.
func (s *keySet) replace(keys []*key) *keySet {
	kept := map[*key]bool{}
	for i, k := range keys {
		for _, old := range s.keys {
			if old.print == k.print {
				keys[i] = old
				kept[old] = true
			}
		}
	}
	if len(kept) == len(s.keys) && len(keys) == len(s.keys) {
		return s
	}
	return &keySet{keys: keys}
}

// retire marks the keys of s that next has not.
func (s *keySet) retire(next *keySet) {
	for _, k := range s.keys {
		if !slices.Contains(next.keys, k) {
			k.retired.Store(true)
		}
	}
}

// parseJWKS reads a JSON Web Key Set. Keys that are not for verifying with one
// of the allowed algorithms are left out, as RFC 7517 section 5 asks; a set
// without any usable key is an error, which says why for each.
func parseJWKS(data []byte, allowed []*algorithm) ([]*key, error) {
	var doc struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		return nil, fmt.Errorf("not a JSON Web Key Set: %w", err)
	}
	if len(doc.Keys) > maxKeys {
		return nil, fmt.Errorf("%d keys, more than %d", len(doc.Keys), maxKeys)
	}
	var keys []*key
	var errs []error
	for i, raw := range doc.Keys {
		k, err := parseJWK(raw, allowed)
		if err != nil {
			errs = append(errs, fmt.Errorf("key %d: %w", i, err))
			continue
		}
		if !slices.ContainsFunc(keys, func(o *key) bool { return o.print == k.print }) {
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("no usable key: %w", errors.Join(append(errs, errNoKeys)...))
	}
	return keys, nil
}

var errNoKeys = errors.New("the set has no key for the issuer's algorithms")

func parseJWK(raw []byte, allowed []*algorithm) (*key, error) {
	var meta struct {
		Algorithm  string   `json:"alg"`
		Operations []string `json:"key_ops"`
	}
	if err := json.Unmarshal(raw, &meta); err != nil {
		return nil, fmt.Errorf("not a JSON Web Key: %w", err)
	}
	var jwk jose.JSONWebKey
	if err := jwk.UnmarshalJSON(raw); err != nil {
		return nil, fmt.Errorf("not a JSON Web Key: %w", err)
	}
	if jwk.Use != "" && jwk.Use != "sig" {
		return nil, fmt.Errorf("use %q is not sig", jwk.Use)
	}
	if len(meta.Operations) > 0 && !slices.Contains(meta.Operations, "verify") {
		return nil, fmt.Errorf("key_ops %q have no verify", meta.Operations)
	}
	if _, secret := jwk.Key.([]byte); !secret && !jwk.IsPublic() {
		return nil, errors.New("is a private key")
	}
	if meta.Algorithm != "" {
		allowed = slices.DeleteFunc(slices.Clone(allowed), func(a *algorithm) bool { return a.name != meta.Algorithm })
		if len(allowed) == 0 {
			return nil, fmt.Errorf("alg %q is not of the issuer", meta.Algorithm)
		}
	}
	return newKey(jwk.KeyID, jwk.Key, allowed)
}

// parsePEM reads every public key and certificate of a PEM file. The validity
// of a certificate is not looked at: the file's owner vouches for the key.
// Private keys are refused, unless private is set.
func parsePEM(data []byte, allowed []*algorithm, private bool) ([]*key, error) {
	var keys []*key
	for len(bytes.TrimSpace(data)) > 0 {
		block, rest := pem.Decode(data)
		if block == nil {
			return nil, errors.New("something that is not a PEM block")
		}
		data = rest
		material, err := parseBlock(block, private)
		if err != nil {
			return nil, fmt.Errorf("block %d: %w", len(keys), err)
		}
		k, err := newKey("", material, allowed)
		if err != nil {
			return nil, fmt.Errorf("block %d: %w", len(keys), err)
		}
		if keys = append(keys, k); len(keys) > maxAttempts {
			return nil, fmt.Errorf("more than %d keys", maxAttempts)
		}
	}
	if len(keys) == 0 {
		return nil, errors.New("no PEM block")
	}
	return keys, nil
}

func parseBlock(block *pem.Block, private bool) (any, error) {
	switch block.Type {
	case "PUBLIC KEY":
		return x509.ParsePKIXPublicKey(block.Bytes)
	case "RSA PUBLIC KEY":
		return x509.ParsePKCS1PublicKey(block.Bytes)
	case "CERTIFICATE":
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		return cert.PublicKey, nil
	case "PRIVATE KEY":
		if !private {
			break
		}
		k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return nil, err
		}
		if s, ok := k.(crypto.Signer); ok {
			return s.Public(), nil
		}
		return nil, fmt.Errorf("a %T signs nothing", k)
	}
	return nil, fmt.Errorf("a PEM block of type %q is neither a public key nor a certificate", block.Type)
}

// file is the file that holds the keys, "" where none does.
func (c KeysConfig) file() string {
	return string(c.PEMFile) + string(c.JWKSFile) + string(c.SecretFile)
}

// loadKeys reads the keys of an issuer from its file.
func loadKeys(c IssuerConfig, allowed []*algorithm) ([]*key, error) {
	file := c.Keys.file()
	data, err := readKeyFile(file)
	if err != nil {
		return nil, err
	}
	var keys []*key
	switch {
	case c.Keys.PEMFile != "":
		keys, err = parsePEM(data, allowed, c.Issuer == DevelopmentIssuerURL)
	case c.Keys.JWKSFile != "":
		keys, err = parseJWKS(data, allowed)
	default:
		data = bytes.TrimSuffix(bytes.TrimSuffix(data, []byte("\n")), []byte("\r"))
		var k *key
		if k, err = newKey("", data, allowed); err == nil {
			keys = []*key{k}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return keys, nil
}

func readKeyFile(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxKeyFile {
		return nil, fmt.Errorf("%s: %d bytes, more than %d", name, info.Size(), maxKeyFile)
	}
	return os.ReadFile(name)
}
