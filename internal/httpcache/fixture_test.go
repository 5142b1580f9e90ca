package httpcache_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tollgate-proxy/tollgate/internal/clocktest"
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
	*clocktest.Clock
	cache    *httpcache.Cache
	next     http.RoundTripper
	registry *prometheus.Registry
	panics   atomic.Value // the last one's value
}

func options(f *fixture) httpcache.Options {
	return httpcache.Options{Bytes: 16 << 20, MaxEntry: 64 << 10, MaxKeyBody: 1 << 10, StoreBytes: 16 << 20, StoreTimeout: patience, StoreRest: time.Minute,
		PollInterval: time.Millisecond, Now: f.Now, Log: slog.New(slog.DiscardHandler), Metrics: f.registry,
		Panicked: func(_ string, value any) { f.panics.Store(fmt.Sprint(value)) }}
}

func newFixture(t *testing.T, p httpcache.Policy, answer func(*http.Request, int) (*http.Response, error)) *fixture {
	f := &fixture{T: t, service: &service{answer: answer}, Clock: clocktest.New(time.Now().Truncate(time.Second)), registry: prometheus.NewRegistry()}
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

var minute = httpcache.Policy{Route: "r", TTL: time.Minute}

var errBroken = errors.New("broken")

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errBroken }
