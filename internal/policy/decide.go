package policy

import (
	"net/netip"
	"slices"
	"strings"
)

// Statuses of refusals, so that the domain needs no HTTP.
const (
	statusUnauthorized = 401
	statusForbidden    = 403
)

// Decide returns whether the route lets the caller pass. Requirements are
// looked at in the order: address, token, tier, roles, scopes, consents; the
// first that is not met makes the decision. It allocates nothing.
func Decide(r *Route, s *Subject) Decision {
	e := evaluation{decision: Decision{Allowed: true}}
	if e.address(r, s) {
		e.caller(r, s)
	}
	return e.decision
}

// DecideAddress is the part of Decide that needs no token: the route itself and
// the client's address. With it a request can be refused before its token is
// verified.
func DecideAddress(r *Route, address netip.Addr) Decision {
	e := evaluation{decision: Decision{Allowed: true}}
	e.address(r, &Subject{Address: address})
	return e.decision
}

// Explain returns Decide's decision with every requirement of the route and
// whether it was met; the first that was not made the decision.
func Explain(r *Route, s *Subject) ([]Step, Decision) {
	e := evaluation{decision: Decision{Allowed: true}, explain: true}
	e.address(r, s)
	e.caller(r, s)
	return e.steps, e.decision
}

// evaluation is a decision in the making.
type evaluation struct {
	decision Decision
	explain  bool
	steps    []Step
}

// met records one requirement, and reports whether to go on.
func (e *evaluation) met(ok bool, refusal Decision, wanted, got []string) bool {
	if e.explain {
		e.steps = append(e.steps, Step{
			Requirement: refusal.Requirement, Wanted: strings.Join(wanted, ","), Got: strings.Join(got, ","), Met: ok,
		})
	}
	if !ok && e.decision.Allowed {
		e.decision = refusal
	}
	return ok || e.explain
}

func forbid(code, requirement, detail string) Decision {
	return Decision{Status: statusForbidden, Code: code, Detail: detail, Requirement: requirement}
}

func (e *evaluation) address(r *Route, s *Subject) bool {
	if r.Access == Denied {
		return e.met(false, forbid(CodeRouteDenied, "access", "No rule allows this request."), nil, nil)
	}
	if len(r.need.addresses) == 0 {
		return true
	}
	address := s.Address.Unmap().WithZone("")
	ok := false
	for _, p := range r.need.addresses {
		if p.Contains(address) {
			ok = true
			break
		}
	}
	var got []string
	if e.explain && address.IsValid() {
		got = []string{address.String()}
	}
	return e.met(ok, forbid(CodeAddressDenied, "addresses", "This is not allowed from your address."), r.need.addressTexts, got)
}

func (e *evaluation) caller(r *Route, s *Subject) {
	if r.Access != Required {
		return
	}
	q := &r.need
	missing := Decision{Status: statusUnauthorized, Code: CodeTokenMissing, Detail: "A token is required.", Requirement: "authentication"}
	if !e.met(s.Authenticated, missing, nil, nil) {
		return
	}
	if len(q.tiers) > 0 {
		ok := s.Authenticated && slices.Contains(q.tiers, s.Tier)
		var got []string
		if e.explain {
			got = []string{s.Tier}
		}
		if !e.met(ok, forbid(CodeRoleRequired, "tiers", "Your tier does not include this."), q.tiers, got) {
			return
		}
	}
	const role, scope = "This needs a role that you do not have.", "This needs a scope that your token does not have."
	ok := e.list(q.rolesAny, s.Roles, false, forbid(CodeRoleRequired, "roles_any", role)) &&
		e.list(q.rolesAll, s.Roles, true, forbid(CodeRoleRequired, "roles_all", role)) &&
		e.list(q.scopesAny, s.Scopes, false, forbid(CodeRoleRequired, "scopes_any", scope)) &&
		e.list(q.scopesAll, s.Scopes, true, forbid(CodeRoleRequired, "scopes_all", scope))
	if ok {
		e.list(q.consents, s.Consents, true, forbid(CodeConsentRequired, "consents", "This needs your consent to its purposes."))
	}
}

// list is a requirement of one or of all of the wanted; nothing wanted is none.
func (e *evaluation) list(wanted, got []string, all bool, refusal Decision) bool {
	if len(wanted) == 0 {
		return true
	}
	ok := all
	for _, w := range wanted {
		if slices.Contains(got, w) != all {
			ok = !all
			break
		}
	}
	return e.met(ok, refusal, wanted, got)
}
