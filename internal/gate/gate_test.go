package gate_test

import (
	"bytes"
	"context"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/anomaly"
	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/config"
	"github.com/tollgate-proxy/tollgate/internal/flag"
	"github.com/tollgate-proxy/tollgate/internal/gate"
	"github.com/tollgate-proxy/tollgate/internal/policy"
	"github.com/tollgate-proxy/tollgate/internal/polltest"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
	"github.com/tollgate-proxy/tollgate/internal/revocation"
	"github.com/tollgate-proxy/tollgate/internal/session"
)

const routes = `
policy:
  endpoints: [{name: ml, cost: 5}]
  routes:
  - {name: public, match: {prefix: /public}, access: public}
  - {name: optional, match: {prefix: /optional}, access: optional, endpoint: ml}
  - {name: shadowed, match: {prefix: /open}, shadow: true, require: {roles_any: [boss]}}
  - {name: open, match: {prefix: /open}, access: public}
  - {name: inside, match: {prefix: /inside}, require: {addresses: [10.0.0.0/8]}}
  - {name: admin, match: {prefix: /admin}, require: {roles_any: [admin]}}
  - {name: consent, match: {prefix: /consent}, require: {consents: [analytics]}}
  - {name: stale, match: {prefix: /stale}, on_stale: serve_stale}
  - {name: ask, match: {prefix: /ask}, on_stale: ask_redis}
  - {name: api, match: {prefix: /api}, flags: [beta]}
`

const flags = `
flags:
  beta: {state: ENABLED, variants: {on: true, off: false}, defaultVariant: "on"}
  other: {state: ENABLED, variants: {on: true, off: false}, defaultVariant: "off"}
`

// parts are the real ones: what a request meets in authz.
type parts struct {
	gate    *gate.Gate
	store   *revocation.Store
	minter  *authn.Minter
	metrics *prometheus.Registry
	log     *bytes.Buffer
	redis   *redistest.Process
	client  *redis.Client
	seen    *seen
}

// compileRoutes reads the rules as authz does.
func compileRoutes(t testing.TB, yaml string) *policy.Set {
	t.Helper()
	type root struct {
		Policy policy.Config `yaml:"policy"`
	}
	cfg, err := config.Decode("routes.yaml", []byte(yaml), root{policy.Default()})
	if err != nil {
		t.Fatal(err)
	}
	set, err := policy.Compile(cfg.Policy)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

type fixedFlags struct{ set *flag.Set }

func (f fixedFlags) Current() *flag.Set { return f.set }

func newParts(t testing.TB, synchronise bool) *parts {
	t.Helper()
	return newPartsWith(t, synchronise, nil)
}

func newPartsWith(t testing.TB, synchronise bool, suspicions gate.Suspicions) *parts {
	t.Helper()
	p := &parts{metrics: prometheus.NewRegistry(), log: &bytes.Buffer{}, seen: &seen{}}
	key := filepath.Join(t.TempDir(), "key.pem")
	minter, err := authn.NewMinter(key)
	if err != nil {
		t.Fatal(err)
	}
	p.minter = minter
	cfg := authn.Default()
	cfg.Development.KeyFile = config.Path(key)
	verifier, err := authn.New(cfg, authn.Options{Development: true, Annotate: gate.Annotate})
	if err != nil {
		t.Fatal(err)
	}
	p.redis = redistest.NewProcess(t)
	p.client = redistest.Client(t, p.redis.Addr())
	o := revocation.Options{MaxStaleness: time.Minute, Heartbeat: 10 * time.Millisecond, MaxLifetime: verifier.MaxLifetime(), Leeway: verifier.Leeway()}
	replica, err := revocation.NewReplica(p.client, o)
	if err != nil {
		t.Fatal(err)
	}
	p.store, err = revocation.NewStore(p.client, replica, o)
	if err != nil {
		t.Fatal(err)
	}
	if synchronise {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- replica.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			<-done
		})
		polltest.Until(t, "the replica is ready", replica.Ready)
	}
	definitions, err := flag.Parse("flags.yaml", []byte(flags))
	if err != nil {
		t.Fatal(err)
	}
	set, err := flag.Compile(definitions)
	if err != nil {
		t.Fatal(err)
	}
	p.gate = gate.New(gate.Options{
		Verifier: verifier, Denylist: revocation.NewGuard(p.store, replica, false), Flags: fixedFlags{set}, Sessions: p.seen, Suspicions: suspicions,
		Routes: compileRoutes(t, routes), Log: slog.New(slog.NewTextHandler(p.log, nil)),
		Metrics: gate.NewMetrics(p.metrics), Now: time.Now,
	})
	return p
}

func (p *parts) mint(t testing.TB, o authn.MintOptions) string {
	t.Helper()
	if o.User == "" {
		o.User = "ada"
	}
	token, err := p.minter.Mint(o)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func (p *parts) decide(t testing.TB, path, token string) gate.Outcome {
	t.Helper()
	r := gate.Request{
		Request: authn.Request{Host: "api.example.com", Method: "GET", Path: path},
		ID:      "r-1", Address: netip.MustParseAddr("192.0.2.7"),
	}
	if token != "" {
		r.Authorization = "Bearer " + token
	}
	return p.gate.Decide(t.Context(), &r)
}

func TestDecisions(t *testing.T) {
	p := newParts(t, true)
	plain := p.mint(t, authn.MintOptions{Tier: "premium", Session: "s-1"})
	admin := p.mint(t, authn.MintOptions{Roles: []string{"admin"}, Consents: []string{"analytics"}})
	expired := p.mint(t, authn.MintOptions{TTL: -time.Hour})
	forged := plain[:len(plain)-6] + "AAAAAA"
	for name, c := range map[string]struct {
		path, token string
		status      int
		code        string
		tier        string
	}{
		"no token":                    {"/api/x", "", 401, "token_missing", "anonymous"},
		"good token":                  {"/api/x?q=1", plain, 0, "", "premium"},
		"forged token":                {"/api/x", forged, 401, "token_invalid", "anonymous"},
		"expired token":               {"/api/x", expired, 401, "token_expired", "anonymous"},
		"garbage":                     {"/api/x", "garbage", 401, "token_malformed", "anonymous"},
		"100 KiB of token":            {"/api/x", strings.Repeat("a", 100<<10), 401, "token_malformed", "anonymous"},
		"no rule":                     {"/nowhere", plain, 403, "route_denied", "anonymous"},
		"public":                      {"/public", "", 0, "", "anonymous"},
		"public ignores a bad token":  {"/public", forged, 0, "", "anonymous"},
		"public ignores a good one":   {"/public", plain, 0, "", "anonymous"},
		"optional without":            {"/optional", "", 0, "", "anonymous"},
		"optional with":               {"/optional", plain, 0, "", "premium"},
		"optional with a bad one":     {"/optional", expired, 401, "token_expired", "anonymous"},
		"role missing":                {"/admin", plain, 403, "role_required", "premium"},
		"role there":                  {"/admin", admin, 0, "", "free"},
		"consent missing":             {"/consent", plain, 403, "consent_required", "premium"},
		"consent there":               {"/consent", admin, 0, "", "free"},
		"address first, token unseen": {"/inside", forged, 403, "address_denied", "anonymous"},
		"shadow changes nothing":      {"/open", plain, 0, "", "anonymous"},
		"shadow with a bad token":     {"/open", forged, 0, "", "anonymous"},
		"a path that is none":         {"no-slash", plain, 403, "route_denied", "anonymous"},
	} {
		t.Run(name, func(t *testing.T) {
			o := p.decide(t, c.path, c.token)
			if o.Allowed != (c.status == 0) || o.Status != c.status || o.Code != c.code || o.Tier != c.tier {
				t.Errorf("got %v %d %s, tier %s", o.Allowed, o.Status, o.Code, o.Tier)
			}
			if !o.Allowed && o.Detail == "" {
				t.Error("a refusal without a word")
			}
			if o.Route == nil || o.Route.Endpoint == "" {
				t.Error("no endpoint class")
			}
		})
	}
	if !strings.Contains(p.log.String(), "rule=shadowed") {
		t.Errorf("the shadow rule is silent: %s", p.log)
	}
	if n := testutil.CollectAndCount(p.metrics, "tollgate_authz_decisions_total"); n < 8 {
		t.Errorf("%d counters", n)
	}
	if strings.Contains(p.log.String(), plain) {
		t.Error("a token is logged")
	}
}

// What shadow rules would refuse is counted each time, and logged within bounds.
func TestShadowsAreLoggedWithinBounds(t *testing.T) {
	p := newParts(t, true)
	const requests = 200
	for range requests {
		p.decide(t, "/open", "")
	}
	// The requests take less than a few seconds, each of which has its lines.
	if n := strings.Count(p.log.String(), "shadow rule would have refused"); n < 1 || n > requests/2 {
		t.Errorf("%d lines about %d requests", n, requests)
	}
	counted := `# HELP tollgate_authz_shadow_refusals_total Requests that a rule marked as shadow would have refused.
# TYPE tollgate_authz_shadow_refusals_total counter
tollgate_authz_shadow_refusals_total{code="token_missing",rule="shadowed"} 200
`
	if err := testutil.GatherAndCompare(p.metrics, strings.NewReader(counted), "tollgate_authz_shadow_refusals_total"); err != nil {
		t.Error(err)
	}
}

func TestMalformed(t *testing.T) {
	p := newParts(t, true)
	for _, r := range []gate.Request{{}, {Request: authn.Request{Method: "GET"}}, {Request: authn.Request{Path: "/api"}}} {
		if o := p.gate.Decide(t.Context(), &r); o.Allowed || o.Status != 400 || o.Code != gate.CodeMalformed || o.Route != nil {
			t.Errorf("%+v: %+v", r, o)
		}
	}
}

func TestPrincipalAndFlags(t *testing.T) {
	p := newParts(t, true)
	o := p.decide(t, "/api/x", p.mint(t, authn.MintOptions{User: "ada", Tier: "premium", Session: "s-1"}))
	if !o.Allowed || o.Principal.Subject != "ada" || o.Principal.Session != "s-1" || o.Subject.Key != "ada" || o.Subject.Anonymous {
		t.Errorf("got %+v", o)
	}
	if got := string(o.FlagSet.AppendHeader(nil, &o.Subject, o.Route.Flags, o.Now)); got != "beta=on" {
		t.Errorf("flags %q", got)
	}
	o = p.decide(t, "/public", "")
	if !o.Subject.Anonymous || o.Subject.Key != "192.0.2.7" {
		t.Errorf("an anonymous subject is %+v", o.Subject)
	}
}

func TestTheVeryNextRequestAfterARevocation(t *testing.T) {
	p := newParts(t, true)
	token := p.mint(t, authn.MintOptions{User: "ada", Session: "s-1"})
	same := p.mint(t, authn.MintOptions{User: "ada", Session: "s-1"})
	other := p.mint(t, authn.MintOptions{User: "bob", Session: "s-2"})
	o := p.decide(t, "/api", token)
	if !o.Allowed {
		t.Fatalf("refused before: %+v", o)
	}
	revoke := func(r revocation.Revocation) {
		t.Helper()
		if _, err := p.store.Revoke(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	revoke(revocation.Revocation{Kind: revocation.KindToken, Digest: o.Principal.SigningInput, ExpiresAt: o.Principal.ExpiresAt})
	if o := p.decide(t, "/api", token); o.Code != "token_revoked" || o.Status != 401 {
		t.Errorf("after the revocation: %+v", o)
	}
	if o := p.decide(t, "/optional", token); o.Code != "token_revoked" {
		t.Errorf("an optional route takes a revoked token: %+v", o)
	}
	if o := p.decide(t, "/public", token); !o.Allowed || o.Principal != nil {
		t.Errorf("a public route: %+v", o)
	}
	if o := p.decide(t, "/api", same); !o.Allowed {
		t.Errorf("another token of the session: %+v", o)
	}
	revoke(revocation.Revocation{Kind: revocation.KindSession, ID: "s-1"})
	if o := p.decide(t, "/api", same); o.Code != "session_ended" || o.Status != 401 {
		t.Errorf("after the session's end: %+v", o)
	}
	if o := p.decide(t, "/api", other); !o.Allowed {
		t.Errorf("somebody else: %+v", o)
	}
}

// Before the first synchronisation nothing is known about revocations: identity
// fails closed, and a route that asks Redis asks it.
func TestUnknownRevocationsFailClosed(t *testing.T) {
	p := newParts(t, false)
	token := p.mint(t, authn.MintOptions{})
	for _, path := range []string{"/api", "/stale"} {
		if o := p.decide(t, path, token); o.Status != 503 || o.Code != "dependency_unavailable" {
			t.Errorf("%s: %+v", path, o)
		}
	}
	if o := p.decide(t, "/public", token); !o.Allowed {
		t.Errorf("a public route needs no revocations: %+v", o)
	}
	if o := p.decide(t, "/ask", token); !o.Allowed {
		t.Errorf("Redis could have been asked: %+v", o)
	}
	p.redis.Kill()
	if o := p.decide(t, "/ask", token); o.Status != 503 {
		t.Errorf("without Redis: %+v", o)
	}
}

// seen is a Sessions that remembers.
type seen struct{ sightings []session.Sighting }

func (s *seen) Observe(o *session.Sighting) { s.sightings = append(s.sightings, *o) }

func TestSessionsAreNoted(t *testing.T) {
	p := newParts(t, true)
	r := func(path, token string) *gate.Request {
		return &gate.Request{
			Request: authn.Request{Host: "h", Method: "GET", Path: path, Authorization: "Bearer " + token},
			Address: netip.MustParseAddr("192.0.2.7"), UserAgent: "ua", DeviceID: "d-1", Place: anomaly.PlaceText{Country: "DE"},
		}
	}
	for _, request := range []*gate.Request{
		r("/api", p.mint(t, authn.MintOptions{User: "ada", Session: "s-1", Tier: "premium"})),
		r("/api", p.mint(t, authn.MintOptions{User: "ada", Session: "s-2", Device: "claimed"})),
		r("/api", p.mint(t, authn.MintOptions{User: "ada"})),                    // no session of its own
		r("/admin", p.mint(t, authn.MintOptions{User: "ada", Session: "s-3"})),  // refused
		r("/public", p.mint(t, authn.MintOptions{User: "ada", Session: "s-4"})), // nobody looks
	} {
		p.gate.Decide(t.Context(), request)
	}
	want := []session.Sighting{
		{User: "ada", Session: "s-1", Tier: "premium", DeviceID: "d-1"},
		{User: "ada", Session: "s-2", Tier: "free", DeviceID: "claimed"},
	}
	for i := range want {
		want[i].Issuer, want[i].UserAgent, want[i].Address, want[i].Country = authn.DevelopmentIssuerURL, "ua", "192.0.2.7", "DE"
	}
	if diff := cmp.Diff(want, p.seen.sightings, cmpopts.IgnoreFields(session.Sighting{}, "At")); diff != "" {
		t.Error(diff)
	}
}

func TestRoutesAreSwapped(t *testing.T) {
	p := newParts(t, true)
	if o := p.decide(t, "/api", ""); o.Allowed {
		t.Fatal("open before")
	}
	p.gate.SetRoutes(compileRoutes(t, "policy: {routes: [{name: all, access: public}]}"))
	if o := p.decide(t, "/api", ""); !o.Allowed {
		t.Errorf("after the swap: %+v", o)
	}
}

func TestDPoPIsNotTakenForBearer(t *testing.T) {
	p := newParts(t, true)
	r := gate.Request{Request: authn.Request{Host: "h", Method: "GET", Path: "/api", Authorization: "DPoP " + p.mint(t, authn.MintOptions{})}}
	if o := p.gate.Decide(t.Context(), &r); o.Status != 401 || o.Code != "token_invalid" {
		t.Errorf("got %+v", o)
	}
}

// An explanation comes to the same decision as a Check, step by step.
func TestExplain(t *testing.T) {
	p := newParts(t, true)
	plain := p.mint(t, authn.MintOptions{Tier: "premium", Session: "s-1"})
	ended := p.mint(t, authn.MintOptions{Session: "s-2"})
	if _, err := p.store.Revoke(t.Context(), revocation.Revocation{Kind: revocation.KindSession, ID: "s-2"}); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		path, token string
		steps       string
	}{
		"allowed":      {"/api/x", plain, "route+ token+ revocation+"},
		"no token":     {"/api/x", "", "route+ token-"},
		"bad token":    {"/api/x", "x", "route+ token-"},
		"ended":        {"/api/x", ended, "route+ token+ revocation-"},
		"role":         {"/admin", plain, "route+ token+ revocation+"},
		"address":      {"/inside", plain, "route+ address-"},
		"unmatched":    {"/nowhere", plain, "route-"},
		"shadow":       {"/open", plain, "route+ token+ revocation+"},
		"two readings": {"/public/%252e%252e/admin", plain, "route"},
	} {
		t.Run(name, func(t *testing.T) {
			r := gate.Request{Request: authn.Request{Host: "h", Method: "GET", Path: c.path}, Address: netip.MustParseAddr("192.0.2.7")}
			if c.token != "" {
				r.Authorization = "Bearer " + c.token
			}
			e := p.gate.Explain(t.Context(), &r)
			var steps []string
			for _, s := range e.Steps {
				mark := "-"
				if s.Passed {
					mark = "+"
				}
				steps = append(steps, s.Name+mark)
				if c.token != "" && strings.Contains(s.Detail+s.Wanted+s.Got, c.token) && len(c.token) > 3 {
					t.Errorf("a step repeats the token: %+v", s)
				}
			}
			if got := strings.Join(steps, " "); !strings.HasPrefix(got, c.steps) {
				t.Errorf("steps %s, want %s…", got, c.steps)
			}
			o := p.gate.Decide(t.Context(), &r)
			if o.Allowed != e.Outcome.Allowed || o.Code != e.Outcome.Code || o.Status != e.Outcome.Status || o.Route != e.Outcome.Route {
				t.Errorf("explained %+v, decided %+v", e.Outcome, o)
			}
		})
	}
	r := gate.Request{Request: authn.Request{Host: "h", Method: "GET", Path: "/open"}}
	logged := p.log.Len()
	if e := p.gate.Explain(t.Context(), &r); e.Steps[len(e.Steps)-1].Name != "shadow" || p.log.Len() != logged {
		t.Errorf("an explanation of a shadow rule: %+v", e.Steps)
	}
	if e := p.gate.Explain(t.Context(), &gate.Request{}); e.Outcome.Code != gate.CodeMalformed {
		t.Errorf("got %+v", e)
	}
}

func BenchmarkDecide(b *testing.B) {
	p := newParts(b, true)
	r := gate.Request{
		Request: authn.Request{
			Host: "api.example.com", Method: "GET", Path: "/api/items/1",
			Authorization: "Bearer " + p.mint(b, authn.MintOptions{Tier: "premium", Session: "s-1", Roles: []string{"a", "b"}}),
		},
		Address: netip.MustParseAddr("192.0.2.7"),
	}
	b.ReportAllocs()
	for b.Loop() {
		if o := p.gate.Decide(context.Background(), &r); !o.Allowed {
			b.Fatalf("%+v", o)
		}
	}
}
