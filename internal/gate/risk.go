package gate

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/anomaly"
	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/revocation"
)

// Codes of refusals for suspicious activity. A session that was ended for it is
// revocation.CodeSessionEnded.
const (
	CodeStepUp = "step_up_required"
	CodeRisk   = "risk_denied"
)

// Suspicions watches for suspicious activity.
type Suspicions interface {
	// Enabled says whether requests are looked at; where not, Observe and Failed do nothing.
	Enabled() bool
	// Observe assesses a request with a verified token, and costs next to nothing
	// where nothing about it is new.
	Observe(ctx context.Context, s *anomaly.Sighting) anomaly.Assessment
	// Detect says what Observe would, with the evidence, and notes nothing.
	Detect(ctx context.Context, s *anomaly.Sighting) (anomaly.Verdict, error)
	// Failed notes a verification that failed.
	Failed(address netip.Addr, now time.Time)
}

// annotation is what a gate keeps beside a principal that is remembered.
type annotation struct {
	token         revocation.Token
	authenticated time.Time
}

// Annotate computes what a gate needs of a principal, once: it is the verifier's
// Options.Annotate.
func Annotate(p *authn.Principal) any {
	a := newAnnotation(p)
	a.token.Prepare()
	return a
}

func newAnnotation(p *authn.Principal) *annotation {
	a := &annotation{token: RevocationToken(p)}
	if at, ok := p.Claims["auth_time"].(float64); ok && at > 0 && at < 1<<40 {
		a.authenticated = time.Unix(int64(at), 0)
	}
	return a
}

func annotationOf(p *authn.Principal) *annotation {
	if a, ok := p.Annotation.(*annotation); ok {
		return a
	}
	return newAnnotation(p)
}

// assess watches a request with a principal. It reports whether to go on: where
// not, the outcome is a refusal.
func (g *Gate) assess(ctx context.Context, r *Request, p *authn.Principal, o *Outcome, e *Explanation) bool {
	s := &anomaly.Sighting{
		User: p.Subject, Session: p.Session, Issuer: p.Issuer, Token: p.SigningInput, Address: r.Address, Agent: r.UserAgent, Device: p.Device,
		Place: r.Place, Authenticated: annotationOf(p).authenticated, At: o.Now,
	}
	switch {
	case e == nil:
		o.Risk = g.suspicions.Observe(ctx, s)
	case g.suspicions.Enabled():
		v, err := g.suspicions.Detect(ctx, s)
		e.risk(v, err)
		o.Risk = v.Assessment
	}
	if !o.Risk.Action.Refuses() {
		return true
	}
	switch o.Risk.Action {
	case anomaly.StepUp:
		o.refuse(http.StatusUnauthorized, CodeStepUp, "Sign in once more to go on.")
	case anomaly.RevokeSession:
		o.refuse(http.StatusUnauthorized, string(revocation.CodeSessionEnded), revokedDetail(revocation.CodeSessionEnded))
	default:
		o.refuse(http.StatusForbidden, CodeRisk, "The request was refused for its circumstances.")
	}
	return false
}

// noteFailure counts a token that did not verify. One that is missing, has
// expired or cannot be judged is no sign of anything.
func (g *Gate) noteFailure(address netip.Addr, err error, now time.Time) {
	var e *authn.Error
	if g.suspicions == nil || !address.IsValid() || !errors.As(err, &e) {
		return
	}
	if e.Code == authn.CodeInvalid || e.Code == authn.CodeMalformed {
		g.suspicions.Failed(address, now)
	}
}
