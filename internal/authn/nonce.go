package authn

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// nonces makes and checks the nonces of RFC 9449 section 9. A nonce is the time
// it was made at and a MAC of that: nothing is remembered, and every process with
// the same secret takes the nonces of the others. It is safe for concurrent use.
type nonces struct {
	file    string
	maxAge  time.Duration
	secrets atomic.Pointer[[][]byte] // the first makes nonces, all of them are taken
}

const (
	// minNonceSecret is the shortest secret, in bytes.
	minNonceSecret = 32
	// nonceMAC is how much of the MAC a nonce has, in bytes.
	nonceMAC = 16
)

func newNonces(c NonceConfig) (*nonces, error) {
	n := &nonces{file: string(c.SecretFile), maxAge: c.MaxAge}
	commit, err := n.read()
	if err != nil {
		return nil, fmt.Errorf("proofs.nonce: %w", err)
	}
	commit()
	return n, nil
}

// read reads the file of secrets, one a line; commit puts them into use.
func (n *nonces) read() (commit func(), err error) {
	text, err := readKeyFile(n.file)
	if err != nil {
		return nil, err
	}
	var secrets [][]byte
	for line := range bytes.Lines(text) {
		line = bytes.TrimRight(line, "\r\n")
		switch {
		case len(line) == 0:
		case len(line) < minNonceSecret:
			return nil, fmt.Errorf("%s: a secret of %d bytes, fewer than %d", n.file, len(line), minNonceSecret)
		default:
			secrets = append(secrets, line)
		}
	}
	if len(secrets) == 0 {
		return nil, fmt.Errorf("%s: no secret", n.file)
	}
	return func() { n.secrets.Store(&secrets) }, nil
}

// fresh makes a nonce.
func (n *nonces) fresh(now time.Time) string {
	at := binary.BigEndian.AppendUint64(nil, uint64(now.Unix())) //nolint:gosec // after 1970
	return base64.RawURLEncoding.EncodeToString(append(at, macOf((*n.secrets.Load())[0], at)...))
}

func macOf(secret, at []byte) []byte {
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte("dpop nonce "))
	mac.Write(at)
	return mac.Sum(nil)[:nonceMAC]
}

// made returns when a nonce was made; ok is false for one that is not ours.
func (n *nonces) made(nonce string) (at time.Time, ok bool) {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(nonce)
	if err != nil || len(raw) != 8+nonceMAC {
		return time.Time{}, false
	}
	for _, secret := range *n.secrets.Load() {
		if hmac.Equal(raw[8:], macOf(secret, raw[:8])) {
			return time.Unix(int64(binary.BigEndian.Uint64(raw)), 0), true //nolint:gosec // made by fresh
		}
	}
	return time.Time{}, false
}

// check judges the nonce of a proof. It hands out a fresh one where that is not
// good, or past half of its time.
func (n *nonces) check(claim any, r *Request, now time.Time) error {
	nonce, _ := claim.(string)
	at, ours := n.made(nonce)
	age := now.Sub(at)
	if !ours || age > n.maxAge || age < -proofAhead { // the clock of another process may be ahead
		r.FreshNonce = n.fresh(now)
		return errNonce
	}
	if age > n.maxAge/2 {
		r.FreshNonce = n.fresh(now)
	}
	return nil
}

var errNonce = &Error{
	Code: CodeNonce, Public: "The proof needs the nonce that this answer brings.", Cause: errors.New("proof: has no nonce that is good"),
}
