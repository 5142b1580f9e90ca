package authn

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/tollgate-proxy/tollgate/internal/logtest"
)

// keyServer answers fetches without a network.
type keyServer struct {
	mu      sync.Mutex
	body    []byte
	status  int
	err     error
	hang    bool
	fetches []time.Time
}

func (s *keyServer) set(change func(*keyServer)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

func (s *keyServer) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.fetches)
}

func (s *keyServer) RoundTrip(r *http.Request) (*http.Response, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fetches = append(s.fetches, time.Now())
	if s.hang {
		s.mu.Unlock()
		<-r.Context().Done()
		s.mu.Lock()
		return nil, r.Context().Err()
	}
	if s.err != nil {
		return nil, s.err
	}
	if r.URL.Host == "evil.test" {
		return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader(string(s.body))), Request: r}, nil
	}
	return &http.Response{
		StatusCode: s.status, Header: http.Header{"Location": {"https://evil.test/"}},
		Body: io.NopCloser(strings.NewReader(string(s.body))), Request: r,
	}, nil
}

// remote starts a verifier whose keys are at a URL, inside a bubble.
func remote(t *testing.T, s *keyServer, change ...func(*JWKSConfig)) (v *Verifier, reg *prometheus.Registry, ready *[]string) {
	t.Helper()
	cfg := Default()
	for _, f := range change {
		f(&cfg.JWKS)
	}
	ic := issuerConfig(t, "ES256")
	ic.Keys = KeysConfig{JWKSURL: "https://issuer.test/jwks"}
	cfg.Issuers = []IssuerConfig{ic}
	reg = prometheus.NewRegistry()
	ready = &[]string{}
	v, err := New(cfg, Options{HTTPClient: &http.Client{Transport: s}, Metrics: reg, Ready: func(ok bool, reason string) {
		*ready = append(*ready, fmt.Sprint(ok, reason))
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- v.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return v, reg, ready
}

func keysNamed(names ...string) []byte {
	var keys []jose.JSONWebKey
	for _, n := range names {
		keys = append(keys, jose.JSONWebKey{Key: p256().Public(), KeyID: n})
	}
	return jwksOf(keys...)
}

func tokenOf(t *testing.T, kid string) string {
	t.Helper()
	return sign(t, "ES256", p256(), object{"kid": kid}, claims(object{
		"iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix(),
	}))
}

func TestRemoteKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &keyServer{err: errors.New("down")}
		v, reg, ready := remote(t, s)
		p, err := v.Verify(tokenOf(t, "a"), time.Now())
		wantCode(t, "before the first fetch", p, err, CodeUnavailable)
		synctest.Wait()

		// Down, then nonsense, then there: tried again soon, ready once there.
		s.set(func(s *keyServer) { s.err, s.status, s.body = nil, 200, []byte("nonsense") })
		pass(2 * time.Second)
		s.set(func(s *keyServer) { s.body = keysNamed("a") })
		pass(4 * time.Second)
		synctest.Wait()
		if got := fmt.Sprint(*ready); got != "[falseno keys yet from issuer test true]" {
			t.Errorf("ready reports %s", got)
		}
		token := tokenOf(t, "a")
		p, err = v.Verify(token, time.Now())
		wantCode(t, "known key", p, err, "")

		// Down again: the set goes on being served, and its age shows.
		s.set(func(s *keyServer) { s.status = 503 })
		pass(30 * time.Minute)
		p, err = v.Verify(token, time.Now())
		wantCode(t, "stale set", p, err, "")
		m := gather(t, reg)
		if m["tollgate_authn_jwks_age_seconds"] < 1500 || m["tollgate_authn_jwks_keys"] != 1 || m["tollgate_authn_jwks_fetches_total error"] < 10 {
			t.Errorf("metrics of a stale set: %v", m)
		}
		s.set(func(s *keyServer) { s.status = 200 })
		pass(time.Minute)
		if age := gather(t, reg)["tollgate_authn_jwks_age_seconds"]; age > 60 {
			t.Errorf("age %v after the server came back", age)
		}

		// The key leaves the set: signatures it made are forgotten, though this
		// one is remembered.
		s.set(func(s *keyServer) { s.body = keysNamed("b") })
		pass(12 * time.Minute)
		p, err = v.Verify(token, time.Now())
		wantCode(t, "key withdrawn", p, err, CodeInvalid)
	})
}

// Whether a set stays in use depends on whether there is one; and a server that
// answers every other fetch is told of once, not for each.
func TestRemoteKeysAreToldOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &keyServer{err: errors.New("down")}
		log := &logtest.Buffer{}
		cfg, ic := Default(), issuerConfig(t, "ES256")
		ic.Keys = KeysConfig{JWKSURL: "https://issuer.test/jwks"}
		cfg.Issuers = []IssuerConfig{ic}
		v, err := New(cfg, Options{HTTPClient: &http.Client{Transport: s}, Log: log.Logger()})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- v.Run(ctx) }()
		defer func() { cancel(); <-done }()
		want := func(none, stays, again int) {
			t.Helper()
			synctest.Wait()
			if log.Count("there is none yet") != none || log.Count("the last one stays in use") != stays || log.Count("fetched again") != again {
				t.Errorf("want %d, %d and %d:\n%s", none, stays, again, log)
			}
		}
		down, up := func(s *keyServer) { s.err = errors.New("down") }, func(s *keyServer) { s.err, s.status, s.body = nil, 200, keysNamed("a") }
		refresh := cfg.JWKS.Refresh + cfg.JWKS.Refresh/10
		pass(10 * time.Second)
		want(1, 0, 0)
		s.set(up)
		pass(maxBackoff + refresh)
		want(1, 0, 1)
		s.set(down)
		pass(refresh)
		want(1, 1, 1)
		s.set(up)
		pass(maxBackoff + refresh)
		want(1, 1, 2)
		fetch := func() {
			for n := s.count(); s.count() == n; {
				pass(100 * time.Millisecond)
			}
		}
		for i := range 20 {
			s.set(down)
			_, _ = v.Verify(tokenOf(t, fmt.Sprint("made-up", i)), time.Now())
			fetch()
			s.set(up)
			fetch()
		}
		want(1, 2, 2)
		pass(refresh)
		want(1, 2, 3)
	})
}

// Unknown keys cause one fetch, at a bounded rate, and a key that is known to
// be unknown none; no verification waits.
func TestRemoteUnknownKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &keyServer{status: 200, body: keysNamed("a")}
		v, reg, _ := remote(t, s)
		synctest.Wait()
		pass(time.Minute)

		start, before := time.Now(), s.count()
		for range 50 {
			p, err := v.Verify(tokenOf(t, "b"), time.Now())
			wantCode(t, "unknown key", p, err, CodeInvalid)
		}
		if !time.Now().Equal(start) {
			t.Error("verification waited")
		}
		synctest.Wait()
		pass(time.Millisecond)
		if got := s.count() - before; got != 1 {
			t.Errorf("%d fetches for one unknown key, want 1", got)
		}

		// The same key asked for again and again: no fetch.
		for range 20 {
			_, _ = v.Verify(tokenOf(t, "b"), time.Now())
			pass(5 * time.Second)
		}
		if got := s.count() - before; got != 1 {
			t.Errorf("%d fetches for a key known to be unknown, want 1", got)
		}

		// Many made-up keys: one fetch each ten seconds at most.
		before = s.count()
		for i := range 3000 {
			_, _ = v.Verify(tokenOf(t, fmt.Sprint("made-up", i)), time.Now())
			pass(20 * time.Millisecond)
		}
		if got := s.count() - before; got < 5 || got > 7 {
			t.Errorf("%d fetches in a minute of made-up keys, want 6", got)
		}
		if m := gather(t, reg); m["tollgate_authn_jwks_unknown_keys_total"] < 3000 {
			t.Errorf("unknown keys counted: %v", m["tollgate_authn_jwks_unknown_keys_total"])
		}

		// A new key is there after the first token that has it.
		pass(time.Minute)
		s.set(func(s *keyServer) { s.body = keysNamed("a", "new") })
		_, _ = v.Verify(tokenOf(t, "new"), time.Now())
		pass(11 * time.Second)
		p, err := v.Verify(tokenOf(t, "new"), time.Now())
		wantCode(t, "new key", p, err, "")

		// A question that was not answered is asked again.
		s.set(func(s *keyServer) { s.err = errors.New("down") })
		_, _ = v.Verify(tokenOf(t, "newer"), time.Now())
		pass(11 * time.Second)
		s.set(func(s *keyServer) { s.err, s.body = nil, keysNamed("newer") })
		_, _ = v.Verify(tokenOf(t, "newer"), time.Now())
		pass(11 * time.Second)
		p, err = v.Verify(tokenOf(t, "newer"), time.Now())
		wantCode(t, "newer key", p, err, "")
	})
}

// Tokens with made-up keys postpone no fetch: neither the one that learns that a
// key was withdrawn, nor the one that is tried again after a failure.
func TestRemoteUnknownKeysPostponeNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &keyServer{status: 200, body: keysNamed("a")}
		v, _, _ := remote(t, s, func(c *JWKSConfig) { c.UnknownKey = time.Hour })
		synctest.Wait()
		token := tokenOf(t, "a")
		s.set(func(s *keyServer) { s.body = keysNamed("b") })
		for i := range 12 {
			_, _ = v.Verify(tokenOf(t, fmt.Sprint("made-up", i)), time.Now())
			pass(time.Minute)
		}
		p, err := v.Verify(token, time.Now())
		wantCode(t, "key withdrawn", p, err, CodeInvalid)

		s.set(func(s *keyServer) { s.err = errors.New("down") })
		pass(11 * time.Minute)
		s.set(func(s *keyServer) { s.err, s.body = nil, keysNamed("c") })
		_, _ = v.Verify(tokenOf(t, "made-up"), time.Now())
		pass(maxBackoff + maxBackoff/10)
		p, err = v.Verify(tokenOf(t, "c"), time.Now())
		wantCode(t, "key after a failure", p, err, "")
	})
}

func TestRemoteBadAnswers(t *testing.T) {
	for name, change := range map[string]func(*keyServer){
		"redirect": func(s *keyServer) { s.status = 302 },
		"long":     func(s *keyServer) { s.body = append(keysNamed("a"), make([]byte, maxKeyFile)...) },
		"empty":    func(s *keyServer) { s.body = []byte(`{"keys":[]}`) },
		"hanging":  func(s *keyServer) { s.hang = true },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &keyServer{status: 200, body: keysNamed("a")}
				change(s)
				v, reg, _ := remote(t, s)
				pass(time.Minute)
				p, err := v.Verify(tokenOf(t, "a"), time.Now())
				wantCode(t, name, p, err, CodeUnavailable)
				m := gather(t, reg)
				if m["tollgate_authn_jwks_age_seconds"] != -1 || m["tollgate_authn_jwks_keys"] != 0 || m["tollgate_authn_jwks_fetches_total error"] == 0 {
					t.Errorf("metrics %v", m)
				}
			})
		})
	}
}

func TestRunWithoutRemoteKeys(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := verifier(t, issuerConfig(t, "ES256")).Run(ctx); err != nil {
		t.Error(err)
	}
}
