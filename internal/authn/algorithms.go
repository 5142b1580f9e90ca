package authn

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"hash"
	"math/big"
)

type family uint8

const (
	familyHMAC family = iota
	familyRSA
	familyPSS
	familyECDSA
	familyEdDSA
)

// algorithm is one value of the alg header.
type algorithm struct {
	name   string
	family family
	hash   crypto.Hash
	// curve is the curve's name and size the bytes of one coordinate, for ECDSA.
	curve string
	size  int
}

const algorithmsAllowed = "RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512, EdDSA, HS256, HS384 or HS512"

var algorithms = map[string]*algorithm{
	"HS256": {name: "HS256", family: familyHMAC, hash: crypto.SHA256},
	"HS384": {name: "HS384", family: familyHMAC, hash: crypto.SHA384},
	"HS512": {name: "HS512", family: familyHMAC, hash: crypto.SHA512},
	"RS256": {name: "RS256", family: familyRSA, hash: crypto.SHA256},
	"RS384": {name: "RS384", family: familyRSA, hash: crypto.SHA384},
	"RS512": {name: "RS512", family: familyRSA, hash: crypto.SHA512},
	"PS256": {name: "PS256", family: familyPSS, hash: crypto.SHA256},
	"PS384": {name: "PS384", family: familyPSS, hash: crypto.SHA384},
	"PS512": {name: "PS512", family: familyPSS, hash: crypto.SHA512},
	"ES256": {name: "ES256", family: familyECDSA, hash: crypto.SHA256, curve: "P-256", size: 32},
	"ES384": {name: "ES384", family: familyECDSA, hash: crypto.SHA384, curve: "P-384", size: 48},
	"ES512": {name: "ES512", family: familyECDSA, hash: crypto.SHA512, curve: "P-521", size: 66},
	"EdDSA": {name: "EdDSA", family: familyEdDSA},
}

// minRSABits is the shortest RSA modulus, by RFC 7518 section 3.3.
const minRSABits = 2048

// fits says why material cannot be a key of a, or nil.
func (a *algorithm) fits(material any) error {
	switch k := material.(type) {
	case []byte:
		if a.family != familyHMAC {
			return fmt.Errorf("a shared secret is no key for %s", a.name)
		}
		if len(k) < a.hash.Size() {
			return fmt.Errorf("a secret of %d bytes is too short for %s, which needs %d", len(k), a.name, a.hash.Size())
		}
		return nil
	case *rsa.PublicKey:
		if a.family != familyRSA && a.family != familyPSS {
			return fmt.Errorf("an RSA key is no key for %s", a.name)
		}
		if n := k.N.BitLen(); n < minRSABits {
			return fmt.Errorf("an RSA key of %d bits is too short, %d are needed", n, minRSABits)
		}
		return nil
	case *ecdsa.PublicKey:
		if a.family != familyECDSA || k.Curve.Params().Name != a.curve {
			return fmt.Errorf("a key on curve %s is no key for %s", k.Curve.Params().Name, a.name)
		}
		return nil
	case ed25519.PublicKey:
		if a.family != familyEdDSA {
			return fmt.Errorf("an Ed25519 key is no key for %s", a.name)
		}
		return nil
	default:
		return fmt.Errorf("a %T is no key for %s", material, a.name)
	}
}

// verify reports whether signature is a's over input by material, which fits.
func (a *algorithm) verify(material any, input, signature []byte) bool {
	switch k := material.(type) {
	case []byte:
		mac := hmac.New(a.newHash, k)
		mac.Write(input)
		return hmac.Equal(mac.Sum(nil), signature)
	case *rsa.PublicKey:
		if a.family == familyPSS {
			// RFC 7518 section 3.5: the salt is as long as the hash, no other length.
			return rsa.VerifyPSS(k, a.hash, a.digest(input), signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
		}
		return rsa.VerifyPKCS1v15(k, a.hash, a.digest(input), signature) == nil
	case *ecdsa.PublicKey:
		if len(signature) != 2*a.size {
			return false
		}
		r, s := new(big.Int).SetBytes(signature[:a.size]), new(big.Int).SetBytes(signature[a.size:])
		return ecdsa.Verify(k, a.digest(input), r, s)
	case ed25519.PublicKey:
		return ed25519.Verify(k, input, signature)
	default:
		return false
	}
}

func (a *algorithm) newHash() hash.Hash {
	switch a.hash {
	case crypto.SHA384:
		return sha512.New384()
	case crypto.SHA512:
		return sha512.New()
	default:
		return sha256.New()
	}
}

func (a *algorithm) digest(input []byte) []byte {
	h := a.newHash()
	h.Write(input)
	return h.Sum(nil)
}
