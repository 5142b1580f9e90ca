package extauthz

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"google.golang.org/protobuf/proto"

	"github.com/tollgate-proxy/tollgate/internal/anomaly"
	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/flag"
	"github.com/tollgate-proxy/tollgate/internal/gate"
	"github.com/tollgate-proxy/tollgate/internal/policy"
	"github.com/tollgate-proxy/tollgate/internal/polltest"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
	"github.com/tollgate-proxy/tollgate/internal/revocation"
	"github.com/tollgate-proxy/tollgate/internal/session"
	"github.com/tollgate-proxy/tollgate/internal/tokentest"
)

// whole is a Check from the bytes of the request to the bytes of the answer,
// over the parts that authz is made of and a real Redis behind them.
type whole struct {
	server   *Server
	request  []byte
	redis    string // the address
	replica  *revocation.Replica
	ask      func(*checkRequest) (any, error)
	commands atomic.Int64 // sent to Redis by checks, and not behind them
	flags    *flag.Watcher
}

// checking marks the context of a check.
type checking struct{}

// The methods below count commands: whole is a redis.Hook.

func (w *whole) DialHook(next redis.DialHook) redis.DialHook { return next }

func (w *whole) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		w.count(ctx, 1)
		return next(ctx, cmd)
	}
}

func (w *whole) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		w.count(ctx, len(cmds))
		return next(ctx, cmds)
	}
}

func (w *whole) count(ctx context.Context, commands int) {
	if ctx.Value(checking{}) != nil {
		w.commands.Add(int64(commands))
	}
}

const (
	wholeIssuer = "https://issuer.test"
	wholeUser   = "6f1c2e9a-5717-4562-b3fc-2c963f66afa6"
)

// newWhole makes the steady state: a session that is known, an RS256 token seen
// before, 1,000 route rules, 8 flags, 10,000 revocations of others, and a watch
// for suspicious activity that has nothing to say.
func newWhole(t testing.TB) *whole {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	w := &whole{redis: redistest.NewProcess(t).Addr()}
	client := redistest.Client(t, w.redis)
	client.AddHook(w)
	metrics := prometheus.NewRegistry()

	verifier := wholeVerifier(t, key, metrics)
	o := revocation.Options{
		MaxStaleness: time.Minute, Heartbeat: time.Second, MaxLifetime: verifier.MaxLifetime(), Leeway: verifier.Leeway(), Metrics: metrics,
	}
	replica, err := revocation.NewReplica(client, o)
	if err != nil {
		t.Fatal(err)
	}
	w.replica = replica
	store, err := revocation.NewStore(client, replica, o)
	if err != nil {
		t.Fatal(err)
	}
	manager, err := session.NewManager(session.NewRedis(client), session.DefaultConfig(), session.Options{
		Metrics: metrics, Killer: session.KillerFunc(func(context.Context, []session.Ref) error { return nil }),
	})
	if err != nil {
		t.Fatal(err)
	}
	tracker, err := session.NewTracker(manager)
	if err != nil {
		t.Fatal(err)
	}
	watch, err := anomaly.NewWatch(anomaly.DefaultConfig(), anomaly.Options{Store: anomaly.NewRedis(client), Metrics: metrics})
	if err != nil {
		t.Fatal(err)
	}
	definitions, err := flag.Parse("flags.yaml", []byte(wholeFlags))
	if err != nil {
		t.Fatal(err)
	}
	flags, err := flag.NewWatcher(flag.WatcherOptions{Store: flag.NewStore(client, time.Now), Bootstrap: definitions, Log: slog.New(slog.DiscardHandler), Metrics: metrics, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	w.flags = flags
	background(t, replica.Run, tracker.Run, watch.Run, flags.Run)
	polltest.Until(t, "the revocations are known", replica.Ready)
	others := make([]revocation.Revocation, 10_000)
	for i := range others {
		others[i] = revocation.Revocation{Kind: revocation.KindSession, ID: fmt.Sprint("other-", i)}
	}
	if _, err := store.Revoke(t.Context(), others...); err != nil {
		t.Fatal(err)
	}

	w.server = New(Options{Headers: DefaultHeaders(), Decider: gate.New(gate.Options{
		Verifier: verifier, Denylist: revocation.NewGuard(store, replica, false), Flags: flags, Sessions: tracker, Suspicions: watch,
		Routes: wholeRoutes(t), Metrics: gate.NewMetrics(metrics), Now: time.Now,
	})})
	ctx := context.WithValue(context.Background(), checking{}, true)
	w.ask = func(r *checkRequest) (any, error) { return w.server.check(ctx, r) }
	w.request = wholeRequest(t, wholeToken(t, key))
	polltest.Until(t, "the session is registered", func() bool {
		w.check(t)
		sessions, err := manager.List(t.Context(), wholeUser)
		return err == nil && len(sessions) == 1
	})
	polltest.Until(t, "the circumstances were judged", func() bool {
		events, err := client.Exists(t.Context(), "tollgate:anomaly:{"+wholeUser+"}:facts").Result()
		return err == nil && events == 1
	})
	return w
}

func background(t testing.TB, runs ...func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	for _, run := range runs {
		all.Go(func() {
			if err := run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		all.Wait()
	})
}

func wholeVerifier(t testing.TB, key *rsa.PrivateKey, metrics prometheus.Registerer) *authn.Verifier {
	t.Helper()
	c := authn.Default()
	c.Issuers = []authn.IssuerConfig{{
		Name: "main", Issuer: wholeIssuer, Algorithms: []string{"RS256"}, Audiences: []string{"api"},
		Keys: authn.KeysConfig{PEMFile: tokentest.PublicKeyFile(t, key)},
	}}
	v, err := authn.New(c, authn.Options{Annotate: gate.Annotate, Metrics: metrics, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// wholeToken can be revoked in every way: it names a session, itself, its user,
// its client and its issuer.
func wholeToken(t testing.TB, key *rsa.PrivateKey) string {
	t.Helper()
	now := time.Now()
	return tokentest.Sign(t, key, "", map[string]any{
		"iss": wholeIssuer, "aud": "api", "sub": wholeUser, "sid": "0b1f6f0e-1e9e-4a5c-9d0c-1f3a5b7c9d0e",
		"jti": "f81d4fae-7dec-11d0-a765-00a0c91e6bf6", "client_id": "web", "ver": 7, "tier": "premium",
		"roles": []string{"reader", "writer"}, "scope": "orders.read orders.write", "consents": []string{"analytics"},
		"iat": now.Unix(), "exp": now.Add(time.Hour).Unix(), "email": "ada@example.com",
	})
}

// wholeRoutes has 1,000 rules, of which the one before the last decides.
func wholeRoutes(t testing.TB) *policy.Set {
	t.Helper()
	c := policy.Default()
	c.Endpoints = append(c.Endpoints, policy.EndpointConfig{Name: "ml", Cost: 5})
	for i := range 998 {
		r := policy.RouteConfig{Name: fmt.Sprint("r", i), Require: policy.RequireConfig{RolesAny: []string{"nobody"}}}
		switch i % 3 {
		case 0:
			r.Match.Path = fmt.Sprintf("/api/v1/thing%d", i)
		case 1:
			r.Match.Template = fmt.Sprintf("/api/v1/group%d/{id}", i)
		default:
			r.Match.Prefix = fmt.Sprintf("/service%d", i)
		}
		c.Routes = append(c.Routes, r)
	}
	c.Routes = append(c.Routes,
		policy.RouteConfig{
			Name: "orders", Match: policy.MatchConfig{Template: "/users/{id}/orders", Methods: []string{"GET"}}, Endpoint: "ml",
			Require: policy.RequireConfig{RolesAny: []string{"reader"}, ScopesAll: []string{"orders.read"}, Tiers: []string{"premium", "enterprise"}, Consents: []string{"analytics"}},
		},
		policy.RouteConfig{Name: "rest"})
	s, err := policy.Compile(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

const wholeFlags = `
flags:
  a-rollout: {state: ENABLED, variants: {"on": true, "off": false}, defaultVariant: "off", tollgate: {rollout: {percentage: 50}}}
  audience: {state: ENABLED, variants: {"on": true, "off": false}, defaultVariant: "off", tollgate: {audience: {tiers: [premium, enterprise]}, rollout: {percentage: 75}}}
  fractional: {state: ENABLED, variants: {a: x, b: y}, defaultVariant: a, targeting: {fractional: [[a, 50], [b, 50]]}}
  on-for-all: {state: ENABLED, variants: {"on": true, "off": false}, defaultVariant: "on"}
  roles: {state: ENABLED, variants: {a: x, b: y}, defaultVariant: b, targeting: {if: [{in: [reader, {var: roles}]}, a, b]}}
  rule: {state: ENABLED, variants: {a: x, b: y}, defaultVariant: b, targeting: {if: [{and: [{in: [{var: tier}, [premium, enterprise]]}, {ends_with: [{var: email}, "@example.com"]}]}, a, null]}}
  split: {state: ENABLED, variants: {a: x, b: y, c: z}, defaultVariant: c, tollgate: {rollout: {percentage: 80, variants: [{variant: a, weight: 1}, {variant: b, weight: 1}]}}}
  users: {state: ENABLED, variants: {"on": true, "off": false}, defaultVariant: "off", tollgate: {users: [{variant: "on", keys: [ann, bob]}], rollout: {percentage: 1}}}
`

// wholeRequest has what the shipped Envoy configuration lets through.
func wholeRequest(t testing.TB, token string) []byte {
	t.Helper()
	r := envoyRequest(map[string]string{
		"authorization": "Bearer " + token, ExternalAddressHeader: "192.0.2.7", "x-request-id": "3f0c1f0e-6c2e-4c1d-8d57-0b7a3c1d2e4f",
		"user-agent":      "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/138.0.0.0 Safari/537.36",
		"accept-language": "en-GB,en;q=0.9", "cookie": "theme=dark; consent=1", "x-device-id": "laptop",
		":method": "GET", ":path": "/users/42/orders?page=2", ":authority": "api.example.com", ":scheme": "https",
	}, "198.51.100.1")
	r.Attributes.Request.Http.Path = "/users/42/orders?page=2"
	data, err := proto.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// check asks once, and returns the answer as it goes to Envoy.
func (w *whole) check(t testing.TB) encoded {
	var r checkRequest
	if err := r.UnmarshalWire(w.request); err != nil {
		t.Fatal(err)
	}
	a, err := w.ask(&r)
	if err != nil {
		t.Fatal(err)
	}
	answer, ok := a.(encoded)
	if !ok {
		t.Fatalf("refused: %v", a)
	}
	return answer
}

// allocations is what a check allocates. What runs behind the checks, by the
// clock, is counted too: the least of several counts has least of that.
func (w *whole) allocations(t testing.TB) float64 {
	least := math.Inf(1)
	for range 5 {
		least = min(least, testing.AllocsPerRun(1000, func() { w.check(t) }))
	}
	return least
}

// The whole Check in the steady state, outside gRPC: what it says, what it
// allocates, and that it asks Redis nothing.
func TestWholeCheck(t *testing.T) {
	w := newWhole(t)
	a := decoded(t, w.check(t))
	got := headersOf(a)
	for name, want := range map[string]string{
		"x-user-id": wholeUser, "x-user-tier": "premium", "x-user-roles": "reader,writer", "x-consent": "analytics",
		"x-session-id": "0b1f6f0e-1e9e-4a5c-9d0c-1f3a5b7c9d0e",
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
	if n := strings.Count(got["x-feature-flags"], "="); n != 8 {
		t.Errorf("%d flags in %q, want 8", n, got["x-feature-flags"])
	}
	if m := a.GetDynamicMetadata().AsMap(); m["endpoint"] != "ml" || m["cost"] != 5.0 || m["user"] != wholeUser {
		t.Errorf("metadata %v", m)
	}
	// The target is 30; what it takes is half of that, and creeps up unnoticed otherwise.
	const most = 18
	if n := w.allocations(t); n > most {
		t.Errorf("%v allocations, want at most %d", n, most)
	}
	if n := w.commands.Load(); n != 0 {
		t.Errorf("checks sent %d Redis commands", n)
	}
}

// BenchmarkWholeCheck measures the same; at most 6 µs is the target.
func BenchmarkWholeCheck(b *testing.B) {
	w := newWhole(b)
	b.ReportAllocs()
	for b.Loop() {
		w.check(b)
	}
}
