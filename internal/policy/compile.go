package policy

import (
	"fmt"
	"net/netip"
	"slices"
)

// Names of the routes that no rule stands behind.
const (
	unmatchedName = "unmatched"
	ambiguousName = "ambiguous"
)

// requirements is a compiled RequireConfig.
type requirements struct {
	rolesAny, rolesAll, scopesAny, scopesAll, tiers, consents []string
	addresses                                                 []netip.Prefix
	// addressTexts are addresses as configured, for explanations.
	addressTexts []string
}

// Set is a compiled Config. It is immutable and safe for concurrent use.
type Set struct {
	fold, strict bool
	enforced     *index
	shadows      *index
	hosts        bool
	unmatched    Route
	ambiguous    Route
	routes       []*Route
}

// rule is a RouteConfig's match, compiled.
type rule struct {
	hosts   []hostPattern
	methods methodSet
	pattern pattern
}

func (c MatchConfig) compile(fold, strict bool) (rule, error) {
	var r rule
	for _, h := range c.Hosts {
		p, err := parseHost(h)
		if err != nil {
			return r, fmt.Errorf("host %q is not %w", h, err)
		}
		r.hosts = append(r.hosts, p)
	}
	r.methods = newMethodSet(c.Methods)
	var err error
	if r.pattern, err = c.pattern(fold, strict); err != nil {
		return r, fmt.Errorf("path %q is not %w", c.Path+c.Prefix+c.Template, err)
	}
	return r, nil
}

// covers reports whether every request that o matches is matched by r.
func (r rule) covers(o rule) bool {
	if !r.pattern.covers(o.pattern) || !r.methods.covers(o.methods) {
		return false
	}
	if len(r.hosts) == 0 {
		return true
	}
	return len(o.hosts) > 0 && !slices.ContainsFunc(o.hosts, func(h hostPattern) bool {
		return !slices.ContainsFunc(r.hosts, func(mine hostPattern) bool { return mine.covers(h) })
	})
}

// unreachable returns the first route i that can never decide because route j
// before it matches all that it does; i is 0 where there is none. Faulty routes
// are left out.
func (c Config) unreachable() (j, i int) {
	rules := make([]*rule, len(c.Routes))
	for i := range c.Routes {
		if r, err := c.Routes[i].Match.compile(c.CaseInsensitive, c.StrictTrailingSlash); err == nil {
			rules[i] = &r
		}
	}
	for i, r := range rules {
		for j, earlier := range rules[:i] {
			// A shadow hides other shadows alone.
			if c.Routes[j].Shadow && !c.Routes[i].Shadow {
				continue
			}
			if r != nil && earlier != nil && earlier.covers(*r) {
				return j, i
			}
		}
	}
	return 0, 0
}

// Compile prepares the rules for matching. The error names the rule; a
// configuration that Validate found nothing wrong with compiles.
func Compile(c Config) (*Set, error) {
	costs := map[string]uint32{DefaultEndpoint: 1}
	for _, e := range c.Endpoints {
		costs[e.Name] = max(1, e.Cost)
	}
	access, ok := unmatched[c.Unmatched]
	if !ok {
		return nil, fmt.Errorf("unmatched %q is not refuse, required or public", c.Unmatched)
	}
	s := &Set{
		fold: c.CaseInsensitive, strict: c.StrictTrailingSlash, enforced: newIndex(), shadows: newIndex(),
		unmatched: Route{Name: unmatchedName, Access: access, Endpoint: DefaultEndpoint, Cost: costs[DefaultEndpoint], AllFlags: true},
		ambiguous: Route{Name: ambiguousName, Access: Denied, Endpoint: DefaultEndpoint, Cost: costs[DefaultEndpoint]},
	}
	for i, rc := range c.Routes {
		r, err := rc.compile(costs)
		if err != nil {
			return nil, fmt.Errorf("route %q: %w", rc.Name, err)
		}
		m, err := rc.Match.compile(s.fold, s.strict)
		if err != nil {
			return nil, fmt.Errorf("route %q: %w", rc.Name, err)
		}
		r.index = i
		s.routes = append(s.routes, r)
		if rc.Shadow {
			s.shadows.add(r, m.hosts, m.methods, m.pattern)
		} else {
			s.enforced.add(r, m.hosts, m.methods, m.pattern)
		}
	}
	s.hosts = s.enforced.byHost() || s.shadows.byHost()
	return s, nil
}

func (c RouteConfig) compile(costs map[string]uint32) (*Route, error) {
	r := &Route{Name: c.Name, Endpoint: c.Endpoint, AllFlags: !c.NoFlags && len(c.Flags) == 0}
	if r.Endpoint == "" {
		r.Endpoint = DefaultEndpoint
	}
	var ok bool
	if r.Cost, ok = costs[r.Endpoint]; !ok {
		return nil, fmt.Errorf("endpoint %q is none of the classes", c.Endpoint)
	}
	if r.Access, ok = accesses[c.Access]; !ok {
		return nil, fmt.Errorf("access %q is not required, optional, public or denied", c.Access)
	}
	if r.Access != Required && c.Require.ofCaller() {
		return nil, fmt.Errorf("access %q does not go with what is required of a caller", c.Access)
	}
	if r.OnStale, ok = stales[c.OnStale]; !ok {
		return nil, fmt.Errorf("on_stale %q is not fail_closed, ask_redis or serve_stale", c.OnStale)
	}
	if !c.NoFlags && len(c.Flags) > 0 {
		r.Flags = slices.Compact(slices.Sorted(slices.Values(c.Flags)))
	}
	q := c.Require
	r.need = requirements{
		rolesAny: slices.Clone(q.RolesAny), rolesAll: slices.Clone(q.RolesAll), scopesAny: slices.Clone(q.ScopesAny),
		scopesAll: slices.Clone(q.ScopesAll), tiers: slices.Clone(q.Tiers), consents: slices.Clone(q.Consents),
		addressTexts: slices.Clone(q.Addresses),
	}
	for _, a := range q.Addresses {
		p, err := parseRange(a)
		if err != nil {
			return nil, fmt.Errorf("address %q: %w", a, err)
		}
		r.need.addresses = append(r.need.addresses, p)
	}
	return r, nil
}

// Routes returns the routes in the order of the configuration, shadows
// included. Do not modify the slice.
func (s *Set) Routes() []*Route { return s.routes }

// Match returns what a request meets: host is the authority, with or without
// port, and target the path as Envoy sends it, with or without query. It does
// not keep the strings, and allocates only for paths with escapes or matrix
// parameters and for hosts in capitals.
//
// The first rule that matches wins. What is no path, what is no method in
// capitals, what is no host where rules ask for hosts, and a path whose careful and careless readings (see
// docs/guide/route-rules.md) meet different rules, meet the route "ambiguous",
// which is denied.
func (s *Set) Match(host, method, target string) Match {
	careful, careless, ok := readings(target, s.fold, s.strict)
	if !ok {
		return Match{Route: &s.ambiguous}
	}
	if s.hosts {
		if host, ok = plainHost(host); !ok {
			return Match{Route: &s.ambiguous}
		}
	}
	bit := bitOf(method)
	if bit == 0 && !isMethod(method) {
		return Match{Route: &s.ambiguous} // Such as get, which some backends take for GET.
	}
	m := s.match(host, method, bit, careful)
	if careless != careful && s.match(host, method, bit, careless).Route != m.Route {
		return Match{Route: &s.ambiguous}
	}
	return m
}

// Reading is one way to read a path, for explanations.
type Reading struct {
	// Path is what is read, without its leading slash.
	Path string
	// Route is the name of the route that it meets.
	Route string
}

// ExplainMatch returns Match's answer with the readings of the path that led to
// it, the careful one first: none for what is no path, no host or no method, and
// one where there is only one way to read the path.
func (s *Set) ExplainMatch(host, method, target string) (Match, []Reading) {
	m := s.Match(host, method, target)
	careful, careless, ok := readings(target, s.fold, s.strict)
	bit := bitOf(method)
	if ok && s.hosts {
		host, ok = plainHost(host)
	}
	if !ok || bit == 0 && !isMethod(method) {
		return m, nil
	}
	steps := []Reading{{careful, s.match(host, method, bit, careful).Route.Name}}
	if careless != careful {
		steps = append(steps, Reading{careless, s.match(host, method, bit, careless).Route.Name})
	}
	return m, steps
}

func (s *Set) match(host, method string, bit methodBit, path string) Match {
	m := Match{Route: s.enforced.find(host, method, bit, path), Shadow: s.shadows.find(host, method, bit, path)}
	if m.Route == nil {
		m.Route = &s.unmatched
	} else if m.Shadow != nil && m.Shadow.index > m.Route.index {
		m.Shadow = nil
	}
	return m
}
