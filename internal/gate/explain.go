package gate

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/anomaly"
	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/policy"
	"github.com/tollgate-proxy/tollgate/internal/ratelimit"
	"github.com/tollgate-proxy/tollgate/internal/revocation"
)

// Step is one question that was asked on the way to a decision.
type Step struct {
	// Name is route, address, token, revocation, risk, shadow, limits or the key
	// of a route's requirement.
	Name string `json:"step"`
	// Passed says whether the request went on.
	Passed bool `json:"passed"`
	// Detail says what was found, for operators; it holds no part of a token.
	Detail string `json:"detail,omitempty"`
	// Wanted and Got compare a requirement with what the caller has.
	Wanted string `json:"wanted,omitempty"`
	Got    string `json:"got,omitempty"`
}

// Explanation is a decision with the steps that led to it.
type Explanation struct {
	Outcome Outcome
	Steps   []Step
}

// Explain decides the request as Decide does, through the same code, and says
// how. It is dry: it counts as no decision, takes nothing of any limit, learns
// nothing and uses no proof up.
func (g *Gate) Explain(ctx context.Context, r *Request) Explanation {
	e := &Explanation{Outcome: Outcome{Now: g.now(), Tier: TierAnonymous, Address: r.Address}}
	dry := *r
	dry.Dry = true
	g.decide(ctx, &dry, &e.Outcome, e)
	g.limit(ctx, &e.Outcome, e)
	return *e
}

// The methods below do nothing on a nil Explanation: that is what a Check has.

func (e *Explanation) note(s Step) {
	if e != nil {
		e.Steps = append(e.Steps, s)
	}
}

// route notes which rule matched, and how the path was read.
func (e *Explanation) route(routes *policy.Set, r *Request) {
	if e == nil {
		return
	}
	match, readings := routes.ExplainMatch(r.Host, r.Method, r.Path)
	var detail strings.Builder
	detail.WriteString("rule " + match.Route.Name)
	for _, reading := range readings {
		detail.WriteString("; read as /" + reading.Path + " it meets " + reading.Route)
	}
	e.note(Step{Name: "route", Passed: match.Route.Access != policy.Denied, Detail: detail.String()})
}

func (e *Explanation) token(p *authn.Principal, err error) {
	switch {
	case e == nil:
	case err == nil:
		e.note(Step{Name: "token", Passed: true, Detail: "issued by " + p.Issuer + " for " + p.Subject + ", tier " + p.Tier})
	default:
		detail := err.Error()
		var a *authn.Error
		if errors.As(err, &a) {
			detail = a.Code + ": " + a.Public
			if a.Cause != nil {
				detail += " (" + a.Cause.Error() + ")"
			}
		}
		e.note(Step{Name: "token", Detail: detail})
	}
}

func (e *Explanation) revocation(v revocation.Verdict, err error) {
	switch {
	case e == nil:
	case err != nil:
		e.note(Step{Name: "revocation", Detail: err.Error()})
	case v.Revoked:
		e.note(Step{Name: "revocation", Detail: string(v.Code) + ", by " + v.Why.String()})
	default:
		e.note(Step{Name: "revocation", Passed: true, Detail: "not revoked; known as of " + v.Staleness.String() + " ago"})
	}
}

func (e *Explanation) risk(v anomaly.Verdict, err error) {
	switch {
	case e == nil:
	case err != nil:
		e.note(Step{Name: "risk", Passed: true, Detail: "not assessed: " + err.Error()})
	default:
		var detail strings.Builder
		fmt.Fprintf(&detail, "score %d", v.Score)
		for _, s := range v.Signals {
			fmt.Fprintf(&detail, "; %s: %s", s.Code, s.Evidence)
		}
		e.note(Step{Name: "risk", Passed: !v.Action.Refuses(), Detail: detail.String()})
	}
}

// requirements notes what the route asks for, and whether the caller has it.
func (e *Explanation) requirements(route *policy.Route, s *policy.Subject) {
	if e == nil {
		return
	}
	steps, _ := policy.Explain(route, s)
	for _, step := range steps {
		e.note(Step{Name: step.Requirement, Passed: step.Met, Wanted: step.Wanted, Got: step.Got})
	}
}

// limits notes what the limits say to the request, which took nothing of them.
func (e *Explanation) limits(o *Outcome, err error) {
	if e == nil {
		return
	}
	key, value := o.Limited()
	var detail strings.Builder
	fmt.Fprintf(&detail, "tier %s, %s %s, endpoint %s, cost %d: ", o.Tier, key, value, o.Endpoint(), o.Cost())
	var s *ratelimit.Status
	if o.Limits != nil {
		s = o.Limits.Status()
	}
	switch {
	case err != nil:
		fmt.Fprintf(&detail, "the store cannot be asked (%s)", err)
	case s == nil:
		detail.WriteString("no limit applies")
	default:
		fmt.Fprintf(&detail, "%d of %d tokens are left (%s, %s)", s.Remaining, s.Limit.Burst, s.Limit.Name, s.Limit.Window())
		switch {
		case s.Denied && s.Retry:
			fmt.Fprintf(&detail, "; it would pass in %s", s.Reset.Round(time.Millisecond))
		case s.Denied:
			detail.WriteString("; it can never pass")
		}
	}
	e.note(Step{Name: "limits", Passed: o.Allowed, Detail: detail.String()})
}
