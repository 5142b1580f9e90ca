package e2e

import (
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/envoyconf"
	"github.com/tollgate-proxy/tollgate/internal/experiment"
)

const (
	// canaryRoute sends users whose flag says so to another backend. Envoy chooses
	// the route again once authz has set the header (clear_route_cache).
	canaryRoute = `              - name: canary
                match: {prefix: /, headers: [{name: x-feature-flags, string_match: {safe_regex: {regex: '(.*,)?checkout=canary(,.*)?'}}}]}
                route: {cluster: canary}
`
	canaryCluster = `  - name: canary
    type: STATIC
    connect_timeout: 1s
    load_assignment:
      cluster_name: canary
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: %s, port_value: %s}}}}]}]

`
)

// canaryEnvoy starts the shipped Envoy with the canary's route and backend.
func (e *edge) canaryEnvoy(t *testing.T, canary string, clusters map[string][]envoyconf.Endpoint) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "envoy", "envoy.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	const before, clustersBegin = "              - {name: backend, match: {prefix: /}", "  clusters:\n"
	edited := string(text)
	if strings.Count(edited, before) != 1 || strings.Count(edited, clustersBegin) != 1 {
		t.Fatal("the shipped configuration has no place for a canary")
	}
	host, port, _ := strings.Cut(canary, ":")
	edited = strings.Replace(edited, before, canaryRoute+before, 1)
	edited = strings.Replace(edited, clustersBegin, clustersBegin+fmt.Sprintf(canaryCluster, host, port), 1)
	source := filepath.Join(e.work, "canary-source.yaml")
	if err := os.WriteFile(source, []byte(edited), 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := envoyconf.Load(source)
	if err != nil {
		t.Fatal(err)
	}
	_, base := e.envoyOf(t, "envoy-canary", b, envoyconf.Options{Clusters: clusters})
	return base
}

// TestCanary: an experiment sends its users to another version by the header that
// the gateway sets, nobody gets there by forging it, and the gateway's own access
// log measures who went where.
func TestCanary(t *testing.T) {
	e := newEdge(t)
	canary := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "canary "+r.Header.Get("X-Feature-Flags")+" "+strings.Join(r.Header["Baggage"], " ++ "))
	}))
	t.Cleanup(canary.Close)
	client := e.redis.client()
	t.Cleanup(func() { _ = client.Close() })
	catalog := experiment.NewCatalog(client, time.Now)
	definition := experiment.Definition{
		Key: "checkout-canary", Flag: "checkout", Traffic: 1, MinimumUsers: 2, Tiers: []string{"premium"},
		Variants: []experiment.Variant{{Name: "stable", Weight: 1}, {Name: "canary", Weight: 1}},
		Primary:  experiment.Metric{Name: "latency", Kind: experiment.Mean, Source: experiment.Latency, LowerIsBetter: true},
		Guardrails: []experiment.Metric{
			{Name: "errors", Kind: experiment.Rate, Source: experiment.Failures, LowerIsBetter: true},
			{Name: "requests", Kind: experiment.Sum, Source: experiment.Requests},
		},
	}
	by := experiment.Change{Actor: "e2e", Reason: "canary", Expect: experiment.AnyRevision}
	if _, err := catalog.Put(t.Context(), definition, by); err != nil {
		t.Fatal(err)
	}
	_, ratelimit := e.spawn(t, "ratelimit", "ratelimit")
	_, authz := e.spawn(t, "authz", "authz", "TOLLGATE_HEADERS_BAGGAGE_FLAGS=feature-flags", "TOLLGATE_HEADERS_BAGGAGE_EXPERIMENTS=experiments", "TOLLGATE_HEADERS_VISITOR_HEADER=x-device-id")
	base := e.canaryEnvoy(t, canary.Listener.Addr().String(), map[string][]envoyconf.Endpoint{
		envoyconf.ClusterAuthz: {{Address: authz}}, envoyconf.ClusterRateLimit: {{Address: ratelimit}},
	})
	s := &system{minter: e.minter}
	visit := func(user, tier string, header http.Header) answer {
		return s.want(t, http.StatusOK, ask{base: base, path: "/orders", token: s.mint(t, authn.MintOptions{User: user, Tier: tier}), header: header})
	}
	await(t, "the gateway", func() error {
		a, err := s.try(ask{base: base, path: "/orders", token: s.mint(t, authn.MintOptions{User: "first", Tier: "admin"})})
		if err == nil && a.status != http.StatusOK {
			err = fmt.Errorf("%d %s", a.status, a.body)
		}
		return err
	})
	if a := visit("early", "premium", nil); strings.HasPrefix(string(a.body), "canary") {
		t.Error("the canary serves before the experiment has started")
	}

	record, err := catalog.Start(t.Context(), definition.Key, by)
	if err != nil {
		t.Fatal(err)
	}
	d := &record.Definition
	probe := 0
	await(t, "the experiment to reach the gateway", func() error {
		for probe++; !isCanary(d, fmt.Sprint("probe-", probe)); probe++ { // somebody else each time, who is not over a limit
		}
		if a := visit(fmt.Sprint("probe-", probe), "premium", nil); !strings.HasPrefix(string(a.body), "canary ") || !strings.Contains(string(a.body), "checkout=canary") {
			return fmt.Errorf("answer %q", excerpt(a.body))
		}
		return nil
	})

	const users = 24
	want := [2]int64{}
	want[1]++ // the probe that found it; those before it took no part
	for i := range users {
		user := fmt.Sprintf("e2e-canary-%d", i)
		arm, ok := d.Assign(user)
		if !ok {
			t.Fatal(user, "does not take part")
		}
		want[arm]++
		forged := http.Header{
			"X-Feature-Flags": {"checkout=canary"}, "X-Feature-Checkout": {"canary"},
			"Baggage": {"tenant=7,feature-flags=checkout%3Dforged", "experiments=forged,feature%2Dflags=forged"},
		}
		for range 2 { // the same every time, whatever the client says
			if a := visit(user, "premium", forged); strings.HasPrefix(string(a.body), "canary ") != isCanary(d, user) {
				t.Errorf("%s is in variant %d and got %q", user, arm, excerpt(a.body))
			} else if _, baggage, _ := strings.Cut(string(a.body), " feature-flags="); isCanary(d, user) &&
				(!strings.Contains(baggage, "checkout%3Dcanary") || !strings.HasSuffix(baggage, ",experiments=checkout-canary:"+strconv.Itoa(d.Version)+"%3Dcanary,tenant=7")) {
				t.Errorf("%s: the canary was handed %q", user, a.body)
			}
		}
		if i < 3 {
			if a := visit(user+"-free", "free", forged); strings.HasPrefix(string(a.body), "canary ") {
				t.Errorf("%s does not take part and got to the canary", user)
			}
		}
	}

	store := experiment.NewStore(client)
	await(t, "the access log to measure everybody", func() error {
		data, err := store.Read(t.Context(), d)
		if err != nil {
			return err
		}
		if data[0].Users != want[0] || data[1].Users != want[1] {
			return fmt.Errorf("%d and %d users instead of %v", data[0].Users, data[1].Users, want)
		}
		// Nothing twice, and nothing lost: the probe asked once, everybody else twice.
		if mean := data[0].Metrics["requests"].Users.Mean; math.Abs(mean-2) > 1e-9 { // added up in whatever parts it came in
			return fmt.Errorf("%v requests per user of the stable version", mean)
		}
		if mean, want := data[1].Metrics["requests"].Users.Mean, 2-1/float64(want[1]); math.Abs(mean-want) > 1e-9 {
			return fmt.Errorf("%v requests per user of the canary, not %v", mean, want)
		}
		for i, v := range data {
			if v.Dealt != v.Seen || v.Seen == 0 {
				return fmt.Errorf("variant %d: %d requests were dealt, %d seen", i, v.Dealt, v.Seen)
			}
		}
		report, err := experiment.Analyse(d, data)
		if err == nil && (report.Variants[1].Metrics[0].Median <= 0 || report.Variants[1].Metrics[1].Mean != 0) {
			err = fmt.Errorf("latency and errors of the canary: %+v", report.Variants[1].Metrics)
		}
		return err
	})
	asked := 0
	testVisitors(t, s, base, catalog, store, func() string { // somebody else each time, who is not over a limit
		for asked++; !isCanary(d, fmt.Sprint("front-", asked)); asked++ {
		}
		return string(visit(fmt.Sprint("front-", asked), "premium", nil).body)
	})
}

// testVisitors: anonymous visitors with a key of their own take part where the
// experiment lets them, by that key; those without one do not.
func testVisitors(t *testing.T, s *system, base string, catalog *experiment.Catalog, store *experiment.Store, canary func() string) {
	by := experiment.Change{Actor: "e2e", Reason: "visitors", Expect: experiment.AnyRevision}
	_, err := catalog.Put(t.Context(), experiment.Definition{
		Key: "front", Traffic: 1, MinimumUsers: 2, Anonymous: true,
		Variants: []experiment.Variant{{Name: "old", Weight: 1}, {Name: "new", Weight: 1}},
		Primary:  experiment.Metric{Name: "requests", Kind: experiment.Sum, Source: experiment.Requests},
	}, by)
	if err != nil {
		t.Fatal(err)
	}
	record, err := catalog.Start(t.Context(), "front", by)
	if err != nil {
		t.Fatal(err)
	}
	await(t, "the experiment to reach the gateway", func() error {
		if body := canary(); !strings.Contains(body, "front=") {
			return fmt.Errorf("answer %q", body)
		}
		return nil
	})
	for _, device := range []string{"laptop-1", "", "phone-2", "laptop-1"} {
		s.want(t, http.StatusOK, ask{base: base, path: "/public/x", header: http.Header{"X-Device-Id": {device}}})
	}
	await(t, "two visitors and one user to be measured", func() error {
		data, err := store.Read(t.Context(), &record.Definition)
		if err == nil && data[0].Users+data[1].Users != 3 {
			err = fmt.Errorf("%d and %d users", data[0].Users, data[1].Users)
		}
		return err
	})
}

func isCanary(d *experiment.Definition, user string) bool {
	arm, ok := d.Assign(user)
	return ok && d.Variants[arm].Name == "canary"
}
