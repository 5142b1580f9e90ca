package httpcache_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tollgate-proxy/tollgate/internal/clocktest"
	"github.com/tollgate-proxy/tollgate/internal/httpcache"
)

func TestAnAnswerIsKeptForItsTime(t *testing.T) {
	f := newFixture(t, minute, numbered("Content-Type", "text/x"))
	g := f.ask("GET", "/a", "")
	f.want(g, "answer 1", "fwd=miss; stored")
	if g.header["Age"] != nil { // it comes from the service
		t.Fatal(g)
	}
	f.Advance(20 * time.Second)
	g = f.ask("GET", "/a", "")
	f.want(g, "answer 1", "hit; ttl=40")
	if g.header.Get("Age") != "20" || g.header.Get("Content-Type") != "text/x" || g.header.Get("Content-Length") != "8" {
		t.Fatal(g)
	}
	f.want(f.ask("GET", "/b", ""), "answer 2", "fwd=miss")
	f.want(f.ask("GET", "/a?x", ""), "answer 3", "fwd=miss")
	f.Advance(41 * time.Second)
	f.want(f.ask("GET", "/a", ""), "answer 4", "fwd=")
}

// What may be kept, and how long (RFC 9111, sections 3 and 4.2).
func TestWhatIsKept(t *testing.T) {
	at := time.Now()
	date := at.UTC().Format(http.TimeFormat)
	for _, tc := range []struct {
		name    string
		status  int
		headers []string
		kept    time.Duration // 0: not at all
	}{
		{"says nothing", 200, nil, time.Minute},
		{"max-age", 200, []string{"Cache-Control", "max-age=10"}, 10 * time.Second},
		{"s-maxage counts for us", 200, []string{"Cache-Control", "max-age=10, s-maxage=20"}, 20 * time.Second},
		{"in capitals and quotes", 200, []string{"Cache-Control", `Public, MAX-AGE="10"`}, 10 * time.Second},
		{"over two lines", 200, []string{"Cache-Control", "public", "Cache-Control", "max-age=10"}, 10 * time.Second},
		{"expires", 200, []string{"Date", date, "Expires", at.Add(30 * time.Second).UTC().Format(http.TimeFormat)}, 30 * time.Second},
		{"a bad expires", 200, []string{"Expires", "0"}, 0},
		{"older on the way", 200, []string{"Cache-Control", "max-age=10", "Age", "4"}, 6 * time.Second},
		{"too old on the way", 200, []string{"Cache-Control", "max-age=10", "Age", "11"}, 0},
		{"no-store", 200, []string{"Cache-Control", "no-store"}, 0},
		{"no-cache", 200, []string{"Cache-Control", "no-cache"}, 0},
		{"private", 200, []string{"Cache-Control", "max-age=10, private"}, 0},
		{"private for a field, with a comma", 200, []string{"Cache-Control", `private="a, b", max-age=10`}, 0},
		{"a max-age that is none", 200, []string{"Cache-Control", "max-age=ten"}, 0},
		{"a negative max-age", 200, []string{"Cache-Control", "max-age=-1"}, 0},
		{"a cookie", 200, []string{"Set-Cookie", "a=b", "Cache-Control", "max-age=10"}, 0},
		{"a cookie behind an empty one", 200, []string{"Set-Cookie", "", "Set-Cookie", "a=b", "Cache-Control", "max-age=10"}, 0},
		{"vary on all", 200, []string{"Vary", "Accept, *", "Cache-Control", "max-age=10"}, 0},
		{"vary on a header", 200, []string{"Vary", "Accept"}, time.Minute},
		{"an error", 500, []string{"Cache-Control", "max-age=10"}, 0},
		{"not found without a word", 404, nil, 0},
		{"not found with one", 404, []string{"Cache-Control", "max-age=10"}, 10 * time.Second},
		{"a part", 206, []string{"Cache-Control", "max-age=10"}, 0},
		{"a range", 200, []string{"Cache-Control", "max-age=10", "Content-Range", "bytes 0-1/2"}, 0},
		{"events", 200, []string{"Cache-Control", "max-age=10", "Content-Type", "text/event-stream"}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFixture(t, minute, func(_ *http.Request, n int) (*http.Response, error) {
				return reply(tc.status, fmt.Sprint(n), tc.headers...), nil
			})
			f.Advance(at.Truncate(time.Second).Sub(f.Now()))
			if g := f.ask("GET", "/", ""); g.status != tc.status || g.body != "1" {
				t.Fatal(g)
			}
			if tc.kept > 0 {
				f.Advance(tc.kept - time.Second)
				f.want(f.ask("GET", "/", ""), "1", "hit; ttl=1")
				f.Advance(time.Second)
			}
			if g := f.ask("GET", "/", ""); g.body != "2" {
				t.Fatal(g)
			}
		})
	}
}

func TestWithoutATTLOnlyWhatSaysSoIsKept(t *testing.T) {
	f := newFixture(t, httpcache.Policy{Route: "r"}, numbered())
	f.ask("GET", "/", "")
	f.want(f.ask("GET", "/", ""), "answer 2", "fwd=miss")
}

func TestRequestDirectives(t *testing.T) {
	f := newFixture(t, minute, numbered())
	if g := f.ask("GET", "/", "", "Cache-Control", "only-if-cached"); g.status != 504 {
		t.Fatal(g)
	}
	f.want(f.ask("GET", "/", "", "Cache-Control", "no-store"), "answer 1", "fwd=bypass")
	f.want(f.ask("GET", "/", ""), "answer 2", "fwd=miss; stored")
	f.want(f.ask("GET", "/", "", "Cache-Control", "only-if-cached"), "answer 2", "hit")
	f.want(f.ask("GET", "/", "", "Cache-Control", "max-age=0"), "answer 3", "fwd=request; stored")
	f.want(f.ask("GET", "/", "", "Pragma", "no-cache"), "answer 4", "fwd=request; stored")
	f.want(f.ask("GET", "/", ""), "answer 4", "hit")
	f.Advance(20 * time.Second)
	f.want(f.ask("GET", "/", "", "Cache-Control", "max-age=20, min-fresh=40"), "answer 4", "hit")
	f.want(f.ask("GET", "/", "", "Cache-Control", "max-age=19"), "answer 5", "fwd=request; stored")
	f.want(f.ask("GET", "/", "", "Cache-Control", "min-fresh=61"), "answer 6", "fwd=request; stored")
	f.want(f.ask("GET", "/", "", "Cache-Control", "max-stale=9"), "answer 6", "hit")
}

func TestMethods(t *testing.T) {
	f := newFixture(t, minute, numbered())
	f.want(f.ask("HEAD", "/", ""), "answer 1", "fwd=bypass")
	f.want(f.ask("POST", "/", "x"), "answer 2", "fwd=bypass")
	f.want(f.ask("DELETE", "/", ""), "answer 3", "fwd=bypass")
	f.want(f.ask("GET", "/", "a body"), "answer 4", "fwd=bypass")
	f.want(f.ask("GET", "/", "", "Upgrade", "x"), "answer 5", "fwd=bypass")
	f.ask("GET", "/", "")
	g := f.ask("HEAD", "/", "")
	f.want(g, "", "hit")
	if g.header.Get("Content-Length") != "8" {
		t.Fatal(g)
	}
}

func TestConditionsOfTheClient(t *testing.T) {
	modified := "Fri, 02 Jan 2026 03:04:05 GMT"
	f := newFixture(t, minute, numbered("Etag", `"v1"`, "Last-Modified", modified, "Content-Type", "x"))
	f.ask("GET", "/", "")
	for _, tc := range []struct {
		header, value string
		status        int
	}{
		{"If-None-Match", `"v1"`, 304}, {"If-None-Match", `W/"v1"`, 304}, {"If-None-Match", `"v0", "v1"`, 304}, {"If-None-Match", "*", 304}, {"If-None-Match", `"v2"`, 200},
		{"If-Modified-Since", modified, 304}, {"If-Modified-Since", "Fri, 02 Jan 2026 03:04:04 GMT", 200}, {"If-Modified-Since", "yesterday", 200},
	} {
		g := f.ask("GET", "/", "", tc.header, tc.value)
		if g.status != tc.status || (g.status == 304) != (g.body == "") {
			t.Errorf("%s %s: %v", tc.header, tc.value, g)
		}
	}
	if f.count() != 1 {
		t.Fatal(f.count())
	}
}

func TestMemoryIsBounded(t *testing.T) {
	f := &fixture{T: t, service: &service{answer: func(*http.Request, int) (*http.Response, error) {
		return reply(200, strings.Repeat("x", 10<<10)), nil
	}}, Clock: clocktest.New(time.Now().Truncate(time.Second)), registry: prometheus.NewRegistry()}
	o := options(f)
	o.Bytes = 1 << 20
	f.cache = httpcache.New(o)
	f.next = f.cache.Transport(minute, f.service)
	for i := range 1000 {
		f.ask("GET", fmt.Sprint("/", i), "")
	}
	if b := f.metric("tollgate_pyproxy_cache_memory_bytes"); b > 1<<20 || b < 1<<19 {
		t.Fatal(b)
	}
	if n := f.metric("tollgate_pyproxy_cache_evictions_total"); n < 800 {
		t.Fatal(n)
	}
}

// The benchmark's workload: 10,000 keys, Zipf with s = 1.1, after a warm-up.
func TestZipfHitRate(t *testing.T) {
	p := minute
	p.Body = true
	f := newFixture(t, p, numbered())
	zipf := rand.NewZipf(rand.New(rand.NewPCG(1, 2)), 1.1, 1, 9_999)
	ask := func(n int) {
		for range n {
			f.ask("POST", "/", fmt.Sprint(zipf.Uint64()))
		}
	}
	ask(60_000)
	before := f.count()
	ask(40_000)
	if rate := 1 - float64(f.count()-before)/40_000; rate < 0.95 {
		t.Fatalf("hit rate %.3f", rate)
	}
}

func TestPurge(t *testing.T) {
	p := minute
	p.Tags = []string{"t"}
	f := newFixture(t, p, numbered())
	f.ask("GET", "/", "")
	if err := f.cache.Purge(context.Background(), "unrelated"); err != nil { // the first purge of all
		t.Fatal(err)
	}
	f.want(f.ask("GET", "/", ""), "answer 1", "hit")
	for i, name := range []string{"r", "t"} {
		if err := f.cache.Purge(context.Background(), name); err != nil {
			t.Fatal(err)
		}
		f.want(f.ask("GET", "/", ""), fmt.Sprint("answer ", i+2), "fwd=miss")
	}
	if err := f.cache.Purge(context.Background(), "other"); err != nil {
		t.Fatal(err)
	}
	f.want(f.ask("GET", "/", ""), "answer 3", "hit")
	if !f.cache.Knows("r") || !f.cache.Knows("t") || f.cache.Knows("other") {
		t.Fatal("names")
	}
}

// What Connection names was for us alone, today and from the cache (RFC 9111, section 3.1).
func TestWhatConnectionNamesIsNotKept(t *testing.T) {
	f := newFixture(t, minute, numbered("Connection", "close, x-hop", "X-Hop", "1", "X-End", "2"))
	for _, how := range []string{"fwd=miss; stored", "hit"} {
		g := f.ask("GET", "/", "")
		f.want(g, "answer 1", how)
		if g.header.Get("X-Hop") != "" || g.header.Get("X-End") != "2" {
			t.Fatal(g)
		}
	}
}
