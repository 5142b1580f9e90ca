package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func compile(t testing.TB, c Config) *Set {
	t.Helper()
	s, err := Compile(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func routes(list ...RouteConfig) Config {
	c := Default()
	c.Routes = list
	return c
}

func exact(name, path string) RouteConfig {
	return RouteConfig{Name: name, Match: MatchConfig{Path: path}}
}

func prefix(name, path string) RouteConfig {
	return RouteConfig{Name: name, Match: MatchConfig{Prefix: path}}
}

func template(name, path string) RouteConfig {
	return RouteConfig{Name: name, Match: MatchConfig{Template: path}}
}

func TestMatch(t *testing.T) {
	all := []RouteConfig{
		exact("root", "/"),
		exact("exact", "/health"),
		{Name: "post", Match: MatchConfig{Path: "/things", Methods: []string{"POST", "PURGE"}}},
		{Name: "get", Match: MatchConfig{Path: "/things", Methods: []string{"GET"}}},
		exact("me", "/users/me"),
		template("user", "/users/{id}"),
		template("orders", "/users/{id}/orders"),
		template("files", "/files/{user}/{rest...}"),
		prefix("admin", "/admin"),
		{Name: "host", Match: MatchConfig{Prefix: "/site", Hosts: []string{"a.example.com"}}},
		{Name: "below", Match: MatchConfig{Prefix: "/site", Hosts: []string{"*.example.com"}}},
		exact("space", "/a%20b/%C3%A9"),
		{Name: "public", Match: MatchConfig{Prefix: "/open"}, Access: "public"},
	}
	s := compile(t, routes(all...))
	for _, c := range []struct{ host, method, target, want string }{
		{"", "GET", "/", "root"},
		{"", "GET", "/?a=b", "root"},
		{"", "GET", "/health", "exact"},
		{"", "GET", "/health/", "exact"},
		{"", "GET", "/health?", "exact"},
		{"", "GET", "/health?x=/../admin", "exact"},
		{"", "GET", "/health/x", "unmatched"},
		{"", "GET", "/healthy", "unmatched"},
		{"", "GET", "/Health", "unmatched"},
		{"", "POST", "/things", "post"},
		{"", "PURGE", "/things", "post"},
		{"", "GET", "/things", "get"},
		{"", "HEAD", "/things", "get"},
		{"", "PUT", "/things", "unmatched"},
		{"", "MKCOL", "/things", "unmatched"},
		{"", "get", "/things", "ambiguous"},
		{"", "", "/things", "ambiguous"},
		{"", "GET", "/users/me", "me"},
		{"", "GET", "/users/42", "user"},
		{"", "GET", "/users/42/", "user"},
		{"", "GET", "/users/", "unmatched"},
		{"", "GET", "/users/42/orders", "orders"},
		{"", "GET", "/users/42/other", "unmatched"},
		{"", "GET", "/files/u", "files"},
		{"", "GET", "/files/u/a/b/c", "files"},
		{"", "GET", "/files/", "unmatched"},
		{"", "GET", "/admin", "admin"},
		{"", "GET", "/admin/", "admin"},
		{"", "GET", "/admin/a/b?x", "admin"},
		{"", "GET", "/administrator", "unmatched"},
		{"a.example.com", "GET", "/site", "host"},
		{"A.EXAMPLE.com.:8443", "GET", "/site", "host"},
		{"b.example.com", "GET", "/site/x", "below"},
		{"c.b.example.com", "GET", "/site/x", "below"},
		{"example.com", "GET", "/site", "unmatched"},
		{".example.com", "GET", "/site", "unmatched"},
		{"badexample.com", "GET", "/site", "unmatched"},
		{"[::1]:80", "GET", "/site", "unmatched"},
		{"a.example.com,b.example.com", "GET", "/site", "ambiguous"},
		{"[::1", "GET", "/site", "ambiguous"},
		{strings.Repeat("a", 256), "GET", "/site", "ambiguous"},
		{"", "GET", "/a%20b/%c3%A9", "space"},
		{"", "GET", "/a b/é", "space"},

		// What is no path.
		{"", "OPTIONS", "*", "ambiguous"},
		{"", "GET", "", "ambiguous"},
		{"", "GET", "health", "ambiguous"},
		{"", "GET", "/health#x", "ambiguous"},
		{"", "GET", "/health%00", "ambiguous"},
		{"", "GET", "/health%", "ambiguous"},
		{"", "GET", "/health%2", "ambiguous"},
		{"", "GET", "/health%zz", "ambiguous"},
		{"", "GET", "/a\r\nb", "ambiguous"},

		// Tricks to reach /admin by the rule of /open, or by none.
		{"", "GET", "/open/../admin", "ambiguous"},
		{"", "GET", "/open/%2e%2e/admin", "ambiguous"},
		{"", "GET", "/open/..;/admin", "ambiguous"},
		{"", "GET", "/open/..%3b/admin", "ambiguous"},
		{"", "GET", "/open/..%2fadmin", "ambiguous"},
		{"", "GET", "/open/..%252fadmin", "ambiguous"},
		{"", "GET", "/open%2f..%2f..%2fadmin", "ambiguous"},
		{"", "GET", `/open\..\admin`, "ambiguous"},
		{"", "GET", "/open/..%5cadmin", "ambiguous"},
		{"", "GET", "/open/%c0%ae%c0%ae/admin", "ambiguous"},
		{"", "GET", "/open/\xc0\xae\xc0\xae/admin", "ambiguous"},
		{"", "GET", "/open/..%c1%9cadmin", "ambiguous"},
		{"", "GET", "/open/%u002e%u002e/admin", "ambiguous"},
		{"", "GET", "//admin", "ambiguous"},
		{"", "GET", "/./admin", "ambiguous"},
		{"", "GET", "/;/admin", "ambiguous"},
		{"", "GET", "/;x=1/admin", "ambiguous"},
		{"", "GET", "/admin;x=1", "ambiguous"},
		{"", "GET", "/admin;x=1/users", "ambiguous"},
		{"", "GET", "/admin%3Fx", "ambiguous"},
		{"", "GET", "/admin%23x", "ambiguous"},
		{"", "GET", "/admin%253Fx", "ambiguous"},
		{"", "GET", "/%61dmin", "admin"},
		{"", "GET", "/%2561dmin", "ambiguous"},
		{"", "GET", "/%25252525252561dmin", "ambiguous"},
		{"", "GET", "/users/me;x", "ambiguous"},
		{"", "GET", "/open/%" + strings.Repeat("25", 4) + "61", "ambiguous"}, // in both readings open, and not worth more rounds
		{"", "GET", "/open/%" + strings.Repeat("25", 3) + "61", "public"},

		// The same characters where they change nothing.
		{"", "GET", "/users/a;b=c", "user"},
		{"", "GET", "/users/\xe9", "user"},
		{"", "GET", "/users/%E4", "user"},
		{"", "GET", "/users/what%3F", "user"},
		{"", "GET", "/users/100%25", "user"},
		{"", "GET", "/open/a;x/b", "public"},
		{"", "GET", "/open/a%2Fb", "public"},
		{"", "GET", "/open/../open/x", "public"},
		{"", "GET", "/open/.well-known", "public"},
		{"", "GET", "/admin/%zz?", "ambiguous"},
		{"", "GET", "/admin/x?%zz%00;../..", "admin"},
	} {
		if got := s.Match(c.host, c.method, c.target).Route.Name; got != c.want {
			t.Errorf("%s %s%s meets %q, want %q", c.method, c.host, c.target, got, c.want)
		}
	}
}

func TestMatchOptions(t *testing.T) {
	c := routes(exact("exact", "/Admin"), exact("slash", "/dir/"), template("user", "/U/{Id}"))
	c.StrictTrailingSlash = true
	c.CaseInsensitive = true
	c.Unmatched = "required"
	s := compile(t, c)
	for target, want := range map[string]string{
		"/admin": "exact", "/ADMIN": "exact", "/%41dmin": "exact", "/admin/": "unmatched",
		"/dir/": "slash", "/dir": "unmatched", "/u/X": "user", "/U/": "unmatched", "/DIR/%20/../": "ambiguous",
	} {
		if got := s.Match("", "GET", target).Route.Name; got != want {
			t.Errorf("%s meets %q, want %q", target, got, want)
		}
	}
	r := s.Match("", "GET", "/none").Route
	if r.Access != Required || r.Endpoint != DefaultEndpoint || r.Cost != 1 || !r.AllFlags {
		t.Errorf("unmatched route is %+v", r)
	}
	if got := len(s.Routes()); got != 3 {
		t.Errorf("%d routes, want 3", got)
	}
}

func TestExplainMatch(t *testing.T) {
	host := exact("host", "/host")
	host.Match.Hosts = []string{"a.test"}
	s := compile(t, routes(prefix("admin", "/admin"), prefix("open", "/open"), host))
	for _, c := range []struct {
		host, method, target, route string
		want                        []Reading
	}{
		{"", "GET", "/admin/x?y", "admin", []Reading{{"admin/x", "admin"}}},
		{"", "GET", "/open/..;/admin", "ambiguous", []Reading{{"open/..;/admin", "open"}, {"admin", "admin"}}},
		{"", "GET", "/open/a;b", "open", []Reading{{"open/a;b", "open"}, {"open/a", "open"}}},
		{"A.test:80", "GET", "/host", "host", []Reading{{"host", "host"}}},
		{"a,b", "GET", "/host", "ambiguous", nil},
		{"", "get", "/admin", "ambiguous", nil},
		{"", "GET", "*", "ambiguous", nil},
	} {
		m, got := s.ExplainMatch(c.host, c.method, c.target)
		if m != s.Match(c.host, c.method, c.target) || m.Route.Name != c.route || !slices.Equal(got, c.want) {
			t.Errorf("%s meets %q by %v, want %q by %v", c.target, m.Route.Name, got, c.route, c.want)
		}
	}
}

func TestMatchShadow(t *testing.T) {
	shadow := prefix("shadow", "/a/b")
	shadow.Shadow = true
	late := prefix("late", "/")
	late.Shadow, late.Access = true, "public"
	open := prefix("open", "/a")
	open.Access = "public"
	s := compile(t, routes(shadow, open, late))
	for _, c := range []struct {
		target, route, shadow string
		wants                 bool
	}{
		{"/a/b/c", "open", "shadow", true},
		{"/a/c", "open", "", false},
		{"/c", "unmatched", "late", false},
	} {
		m := s.Match("", "GET", c.target)
		got := ""
		if m.Shadow != nil {
			got = m.Shadow.Name
		}
		if m.Route.Name != c.route || got != c.shadow || m.WantsToken() != c.wants {
			t.Errorf("%s meets %q, shadow %q, wants token %t; want %q, %q, %t", c.target, m.Route.Name, got, m.WantsToken(), c.route, c.shadow, c.wants)
		}
	}
}

func TestRouteIsComplete(t *testing.T) {
	ml := prefix("ml", "/ml")
	ml.Endpoint, ml.Flags, ml.OnStale = "ml", []string{"b", "a", "b"}, "ask_redis"
	none := prefix("none", "/none")
	none.NoFlags, none.OnStale = true, "serve_stale"
	s := compile(t, routes(ml, none, prefix("all", "/")))
	got := s.Match("", "GET", "/ml").Route
	if got.Endpoint != "ml" || got.Cost != 5 || got.AllFlags || !slices.Equal(got.Flags, []string{"a", "b"}) || got.OnStale != AskRedis {
		t.Errorf("ml is %+v", got)
	}
	if got = s.Match("", "GET", "/none").Route; got.AllFlags || got.Flags != nil || got.OnStale != ServeStale {
		t.Errorf("none is %+v", got)
	}
	if got = s.Match("", "GET", "/").Route; !got.AllFlags || got.OnStale != FailClosed || got.Endpoint != DefaultEndpoint || got.Cost != 1 {
		t.Errorf("all is %+v", got)
	}
}

// linear is what Match means: look at one rule after the other.
func linear(c Config, host, method, path string) string {
	for _, rc := range c.Routes {
		if rc.Shadow {
			continue
		}
		m := rc.Match
		if len(m.Hosts) > 0 && !slices.ContainsFunc(m.Hosts, func(h string) bool {
			below, ok := strings.CutPrefix(h, "*")
			return h == host || ok && len(host) > len(below) && strings.HasSuffix(host, below)
		}) {
			continue
		}
		if len(m.Methods) > 0 && !slices.Contains(m.Methods, method) && (method != "HEAD" || !slices.Contains(m.Methods, "GET")) {
			continue
		}
		p, err := m.pattern(c.CaseInsensitive, c.StrictTrailingSlash)
		if err != nil {
			panic(err)
		}
		path := trimSlash(path[1:], c.StrictTrailingSlash)
		if c.CaseInsensitive {
			path = strings.ToLower(path)
		}
		if p.matches(path) {
			return rc.Name
		}
	}
	return unmatchedName
}

// matches is the meaning of a pattern, one segment after the other.
func (p pattern) matches(path string) bool {
	rest, more := path, path != ""
	for _, s := range p.segments {
		if !more {
			return false
		}
		var part string
		part, rest, more = cutSegment(rest)
		if s.variable && part == "" || !s.variable && part != s.text {
			return false
		}
	}
	return p.open || !more
}

func genConfig(t *rapid.T) Config {
	c := Default()
	c.CaseInsensitive = rapid.Bool().Draw(t, "fold")
	c.StrictTrailingSlash = rapid.Bool().Draw(t, "strict")
	hosts := []string{"x.test", "*.x.test", "a.x.test", "*.test"}
	methods := []string{"GET", "HEAD", "POST", "PURGE"}
	parts := []string{"a", "b", "C", "{v}"}
	for i := range rapid.IntRange(0, 12).Draw(t, "rules") {
		rc := RouteConfig{Name: fmt.Sprint("r", i), Shadow: rapid.IntRange(0, 5).Draw(t, "shadow") == 0}
		rc.Match.Hosts = rapid.SliceOfNDistinct(rapid.SampledFrom(hosts), 0, 2, rapid.ID[string]).Draw(t, "hosts")
		rc.Match.Methods = rapid.SliceOfNDistinct(rapid.SampledFrom(methods), 0, 2, rapid.ID[string]).Draw(t, "methods")
		path := "/" + strings.Join(rapid.SliceOfN(rapid.SampledFrom(parts), 0, 3).Draw(t, "path"), "/")
		if path != "/" && rapid.Bool().Draw(t, "slash") {
			path += "/"
		}
		switch plain := strings.ReplaceAll(path, "{v}", "v"); rapid.IntRange(0, 4).Draw(t, "kind") {
		case 0:
			rc.Match.Path = plain
		case 1:
			rc.Match.Prefix = plain
		case 2:
			rc.Match.Template = path
		case 3:
			rc.Match.Template = strings.TrimSuffix(path, "/") + "/{rest...}"
		}
		c.Routes = append(c.Routes, rc)
	}
	return c
}

// The index finds what looking at one rule after the other finds.
func TestMatchIsFirstMatch(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := genConfig(t)
		s, err := Compile(c)
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			host := rapid.SampledFrom([]string{"", "x.test", "a.x.test", "b.a.x.test", "y"}).Draw(t, "host")
			method := rapid.SampledFrom([]string{"GET", "HEAD", "POST", "PURGE", "PUT"}).Draw(t, "method")
			path := "/" + strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "C", "c", "v", "x"}), 0, 4).Draw(t, "path"), "/")
			if path != "/" && rapid.Bool().Draw(t, "slash") {
				path += "/"
			}
			if got, want := s.Match(host, method, path).Route.Name, linear(c, host, method, path); got != want {
				t.Fatalf("%s %s%s meets %q, want %q in %+v", method, host, path, got, want, c.Routes)
			}
		}
	})
}

// No rule that Validate calls unreachable ever decides, and of two readings of
// one path that meet a rule, both meet that rule.
func TestUnreachableNeverDecides(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := genConfig(t)
		j, i := c.unreachable()
		if i == 0 {
			return
		}
		if j >= i {
			t.Fatalf("route %d is said to hide route %d", j, i)
		}
		s, err := Compile(c)
		if err != nil {
			t.Fatal(err)
		}
		for range 50 {
			host := rapid.SampledFrom([]string{"x.test", "a.x.test", "b.a.x.test"}).Draw(t, "host")
			path := "/" + strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "C", "v"}), 0, 4).Draw(t, "path"), "/")
			m := s.Match(host, rapid.SampledFrom([]string{"GET", "HEAD", "POST"}).Draw(t, "method"), path)
			if m.Route.Name == c.Routes[i].Name || m.Shadow != nil && m.Shadow.Name == c.Routes[i].Name {
				t.Fatalf("%s meets %q, which is said to be hidden", path, m.Route.Name)
			}
		}
	})
}

// FuzzMatch sends hostile paths against one protected and one open area: what
// reaches the open one must not be the protected one in any reading.
func FuzzMatch(f *testing.F) {
	for _, s := range []string{"/open", "/admin", "/open/..;/admin", "/open/%2e%2e/admin", "/%2561dmin", "//admin", `/open\..\admin`, "/admin%3Fx", "/;/admin", "*", "/a?b#c", "/admin;x/y"} {
		f.Add(s)
	}
	open := prefix("open", "/")
	open.Access = "public"
	s := compile(f, routes(prefix("admin", "/admin"), open))
	f.Fuzz(func(t *testing.T, target string) {
		m := s.Match("", "GET", target)
		if m.Route == nil || m.Route.Endpoint == "" || m.Route.Cost == 0 {
			t.Fatalf("incomplete route %+v", m.Route)
		}
		careful, careless, ok := readings(target, false, false)
		if !ok {
			if m.Route.Access != Denied {
				t.Fatalf("%q is no path and meets %q", target, m.Route.Name)
			}
			return
		}
		for _, path := range []string{careful, careless} {
			first, _, _ := strings.Cut(path, "/")
			if first == "admin" && m.Route.Name == "open" {
				t.Fatalf("%q reads as %q and meets the open route", target, path)
			}
		}
		if strings.Contains(careless, "//") || strings.HasPrefix(careless, "/") || slices.ContainsFunc(strings.Split(careless, "/"), func(p string) bool { return p == ".." || p == "." }) && careless != careful {
			t.Fatalf("careless reading of %q is %q", target, careless)
		}
	})
}

func manyRoutes(n int) Config {
	c := Default()
	for i := range n {
		rc := RouteConfig{Name: fmt.Sprint("r", i), Require: RequireConfig{RolesAny: []string{"x", "user"}}}
		switch i % 3 {
		case 0:
			rc.Match.Path = fmt.Sprintf("/api/v1/thing%d", i)
		case 1:
			rc.Match.Template = fmt.Sprintf("/api/v1/group%d/{id}", i)
		case 2:
			rc.Match.Prefix = fmt.Sprintf("/service%d", i)
		}
		c.Routes = append(c.Routes, rc)
	}
	last := prefix("last", "/")
	c.Routes = append(c.Routes, last)
	return c
}

func BenchmarkMatch(b *testing.B) {
	for _, n := range []int{10, 1000, 10000} {
		s := compile(b, manyRoutes(n))
		for name, target := range map[string]string{
			"template": fmt.Sprintf("/api/v1/group%d/42?page=1", (n-3)/3*3+1),
			"last":     "/nowhere/at/all",
			"escaped":  "/api/v1/a%20b",
		} {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if s.Match("api.example.com", "GET", target).Route.Access == Denied {
						b.Fatal("denied")
					}
				}
			})
		}
	}
}

func BenchmarkDecide(b *testing.B) {
	rc := prefix("r", "/")
	rc.Require = RequireConfig{RolesAny: []string{"x", "user"}, Tiers: []string{"premium"}, Consents: []string{"ads"}, Addresses: []string{"192.0.2.0/24", "10.0.0.0/8"}}
	r := compile(b, routes(rc)).Match("", "GET", "/").Route
	s := &Subject{Authenticated: true, Tier: "premium", Roles: []string{"admin", "user"}, Consents: []string{"ads"}, Address: netip.MustParseAddr("10.1.2.3")}
	b.ReportAllocs()
	for b.Loop() {
		if !Decide(r, s).Allowed {
			b.Fatal("refused")
		}
	}
}

func TestHotPathDoesNotAllocate(t *testing.T) {
	s := compile(t, manyRoutes(1000))
	who := &Subject{Authenticated: true, Roles: []string{"user"}}
	refused := &Subject{}
	if n := testing.AllocsPerRun(100, func() {
		m := s.Match("api.example.com:443", "GET", "/api/v1/group1/42?x=1")
		if !Decide(m.Route, who).Allowed || Decide(m.Route, refused).Allowed {
			t.Error("wrong decision")
		}
	}); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}
