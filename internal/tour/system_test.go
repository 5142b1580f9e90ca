package tour_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/tollgate-proxy/tollgate/internal/echo"
	"github.com/tollgate-proxy/tollgate/internal/flag"
	"github.com/tollgate-proxy/tollgate/internal/tour"
)

// system plays a gateway that does what the tour expects, but for what a test
// breaks.
type system struct {
	url string

	anonymous   int
	challenge   string
	trusting    bool
	keep        string
	tier        string
	noFlags     bool
	underscores bool
	free        int
	retryAfter  string
	noRateLimit bool
	mlCost      int
	immortal    bool
	revokeUser  bool
	undead      bool
	threshold   int
	probes      int // every so many requests the open circuit lets one through; 0 for none
	apiError    error
	startError  error
	flagError   error
	setError    error
	deleteError error

	mu      sync.Mutex
	issued  map[string]claims
	revoked map[string]bool
	spent   map[string]int
	key     string // of the flag, empty where there is none
	flag    string
	dead    bool
	failed  int
	refused int
	opened  int // answers still to be given by the open circuit
}

type claims struct {
	Subject string `json:"sub"`
	Tier    string `json:"tier"`
	ID      int    `json:"jti"`
}

func newSystem(t *testing.T) *system {
	s := &system{
		anonymous: http.StatusUnauthorized, challenge: `Bearer realm="tollgate"`,
		free: 10, retryAfter: "6", mlCost: 5, threshold: 5,
		issued: map[string]claims{}, revoked: map[string]bool{}, spent: map[string]int{},
	}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	s.url = server.URL
	return s
}

func (s *system) target() tour.Target {
	return tour.Target{Envoy: s.url, API: s, Mint: s.mint, Parts: s}
}

func (s *system) mint(user, tier string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := claims{user, tier, len(s.issued)}
	data, err := json.Marshal(c)
	token := "e30." + base64.RawURLEncoding.EncodeToString(data) + ".c2lnbmVk"
	s.issued[token] = c
	return token, err
}

func (s *system) RevokeToken(_ context.Context, token, _ string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revoked[token] = true
	if s.revokeUser {
		for other, c := range s.issued {
			if c.Subject == s.issued[token].Subject {
				s.revoked[other] = true
			}
		}
	}
	return s.apiError
}

func (s *system) PutFlag(_ context.Context, definition flag.Definition, _ string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.key, s.flag = definition.Key, definition.DefaultVariant
	return s.flagError
}

func (s *system) DeleteFlag(context.Context, string, string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.key = ""
	return s.deleteError
}

func (s *system) SetFlag(_ context.Context, _, value, _ string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flag = value
	return s.setError
}

func (s *system) KillPart(string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dead = true
	return nil
}

func (s *system) StartPart(context.Context, string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dead = s.startError != nil
	s.failed, s.opened = 0, 3
	return s.startError
}

func (s *system) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range r.Header {
		if strings.Contains(name, "_") && !s.underscores {
			refuse(w, http.StatusBadRequest, "request_refused")
			return
		}
	}
	token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	if token == "" {
		w.Header().Set("WWW-Authenticate", s.challenge)
		refuse(w, s.anonymous, "token_missing")
		return
	}
	who, known := s.issued[token]
	switch {
	case !known && !s.trusting:
		refuse(w, http.StatusUnauthorized, "token_invalid")
		return
	case s.revoked[token] && !s.immortal:
		refuse(w, http.StatusUnauthorized, "token_revoked")
		return
	}
	if !s.pay(w, r, who) {
		return
	}
	switch {
	case strings.HasPrefix(r.URL.Path, "/api/v1/ml/"):
		fmt.Fprintln(w, `{"price": 64100.5}`)
	case strings.HasPrefix(r.URL.Path, "/api/v1/nlp/"):
		s.nlp(w)
	default:
		s.backend(w, r, who)
	}
}

// pay takes the request's cost from the user's bucket.
func (s *system) pay(w http.ResponseWriter, r *http.Request, who claims) bool {
	limit, cost := 5000, 1
	if who.Tier == "free" {
		limit = s.free
	}
	if strings.HasPrefix(r.URL.Path, "/api/v1/ml/") {
		cost = s.mlCost
	}
	if !s.noRateLimit {
		w.Header().Set("RateLimit", `"minute";r=1;t=6`)
		w.Header().Set("RateLimit-Policy", `"minute";q=10;w=60`)
	}
	w.Header().Set("X-RateLimit-Limit", strconv.Itoa(limit))
	w.Header().Set("X-RateLimit-Reset", "6")
	if s.spent[who.Subject]+cost > limit {
		if s.retryAfter != "" {
			w.Header().Set("Retry-After", s.retryAfter)
		}
		refuse(w, http.StatusTooManyRequests, "rate_limited")
		return false
	}
	s.spent[who.Subject] += cost
	w.Header().Set("X-RateLimit-Remaining", strconv.Itoa(limit-s.spent[who.Subject]))
	return true
}

func (s *system) nlp(w http.ResponseWriter) {
	switch {
	case s.dead && s.undead:
		refuse(w, http.StatusTooManyRequests, "rate_limited")
	case s.dead && s.failed < s.threshold:
		s.failed++
		refuse(w, http.StatusBadGateway, "upstream_failed")
	case s.dead && s.probes > 0 && s.refused%s.probes == s.probes-1:
		s.refused++
		refuse(w, http.StatusBadGateway, "upstream_failed")
	case s.dead || s.opened > 0:
		s.opened = max(0, s.opened-1)
		s.refused++
		w.Header().Set("Retry-After", "1")
		refuse(w, http.StatusServiceUnavailable, "circuit_open")
	default:
		fmt.Fprintln(w, `{"language": "de"}`)
	}
}

func (s *system) backend(w http.ResponseWriter, r *http.Request, who claims) {
	for name := range r.Header {
		folded := strings.NewReplacer(".", "-", "_", "-").Replace(strings.ToLower(name))
		if name != s.keep && (strings.HasPrefix(folded, "x-user-") || strings.HasPrefix(folded, "x-feature-") || strings.HasPrefix(folded, "x-risk-")) {
			r.Header.Del(name)
			delete(r.Header, name)
		}
	}
	if s.keep != "X-User-Id" {
		r.Header.Set("X-User-Id", who.Subject)
	}
	if s.tier != "" && who.Tier == "premium" {
		who.Tier = s.tier
	}
	r.Header.Set("X-User-Tier", who.Tier)
	if !s.noFlags || who.Tier != "premium" {
		flags := "ml-v2=on"
		if s.key != "" {
			flags += "," + s.key + "=" + s.flag
		}
		r.Header.Set("X-Feature-Flags", flags)
	}
	w.Header().Set("X-Request-Id", "1")
	echo.Handler().ServeHTTP(w, r)
}

func refuse(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"status":%d,"code":%q}`, status, code)
}
