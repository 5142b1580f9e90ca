package httpcache_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/polltest"
)

func TestAStaleAnswerIsValidated(t *testing.T) {
	f := newFixture(t, minute, func(r *http.Request, n int) (*http.Response, error) {
		if r.Header.Get("If-None-Match") == `"v1"` && n < 4 {
			return reply(304, "", "Etag", `"v1"`, "X-New", "yes", "Cache-Control", "max-age=20"), nil
		}
		return reply(200, fmt.Sprint(n), "Etag", `"v1"`), nil
	})
	f.ask("GET", "/", "")
	f.Advance(61 * time.Second)
	g := f.ask("GET", "/", "")
	f.want(g, "1", "fwd=stale; fwd-status=304; stored")
	if g.header.Get("X-New") != "yes" {
		t.Fatal(g)
	}
	f.want(f.ask("GET", "/", ""), "1", "hit; ttl=20")
	f.Advance(21 * time.Second)
	f.want(f.ask("GET", "/", ""), "1", "fwd=stale; fwd-status=304")
	f.Advance(21 * time.Second)
	f.want(f.ask("GET", "/", ""), "4", "fwd=stale; stored")
}

func TestStaleIfError(t *testing.T) {
	p := minute
	p.StaleIfError = time.Minute
	var broken atomic.Int32
	f := newFixture(t, p, func(_ *http.Request, n int) (*http.Response, error) {
		switch broken.Load() {
		case 0:
			return reply(200, fmt.Sprint(n)), nil
		case 1:
			return nil, errBroken
		}
		return reply(int(broken.Load()), "no"), nil
	})
	f.ask("GET", "/", "")
	f.Advance(90 * time.Second)
	for _, how := range []int32{1, 500, 502, 503, 504} {
		broken.Store(how)
		f.want(f.ask("GET", "/", ""), "1", "hit; ttl=-30; detail=stale-if-error")
	}
	broken.Store(404) // an answer, not an error
	if g := f.ask("GET", "/", ""); g.status != 404 {
		t.Fatal(g)
	}
	broken.Store(1)
	f.Advance(31 * time.Second)
	if g := f.ask("GET", "/", ""); !errors.Is(g.err, errBroken) {
		t.Fatal("stale beyond its bound:", g)
	}
}

func TestStaleIsForbiddenWhereTheAnswerSaysSo(t *testing.T) {
	for _, cc := range []string{"max-age=10, must-revalidate", "max-age=10, proxy-revalidate", "s-maxage=10", "max-age=10, stale-if-error=0, stale-while-revalidate=0"} {
		p := minute
		p.StaleIfError, p.StaleWhileRevalidate = time.Hour, time.Hour
		f := newFixture(t, p, func(_ *http.Request, n int) (*http.Response, error) {
			if n > 1 {
				return nil, errBroken
			}
			return reply(200, "x", "Cache-Control", cc), nil
		})
		f.ask("GET", "/", "")
		f.Advance(11 * time.Second)
		if g := f.ask("GET", "/", ""); g.err == nil {
			t.Errorf("%s: %v", cc, g)
		}
	}
}

func TestStaleWhileRevalidate(t *testing.T) {
	p := minute
	p.StaleWhileRevalidate = time.Minute
	f := newFixture(t, p, numbered())
	f.ask("GET", "/", "")
	f.Advance(61 * time.Second)
	f.want(f.ask("GET", "/", ""), "answer 1", "hit; ttl=-1; detail=stale-while-revalidate")
	polltest.Until(t, "refreshed", func() bool { return f.ask("GET", "/", "").body == "answer 2" })
	f.Advance(121 * time.Second)
	f.want(f.ask("GET", "/", ""), "answer 3", "fwd=")
}

func TestABackgroundAnswerThatCannotBeKeptIsClosed(t *testing.T) {
	p := minute
	p.StaleWhileRevalidate = time.Minute
	closed := make(chan struct{})
	f := newFixture(t, p, func(_ *http.Request, n int) (*http.Response, error) {
		if n == 1 {
			return reply(200, "x"), nil
		}
		resp := reply(404, "gone")
		resp.Body = closer{resp.Body, closed}
		return resp, nil
	})
	f.ask("GET", "/", "")
	f.Advance(61 * time.Second)
	f.ask("GET", "/", "")
	select {
	case <-closed:
	case <-time.After(patience):
		t.Fatal("left open")
	}
}

// A service that confirms an answer may take back that others may have it.
func TestAConfirmedAnswerThatIsPrivateNow(t *testing.T) {
	for _, header := range [][2]string{{"Set-Cookie", "a=b"}, {"Cache-Control", "private"}, {"Cache-Control", "no-store"}} {
		f := newFixture(t, minute, func(r *http.Request, n int) (*http.Response, error) {
			if r.Header.Get("If-None-Match") != "" {
				return reply(304, "", "Etag", `"v1"`, header[0], header[1]), nil
			}
			return reply(200, fmt.Sprint(n), "Etag", `"v1"`), nil
		})
		f.ask("GET", "/", "")
		f.Advance(61 * time.Second)
		g := f.ask("GET", "/", "")
		f.want(g, "1", "fwd=stale")
		if strings.Contains(g.header.Get("Cache-Status"), "stored") || g.header.Get(header[0]) != header[1] {
			t.Errorf("%v: %v", header, g)
		}
		if g := f.ask("GET", "/", ""); g.body != "3" || g.header.Get(header[0]) != "" { // asked afresh, and nothing of the first one's
			t.Errorf("%v: %v", header, g)
		}
	}
}
