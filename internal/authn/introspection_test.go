package authn

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tollgate-proxy/tollgate/internal/logtest"
	"github.com/tollgate-proxy/tollgate/internal/outage"
	"github.com/tollgate-proxy/tollgate/internal/polltest"
)

// tokenServer is an introspection server without a network.
type tokenServer struct {
	t      *testing.T
	mu     sync.Mutex
	secret string // that it wants, as it is sent
	answer func(token string) (int, string)
	delay  time.Duration
	asked  int
}

func (s *tokenServer) RoundTrip(r *http.Request) (*http.Response, error) {
	s.mu.Lock()
	s.asked++
	answer, delay, want := s.answer, s.delay, s.secret
	s.mu.Unlock()
	select {
	case <-time.After(delay):
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	form, err := url.ParseQuery(string(must(io.ReadAll(r.Body))))
	if err != nil {
		return nil, err
	}
	if id, secret, _ := r.BasicAuth(); r.Method != http.MethodPost || id != "us%3A1" || secret != want {
		s.t.Errorf("asked by %s as %q with %q", r.Method, id, secret)
	}
	status, body := answer(form.Get("token"))
	if status == 0 {
		return nil, errors.New("connection refused")
	}
	return &http.Response{StatusCode: status, Body: io.NopCloser(strings.NewReader(body)), Request: r, Header: http.Header{}}, nil
}

func (s *tokenServer) set(f func(string) (int, string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = f
}

func (s *tokenServer) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

func active(changes ...object) func(string) (int, string) {
	return func(string) (int, string) {
		now := time.Now().Unix()
		c := claims(append([]object{{"active": true, "iat": now, "exp": now + 3600, "client_id": "web"}}, changes...)...)
		return 200, string(must(json.Marshal(c)))
	}
}

func introspecting(t *testing.T, change func(*IntrospectionConfig)) (*Verifier, *tokenServer, *prometheus.Registry) {
	t.Helper()
	s := &tokenServer{t: t, secret: "p%26ss", answer: active()}
	cfg := Default()
	c := &cfg.Introspection
	c.URL, c.ClientID, c.SecretFile, c.Issuer = "https://issuer.test/introspect", "us:1", writeFile(t, []byte("p&ss\n")), testIssuer
	if change != nil {
		change(c)
	}
	reg := prometheus.NewRegistry()
	v, err := New(cfg, Options{HTTPClient: &http.Client{Transport: s}, Metrics: reg})
	if err != nil {
		t.Fatal(err)
	}
	return v, s, reg
}

func ask(t *testing.T, v *Verifier, token string) (*Principal, error) {
	t.Helper()
	return v.Authenticate(t.Context(), &Request{Authorization: "Bearer " + token}, time.Now())
}

// A server that answers every other question is told of once, not for each.
func TestIntrospectionIsLoggedByState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, s, _ := introspecting(t, nil)
		var log logtest.Buffer
		v.opaque.log = log.Logger()
		const gone, back = "introspection server does not answer", "introspection server answers again"
		want := func(nGone, nBack int) {
			t.Helper()
			if log.Count(gone) != nGone || log.Count(back) != nBack {
				t.Errorf("want %d and %d:\n%s", nGone, nBack, &log)
			}
		}
		for i := range 100 {
			s.set(active())
			if i%2 == 0 {
				s.set(func(string) (int, string) { return 0, "" })
			}
			_, _ = ask(t, v, fmt.Sprint("token", i))
			pass(100 * time.Millisecond)
		}
		want(1, 0)
		pass(outage.Calm)
		_, _ = ask(t, v, "later")
		want(1, 1)
	})
}

// The secret may be changed without a restart; a file that has none, such as one
// that is being written, changes nothing.
func TestIntrospectionSecretIsReloaded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, s, _ := introspecting(t, nil)
		files := v.Files()
		if len(files) != 1 {
			t.Fatalf("files %v, want that of the secret", files)
		}
		write := func(text string) {
			t.Helper()
			if err := os.WriteFile(files[0], []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for i, c := range []struct{ text, want string }{{"p&ss\n", "p%26ss"}, {"another\r\n", "another"}, {"", "another"}, {"\n", "another"}} {
			write(c.text)
			use, err := v.PrepareReload(t.Context())
			if (err != nil) != (c.text == "" || c.text == "\n") {
				t.Fatalf("%q: %v", c.text, err)
			}
			if err == nil {
				use()
			}
			s.mu.Lock()
			s.secret = c.want
			s.mu.Unlock()
			p, err := ask(t, v, fmt.Sprint("token", i))
			wantCode(t, c.text, p, err, "")
		}
		write("")
		cfg := Default()
		cfg.Introspection = v.opaque.cfg
		if _, err := New(cfg, Options{}); err == nil {
			t.Error("a file without a secret is accepted")
		}
	})
}

// Long answers to short tokens fill no more memory than they may.
func TestIntrospectionAnswersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, s, _ := introspecting(t, func(c *IntrospectionConfig) { c.Cache = 256 << 10 })
		s.set(active(object{"groups": strings.Repeat("x", 10<<10)}))
		for i := range 20 {
			p, err := ask(t, v, fmt.Sprint("token", i))
			wantCode(t, "long answer", p, err, "")
		}
		if n := v.opaque.cache.count.Load(); n < 1 || n*10<<10 > 256<<10/4 {
			t.Errorf("%d answers of 10KiB are kept in 256KiB, of which each takes some times as much", n)
		}
	})
}

// Connections to the server are kept, as many as questions are asked at a time,
// and whatever it answers.
func TestIntrospectionKeepsConnections(t *testing.T) {
	const together = 8
	arrived, leave := make(chan bool), make(chan int)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		arrived <- true
		w.WriteHeader(<-leave)
		_, _ = io.WriteString(w, `{"active":false}`)
	}))
	var opened atomic.Int32
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			opened.Add(1)
		}
	}
	server.Start()
	defer server.Close()
	cfg := Default()
	c := &cfg.Introspection
	c.URL, c.SecretFile, c.Issuer, c.Timeout = server.URL, writeFile(t, []byte("secret")), testIssuer, polltest.Patience
	v, err := New(cfg, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for round, answer := range []struct {
		status int
		code   string
	}{{200, CodeInvalid}, {503, CodeUnavailable}, {200, CodeInvalid}} {
		var wg sync.WaitGroup
		for i := range together {
			wg.Go(func() {
				p, err := ask(t, v, fmt.Sprint("token", round, "-", i))
				wantCode(t, fmt.Sprint("round ", round), p, err, answer.code)
			})
		}
		for range together {
			<-arrived
		}
		for range together {
			leave <- answer.status
		}
		wg.Wait()
	}
	if n := opened.Load(); n != together {
		t.Errorf("%d connections were opened for %d questions at a time", n, together)
	}
}

// Opaque tokens count for how long revocations are kept: one that was revoked
// would be good again once its revocation is forgotten.
func TestIntrospectedLifetimes(t *testing.T) {
	short := issuerConfig(t, "ES256")
	short.MaxLifetime, short.Leeway = 10*time.Minute, time.Second
	cfg := Default()
	cfg.Issuers = []IssuerConfig{short}
	cfg.MaxLifetime, cfg.Leeway = 12*time.Hour, 40*time.Second
	check := func(what string, lifetime, leeway time.Duration) {
		t.Helper()
		v, err := New(cfg, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if v.MaxLifetime() != lifetime || v.Leeway() != leeway {
			t.Errorf("%s: lifetime %s, leeway %s; want %s and %s", what, v.MaxLifetime(), v.Leeway(), lifetime, leeway)
		}
	}
	check("without introspection", 10*time.Minute+2*time.Second, time.Second)
	c := &cfg.Introspection
	c.URL, c.ClientID, c.SecretFile, c.Issuer = "https://opaque.test/introspect", "us", writeFile(t, []byte("secret")), "https://opaque.test"
	check("with", 12*time.Hour+80*time.Second, 40*time.Second)
}

func TestIntrospection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, s, reg := introspecting(t, nil)
		p, err := ask(t, v, "opaque")
		wantCode(t, "active", p, err, "")
		if p.Subject != "alice" || p.Issuer != testIssuer || p.SigningInput != sha256.Sum256([]byte("opaque")) {
			t.Errorf("principal %+v", p)
		}
		for range 5 {
			p, err = ask(t, v, "opaque")
			wantCode(t, "remembered", p, err, "")
		}
		if s.count() != 1 {
			t.Errorf("asked %d times, want once", s.count())
		}
		// Revoked there: refused here once the answer is no longer believed, and
		// asked again after as long.
		s.set(func(string) (int, string) { return 200, `{"active":false}` })
		pass(29 * time.Second)
		p, err = ask(t, v, "opaque")
		wantCode(t, "still believed", p, err, "")
		pass(time.Second)
		for range 5 {
			p, err = ask(t, v, "opaque")
			wantCode(t, "revoked", p, err, CodeInvalid)
		}
		if s.count() != 2 {
			t.Errorf("asked %d times, want twice", s.count())
		}
		// No answer is not believed at all.
		s.set(func(string) (int, string) { return 0, "" })
		for range 3 {
			p, err = ask(t, v, "other")
			wantCode(t, "no answer", p, err, CodeUnavailable)
		}
		s.set(active())
		p, err = ask(t, v, "other")
		wantCode(t, "answers again", p, err, "")
		m := gather(t, reg)
		for outcome, want := range map[string]float64{"active": 2, "inactive": 1, "error": 3} {
			if got := m["tollgate_authn_introspections_total "+outcome]; got != want {
				t.Errorf("%v answers %s, want %v", got, outcome, want)
			}
		}
		// A token ends when it ends, whatever is believed.
		s.set(active(object{"exp": time.Now().Unix() + 5}))
		p, err = ask(t, v, "short")
		wantCode(t, "short", p, err, "")
		p, err = v.Authenticate(t.Context(), &Request{Authorization: "Bearer short"}, time.Now().Add(36*time.Second))
		wantCode(t, "expired", p, err, CodeExpired)
	})
}

func TestIntrospectionAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, s, _ := introspecting(t, func(c *IntrospectionConfig) { c.Audiences = []string{"us"} })
		for i, c := range []struct {
			name   string
			answer func(string) (int, string)
			code   string
		}{
			{"without issuer", active(object{"iss": nil}), ""},
			{"of another issuer", active(object{"iss": "https://other.test"}), CodeInvalid},
			{"for another audience", active(object{"aud": "them"}), CodeInvalid},
			{"without expiry", active(object{"exp": nil}), CodeInvalid},
			{"without subject", active(object{"sub": nil}), CodeInvalid},
			{"living long", active(object{"exp": time.Now().Unix() + 30*24*3600}), CodeInvalid},
			{"bound", active(object{"cnf": object{"jkt": "x"}}), CodeInvalid},
			{"active as text", active(object{"active": "true"}), CodeInvalid},
			{"empty object", func(string) (int, string) { return 200, `{}` }, CodeInvalid},
			{"said twice", func(string) (int, string) { return 200, `{"active":false,"active":true}` }, CodeUnavailable},
			{"not JSON", func(string) (int, string) { return 200, `<html>` }, CodeUnavailable},
			{"401", func(string) (int, string) { return 401, `{"active":true}` }, CodeUnavailable},
			{"redirect", func(string) (int, string) { return 302, `` }, CodeUnavailable},
			{"long", func(string) (int, string) { return 200, strings.Repeat(" ", maxAnswer+1) }, CodeUnavailable},
		} {
			s.set(c.answer)
			p, err := ask(t, v, fmt.Sprint("token", i))
			wantCode(t, c.name, p, err, c.code)
		}
		before := s.count()
		for token, code := range map[string]string{
			"with space": CodeMalformed, "ünicode": CodeMalformed, "nul\x00": CodeMalformed, strings.Repeat("x", 9000): CodeMalformed,
			"a.b.c": CodeMalformed,
		} {
			p, err := ask(t, v, token)
			wantCode(t, token, p, err, code)
		}
		if s.count() != before {
			t.Error("asked about what is no opaque token")
		}
	})
}

// One question a token at a time, a bounded number in all, none longer than its
// deadline; a caller that goes away does not end the question for others.
func TestIntrospectionUnderLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, s, reg := introspecting(t, func(c *IntrospectionConfig) { c.Concurrent = 2 })
		s.mu.Lock()
		s.delay = 50 * time.Millisecond
		s.mu.Unlock()
		var wg sync.WaitGroup
		impatient, cancel := context.WithCancel(t.Context())
		wg.Go(func() {
			p, err := v.Authenticate(impatient, &Request{Authorization: "Bearer one"}, time.Now())
			wantCode(t, "impatient", p, err, CodeUnavailable)
		})
		synctest.Wait()
		for range 20 {
			wg.Go(func() {
				p, err := ask(t, v, "one")
				wantCode(t, "patient", p, err, "")
			})
		}
		synctest.Wait()
		cancel()
		wg.Wait()
		if s.count() != 1 {
			t.Errorf("asked %d times about one token", s.count())
		}

		busy := 0
		var mu sync.Mutex
		for i := range 5 {
			wg.Go(func() {
				if _, err := ask(t, v, fmt.Sprint("many", i)); err != nil {
					mu.Lock()
					busy++
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		if busy != 3 || gather(t, reg)["tollgate_authn_introspections_total busy"] != 3 {
			t.Errorf("%d of 5 found it busy, want 3", busy)
		}

		s.mu.Lock()
		s.delay = time.Hour
		s.mu.Unlock()
		start := time.Now()
		p, err := ask(t, v, "slow")
		wantCode(t, "slow", p, err, CodeUnavailable)
		if took := time.Since(start); took != 100*time.Millisecond {
			t.Errorf("waited %v, want the deadline of 100ms", took)
		}
	})
}

func TestIntrospectionOff(t *testing.T) {
	p, err := ask(t, verifier(t), "opaque")
	wantCode(t, "opaque token", p, err, CodeMalformed)
	for name, change := range map[string]func(*IntrospectionConfig){
		"no such": func(c *IntrospectionConfig) { c.SecretFile = "/does/not/exist" },
		"pointer": func(c *IntrospectionConfig) { c.Claims.Tier = "/" },
	} {
		cfg := Default()
		cfg.Introspection.URL, cfg.Introspection.SecretFile = "https://x.test", writeFile(t, nil)
		change(&cfg.Introspection)
		if _, err := New(cfg, Options{}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}
