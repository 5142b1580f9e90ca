package authn

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
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
	// Replays remembers proofs for all processes, where ProofsConfig.Shared wants
	// that; nil otherwise.
	Replays Replays
	// Ready is told whether every issuer's keys are there, on every change, from
	// New and from Run's goroutines; nil is not told. Keys that are stale count:
	// only keys that were never there make it false.
	Ready func(ok bool, reason string)
	// Annotate makes what a caller wants to keep beside a principal that is
	// remembered with its token: it is called once for a signature that was
	// verified, and its result is Principal.Annotation. nil keeps nothing.
	Annotate func(p *Principal) any
}

// Verifier verifies tokens. It is safe for concurrent use.
type Verifier struct {
	annotate func(*Principal) any

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
		annotate: o.Annotate,
		sources:  cfg.Sources,
		maxSize:  int(cfg.MaxTokenSize),
		issuers:  make(map[string]*issuer, len(cfg.Issuers)+1),
		cache:    newCache(int64(cfg.SignatureCache)),
		ready:    o.Ready,
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
	proofs, err := newProofs(cfg.Proofs, o.Replays)
	if err != nil {
		return nil, err
	}
	v.proofs = proofs
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

// Knows reports whether tokens of the issuer, named exactly as in iss, are
// accepted, opaque ones included.
func (v *Verifier) Knows(issuer string) bool {
	return v.issuers[issuer] != nil || v.opaque != nil && v.opaque.cfg.Issuer == issuer
}

// all yields the issuers of tokens of every kind.
func (v *Verifier) all(yield func(*issuer) bool) {
	for _, is := range v.issuers {
		if !yield(is) {
			return
		}
	}
	if v.opaque != nil {
		yield(v.opaque.issuer)
	}
}

// Leeway is the longest leeway of any issuer: a token can be accepted that long
// after its expiry, so a revocation is kept that much longer.
func (v *Verifier) Leeway() time.Duration {
	var longest time.Duration
	for is := range v.all {
		longest = max(longest, is.leeway)
	}
	return longest
}

// MaxLifetime is the longest time from now that a token accepted by any issuer
// can live, leeway included: how long a revocation has to be kept when the
// expiry of what it revokes is unknown.
func (v *Verifier) MaxLifetime() time.Duration {
	var longest time.Duration
	for is := range v.all {
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
	// believed is until when an introspection server's word counts, answer how many
	// bytes that has, where it is kept, and refusal what it said against the token;
	// they are for opaque tokens alone.
	believed int64
	answer   int
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
	return v.bearer(v.verify(token, now))
}

// VerifyBearer is Verify for opaque tokens too, which it may have to ask about,
// no longer than ctx.
func (v *Verifier) VerifyBearer(ctx context.Context, token string, now time.Time) (*Principal, error) {
	return v.bearer(v.recognise(ctx, token, nil, now))
}

// bearer is for tokens that came without a proof.
func (v *Verifier) bearer(got *verified, err *Error) (*Principal, error) {
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
	got, err := v.signed(token)
	if err != nil {
		return nil, err
	}
	return got, got.check(now)
}

// signed returns what a token with a good signature says, whatever the time.
func (v *Verifier) signed(token string) (*verified, *Error) {
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
			if v.annotate != nil {
				fresh.principal.Annotation = v.annotate(fresh.principal)
			}
			v.cache.put(token, fresh)
		}
		got = &fresh
	}
	return got, nil
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

// Inspect returns whom a token speaks for, so that it can be revoked or shown:
// also one that is not valid yet, and without asking whether its holder may
// present it. Never let a request in by it. The error is an *Error; a token
// past its expiry is CodeExpired, and one that only Envoy can verify is
// CodeInvalid.
func (v *Verifier) Inspect(ctx context.Context, token string, now time.Time) (*Principal, error) {
	if v.opaque != nil && isOpaque(token) {
		got, err := v.recognise(ctx, token, nil, now)
		if err != nil {
			return nil, err
		}
		return got.principal, nil
	}
	got, err := v.signed(token)
	if err == nil && now.UnixNano() >= got.until {
		err = errExpired
	}
	if err != nil {
		return nil, err
	}
	return got.principal, nil
}
