package httpcache_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tollgate-proxy/tollgate/internal/httpcache"
)

const patience = 20 * time.Second

// service is the RoundTripper behind the cache.
type service struct {
	mu     sync.Mutex
	calls  int
	seen   []*http.Request
	answer func(r *http.Request, n int) (*http.Response, error)
}

func (s *service) RoundTrip(r *http.Request) (*http.Response, error) {
	s.mu.Lock()
	s.calls++
	n := s.calls
	s.seen = append(s.seen, r)
	s.mu.Unlock()
	return s.answer(r, n)
}

func (s *service) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls
}

func reply(status int, body string, headers ...string) *http.Response {
	h := http.Header{}
	for i := 0; i < len(headers); i += 2 {
		h.Add(headers[i], headers[i+1])
	}
	return &http.Response{StatusCode: status, Header: h, Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body))}
}

// numbered answers each call with its number.
func numbered(headers ...string) func(*http.Request, int) (*http.Response, error) {
	return func(_ *http.Request, n int) (*http.Response, error) {
		return reply(200, fmt.Sprint("answer ", n), headers...), nil
	}
}

type fixture struct {
	*testing.T
	*service
	cache    *httpcache.Cache
	next     http.RoundTripper
	registry *prometheus.Registry
	mu       sync.Mutex
	at       time.Time
}

func (f *fixture) now() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.at
}

func (f *fixture) advance(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at = f.at.Add(d)
}

func options(f *fixture) httpcache.Options {
	return httpcache.Options{Bytes: 16 << 20, MaxEntry: 64 << 10, MaxKeyBody: 1 << 10, StoreTimeout: patience, StoreRest: time.Minute,
		PollInterval: time.Millisecond, Now: f.now, Log: slog.New(slog.DiscardHandler), Metrics: f.registry}
}

func newFixture(t *testing.T, p httpcache.Policy, answer func(*http.Request, int) (*http.Response, error)) *fixture {
	f := &fixture{T: t, service: &service{answer: answer}, at: time.Now().Truncate(time.Second), registry: prometheus.NewRegistry()}
	f.cache = httpcache.New(options(f))
	f.next = f.cache.Transport(p, f.service)
	return f
}

type got struct {
	status int
	body   string
	header http.Header
	err    error
}

func (g got) String() string { return fmt.Sprintf("%d %q %v %v", g.status, g.body, g.header, g.err) }

func (f *fixture) ask(method, url, body string, headers ...string) got {
	f.Helper()
	return ask(context.Background(), f.next, method, url, body, headers...)
}

func ask(ctx context.Context, rt http.RoundTripper, method, url, body string, headers ...string) got {
	var rd io.Reader
	if body != "" {
		rd = strings.NewReader(body)
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://s"+url, rd)
	if err != nil {
		return got{err: err}
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	resp, err := rt.RoundTrip(r)
	if err != nil {
		return got{err: err}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return got{resp.StatusCode, string(b), resp.Header, err}
}

// want asks and compares the body and the beginning of the Cache-Status.
func (f *fixture) want(g got, body, status string) {
	f.Helper()
	if g.err != nil || g.body != body || !strings.HasPrefix(g.header.Get("Cache-Status"), "tollgate; "+status) {
		f.Fatalf("%v, want %q, %s", g, body, status)
	}
}

func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	end := time.After(patience)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-end:
			t.Fatalf("never: %s", what)
		case <-tick.C:
		}
	}
}

var minute = httpcache.Policy{Route: "r", TTL: time.Minute}

func TestAnAnswerIsKeptForItsTime(t *testing.T) {
	f := newFixture(t, minute, numbered("Content-Type", "text/x"))
	f.want(f.ask("GET", "/a", ""), "answer 1", "fwd=miss; stored")
	f.advance(20 * time.Second)
	g := f.ask("GET", "/a", "")
	f.want(g, "answer 1", "hit; ttl=40")
	if g.header.Get("Age") != "20" || g.header.Get("Content-Type") != "text/x" || g.header.Get("Content-Length") != "8" {
		t.Fatal(g)
	}
	f.want(f.ask("GET", "/b", ""), "answer 2", "fwd=miss")
	f.want(f.ask("GET", "/a?x", ""), "answer 3", "fwd=miss")
	f.advance(41 * time.Second)
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
			f.mu.Lock()
			f.at = at.Truncate(time.Second)
			f.mu.Unlock()
			if g := f.ask("GET", "/", ""); g.status != tc.status || g.body != "1" {
				t.Fatal(g)
			}
			if tc.kept > 0 {
				f.advance(tc.kept - time.Second)
				f.want(f.ask("GET", "/", ""), "1", "hit; ttl=1")
				f.advance(time.Second)
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
	f.want(f.ask("GET", "/", "", "Cache-Control", "max-age=0"), "answer 3", "fwd=stale; stored")
	f.want(f.ask("GET", "/", "", "Pragma", "no-cache"), "answer 4", "fwd=stale; stored")
	f.want(f.ask("GET", "/", ""), "answer 4", "hit")
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

var errBroken = errors.New("broken")

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errBroken }

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

func TestAStaleAnswerIsValidated(t *testing.T) {
	f := newFixture(t, minute, func(r *http.Request, n int) (*http.Response, error) {
		if r.Header.Get("If-None-Match") == `"v1"` && n < 4 {
			return reply(304, "", "Etag", `"v1"`, "X-New", "yes", "Cache-Control", "max-age=20"), nil
		}
		return reply(200, fmt.Sprint(n), "Etag", `"v1"`), nil
	})
	f.ask("GET", "/", "")
	f.advance(61 * time.Second)
	g := f.ask("GET", "/", "")
	f.want(g, "1", "fwd=stale; fwd-status=304; stored")
	if g.header.Get("X-New") != "yes" {
		t.Fatal(g)
	}
	f.want(f.ask("GET", "/", ""), "1", "hit; ttl=20")
	f.advance(21 * time.Second)
	f.want(f.ask("GET", "/", ""), "1", "fwd=stale; fwd-status=304")
	f.advance(21 * time.Second)
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
	f.advance(90 * time.Second)
	for _, how := range []int32{1, 500, 502, 503, 504} {
		broken.Store(how)
		f.want(f.ask("GET", "/", ""), "1", "hit; ttl=-30; detail=stale-if-error")
	}
	broken.Store(404) // an answer, not an error
	if g := f.ask("GET", "/", ""); g.status != 404 {
		t.Fatal(g)
	}
	broken.Store(1)
	f.advance(31 * time.Second)
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
		f.advance(11 * time.Second)
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
	f.advance(61 * time.Second)
	f.want(f.ask("GET", "/", ""), "answer 1", "hit; ttl=-1; detail=stale-while-revalidate")
	until(t, "refreshed", func() bool { return f.ask("GET", "/", "").body == "answer 2" })
	f.advance(121 * time.Second)
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
	f.advance(61 * time.Second)
	f.ask("GET", "/", "")
	select {
	case <-closed:
	case <-time.After(patience):
		t.Fatal("left open")
	}
}

type closer struct {
	io.Reader
	closed chan struct{}
}

func (c closer) Close() error { close(c.closed); return nil }

// Many ask at once; the service is asked once, and not by the first's leave.
func TestRequestsAreCoalesced(t *testing.T) {
	release := make(chan struct{})
	f := newFixture(t, minute, func(r *http.Request, n int) (*http.Response, error) {
		select {
		case <-release:
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
		return reply(200, fmt.Sprint("answer ", n)), nil
	})
	ctx, cancel := context.WithCancel(context.Background())
	first := make(chan got, 1)
	go func() { first <- ask(ctx, f.next, "GET", "/", "") }()
	until(t, "the first is on its way", func() bool { return f.count() == 1 })
	const n = 50
	others := make(chan got, n)
	for range n {
		go func() { others <- ask(context.Background(), f.next, "GET", "/", "") }()
	}
	cancel()
	if g := <-first; !errors.Is(g.err, context.Canceled) {
		t.Fatal(g)
	}
	close(release)
	for range n {
		if g := <-others; g.body != "answer 1" {
			t.Fatal(g)
		}
	}
	if f.count() != 1 {
		t.Fatalf("%d calls", f.count())
	}
}

func TestWhatCannotBeSharedIsNot(t *testing.T) {
	release := make(chan struct{})
	f := newFixture(t, minute, func(_ *http.Request, n int) (*http.Response, error) {
		<-release
		return reply(200, fmt.Sprint("private ", n), "Cache-Control", "private"), nil
	})
	const n = 20
	all := make(chan got, n)
	for range n {
		go func() { all <- ask(context.Background(), f.next, "GET", "/", "") }()
	}
	until(t, "on the way", func() bool { return f.count() == 1 })
	close(release)
	seen := map[string]bool{}
	for range n {
		g := <-all
		if g.err != nil || seen[g.body] {
			t.Fatalf("twice: %v", g)
		}
		seen[g.body] = true
	}
}

// A key whose answers cannot be kept is no queue.
func TestRequestsForWhatCannotBeKeptDoNotWaitForOneAnother(t *testing.T) {
	release := make(chan struct{})
	f := newFixture(t, minute, func(_ *http.Request, n int) (*http.Response, error) {
		if n > 1 {
			<-release
		}
		return reply(200, fmt.Sprint("answer ", n), "Cache-Control", "private"), nil
	})
	f.want(f.ask("GET", "/", ""), "answer 1", "fwd=miss")
	all := make(chan got, 5)
	for range 5 {
		go func() { all <- ask(context.Background(), f.next, "GET", "/", "") }()
	}
	until(t, "all on their way at once", func() bool { return f.count() == 6 })
	if g := f.ask("GET", "/", "", "Cache-Control", "only-if-cached"); g.status != 504 {
		t.Fatal(g)
	}
	close(release)
	for range 5 {
		if g := <-all; g.status != 200 || g.header.Get("Cache-Status") != "tollgate; fwd=miss; detail=pass" {
			t.Fatal(g)
		}
	}
	// After a while it is tried again whether it can.
	f.advance(6 * time.Second)
	f.want(f.ask("GET", "/", ""), "answer 7", "fwd=miss")
}

func TestAnEncodedBodyStaysOne(t *testing.T) {
	p := minute
	p.Body = true
	f := newFixture(t, p, numbered())
	f.want(f.ask("POST", "/", "x", "Content-Encoding", "gzip"), "answer 1", "fwd=miss")
	f.want(f.ask("POST", "/", "x"), "answer 2", "fwd=miss")
	if got := f.seen[0].Header.Get("Content-Encoding"); got != "gzip" {
		t.Fatal(got)
	}
}

func TestALargeAnswerStreamsWhole(t *testing.T) {
	body := strings.Repeat("x", 64<<10+1)
	for _, known := range []bool{true, false} {
		f := newFixture(t, minute, func(_ *http.Request, _ int) (*http.Response, error) {
			resp := reply(200, body)
			if !known {
				resp.ContentLength = -1
			}
			return resp, nil
		})
		for range 2 {
			if g := f.ask("GET", "/", ""); g.body != body || g.err != nil {
				t.Fatal(len(g.body), g.err)
			}
		}
		if f.count() != 2 {
			t.Fatal("kept")
		}
	}
}

func TestHalfAnAnswerIsNeverKept(t *testing.T) {
	f := newFixture(t, minute, func(_ *http.Request, n int) (*http.Response, error) {
		if n > 1 {
			return reply(200, "whole"), nil
		}
		resp := reply(200, "")
		resp.Body, resp.ContentLength = io.NopCloser(io.MultiReader(strings.NewReader("half"), failing{})), 8
		return resp, nil
	})
	if g := f.ask("GET", "/", ""); !errors.Is(g.err, errBroken) {
		t.Fatal(g)
	}
	f.want(f.ask("GET", "/", ""), "whole", "fwd=miss; stored")
}

func TestMemoryIsBounded(t *testing.T) {
	f := &fixture{T: t, service: &service{answer: func(*http.Request, int) (*http.Response, error) {
		return reply(200, strings.Repeat("x", 10<<10)), nil
	}}, at: time.Now().Truncate(time.Second), registry: prometheus.NewRegistry()}
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

func (f *fixture) metric(name string) (sum float64) {
	f.Helper()
	families, err := f.registry.Gather()
	if err != nil {
		f.Fatal(err)
	}
	for _, x := range families {
		if x.GetName() == name {
			for _, m := range x.GetMetric() {
				sum += m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	return sum
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
