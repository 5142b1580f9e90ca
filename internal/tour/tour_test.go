package tour_test

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/tollgate-proxy/tollgate/internal/tour"
)

func TestTourOfASoundSystem(t *testing.T) {
	system := newSystem(t)
	for range 2 { // it leaves everything as it was
		var out bytes.Buffer
		results, err := tour.Run(t.Context(), system.target(), &out)
		if err != nil {
			t.Fatalf("%v\n%s", err, &out)
		}
		if len(results) != len(tour.Steps()) {
			t.Errorf("%d results of %d steps", len(results), len(tour.Steps()))
		}
		for _, r := range results {
			if r.Err != nil || r.Name == "" || r.Proves == "" {
				t.Errorf("result %+v", r)
			}
		}
		for _, want := range []string{
			"1/9 no token",
			"    > GET /orders  (no token)\n    < 401 Unauthorized  token_missing",
			"      www-authenticate: Bearer",
			"      x-user-tier: premium\n",
			"    < 429 Too Many Requests  rate_limited",
			"tokens left: 9, then 4",
			"    < 503 Service Unavailable  circuit_open",
			"      x-feature-flags: ml-v2=on,tour-banner=on\n",
			"Tour: 9 of 9 steps as they should be.",
		} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("the tour does not say %q:\n%s", want, &out)
			}
		}
		if strings.Contains(out.String(), "\x1b") {
			t.Error("colours where none were asked for")
		}
		if system.key != "" || system.dead {
			t.Errorf("left behind: flag %q, service dead %t", system.key, system.dead)
		}
	}
}

func TestTourNamesTheStepThatFails(t *testing.T) {
	for _, tc := range []struct {
		name  string
		spoil func(*system)
		step  string
		cause string
	}{
		{"anonymous passes", func(s *system) { s.anonymous = http.StatusOK }, "no token", "answered 200 OK instead of 401"},
		{"no challenge", func(s *system) { s.challenge = "Basic" }, "no token", "instead of a Bearer challenge"},
		{"signature not checked", func(s *system) { s.trusting = true }, "forged token", "answered 200 OK instead of 401"},
		{"client's identity reaches the backend", func(s *system) { s.keep = "X.user.id" }, "good token", "the client's own value reached the backend"},
		{"client's user id is kept", func(s *system) { s.keep = "X-User-Id" }, "good token", "the backend saw x-user-id as"},
		{"tier not told", func(s *system) { s.tier = "gold" }, "good token", "the backend saw x-user-tier as"},
		{"no flags header", func(s *system) { s.noFlags = true }, "good token", "one x-feature-flags header"},
		{"underscores pass", func(s *system) { s.underscores = true }, "underscored header", "answered 200 OK instead of 400"},
		{"limit too high", func(s *system) { s.free = 11 }, "rate limit", "answered 200 OK instead of 429"},
		{"limit too low", func(s *system) { s.free = 9 }, "rate limit", "request 10 of 10"},
		{"no Retry-After", func(s *system) { s.retryAfter = "" }, "rate limit", `retry-after is "" instead of a number`},
		{"Retry-After too long", func(s *system) { s.retryAfter = "61" }, "rate limit", "retry-after is 61 s"},
		{"no RateLimit header", func(s *system) { s.noRateLimit = true }, "rate limit", "the answer has no ratelimit"},
		{"ML costs one", func(s *system) { s.mlCost = 1 }, "cost", "took 1 tokens instead of 5"},
		{"revocation without effect", func(s *system) { s.immortal = true }, "revocation", "answered 200 OK instead of 401"},
		{"revocation of everything", func(s *system) { s.revokeUser = true }, "revocation", "answered 401 Unauthorized instead of 200"},
		{"revocation refused", func(s *system) { s.apiError = errors.New("no such client") }, "revocation", "revoke the token: no such client"},
		{"circuit never opens", func(s *system) { s.threshold = 1 << 30 }, "circuit breaker", "after 400 requests the circuit is not open"},
		{"one circuit of two opens", func(s *system) { s.probes = 2 }, "circuit breaker", "after 400 requests the circuit is not open"},
		{"dead service answers", func(s *system) { s.undead = true }, "circuit breaker", "with the service dead"},
		{"service does not start", func(s *system) { s.startError = errors.New("no python") }, "circuit breaker", "start the nlp service again: no python"},
		{"flag refused", func(s *system) { s.flagError = errors.New("conflict") }, "feature flag", "make a flag: conflict"},
		{"flag not turned on", func(s *system) { s.setError = errors.New("conflict") }, "feature flag", "turn the flag on: conflict"},
		{"flag not removed", func(s *system) { s.deleteError = errors.New("away") }, "feature flag", "remove the flag: away"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			system := newSystem(t)
			tc.spoil(system)
			var out bytes.Buffer
			_, err := tour.Run(t.Context(), system.target(), &out)
			step := new(tour.StepError)
			if !errors.As(err, &step) {
				t.Fatalf("error %v\n%s", err, &out)
			}
			number := 1 + slices.IndexFunc(tour.Steps(), func(s tour.Step) bool { return s.Name == tc.step })
			if step.Name != tc.step || step.Number != number {
				t.Errorf("step %d %q failed instead of %d %q: %v", step.Number, step.Name, number, tc.step, err)
			}
			if !strings.Contains(err.Error(), tc.cause) {
				t.Errorf("error %q does not say %q", err, tc.cause)
			}
			if !strings.Contains(out.String(), "FAILED") || !regexp.MustCompile(`Tour: \d of 9 steps`).MatchString(out.String()) {
				t.Errorf("the tour does not show the failure:\n%s", &out)
			}
			if system.dead && system.startError == nil {
				t.Error("the service was left dead")
			}
		})
	}
}

// On a slow machine an open circuit looks whether the service is back every few
// requests.
func TestTourOfASlowSystem(t *testing.T) {
	system := newSystem(t)
	system.probes = 6
	var out bytes.Buffer
	if _, err := tour.Run(t.Context(), system.target(), &out); err != nil {
		t.Errorf("%v\n%s", err, &out)
	}
}

func TestTourOfNothing(t *testing.T) {
	target := newSystem(t).target()
	target.Envoy = "http://127.0.0.1:1"
	target.Colour = true
	var out bytes.Buffer
	results, err := tour.Run(t.Context(), target, &out)
	if err == nil {
		t.Fatal("a tour of nothing succeeded")
	}
	for _, r := range results {
		if r.Err == nil {
			t.Errorf("step %s succeeded", r.Name)
		}
	}
	if !strings.Contains(out.String(), "\x1b[31mFAILED") {
		t.Errorf("no colours:\n%s", &out)
	}
}

func TestTourEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	left := errors.New("the visitor left")
	cancel(left)
	results, err := tour.Run(ctx, newSystem(t).target(), &bytes.Buffer{})
	if !errors.Is(err, left) || len(results) != 0 {
		t.Errorf("%d results, error %v", len(results), err)
	}
}

func TestTourNeedsTokens(t *testing.T) {
	target := newSystem(t).target()
	target.Mint = func(string, string) (string, error) { return "not.a-jwt", nil }
	_, err := tour.Run(t.Context(), target, &bytes.Buffer{})
	if err == nil || !strings.Contains(err.Error(), "the minted token is not a JWT") {
		t.Errorf("error %v", err)
	}
	target.Mint = func(string, string) (string, error) { return "", errors.New("no key") }
	_, err = tour.Run(t.Context(), target, &bytes.Buffer{})
	if err == nil || !strings.Contains(err.Error(), "mint a token: no key") {
		t.Errorf("error %v", err)
	}
}
