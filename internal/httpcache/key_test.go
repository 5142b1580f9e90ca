package httpcache_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/tollgate-proxy/tollgate/internal/httpcache"
)

func TestBodiesAreKeys(t *testing.T) {
	p := minute
	p.Body = true
	f := newFixture(t, p, func(r *http.Request, n int) (*http.Response, error) {
		var b []byte
		if r.Body != nil {
			b, _ = io.ReadAll(r.Body)
		}
		return reply(200, fmt.Sprint(n, " ", len(b))), nil
	})
	f.want(f.ask("POST", "/", "abc"), "1 3", "fwd=miss; stored")
	f.want(f.ask("POST", "/", "abc"), "1 3", "hit")
	f.want(f.ask("POST", "/", "abcd"), "2 4", "fwd=miss")
	f.want(f.ask("POST", "/", "abc", "Content-Type", "x/y"), "3 3", "fwd=miss")
	big := strings.Repeat("x", 1<<10+1)
	f.want(f.ask("POST", "/", big), "4 1025", "fwd=bypass")
	r, _ := http.NewRequest("POST", "http://s/", io.MultiReader(strings.NewReader(big))) // of unknown length
	resp, err := f.next.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := io.ReadAll(resp.Body); string(b) != "5 1025" {
		t.Fatalf("%s", b)
	}
	if g := f.ask("GET", "/", ""); !strings.Contains(g.header.Get("Cache-Status"), "bypass") {
		t.Fatal(g)
	}
	if g := f.ask("POST", "/", "abc", "If-None-Match", "*"); g.status != 200 {
		t.Fatal("a POST was answered with 304")
	}
}

func TestABodyThatCannotBeRead(t *testing.T) {
	p := minute
	p.Body = true
	f := newFixture(t, p, numbered())
	r, _ := http.NewRequest("POST", "http://s/", io.MultiReader(strings.NewReader("x"), failing{}))
	_, err := f.next.RoundTrip(r)
	var be *httpcache.BodyError
	if !errors.As(err, &be) || !errors.Is(err, errBroken) || !strings.Contains(err.Error(), "broken") || f.count() != 0 {
		t.Fatal(err)
	}
}

// Poisoning: a header that is no part of the key never reaches the service, so
// it cannot change what others get.
func TestUnkeyedHeadersDoNotReachTheService(t *testing.T) {
	p := minute
	p.Vary = []string{"X-User-Tier"}
	p.Flags = []string{"ml-v2"}
	f := newFixture(t, p, numbered())
	f.ask("GET", "/", "", "X-User-Tier", "free", "X-Feature-Flags", "a=on, ml-v2=on,z=off", "X-Forwarded-Host", "evil", "X-Forwarded-For", "1.2.3.4",
		"Cookie", "a=b", "Authorization", "Bearer x", "Accept-Encoding", "gzip", "Accept-Language", "de", "Range", "bytes=0-1", "If-Match", "x",
		"X-Original-Url", "/admin", "X-Http-Method-Override", "DELETE", "Accept", "a/b", "X-Request-Id", "r1", "Traceparent", "tp")
	want := "Accept:[a/b] Traceparent:[tp] User-Agent:[] X-Feature-Flags:[ml-v2=on] X-Request-Id:[r1] X-User-Tier:[free]"
	if got := fmt.Sprint(f.seen[0].Header); got != "map["+want+"]" {
		t.Fatalf("%s", got)
	}
}

func TestDimensions(t *testing.T) {
	p := minute
	p.Vary = []string{"X-User-Id"}
	p.Flags = []string{"ml-v2"}
	f := newFixture(t, p, numbered())
	f.want(f.ask("GET", "/", "", "X-User-Id", "a"), "answer 1", "fwd=miss")
	f.want(f.ask("GET", "/", "", "X-User-Id", "b"), "answer 2", "fwd=miss")
	f.want(f.ask("GET", "/", ""), "answer 3", "fwd=miss")
	f.want(f.ask("GET", "/", "", "X-User-Id", "a", "X-Feature-Flags", "other=on"), "answer 1", "hit")
	f.want(f.ask("GET", "/", "", "X-User-Id", "a", "X-Feature-Flags", "ml-v2=on"), "answer 4", "fwd=miss")
	// Two values are not one value that looks like both.
	f.want(f.ask("GET", "/", "", "X-User-Id", "a", "X-User-Id", "b"), "answer 5", "fwd=miss")
	f.want(f.ask("GET", "/", "", "X-User-Id", "a, b"), "answer 6", "fwd=miss")
}
