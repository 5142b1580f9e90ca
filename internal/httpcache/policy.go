package httpcache

import (
	"net/http"
	"slices"
	"strings"
	"time"
)

// Policy is how the answers of one route are cached.
type Policy struct {
	// Route names the route: part of every key, and what Purge takes.
	Route string
	// Body caches by the request's body, for routes whose POST is a question.
	// Without it only GET is cached, and HEAD is answered from it.
	Body bool
	// TTL is how long a 200 that says nothing of its own freshness is fresh; 0
	// stores only answers that say so.
	TTL time.Duration
	// StaleIfError and StaleWhileRevalidate bound how long after that an answer
	// may still be used, where the answer itself does not say less: when the
	// service fails, and while a fresh one is fetched.
	StaleIfError, StaleWhileRevalidate time.Duration
	// Vary are the request headers that an answer may depend on, canonical.
	Vary []string
	// Flags are the feature flags that an answer may depend on; the others do
	// not reach the service.
	Flags []string
	// Tags are names that Purge takes besides the route's.
	Tags []string
	// Changes says that Invalidate may be called for paths of the route.
	Changes bool
}

// lifetime is for how long an answer may be used.
type lifetime struct {
	fresh time.Duration // from its arrival; can be negative
	sie   time.Duration // beyond fresh, when the service fails
	swr   time.Duration // beyond fresh, while a fresh one is fetched
}

// storable decides whether an answer may be kept for others, and how long. It
// is stricter than RFC 9111 where that costs little: an answer that sets a
// cookie, or must be validated each time, is not kept at all.
func (p *Policy) storable(status int, h http.Header, now time.Time) (lifetime, bool) {
	d := parseDirectives(h["Cache-Control"])
	switch {
	case !slices.Contains([]int{200, 203, 301, 308, 404, 410}, status),
		d.has("no-store"), d.has("private"), d.has("no-cache"),
		len(h["Set-Cookie"]) > 0,
		slices.ContainsFunc(h["Vary"], func(v string) bool { return strings.Contains(v, "*") }),
		len(h["Content-Range"]) > 0,
		strings.HasPrefix(h.Get("Content-Type"), "text/event-stream"):
		return lifetime{}, false
	}
	fresh, explicit := d.seconds("s-maxage")
	if !explicit {
		fresh, explicit = d.seconds("max-age")
	}
	if !explicit && h.Get("Expires") != "" {
		explicit = true
		if at, err := http.ParseTime(h.Get("Expires")); err == nil { // a bad date is in the past
			date, err := http.ParseTime(h.Get("Date"))
			if err != nil {
				date = now
			}
			fresh = at.Sub(date)
		}
	}
	if !explicit {
		if status != http.StatusOK || p.TTL == 0 {
			return lifetime{}, false
		}
		fresh = p.TTL
	}
	l := lifetime{fresh: fresh - age(h, now), sie: p.StaleIfError, swr: p.StaleWhileRevalidate}
	if said, ok := d.seconds("stale-if-error"); ok {
		l.sie = min(l.sie, said)
	}
	if said, ok := d.seconds("stale-while-revalidate"); ok {
		l.swr = min(l.swr, said)
	}
	if d.has("must-revalidate") || d.has("proxy-revalidate") || d.has("s-maxage") {
		l.sie, l.swr = 0, 0
	}
	validator := h.Get("Etag") != "" || h.Get("Last-Modified") != ""
	return l, l.fresh > 0 || !p.Body && validator || l.fresh+max(l.sie, l.swr) > 0
}

// asked is what a request's Cache-Control says (RFC 9111, section 5.2.1). max-stale
// is not in it: what may be stale is the route's to say.
type asked struct {
	noStore, onlyIfCached bool
	maxAge                time.Duration // the entry may be so old; a negative one takes any age
	minFresh              time.Duration // and must be fresh for so long
}

func askedBy(h http.Header) asked {
	d := parseDirectives(h["Cache-Control"])
	a := asked{noStore: d.has("no-store"), onlyIfCached: d.has("only-if-cached"), maxAge: -1}
	if s, ok := d.seconds("max-age"); ok {
		a.maxAge = s
	}
	if d.has("no-cache") || len(h["Cache-Control"]) == 0 && h.Get("Pragma") == "no-cache" {
		a.maxAge = 0
	}
	a.minFresh, _ = d.seconds("min-fresh")
	return a
}

// takes says whether an entry is as young as was asked.
func (a asked) takes(e *entry, now time.Time) bool {
	old := e.Age + now.Sub(e.Stored)
	return (a.maxAge < 0 || a.maxAge > 0 && old <= a.maxAge) && (a.minFresh == 0 || e.Fresh.Sub(now) >= a.minFresh)
}
