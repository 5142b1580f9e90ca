package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/tollgate-proxy/tollgate/internal/config"
)

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

var (
	tiers     = []string{"free", "premium", "enterprise", "admin"}
	accesses  = map[string]Access{"": Required, "required": Required, "optional": Optional, "public": Public, "denied": Denied}
	stales    = map[string]Stale{"": FailClosed, "fail_closed": FailClosed, "ask_redis": AskRedis, "serve_stale": ServeStale}
	unmatched = map[string]Access{"": Denied, "refuse": Denied, "required": Required, "public": Public}
)

// Validate reports what is wrong with the whole.
func (c Config) Validate(r *config.Report) {
	if _, ok := unmatched[c.Unmatched]; !ok {
		r.Fault("unmatched", c.Unmatched, "refuse, required or public")
	}
	classes := map[string]bool{DefaultEndpoint: true}
	seen := map[string]bool{}
	for i, e := range c.Endpoints {
		if seen[e.Name] {
			r.Fault(fmt.Sprintf("endpoints[%d].name", i), e.Name, "a name that no other class has")
		}
		seen[e.Name], classes[e.Name] = true, true
	}
	names := map[string]bool{}
	for i, rc := range c.Routes {
		key := func(k string) string { return fmt.Sprintf("routes[%d].%s", i, k) }
		if names[rc.Name] {
			r.Fault(key("name"), rc.Name, "a name that no other route has")
		}
		names[rc.Name] = true
		if rc.Endpoint != "" && !classes[rc.Endpoint] {
			r.Fault(key("endpoint"), rc.Endpoint, "the name of one of endpoints, or default")
		}
	}
	if j, i := c.unreachable(); i > 0 {
		r.Fault(fmt.Sprintf("routes[%d]", i), c.Routes[i].Name,
			fmt.Sprintf("a place before route %q, which matches everything that this one does", c.Routes[j].Name))
	}
}

// Validate reports what is wrong with the class.
func (c EndpointConfig) Validate(r *config.Report) {
	if !isName(c.Name) {
		r.Fault("name", c.Name, namesAllowed)
	}
	if c.Cost < 1 || c.Cost > 1_000_000 {
		r.Fault("cost", c.Cost, "1 to 1000000")
	}
}

// Validate reports what is wrong with the rule.
func (c RouteConfig) Validate(r *config.Report) {
	if !isName(strings.ReplaceAll(c.Name, " ", "_")) || c.Name != strings.TrimSpace(c.Name) || c.Name == unmatchedName || c.Name == ambiguousName {
		r.Fault("name", c.Name, namesAllowed+", with spaces between them, other than unmatched and ambiguous")
	}
	access, ok := accesses[c.Access]
	if !ok {
		r.Fault("access", c.Access, "required, optional, public or denied")
	}
	if ok && access != Required && c.Require.ofCaller() {
		r.Fault("require", nil, "nothing but addresses, as access is "+c.Access+" and a caller may have no token")
	}
	if _, ok := stales[c.OnStale]; !ok {
		r.Fault("on_stale", c.OnStale, "fail_closed, ask_redis or serve_stale")
	}
	if c.NoFlags && len(c.Flags) > 0 {
		r.Fault("no_flags", c.NoFlags, "false, as flags names some")
	}
}

// Validate reports what is wrong with the pattern.
func (c MatchConfig) Validate(r *config.Report) {
	for i, h := range c.Hosts {
		if _, err := parseHost(h); err != nil {
			r.Fault(fmt.Sprintf("hosts[%d]", i), h, err.Error())
		}
	}
	for i, m := range c.Methods {
		if !isMethod(m) {
			r.Fault(fmt.Sprintf("methods[%d]", i), m, "a method in capitals, such as GET")
		}
	}
	n := 0
	for _, p := range []struct{ key, value string }{{"path", c.Path}, {"prefix", c.Prefix}, {"template", c.Template}} {
		if p.value == "" {
			continue
		}
		if n++; n > 1 {
			r.Fault(p.key, p.value, "nothing, as another of path, prefix and template is set")
		}
	}
	if n == 1 {
		if _, err := c.pattern(false, false); err != nil {
			r.Fault("", c.Path+c.Prefix+c.Template, err.Error())
		}
	}
}

// Validate reports what is wrong with the requirements.
func (c RequireConfig) Validate(r *config.Report) {
	for _, l := range []struct {
		key  string
		list []string
	}{
		{"roles_any", c.RolesAny}, {"roles_all", c.RolesAll}, {"scopes_any", c.ScopesAny},
		{"scopes_all", c.ScopesAll}, {"consents", c.Consents},
	} {
		for i, v := range l.list {
			if v == "" || strings.TrimSpace(v) != v || strings.Contains(v, ",") {
				r.Fault(fmt.Sprintf("%s[%d]", l.key, i), v, "a name without comma and surrounding spaces")
			}
		}
	}
	for i, t := range c.Tiers {
		if !slices.Contains(tiers, t) {
			r.Fault(fmt.Sprintf("tiers[%d]", i), t, "free, premium, enterprise or admin")
		}
	}
	for i, a := range c.Addresses {
		if _, err := parseRange(a); err != nil {
			r.Fault(fmt.Sprintf("addresses[%d]", i), a, "an address or a range such as 10.0.0.0/8, without bits beyond its length")
		}
	}
}

// ofCaller reports whether c asks for what only a token has.
func (c RequireConfig) ofCaller() bool {
	return len(c.RolesAny)+len(c.RolesAll)+len(c.ScopesAny)+len(c.ScopesAll)+len(c.Tiers)+len(c.Consents) > 0
}

// parseRange reads an address or a range. Bits beyond a range's length are
// refused: they are a slip of the pen.
func parseRange(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, err
	}
	if p != p.Masked() || p.Addr().Is4In6() {
		return p, fmt.Errorf("%q has bits beyond its length, or is IPv4 within IPv6", s)
	}
	return p, nil
}

const namesAllowed = "1 to 64 letters, digits, dashes and underscores"

func isName(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

func isMethod(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'A' || c > 'Z') && c != '-' {
			return false
		}
	}
	return s != ""
}
