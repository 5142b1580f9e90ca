package authn

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// issuer is a compiled IssuerConfig.
type issuer struct {
	cfg         IssuerConfig
	name, url   string
	algorithms  []*algorithm
	audiences   []string
	types       []string
	require     []string
	claims      mapping
	tiers       TiersConfig
	leeway      time.Duration
	maxLifetime time.Duration
	keys        keyHolder
	remote      *remoteKeys // nil where the keys are in a file
	// unsigned stands in for a key where somebody else verifies the tokens, and
	// is nil otherwise.
	unsigned *key
}

func newIssuer(cfg Config, ic IssuerConfig) (*issuer, error) {
	is := &issuer{
		cfg: ic, name: ic.Name, url: ic.Issuer, audiences: slices.Clone(ic.Audiences), require: slices.Clone(ic.Require),
		tiers: ic.Tiers, leeway: ic.Leeway, maxLifetime: ic.MaxLifetime,
	}
	if is.leeway == 0 {
		is.leeway = cfg.Leeway
	}
	if is.maxLifetime == 0 {
		is.maxLifetime = cfg.MaxLifetime
	}
	for _, name := range ic.Algorithms {
		a := algorithms[name]
		if a == nil {
			return nil, fmt.Errorf("algorithm %q is none of %s", name, algorithmsAllowed)
		}
		if (a.family == familyHMAC) != (algorithms[ic.Algorithms[0]].family == familyHMAC) {
			return nil, fmt.Errorf("algorithms %q mix shared secrets and public keys", ic.Algorithms)
		}
		is.algorithms = append(is.algorithms, a)
	}
	for _, t := range ic.Types {
		is.types = append(is.types, plainType(t))
	}
	if len(is.types) == 0 {
		is.types = []string{"at+jwt", "jwt", "absent"}
	}
	var err error
	if is.claims, err = newMapping(ic.Claims); err != nil {
		return nil, err
	}
	if len(is.audiences) == 0 || len(is.algorithms) == 0 {
		return nil, errors.New("no audiences or no algorithms")
	}
	if ic.Keys.Envoy {
		is.unsigned = &key{}
		return is, nil
	}
	if ic.Keys.JWKSURL != "" {
		if is.algorithms[0].family == familyHMAC {
			return nil, fmt.Errorf("algorithms %q need a secret, which no URL has", ic.Algorithms)
		}
		return is, nil
	}
	keys, err := loadKeys(ic, is.algorithms)
	if err != nil {
		return nil, err
	}
	is.keys.Store(&keySet{keys: keys})
	return is, nil
}

// plainType is a media type as RFC 7515 section 4.1.9 compares it.
func plainType(t string) string {
	t = strings.ToLower(t)
	if rest, ok := strings.CutPrefix(t, "application/"); ok && !strings.Contains(rest, "/") {
		return rest
	}
	return t
}

// embedded are header parameters that would let a token bring its own key, or
// change how it is to be read.
var embedded = []string{"jwk", "jku", "x5u", "x5c", "crit", "b64", "enc", "zip"}

// checkHeader returns the algorithm and the kid of a token that is of one of
// the issuer's types and algorithms.
func (is *issuer) checkHeader(c *compact) (a *algorithm, kid string, err error) {
	return is.checkHeaderOf(c, is.types)
}

// checkHeaderOf is checkHeader for tokens of other types.
func (is *issuer) checkHeaderOf(c *compact, types []string) (a *algorithm, kid string, err error) {
	for _, name := range embedded {
		if _, ok := c.header[name]; ok {
			return nil, "", fmt.Errorf("header has %s", name)
		}
	}
	name, _ := c.header["alg"].(string)
	at := slices.IndexFunc(is.algorithms, func(a *algorithm) bool { return a.name == name })
	if at < 0 {
		return nil, "", errors.New("algorithm is not the issuer's")
	}
	kind := "absent"
	if t, ok := c.header["typ"]; ok {
		s, isText := t.(string)
		if kind = plainType(s); !isText || kind == "absent" {
			return nil, "", errors.New("type is not the issuer's")
		}
	}
	if !slices.Contains(types, kind) {
		return nil, "", errors.New("type is not the issuer's")
	}
	if k, ok := c.header["kid"]; ok {
		if kid, ok = k.(string); !ok || len(kid) > maxValue {
			return nil, "", errors.New("kid is not a short string")
		}
	}
	return is.algorithms[at], kid, nil
}

// verifySignature checks the header and the signature, and returns the key.
func (is *issuer) verifySignature(c *compact) (*key, *Error) {
	return is.verifySignatureOf(c, is.types)
}

// verifySignatureOf is verifySignature for tokens of other types.
func (is *issuer) verifySignatureOf(c *compact, types []string) (*key, *Error) {
	a, kid, err := is.checkHeaderOf(c, types)
	if err != nil {
		return nil, invalid(err)
	}
	set := is.keys.Load()
	switch {
	case is.unsigned != nil:
		return nil, invalid(errors.New("issuer's tokens are verified by Envoy, which has not verified this one"))
	case set == nil:
		return nil, &Error{Code: CodeUnavailable, Public: unavailableDetail, Cause: fmt.Errorf("no keys yet from issuer %s", is.name)}
	}
	found, known := set.candidates(kid, a)
	if !known && is.remote != nil {
		is.remote.unknown(kid)
	}
	input := []byte(c.input)
	for _, k := range found {
		if a.verify(k.material, input, c.signature) {
			return k, nil
		}
	}
	if len(found) == 0 {
		return nil, invalid(errors.New("no key of the issuer for the kid and algorithm"))
	}
	return nil, invalid(errors.New("signature does not verify"))
}

// rfc9068 are the claims that an access token of type at+jwt must have.
var rfc9068 = []string{"iss", "exp", "aud", "sub", "client_id", "iat", "jti"}

// principal reads the claims of a token whose signature is good. An issuer
// without audiences, which only introspection has, takes any.
func (is *issuer) principal(c *compact) (verified, error) {
	if t, ok := c.header["typ"].(string); ok && plainType(t) == "at+jwt" {
		for _, name := range rfc9068 {
			if c.payload[name] == nil {
				return verified{}, fmt.Errorf("claim %s is missing, which RFC 9068 requires", name)
			}
		}
	}
	if len(is.audiences) > 0 {
		aud, err := audienceOf(c.payload["aud"])
		if err != nil {
			return verified{}, err
		}
		if !slices.ContainsFunc(aud, func(a string) bool { return slices.Contains(is.audiences, a) }) {
			return verified{}, errors.New("audience is not us")
		}
	}

	r := &reader{claims: c.payload}
	p := &Principal{
		Issuer: is.url, Subject: r.text(is.claims.subject), Session: r.text(is.claims.session), TokenID: r.text(is.claims.tokenID),
		Device: r.text(is.claims.device), ClientID: r.text(is.claims.client), Version: r.number(is.claims.version),
		IssuedAt: r.date("iat", false), NotBefore: r.date("nbf", true), ExpiresAt: r.date("exp", false),
		SigningInput: sha256.Sum256([]byte(c.input)),
	}
	p.Claims, _ = floats(c.payload).(map[string]any)
	p.Roles, p.RolesHeader = r.list(is.claims.roles)
	p.Scopes, _ = r.list(is.claims.scopes)
	p.Consents, p.ConsentHeader = r.list(is.claims.consents)
	tier := r.text(is.claims.tier)
	if p.ClientID == "" {
		p.ClientID = r.text(path{"azp"})
	}
	if r.err != nil {
		return verified{}, r.err
	}
	for _, c := range []struct {
		name    string
		present bool
	}{
		{"iat", !p.IssuedAt.IsZero()}, {"nbf", !p.NotBefore.IsZero()}, {"jti", p.TokenID != ""}, {"sid", p.Session != ""},
		{"client_id", p.ClientID != ""}, {"tier", tier != ""}, {"ver", is.claims.version.in(c.payload) != nil}, {"device_id", p.Device != ""},
		{"sub", p.Subject != ""}, {"exp", !p.ExpiresAt.IsZero()},
	} {
		if !c.present && (c.name == "sub" || c.name == "exp" || slices.Contains(is.require, c.name)) {
			return verified{}, fmt.Errorf("claim %s is missing", c.name)
		}
	}
	var err error
	if p.Tier, err = is.tiers.tierOf(tier); err != nil {
		return verified{}, err
	}
	if p.Session == "" {
		p.Session = p.TokenID
	}
	got := verified{principal: p}
	if got.bound, err = bindingOf(c.payload["cnf"]); err != nil {
		return verified{}, err
	}
	if got.bound != nil {
		p.KeyThumbprint, p.CertificateThumbprint = got.bound.jkt, got.bound.x5t
	}
	return got, got.setTimes(is)
}

// setTimes computes from and until, and checks the lifetime.
func (g *verified) setTimes(is *issuer) error {
	p := g.principal
	leeway := is.leeway.Nanoseconds()
	exp := p.ExpiresAt.UnixNano()
	g.from = math.MinInt64
	if !p.IssuedAt.IsZero() {
		if p.ExpiresAt.Sub(p.IssuedAt) > is.maxLifetime {
			return errors.New("lives longer than the issuer's tokens may")
		}
		g.from = p.IssuedAt.UnixNano() - leeway
	} else {
		// Issued at some unknown time, so it must end within a lifetime from now.
		g.from = exp - is.maxLifetime.Nanoseconds() - leeway
	}
	if !p.NotBefore.IsZero() {
		g.from = max(g.from, p.NotBefore.UnixNano()-leeway)
	}
	g.until = exp
	if exp < math.MaxInt64-leeway {
		g.until += leeway
	}
	return nil
}
