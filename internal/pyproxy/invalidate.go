package pyproxy

import (
	"context"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// changes says whether a successful request of the route voids what is kept for
// the paths that it names (RFC 9111, section 4.4): it is not safe (RFC 9110,
// section 9.2.1), nor a question by the route's word.
func (rt Route) changes() bool {
	switch rt.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		return false
	default:
		return rt.Cache == nil
	}
}

// invalidates says whether anything can be void because of a request of the route.
func (p *setup) invalidates(rt Route) bool {
	return rt.changes() && slices.ContainsFunc(p.config.Routes, Route.shows)
}

// shows says whether answers of the route are kept by path.
func (rt Route) shows() bool { return rt.Cache != nil && rt.Method == http.MethodGet }

// invalidate voids what is kept for the path of a request that has succeeded, and
// for the paths that its answer names in Location and Content-Location. It goes on
// though the client leaves. That other replicas may not learn of it is the
// cache's to count, as with purges.
func (p *setup) invalidate(rt *route, r *http.Request, answer http.Header) {
	ctx := context.WithoutCancel(r.Context())
	void := p.kept(r.URL.Path, "", "")
	for _, name := range []string{"Location", "Content-Location"} {
		ref, err := url.Parse(answer.Get(name))
		if err != nil || answer.Get(name) == "" {
			continue
		}
		// A service names its resources as clients see them, or as it sees them
		// itself. Another origin's are not its to void.
		var public, inner string
		if ref.Host == "" || sameOrigin(ref, proto(r), r.Host) {
			public = resolve(r.URL.Path, ref)
		}
		if ref.Host == "" || slices.ContainsFunc(p.upstream(rt.Upstream).Addresses, func(a string) bool { return sameOrigin(ref, "http", a) }) {
			inner = resolve(rt.upstreamPath(r.URL.Path), ref)
		}
		maps.Copy(void, p.kept(public, rt.Upstream, inner))
	}
	for at := range void {
		_ = p.cache.Invalidate(ctx, at.route, at.path)
	}
}

// place is where answers are kept: a route, and a path as its upstream sees it.
type place struct{ route, path string }

// kept are the places of a path as clients see it, and of one as an upstream does.
func (p *setup) kept(public, upstream, inner string) map[place]bool {
	found := map[place]bool{}
	for _, rt := range p.config.Routes {
		if !rt.shows() {
			continue
		}
		if matches(rt.Path, public) {
			found[place{rt.Name, rt.upstreamPath(public)}] = true
		}
		template := rt.UpstreamPath
		if template == "" {
			template = rt.Path
		}
		if rt.Upstream == upstream && matches(template, inner) {
			found[place{rt.Name, inner}] = true
		}
	}
	return found
}

// resolve is the path of a reference in the answer to a request for base.
func resolve(base string, ref *url.URL) string {
	return (&url.URL{Path: base}).ResolveReference(ref).Path
}

// proto is the scheme that the client used, by the edge's word.
func proto(r *http.Request) string {
	if v := r.Header.Get("X-Forwarded-Proto"); v != "" {
		return strings.ToLower(v)
	}
	return "http"
}

// sameOrigin compares the scheme, host and port of a reference that has a host
// with those of a server (RFC 9110, section 4.3.1).
func sameOrigin(ref *url.URL, scheme, authority string) bool {
	if ref.Scheme != "" && ref.Scheme != scheme { // url.Parse has made it lower case
		return false
	}
	return strings.EqualFold(withPort(ref.Host, scheme), withPort(authority, scheme))
}

func withPort(authority, scheme string) string {
	if u := (&url.URL{Host: authority}); u.Port() != "" {
		return authority
	}
	port := ":80"
	if scheme == "https" {
		port = ":443"
	}
	return strings.TrimSuffix(authority, ":") + port
}
