package policy

import "github.com/tollgate-proxy/tollgate/internal/config"

// Config is the list of rules and what surrounds it.
type Config struct {
	Unmatched           string           `yaml:"unmatched" doc:"What becomes of a request that no route matches: refuse, required (any valid token) or public."`
	CaseInsensitive     bool             `yaml:"case_insensitive" doc:"Match paths without regard to ASCII case, for backends that do."`
	StrictTrailingSlash bool             `yaml:"strict_trailing_slash" doc:"Tell /a/ from /a; where false, a slash at the end of a path or a route is not looked at."`
	Endpoints           []EndpointConfig `yaml:"endpoints" doc:"Endpoint classes and what a request costs in each; a class called default costs 1 where it is not in the list."`
	Routes              []RouteConfig    `yaml:"routes" doc:"Rules in order: the first that matches decides."`
}

// EndpointConfig is a class of endpoints.
type EndpointConfig struct {
	Name string `yaml:"name" doc:"Name of the class; letters, digits, dashes and underscores."`
	Cost uint32 `yaml:"cost" doc:"Tokens that a request takes from the caller's rate limit; 1 to 1000000."`
}

// RouteConfig is one rule.
type RouteConfig struct {
	Name     string        `yaml:"name" doc:"Name of the rule in logs and explanations; unique."`
	Match    MatchConfig   `yaml:"match" doc:"Requests that the rule is for; everything where empty."`
	Access   string        `yaml:"access" doc:"What becomes of a token: required (the default), optional (verified where there is one), public (not looked at) or denied (no request passes)."`
	Require  RequireConfig `yaml:"require" doc:"What a caller must have beside a valid token; all of it."`
	Endpoint string        `yaml:"endpoint" doc:"Endpoint class, from which the cost follows; default where empty."`
	Flags    []string      `yaml:"flags" doc:"Feature flags to send to the backend; all where empty."`
	NoFlags  bool          `yaml:"no_flags" doc:"Send no feature flags."`
	OnStale  string        `yaml:"on_stale" doc:"What to do where revocations are not known to be up to date: fail_closed (the default), ask_redis or serve_stale."`
	Shadow   bool          `yaml:"shadow" doc:"Only log what the rule would have refused; matching goes on with the next rule."`
}

// MatchConfig says which requests a rule is for. What is empty matches all.
type MatchConfig struct {
	Hosts    []string `yaml:"hosts" doc:"Host names without port, such as api.example.com, or *.example.com for all names below."`
	Methods  []string `yaml:"methods" doc:"Methods; GET means HEAD too."`
	Path     string   `yaml:"path" doc:"Exact path."`
	Prefix   string   `yaml:"prefix" doc:"Path with all that is below it: /admin is /admin and /admin/x, never /administrator."`
	Template string   `yaml:"template" doc:"Path with variables for one segment each, /users/{id}, or as the last one for any number, /files/{rest...}."`
}

// RequireConfig says what a caller must have. What is empty requires nothing.
type RequireConfig struct {
	RolesAny  []string `yaml:"roles_any" doc:"At least one of these roles."`
	RolesAll  []string `yaml:"roles_all" doc:"Every one of these roles."`
	ScopesAny []string `yaml:"scopes_any" doc:"At least one of these scopes."`
	ScopesAll []string `yaml:"scopes_all" doc:"Every one of these scopes."`
	Tiers     []string `yaml:"tiers" doc:"One of these tiers: free, premium, enterprise or admin."`
	Consents  []string `yaml:"consents" doc:"Consent to every one of these purposes."`
	Addresses []string `yaml:"addresses" doc:"A client address in one of these ranges, such as 10.0.0.0/8 or 2001:db8::1."`
}

// Default returns the configuration without a route, which refuses everything.
func Default() Config {
	return Config{
		Unmatched: "refuse",
		Endpoints: []EndpointConfig{{"default", 1}, {"ml", 5}, {"blockchain", 10}, {"fraud", 2}},
	}
}

// Validate reports what is wrong with the whole.
func (c Config) Validate(r *config.Report) {}

// Set is a compiled Config. It is immutable and safe for concurrent use.
type Set struct{}

// Compile prepares the rules for matching. The error names the rule.
func Compile(c Config) (*Set, error) { return &Set{}, nil }

// Match returns what a request meets.
func (s *Set) Match(host, method, target string) Match { return Match{} }

// Decide returns whether the route lets the caller pass.
func Decide(r *Route, s *Subject) Decision { return Decision{} }

// DecideAddress is the part of Decide that needs no token.
func DecideAddress(r *Route, s *Subject) Decision { return Decision{} }

// Explain returns the steps of Decide, of which the first that is not met made
// the decision.
func Explain(r *Route, s *Subject) ([]Step, Decision) { return nil, Decision{} }
