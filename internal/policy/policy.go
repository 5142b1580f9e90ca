// Package policy decides what a request must bring along: which route rule it
// meets, and whether a caller satisfies that rule.
//
// Both are pure functions of a compiled Set. The first rule that matches wins,
// and a request that meets none is refused unless the configuration says
// otherwise. A Route always has an endpoint class, so that no answer built from
// it can lose its rate limit.
//
// A path is matched as a careful backend would read it and as a careless one
// might; where the two readings meet different rules the request is refused
// (see Set.Match).
package policy

import "net/netip"

// Codes of a refusal, as clients see them.
const (
	CodeTokenMissing    = "token_missing"
	CodeRoleRequired    = "role_required"
	CodeConsentRequired = "consent_required"
	CodeAddressDenied   = "address_denied"
	// CodeRouteDenied: no rule allows the request, whoever sends it.
	CodeRouteDenied = "route_denied"
)

// DefaultEndpoint is the class of a route that names none.
const DefaultEndpoint = "default"

// Access says what a route makes of a token.
type Access uint8

// The kinds of access.
const (
	// Required: without a valid token the request is refused.
	Required Access = iota
	// Optional: a token is verified where there is one, and a bad one is refused.
	Optional
	// Public: a token is not looked at, and the caller is anonymous.
	Public
	// Denied: the request is refused, whoever sends it.
	Denied
)

// Stale says what to do when revocations are not known to be up to date.
type Stale uint8

// The failure modes of a route.
const (
	FailClosed Stale = iota
	AskRedis
	ServeStale
)

// Route is a compiled rule. It is shared and must not be modified.
type Route struct {
	// Name is the rule's name, or "unmatched" or "ambiguous" for the two routes
	// that no rule stands behind.
	Name string
	// Access says what becomes of a token.
	Access Access
	// Endpoint is the endpoint class, never empty, and Cost its cost, at least 1.
	Endpoint string
	Cost     uint32
	// AllFlags asks for every feature flag; otherwise Flags are the ones asked
	// for, sorted, possibly none.
	AllFlags bool
	Flags    []string
	// OnStale is the failure mode of the revocation check.
	OnStale Stale

	index int
	need  requirements
}

// Match is what a request meets.
type Match struct {
	// Route decides. It is never nil.
	Route *Route
	// Shadow is the rule marked as shadow that would have decided, were it in
	// force; nil where there is none. Evaluate it with Decide and report, but do
	// not enforce.
	Shadow *Route
}

// WantsToken reports whether the token has to be looked at for Route or, to
// tell what it would have done, for Shadow.
func (m Match) WantsToken() bool {
	return m.Route.Access <= Optional || m.Shadow != nil && m.Shadow.Access <= Optional
}

// Subject holds the facts about a caller that rules ask for. The lists may be
// in any order.
type Subject struct {
	// Authenticated: a token was verified.
	Authenticated bool
	Tier          string
	Roles         []string
	Scopes        []string
	// Consents are the purposes the user has consented to.
	Consents []string
	// Address is the trusted client address; the zero value is no address and
	// satisfies no address rule.
	Address netip.Addr
}

// Decision is the outcome for one route and one caller.
type Decision struct {
	Allowed bool
	// Status and Code are the HTTP status and the code of a refusal; 0 and ""
	// where the request is allowed.
	Status int
	Code   string
	// Detail is one sentence that the caller may see.
	Detail string
	// Requirement is the key of the requirement that was not met, such as
	// roles_any.
	Requirement string
}

// Step is one requirement and whether it was met, for explanations.
type Step struct {
	// Requirement is its key in the configuration, such as roles_any.
	Requirement string
	// Wanted and Got are what the rule asks for and what the caller has, as text.
	Wanted, Got string
	Met         bool
}
