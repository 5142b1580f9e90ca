package gate_test

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/gate"
	"github.com/tollgate-proxy/tollgate/internal/ratelimit"
)

const limits = `
domain: d
tiers:
  entry: tier
  subjects: [user, remote_address]
  default: anonymous
  table: [{name: anonymous, limits: [{unit: hour, requests_per_unit: 12}]}]
descriptors: [{key: generic_key, value: floor, rate_limit: {unit: hour, requests_per_unit: 4}}]
`

// newLimiter is a limiter in memory by those rules.
func newLimiter(t *testing.T) *ratelimit.Limiter {
	t.Helper()
	file := filepath.Join(t.TempDir(), "limits.yaml")
	if err := os.WriteFile(file, []byte(limits), 0o600); err != nil {
		t.Fatal(err)
	}
	rules, err := ratelimit.LoadRules(file)
	if err != nil {
		t.Fatal(err)
	}
	limiter, err := ratelimit.NewLimiter(ratelimit.Options{
		Rules: rules, Store: ratelimit.NewMemory(100, time.Now), Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return limiter
}

// broken cannot decide.
type broken struct{}

func (broken) Decide(context.Context, *ratelimit.Request, *ratelimit.Decision) error {
	return ratelimit.ErrInvalid
}

func (broken) Peek(context.Context, *ratelimit.Request, *ratelimit.Decision) error {
	return ratelimit.ErrInvalid
}

// unasked cannot be asked without taking.
type unasked struct{ broken }

func (unasked) Peek(context.Context, *ratelimit.Request, *ratelimit.Decision) error {
	return errors.New("redis is away")
}

// A request is asked about as Envoy's filter would: tier, who, endpoint, at the
// route's cost, and the floor.
func TestLimits(t *testing.T) {
	limiter := newLimiter(t)
	metrics := prometheus.NewRegistry()
	g := func(l gate.Limits) *gate.Gate {
		return gate.New(gate.Options{
			Flags: fixedFlags{}, Routes: compileRoutes(t, `policy: {endpoints: [{name: ml, cost: 5}], routes: [{name: r, match: {prefix: /ml}, endpoint: ml, access: public}, {name: n, match: {prefix: /no}, require: {roles_any: [x]}}]}`),
			Limits: l, Domain: "d", Verifier: nobody{}, Metrics: gate.NewMetrics(metrics), Now: time.Now,
		})
	}
	limited := g(limiter)
	ask := func(path, address string) gate.Outcome {
		return limited.Decide(t.Context(), &gate.Request{Request: authn.Request{Method: "GET", Path: path}, Address: netip.MustParseAddr(address)})
	}
	for i, want := range []struct {
		address string
		allowed bool
		left    uint32
	}{{"192.0.2.1", true, 3}, {"192.0.2.1", true, 2}, {"192.0.2.1", false, 2}, {"192.0.2.2", true, 1}, {"192.0.2.3", true, 0}, {"192.0.2.4", false, 0}} {
		o := ask("/ml", want.address)
		if o.Allowed != want.allowed || o.Limits == nil || o.Limits.Status().Remaining != want.left {
			t.Errorf("request %d: allowed %t with %+v", i+1, o.Allowed, o.Limits)
		}
		if !o.Allowed && (o.Status != 429 || o.Code != ratelimit.DeniedCode) {
			t.Errorf("request %d: %d %s", i+1, o.Status, o.Code)
		}
	}
	// Who is refused is not charged.
	if o := ask("/no", "192.0.2.9"); o.Allowed || o.Limits != nil {
		t.Errorf("refused: %+v", o)
	}
	metrics = prometheus.NewRegistry()
	if o := g(broken{}).Decide(t.Context(), &gate.Request{Request: authn.Request{Method: "GET", Path: "/ml"}}); o.Allowed || o.Status != 503 {
		t.Errorf("limits that cannot be judged: %+v", o)
	}
}

// An explanation says what the limits would, and takes nothing.
func TestLimitsAreExplained(t *testing.T) {
	limiter := newLimiter(t)
	g := func(l gate.Limits, domain string) *gate.Gate {
		return gate.New(gate.Options{
			Flags: fixedFlags{}, Routes: compileRoutes(t, `policy: {endpoints: [{name: ml, cost: 5}, {name: huge, cost: 13}], routes: [{name: r, match: {prefix: /ml}, endpoint: ml, access: public}, {name: h, match: {prefix: /huge}, endpoint: huge, access: public}, {name: n, match: {prefix: /no}, access: denied}]}`),
			Limits: l, Domain: domain, Verifier: nobody{}, Metrics: gate.NewMetrics(prometheus.NewRegistry()), Now: time.Now,
		})
	}
	request := func(path string) *gate.Request {
		return &gate.Request{Request: authn.Request{Method: "GET", Path: path}, Address: netip.MustParseAddr("192.0.2.1")}
	}
	explain := func(g *gate.Gate, path string, allowed bool, detail string) {
		t.Helper()
		e := g.Explain(t.Context(), request(path))
		last := e.Steps[len(e.Steps)-1]
		if e.Outcome.Allowed != allowed || last.Name != "limits" || last.Passed != allowed || !strings.Contains(last.Detail, detail) {
			t.Errorf("%s: %+v, %+v", path, e.Outcome, last)
		}
	}
	limited := g(limiter, "d")
	explain(limited, "/ml", true, "tier anonymous, remote_address 192.0.2.1, endpoint ml, cost 5: 4 of 4 tokens are left")
	explain(limited, "/ml", true, ": 4 of 4 tokens are left")
	explain(limited, "/huge", false, "it can never pass")
	for range 2 {
		if o := limited.Decide(t.Context(), request("/ml")); !o.Allowed {
			t.Fatalf("%+v", o)
		}
	}
	explain(limited, "/ml", false, ": 2 of 12 tokens are left (hour, 1h0m0s); it would pass in ")
	explain(g(limiter, "other"), "/ml", true, "no limit applies")
	explain(g(broken{}, "d"), "/ml", false, "cannot be asked")
	explain(g(unasked{}, "d"), "/ml", true, "redis is away")
	e := limited.Explain(t.Context(), request("/no"))
	if slices.ContainsFunc(e.Steps, func(s gate.Step) bool { return s.Name == "limits" }) {
		t.Errorf("limits of a request that is refused: %+v", e.Steps)
	}
}

// nobody finds no token.
type nobody struct{}

func (nobody) Authenticate(context.Context, *authn.Request, time.Time) (*authn.Principal, error) {
	return nil, &authn.Error{Code: authn.CodeMissing}
}

func TestOutcomeWithoutRoute(t *testing.T) {
	var o gate.Outcome
	key, value := o.Limited()
	if o.Endpoint() != "none" || o.Cost() != 1 || key != "remote_address" || value != "unknown" {
		t.Errorf("%s %d %s=%s", o.Endpoint(), o.Cost(), key, value)
	}
	o.Principal = &authn.Principal{Subject: "ada"}
	if key, value := o.Limited(); key != "user" || value != "ada" {
		t.Errorf("%s=%s", key, value)
	}
}
