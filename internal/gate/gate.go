// Package gate decides one request: it asks the parts in order — route rule,
// client address, token, revocation, requirements, flags, limits where they are
// decided here — and puts their answers together.
//
// It knows neither Envoy nor HTTP servers: adapters make a Request of what they
// were asked and an answer of the Outcome. Identity fails closed: where a part
// cannot be asked, the request is refused with 503, never let through.
package gate

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/anomaly"
	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/flag"
	"github.com/tollgate-proxy/tollgate/internal/policy"
	"github.com/tollgate-proxy/tollgate/internal/ratelimit"
	"github.com/tollgate-proxy/tollgate/internal/revocation"
	"github.com/tollgate-proxy/tollgate/internal/session"
)

// Codes of refusals that begin here; the others are those of authn, policy and
// revocation.
const (
	CodeUnavailable = "dependency_unavailable"
	// CodeMalformed: what Envoy sent is no request that can be judged.
	CodeMalformed = "request_malformed"
)

// TierAnonymous is the tier of a caller without a token.
const TierAnonymous = "anonymous"

// Request is what is known of a request before it is judged. Strings are as the
// client sent them, after Envoy's normalisation.
type Request struct {
	// Request is what says where the request goes and who sends it.
	authn.Request
	// Address is the trusted client address; the zero value where it is unknown.
	Address netip.Addr
	// UserAgent and DeviceID are the client's own words.
	UserAgent, DeviceID string
	// Visitor is the stable key that an anonymous client brings; empty for none.
	Visitor string
	// Place is where the client is, as a trusted proxy before Envoy says; empty
	// where there is none.
	Place anomaly.PlaceText
	// ID is the request id, for logs.
	ID string
}

// Outcome is the decision about a Request.
type Outcome struct {
	Allowed bool
	// Status, Code and Detail are for the client where the request is refused.
	Status       int
	Code, Detail string
	// Principal is the caller; nil for an anonymous one.
	Principal *authn.Principal
	// Route is the rule that decided; nil where the request was malformed.
	Route *policy.Route
	// Tier is never empty.
	Tier string
	// Address is the request's.
	Address netip.Addr
	// Subject is whom flags were evaluated for, and FlagSet the definitions at
	// that moment; nil where the request is refused, unless for its limits.
	FlagSet *flag.Set
	Subject flag.Subject
	// Risk is what is suspicious about the request; the zero value is nothing.
	Risk anomaly.Assessment
	// Limits is how the caller's limits stand after this request; nil where they
	// were not asked.
	Limits *ratelimit.Decision
	// Nonce is for the client's next DPoP proof, whatever the decision; empty where
	// it needs no other.
	Nonce string
	// Challenge is how to challenge the client where the request is refused.
	Challenge authn.Challenge
	// Now is the time of the decision.
	Now time.Time
}

// Verifier finds and verifies tokens. Its errors are *authn.Error.
type Verifier interface {
	Authenticate(ctx context.Context, r *authn.Request, now time.Time) (*authn.Principal, error)
}

// Denylist says whether a verified token has been revoked.
type Denylist interface {
	Check(ctx context.Context, t *revocation.Token, now time.Time, p revocation.Policy) (revocation.Verdict, error)
}

// Flags offers the current definitions.
type Flags interface {
	Current() *flag.Set
}

// Sessions notes which sessions requests come in. Observe neither waits nor keeps
// what it is given.
type Sessions interface {
	Observe(s *session.Sighting)
}

// Options are the parts of a Gate. All but Sessions, Suspicions and Limits are required.
type Options struct {
	Verifier Verifier
	Denylist Denylist
	Flags    Flags
	Sessions Sessions
	// Suspicions watches requests with a token; nil does not.
	Suspicions Suspicions
	// Limits decides the limits of requests that are otherwise allowed, in the
	// rules' Domain; nil leaves that to Envoy's ratelimit filter.
	Limits  Limits
	Domain  string
	Routes  *policy.Set
	Log     *slog.Logger
	Metrics *Metrics
	Now     func() time.Time
}

// Gate decides requests. It is safe for concurrent use.
type Gate struct {
	verifier   Verifier
	denylist   Denylist
	flags      Flags
	sessions   Sessions
	suspicions Suspicions
	limits     Limits
	domain     string
	routes     atomic.Pointer[policy.Set]
	log        *slog.Logger
	metrics    *Metrics
	shadows    budget
	now        func() time.Time
}

// New makes a gate.
func New(o Options) *Gate {
	g := &Gate{verifier: o.Verifier, denylist: o.Denylist, flags: o.Flags, sessions: o.Sessions, suspicions: o.Suspicions, limits: o.Limits, domain: o.Domain, log: o.Log, metrics: o.Metrics, now: o.Now}
	g.routes.Store(o.Routes)
	return g
}

// SetRoutes swaps the route rules.
func (g *Gate) SetRoutes(routes *policy.Set) { g.routes.Store(routes) }

// Decide decides the request. It may ask Redis, where a route rule or the strict
// mode says so, and then waits no longer than ctx.
func (g *Gate) Decide(ctx context.Context, r *Request) Outcome {
	o := Outcome{Now: g.now(), Tier: TierAnonymous, Address: r.Address}
	g.decide(ctx, r, &o, nil)
	g.limit(ctx, &o, nil)
	if o.Allowed {
		g.noteSession(r, &o)
	}
	g.metrics.observe(&o, g.now().Sub(o.Now))
	return o
}

// decide fills in the outcome, and notes its steps in e, which may be nil.
func (g *Gate) decide(ctx context.Context, r *Request, o *Outcome, e *Explanation) {
	if r.Method == "" || r.Path == "" {
		o.refuse(http.StatusBadRequest, CodeMalformed, "The gateway was asked about a request without method or path.")
		return
	}
	routes := g.routes.Load()
	match := routes.Match(r.Host, r.Method, r.Path)
	o.Route = match.Route
	e.route(routes, r)
	if d := policy.DecideAddress(match.Route, r.Address); !d.Allowed {
		e.note(Step{Name: "address", Detail: d.Detail, Got: r.Address.String()})
		o.refuse(d.Status, d.Code, d.Detail)
		return
	}
	var caller *authn.Principal
	if match.WantsToken() {
		var goOn bool
		if caller, goOn = g.authenticate(ctx, r, match.Route, o, e); !goOn {
			return
		}
	}
	if match.Route.Access != policy.Public { // there the token is for a shadow rule's eyes alone
		o.Principal = caller
		if caller != nil {
			o.Tier = caller.Tier
			if g.suspicions != nil && !g.assess(ctx, r, caller, o, e) {
				return
			}
		}
	}
	subject := subjectOf(o.Principal, r.Address)
	decision := policy.Decide(match.Route, &subject)
	e.requirements(match.Route, &subject)
	if match.Shadow != nil && decision.Allowed {
		g.shadow(r, match.Shadow, caller, o, e)
	}
	if !decision.Allowed {
		o.refuse(decision.Status, decision.Code, decision.Detail)
		return
	}
	o.Allowed = true
	o.FlagSet = g.flags.Current()
	if p := o.Principal; p != nil {
		o.Subject = flag.Subject{Key: p.Subject, Tier: p.Tier, Roles: p.Roles, Claims: p.Claims}
	} else {
		o.Subject = flag.Subject{Anonymous: true, Tier: TierAnonymous}
		switch {
		case r.Visitor != "":
			o.Subject.Key, o.Subject.Visitor = flag.VisitorPrefix+r.Visitor, true
		case r.Address.IsValid():
			o.Subject.Key = r.Address.String()
		}
	}
}

// noteSession registers or refreshes the session of an allowed request. A token
// that names no session goes by its own id there: that is no login to count.
func (g *Gate) noteSession(r *Request, o *Outcome) {
	p := o.Principal
	if g.sessions == nil || p == nil || p.Session == "" || p.Session == p.TokenID {
		return
	}
	s := session.Sighting{
		User: p.Subject, Session: p.Session, Issuer: p.Issuer, Tier: p.Tier,
		DeviceID: p.Device, UserAgent: r.UserAgent, Country: r.Place.Country, At: o.Now,
	}
	if s.DeviceID == "" {
		s.DeviceID = r.DeviceID
	}
	if r.Address.IsValid() {
		s.Address = r.Address.String()
	}
	g.sessions.Observe(&s)
}

func subjectOf(p *authn.Principal, address netip.Addr) policy.Subject {
	if p == nil {
		return policy.Subject{Tier: TierAnonymous, Address: address}
	}
	return policy.Subject{
		Authenticated: true, Tier: p.Tier, Address: address,
		Roles: p.Roles, Scopes: p.Scopes, Consents: p.Consents,
	}
}

// authenticate finds the caller; nil is an anonymous one. It reports whether to
// go on: where not, the outcome is a refusal. On a public route nothing about
// the token refuses the request.
func (g *Gate) authenticate(ctx context.Context, r *Request, route *policy.Route, o *Outcome, x *Explanation) (*authn.Principal, bool) {
	public := route.Access == policy.Public
	principal, err := g.verifier.Authenticate(ctx, &r.Request, o.Now)
	o.Nonce, o.Challenge = r.FreshNonce, r.Challenge
	x.token(principal, err)
	if err != nil && x == nil && !public {
		g.noteFailure(r.Address, err, o.Now)
	}
	if err != nil {
		var e *authn.Error
		switch {
		case public:
			return nil, true
		case !errors.As(err, &e):
			o.refuse(http.StatusServiceUnavailable, CodeUnavailable, "The token cannot be judged at the moment.")
			return nil, false
		case e.Code == authn.CodeMissing:
			return nil, true // the route's requirements say whether that matters
		}
		o.refuse(statusOf(e.Code), e.Code, e.Public)
		return nil, false
	}
	verdict, err := g.denylist.Check(ctx, &annotationOf(principal).token, o.Now, stalePolicy(route.OnStale))
	x.revocation(verdict, err)
	switch {
	case public && (err != nil || verdict.Revoked):
		return nil, true
	case err != nil:
		o.refuse(http.StatusServiceUnavailable, CodeUnavailable, "It is not known at the moment whether the token has been revoked.")
		return nil, false
	case verdict.Revoked:
		o.refuse(http.StatusUnauthorized, string(verdict.Code), revokedDetail(verdict.Code))
		return nil, false
	}
	return principal, true
}

// RevocationToken is what the denylist needs to know of a verified token.
func RevocationToken(p *authn.Principal) revocation.Token {
	return revocation.Token{
		Digest: p.SigningInput, Issuer: p.Issuer, TokenID: p.TokenID,
		Session: p.Session, Subject: p.Subject, ClientID: p.ClientID,
		IssuedAt: p.IssuedAt, ExpiresAt: p.ExpiresAt, Version: p.Version,
	}
}

func (o *Outcome) refuse(status int, code, detail string) {
	o.Allowed, o.Status, o.Code, o.Detail = false, status, code, detail
}

func statusOf(code string) int {
	if code == authn.CodeUnavailable {
		return http.StatusServiceUnavailable
	}
	return http.StatusUnauthorized
}

func revokedDetail(code revocation.Code) string {
	if code == revocation.CodeSessionEnded {
		return "The session has ended."
	}
	return "The token has been revoked."
}

func stalePolicy(s policy.Stale) revocation.Policy {
	switch s {
	case policy.AskRedis:
		return revocation.AskRedis
	case policy.ServeStale:
		return revocation.ServeStale
	default:
		return revocation.FailClosed
	}
}
