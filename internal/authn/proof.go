package authn

import (
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/prometheus/client_golang/prometheus"
)

// maxProof is the longest DPoP header, in bytes.
const maxProof = 4 << 10

// proofAhead is how far ahead of us a client's clock may be.
const proofAhead = 5 * time.Second

// Replays remembers proofs where every process sees them. Safe for concurrent
// use.
type Replays interface {
	// First reports whether this is the first time that it is told of the id,
	// which it remembers for that long at least.
	First(ctx context.Context, keep time.Duration, id string) (bool, error)
}

// proofs judges DPoP proofs (RFC 9449 section 4.3), and remembers those it has
// seen. It is safe for concurrent use.
type proofs struct {
	algorithms []*algorithm
	names      string // of algorithms, separated by spaces
	maxAge     time.Duration
	limit      int
	nonces     *nonces // nil asks for none
	shared     Replays // nil where each process remembers for itself
	forgotten  prometheus.Counter

	// Seen proofs are in two generations. When the younger one is full or older
	// than a proof may be, it becomes the older one, which is forgotten.
	mu         sync.Mutex
	young, old map[[sha256.Size]byte]struct{}
	youngFrom  time.Time
}

func newProofs(c ProofsConfig, shared Replays) (*proofs, error) {
	p := &proofs{maxAge: c.MaxAge, limit: max(1, c.Remember/2), young: map[[sha256.Size]byte]struct{}{}}
	p.forgotten = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "tollgate_authn_proofs_forgotten_total",
		Help: "Proofs forgotten while they may still have been good, because proofs.remember was reached.",
	})
	for _, name := range c.Algorithms {
		if a := algorithms[name]; a != nil && a.family != familyHMAC {
			p.algorithms = append(p.algorithms, a)
			p.names += " " + name
		}
	}
	p.names = strings.TrimPrefix(p.names, " ")
	if c.Shared {
		if shared == nil {
			return nil, errors.New("proofs.shared: there is nothing to share proofs in")
		}
		p.shared = shared
	}
	var err error
	if c.Nonce.SecretFile != "" {
		p.nonces, err = newNonces(c.Nonce)
	}
	return p, err
}

// check says why the request's proof does not show that its sender has the key
// with the thumbprint, or nil. A proof is good once; a dry request does not say
// whether it was used.
func (p *proofs) check(ctx context.Context, r *Request, token, thumbprint string, now time.Time) error {
	switch {
	case r.Proof == "":
		return errors.New("is missing")
	case strings.IndexByte(r.Proof, ',') >= 0:
		return errors.New("is there more than once")
	case len(r.Proof) > maxProof:
		return errors.New("is too long")
	}
	c, err := parseCompact(r.Proof)
	if err != nil {
		return err
	}
	if err := p.verify(&c, thumbprint); err != nil {
		return err
	}
	claims := &reader{claims: c.payload}
	id, issued := claims.text(path{"jti"}), claims.date("iat", false)
	if claims.err != nil {
		return claims.err
	}
	ath := sha256.Sum256([]byte(token))
	switch {
	case id == "":
		return errors.New("has no jti")
	case issued.Before(now.Add(-p.maxAge)) || issued.After(now.Add(proofAhead)):
		return errors.New("is not of this moment")
	case c.payload["htm"] != r.Method:
		return errors.New("is for another method")
	case !sameTarget(c.payload["htu"], r):
		return errors.New("is for another address")
	case c.payload["ath"] != base64.RawURLEncoding.EncodeToString(ath[:]):
		return errors.New("is for another token")
	}
	if p.nonces != nil {
		if err := p.nonces.check(c.payload["nonce"], r, now); err != nil {
			return err
		}
	}
	if r.Dry {
		return nil
	}
	return p.once(ctx, sha256.Sum256([]byte(thumbprint+"."+id)), now)
}

var (
	errReplayed = errors.New("was used before")
	errOtherKey = errors.New("is by a key that the token is not bound to")
)

// once refuses a proof for the second time. This process's memory is asked
// first, so that it alone bears a flood of copies.
func (p *proofs) once(ctx context.Context, id [sha256.Size]byte, now time.Time) error {
	if !p.first(id, now) {
		return errReplayed
	}
	if p.shared == nil {
		return nil
	}
	first, err := p.shared.First(ctx, p.maxAge+2*proofAhead, "dpop:"+base64.RawURLEncoding.EncodeToString(id[:]))
	switch {
	case err != nil:
		return &Error{Code: CodeUnavailable, Public: unavailableDetail, Cause: fmt.Errorf("shared memory of proofs: %w", err)}
	case !first:
		return errReplayed
	}
	return nil
}

// verify checks the header and the signature, and that the key is the one with
// the thumbprint.
func (p *proofs) verify(c *compact, thumbprint string) error {
	if t, _ := c.header["typ"].(string); plainType(t) != "dpop+jwt" {
		return errors.New("is of another type")
	}
	if _, ok := c.header["crit"]; ok {
		return errors.New("header has crit")
	}
	name, _ := c.header["alg"].(string)
	at := slices.IndexFunc(p.algorithms, func(a *algorithm) bool { return a.name == name })
	if at < 0 {
		return errors.New("algorithm is not accepted")
	}
	raw, err := json.Marshal(c.header["jwk"])
	if err != nil {
		return errors.New("has no key")
	}
	var jwk jose.JSONWebKey
	if err := jwk.UnmarshalJSON(raw); err != nil {
		return errors.New("has no key that can be read")
	}
	// A thumbprint first: a stranger's key is not worth a signature check.
	if !jwk.IsPublic() {
		return errors.New("has a key that is not public")
	}
	sum, err := jwk.Thumbprint(crypto.SHA256)
	if err != nil || base64.RawURLEncoding.EncodeToString(sum) != thumbprint {
		return errOtherKey
	}
	a := p.algorithms[at]
	if err := a.fits(jwk.Key); err != nil {
		return err
	}
	if !a.verify(jwk.Key, []byte(c.input), c.signature) {
		return errors.New("signature does not verify")
	}
	return nil
}

// first reports whether the proof is seen for the first time.
func (p *proofs) first(id [sha256.Size]byte, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	over := now.Sub(p.youngFrom) > p.maxAge+proofAhead
	if over || len(p.young) >= p.limit {
		if !over {
			p.forgotten.Add(float64(len(p.old)))
		}
		p.old, p.young, p.youngFrom = p.young, map[[sha256.Size]byte]struct{}{}, now
	}
	if _, seen := p.young[id]; seen {
		return false
	}
	if _, seen := p.old[id]; seen {
		return false
	}
	p.young[id] = struct{}{}
	return true
}

// sameTarget compares htu with the request's address, without queries: scheme
// and host in any case and without their default port, the path exactly.
func sameTarget(htu any, r *Request) bool {
	text, _ := htu.(string)
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil {
		return false
	}
	scheme := strings.ToLower(u.Scheme)
	if scheme != "https" && scheme != "http" || r.Scheme != "" && !strings.EqualFold(scheme, r.Scheme) {
		return false
	}
	target, _, _ := strings.Cut(r.Path, "?")
	mine := u.EscapedPath()
	if mine == "" {
		mine = "/"
	}
	return plainAuthority(u.Host, scheme) == plainAuthority(r.Host, scheme) && mine == target
}

func plainAuthority(host, scheme string) string {
	host = strings.ToLower(host)
	if scheme == "https" {
		return strings.TrimSuffix(host, ":443")
	}
	return strings.TrimSuffix(host, ":80")
}
