package pyproxy

import (
	"net/http"
	"slices"
	"strings"
)

// router finds the route of a request. It is built once and only read.
type router struct {
	exact     map[string][]*route // by path, for paths without parameters
	templates []*route
}

func newRouter(routes []*route) *router {
	r := &router{exact: map[string][]*route{}}
	for _, rt := range routes {
		if strings.Contains(rt.Path, "{") {
			r.templates = append(r.templates, rt)
			continue
		}
		r.exact[rt.Path] = append(r.exact[rt.Path], rt)
	}
	return r
}

// match returns the route for a method and path, or, with none, the methods
// that the path takes: none for an unknown path. A GET route takes HEAD too.
func (r *router) match(method, path string) (rt *route, allow []string) {
	for _, rt := range r.exact[path] {
		if rt.takes(method) {
			return rt, nil
		}
		allow = append(allow, rt.Method)
	}
	for _, rt := range r.templates {
		if !matches(rt.Path, path) {
			continue
		}
		if rt.takes(method) {
			return rt, nil
		}
		allow = append(allow, rt.Method)
	}
	slices.Sort(allow)
	return nil, slices.Compact(allow)
}

func (rt *route) takes(method string) bool {
	return rt.Method == method || rt.Method == http.MethodGet && method == http.MethodHead
}

// upstreamPath is the path to send for a request to path.
func (rt *Route) upstreamPath(path string) string {
	if rt.UpstreamPath == "" {
		return path
	}
	values := map[string]string{}
	from := strings.Split(path, "/")
	for i, s := range strings.Split(rt.Path, "/") {
		if isParameter(s) {
			values[s] = from[i]
		}
	}
	to := strings.Split(rt.UpstreamPath, "/")
	for i, s := range to {
		if isParameter(s) {
			to[i] = values[s]
		}
	}
	return strings.Join(to, "/")
}

func isParameter(segment string) bool { return strings.HasPrefix(segment, "{") }

// matches compares a path with a template, segment by segment. A parameter
// takes any segment but an empty one, the two that mean another place, and those
// with characters that some take for a slash or for the end of a line.
func matches(template, path string) bool {
	for {
		t, trest, tmore := strings.Cut(template, "/")
		p, prest, pmore := strings.Cut(path, "/")
		if isParameter(t) {
			if p == "" || p == "." || p == ".." || strings.ContainsFunc(p, func(c rune) bool { return c < ' ' || c == 0x7f || c == '\\' }) {
				return false
			}
		} else if t != p {
			return false
		}
		if tmore != pmore {
			return false
		}
		if !tmore {
			return true
		}
		template, path = trest, prest
	}
}

// overlap says whether some path matches both templates.
func overlap(a, b string) bool {
	as, bs := strings.Split(a, "/"), strings.Split(b, "/")
	return slices.EqualFunc(as, bs, func(x, y string) bool {
		return x == y || isParameter(x) && y != "" || isParameter(y) && x != ""
	})
}

func validTemplate(path string) bool {
	rest, ok := strings.CutPrefix(path, "/")
	if !ok {
		return false
	}
	if rest == "" {
		return true
	}
	for s := range strings.SplitSeq(rest, "/") {
		if !segmentPattern.MatchString(s) || s == "." || s == ".." {
			return false
		}
	}
	return true
}

// unknownParameters are those of a route's upstream path that its path lacks.
func unknownParameters(rt Route) []string {
	known := strings.Split(rt.Path, "/")
	var unknown []string
	for s := range strings.SplitSeq(rt.UpstreamPath, "/") {
		if isParameter(s) && !slices.Contains(known, s) {
			unknown = append(unknown, s)
		}
	}
	return unknown
}
