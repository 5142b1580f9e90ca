package authn

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Options are what a Verifier needs from its process. The zero value works.
type Options struct {
	// Development admits Config.Development; without it New refuses one.
	Development bool
	// Now is the clock of background work and of metrics; nil means time.Now.
	Now func() time.Time
	// Log receives changes of state, never a token; nil discards.
	Log *slog.Logger
	// Metrics is where the metrics are registered; nil registers none.
	Metrics prometheus.Registerer
	// HTTPClient fetches key sets; nil means one made for it. Redirects are not
	// followed.
	HTTPClient *http.Client
	// Ready is told whether every issuer's keys are there, on every change, from
	// New and from Run's goroutines; nil is not told. Keys that are stale count:
	// only keys that were never there make it false.
	Ready func(ok bool, reason string)
}

// Verifier verifies tokens. It is safe for concurrent use.
type Verifier struct {
	sources SourcesConfig
	proofs  *proofs
	opaque  *introspector // nil without introspection
	maxSize int
	issuers map[string]*issuer
	remote  []*remoteKeys
	cache   *cache
	metrics *metrics

	// readyMu orders reports to ready.
	readyMu sync.Mutex
	ready   func(ok bool, reason string)
}

// New reads the keys that are in files and returns a verifier; keys at URLs
// come with Run. The error names the issuer and the file. cfg is a
// configuration that Validate found nothing wrong with.
func New(cfg Config, o Options) (*Verifier, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	v := &Verifier{
		sources: cfg.Sources,
		maxSize: int(cfg.MaxTokenSize),
		issuers: make(map[string]*issuer, len(cfg.Issuers)+1),
		cache:   newCache(int64(cfg.SignatureCache)),
		ready:   o.Ready,
	}
	entries := slices.Clone(cfg.Issuers)
	if file := string(cfg.Development.KeyFile); file != "" {
		if !o.Development {
			return nil, fmt.Errorf("development.key_file: %q: a development issuer is for development mode alone", file)
		}
		ic, err := DevelopmentIssuer(file)
		if err != nil {
			return nil, err
		}
		entries = append(entries, ic)
	}
	for _, ic := range entries {
		if ic.Issuer == DevelopmentIssuerURL && !o.Development {
			return nil, fmt.Errorf("issuer %q: a development issuer is for development mode alone", ic.Name)
		}
		is, err := newIssuer(cfg, ic)
		if err != nil {
			return nil, fmt.Errorf("issuer %q: %w", ic.Name, err)
		}
		if v.issuers[ic.Issuer] != nil {
			return nil, fmt.Errorf("issuer %q: %q has an entry already", ic.Name, ic.Issuer)
		}
		v.issuers[ic.Issuer] = is
		if ic.Keys.JWKSURL != "" {
			is.remote = newRemoteKeys(is, ic.Keys.JWKSURL, cfg.JWKS, o, v.reportReady)
			v.remote = append(v.remote, is.remote)
		}
	}
	v.proofs = newProofs(cfg.Proofs)
	if cfg.Introspection.URL != "" {
		in, err := newIntrospector(cfg, o)
		if err != nil {
			return nil, fmt.Errorf("introspection: %w", err)
		}
		v.opaque = in
	}
	m, err := newMetrics(o, v)
	if err != nil {
		return nil, err
	}
	v.metrics = m
	v.reportReady()
	return v, nil
}

// Run fetches key sets until ctx ends, and then returns nil. Without an issuer
// whose keys are at a URL it only waits. Call it once.
func (v *Verifier) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, r := range v.remote {
		wg.Go(func() { r.run(ctx) })
	}
	<-ctx.Done()
	wg.Wait()
	return nil
}

func (v *Verifier) reportReady() {
	if v.ready == nil {
		return
	}
	v.readyMu.Lock()
	defer v.readyMu.Unlock()
	for _, r := range v.remote {
		if r.issuer.keys.Load() == nil {
			v.ready(false, "no keys yet from issuer "+r.issuer.name)
			return
		}
	}
	v.ready(true, "")
}

// Extract finds the token in a request's headers: see SourcesConfig.Extract.
func (v *Verifier) Extract(authorization, cookie, header string) (Credential, error) {
	return v.sources.Extract(authorization, cookie, header)
}

// Leeway is the longest leeway of any issuer: a token can be accepted that long
// after its expiry, so a revocation is kept that much longer.
func (v *Verifier) Leeway() time.Duration {
	var longest time.Duration
	for _, is := range v.issuers {
		longest = max(longest, is.leeway)
	}
	return longest
}

// MaxLifetime is the longest time from now that a token accepted by any issuer
// can live, leeway included: how long a revocation has to be kept when the
// expiry of what it revokes is unknown.
func (v *Verifier) MaxLifetime() time.Duration {
	var longest time.Duration
	for _, is := range v.issuers {
		// Issued at most a leeway ahead of us, accepted a leeway past its expiry.
		longest = max(longest, is.maxLifetime+2*is.leeway)
	}
	return longest
}

// verified is what came of a token whose signature is good.
type verified struct {
	principal *Principal
	key       *key
	// from and until bound the times, in nanoseconds since 1970 with leeway
	// included, at which the token is good.
	from, until int64
	bound       *binding
	// believed is until when an introspection server's word counts, and refusal
	// what it said against the token; both are for opaque tokens alone.
	believed int64
	refusal  *Error
}

var (
	errTooLong    = &Error{Code: CodeMalformed, Public: "The token is too long."}
	errExpired    = &Error{Code: CodeExpired, Public: "The token has expired."}
	errNotYet     = invalid(errors.New("not valid yet"))
	errRetired    = invalid(errors.New("signed with a key that is no longer in the issuer's set"))
	errBound      = invalid(errors.New("bound to a key of the client, presented as plain bearer token"))
	errEmptyToken = &Error{Code: CodeMissing, Public: "A token is required."}
)

const unavailableDetail = "The token cannot be verified at the moment."

func invalid(cause error) *Error {
	return &Error{Code: CodeInvalid, Public: "The token is not valid.", Cause: cause}
}

func malformed(cause error) *Error {
	return &Error{Code: CodeMalformed, Public: "The token is not a JSON Web Token.", Cause: cause}
}

// Verify returns whom a JSON Web Token presented as plain bearer token speaks
// for at now. The error is an *Error. A token that is bound to a key (cnf) is
// refused here; Authenticate knows all kinds of tokens.
//
// It does not keep token, so that the string may alias a buffer.
func (v *Verifier) Verify(token string, now time.Time) (*Principal, error) {
	got, err := v.verify(token, now)
	if err == nil && got.bound != nil {
		err = errBound
	}
	if err != nil {
		v.metrics.refused(err)
		return nil, err
	}
	v.metrics.accepted.Inc()
	return got.principal, nil
}

func (v *Verifier) verify(token string, now time.Time) (*verified, *Error) {
	if len(token) > v.maxSize {
		return nil, errTooLong
	}
	var got *verified
	if v.cache != nil {
		if e := v.cache.get(token); e != nil && !e.verified.key.retired.Load() {
			got = &e.verified
		}
	}
	if got == nil {
		fresh, err := v.verifySignature(token)
		if err != nil {
			return nil, err
		}
		v.metrics.signatures.Inc()
		if v.cache != nil {
			v.cache.put(token, fresh)
		}
		got = &fresh
	}
	return got, got.check(now)
}

// check is the part that is never remembered.
func (g *verified) check(now time.Time) *Error {
	at := now.UnixNano()
	switch {
	case at >= g.until:
		return errExpired
	case at < g.from:
		return errNotYet
	case g.key.retired.Load():
		return errRetired
	}
	return nil
}

// verifySignature does everything for a token that does not depend on the time.
func (v *Verifier) verifySignature(token string) (verified, *Error) {
	if token == "" {
		return verified{}, errEmptyToken
	}
	c, err := parseCompact(token)
	if err != nil {
		return verified{}, malformed(err)
	}
	iss, _ := c.payload["iss"].(string)
	is := v.issuers[iss]
	if is == nil {
		return verified{}, invalid(errors.New("issuer is none of ours"))
	}
	k, e := is.verifySignature(&c)
	if e != nil {
		return verified{}, e
	}
	got, err := is.principal(&c)
	if err != nil {
		return verified{}, invalid(err)
	}
	got.key = k
	return got, nil
}

// issuer is a compiled IssuerConfig.
type issuer struct {
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
		name: ic.Name, url: ic.Issuer, audiences: slices.Clone(ic.Audiences), require: slices.Clone(ic.Require),
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
	if !slices.Contains(is.types, kind) {
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
	a, kid, err := is.checkHeader(c)
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
