package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tollgate-proxy/tollgate/internal/config"
	"github.com/tollgate-proxy/tollgate/internal/configtest"
)

func TestConfiguration(t *testing.T) { configtest.Process(t, process()) }

const shipped = "../../config/pyproxy.yaml"

// The file shows every default where it stands; what it shows must be true.
func TestTheShippedFileShowsTheDefaults(t *testing.T) {
	got, err := config.Load(shipped, nil, defaults())
	if err != nil {
		t.Fatal(err)
	}
	want := defaults()
	want.Upstreams, want.Routes = got.Upstreams, got.Routes
	if d := cmp.Diff(want.Config, got.Config, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
		t.Fatal(d)
	}
}

func TestTheRoutesOfTheFiveServices(t *testing.T) {
	c, err := config.Load(shipped, nil, defaults())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range c.Routes {
		got = append(got, r.Method+" "+r.Path)
		if service := strings.Split(r.Path, "/")[3]; service != r.Upstream {
			t.Errorf("%s goes to %s", r.Path, r.Upstream)
		}
	}
	want := []string{
		"POST /api/v1/ml/predict", "POST /api/v1/ml/train",
		"POST /api/v1/nlp/translate", "POST /api/v1/nlp/translate/batch", "POST /api/v1/nlp/detect", "GET /api/v1/nlp/languages",
		"POST /api/v1/fraud/assess",
		"POST /api/v1/data/validate/blockchain-event", "POST /api/v1/data/validate/market-data", "POST /api/v1/data/process", "POST /api/v1/data/aggregate",
		"POST /api/v1/blockchain/contracts/analyze", "POST /api/v1/blockchain/mev/detect", "POST /api/v1/blockchain/wallets/cluster", "POST /api/v1/blockchain/transactions/graph",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Fatal(d)
	}
}

func TestFaults(t *testing.T) {
	const upstream = "upstreams: [{name: a, addresses: ['h:1']}]\n"
	const route = "routes: [{name: r, upstream: a, method: GET, path: /x}]\n"
	for name, c := range map[string]struct {
		yaml string
		env  []string
		want string
	}{
		"nothing":                              {"", nil, "upstreams: at least one"},
		"an unknown upstream":                  {upstream + "routes: [{name: r, upstream: b, method: GET, path: /x}]", nil, "routes[0].upstream"},
		"twin upstreams":                       {"upstreams: [{name: a, addresses: ['h:1']}, {name: a, addresses: ['h:1']}]\n" + route, nil, "upstreams[1].name"},
		"twin routes":                          {upstream + "routes: [{name: r, upstream: a, method: GET, path: /x}, {name: r, upstream: a, method: GET, path: /y}]", nil, "routes[1].name"},
		"routes that overlap":                  {upstream + "routes: [{name: r, upstream: a, method: GET, path: '/x/{id}'}, {name: s, upstream: a, method: GET, path: /x/y}]", nil, "routes[1].path"},
		"a path without a slash":               {upstream + "routes: [{name: r, upstream: a, method: GET, path: x}]", nil, "routes[0].path"},
		"a path with dots":                     {upstream + "routes: [{name: r, upstream: a, method: GET, path: /x/../y}]", nil, "routes[0].path"},
		"an unknown parameter":                 {upstream + "routes: [{name: r, upstream: a, method: GET, path: '/{a}', upstream_path: '/{b}'}]", nil, "routes[0].upstream_path"},
		"an unknown method":                    {upstream + "routes: [{name: r, upstream: a, method: get, path: /x}]", nil, "routes[0].method"},
		"an address without a port":            {"upstreams: [{name: a, addresses: [h]}]\n" + route, nil, "upstreams[0].addresses[0]"},
		"an address twice":                     {"upstreams: [{name: a, addresses: ['h:1', 'h:2', 'h:1']}]\n" + route, nil, "upstreams[0].addresses[2]"},
		"a cached POST that is not idempotent": {upstream + "routes: [{name: r, upstream: a, method: POST, path: /x, cache: {ttl: 1s}}]", nil, "routes[0].cache"},
		"a cached POST without a ttl":          {upstream + "routes: [{name: r, upstream: a, method: POST, path: /x, idempotent: true, cache: {}}]", nil, "routes[0].cache"},
		"a purge of nothing":                   {upstream + "routes: [{name: r, upstream: a, method: POST, path: /x, purges: [t]}]", nil, "routes[0].purges[0]"},
		"a fallback without a status":          {upstream + "routes: [{name: r, upstream: a, method: POST, path: /x, fallback: {body: x}}]", nil, "routes[0].fallback.status"},
		"streams that may not last":            {upstream + route + "streams: {idle_timeout: 0s}", nil, "streams.idle_timeout"},
		"no streams":                           {upstream + route + "streams: {max: 0}", nil, "streams.max"},
		"a header that is none":                {upstream + "routes: [{name: r, upstream: a, method: GET, path: /x, cache: {vary: [x_user_id]}}]", nil, "routes[0].cache.vary[0]"},
		"a route in the way of the API":        {upstream + "routes: [{name: r, upstream: a, method: GET, path: /v1/upstreams}]", nil, "routes[0].path"},
		"a cache too small":                    {upstream + route + "cache: {memory: 64KiB}", nil, "cache.memory"},
		"a bare number":                        {upstream + route + "breaker: {reset: 5}", nil, "breaker.reset"},
		"a rate above one":                     {upstream + route + "breaker: {failure_rate: 1.5}", nil, "breaker.failure_rate"},
		"total below attempt":                  {upstream + route + "timeouts: {total: 1s}", nil, "timeouts.total"},
		"a network that is none":               {upstream + route + "trusted_peers: [everyone]", nil, "trusted_peers[0]"},
		"a limit below its minimum":            {upstream + route + "concurrency: {initial: 1}", nil, "concurrency.initial"},
		"a status that is an answer":           {upstream + route + "retry: {statuses: [200]}", nil, "retry.statuses[0]"},
		"a bad listen":                         {upstream + route + "http: {listen: here}", nil, "http.listen"},
		"no client's hash":                     {upstream + route + "management: {clients: [{name: a, secret_sha256: x, roles: [admin]}]}", nil, "management.clients[0].secret_sha256"},
		"a variable that is no key":            {upstream + route, []string{"TOLLGATE_BREAKER_REST=1s"}, "TOLLGATE_BREAKER_RESET"},
		"a bad variable":                       {upstream + route, []string{"TOLLGATE_HEALTH_INTERVAL=0s"}, "health.interval"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "pyproxy.yaml")
			if err := os.WriteFile(path, []byte(c.yaml), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := config.Load(path, c.env, defaults()); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}

func TestUpstreamsFromTheEnvironment(t *testing.T) {
	c, err := config.Load(shipped, []string{
		`TOLLGATE_UPSTREAMS=[{name: ml, addresses: ["a:1", "b:1"]}, {name: nlp, addresses: ["c:1"]}, {name: fraud, addresses: ["d:1"]}, {name: data, addresses: ["e:1"]}, {name: blockchain, addresses: ["f:1"]}]`,
		"TOLLGATE_BREAKER_RESET=2s",
	}, defaults())
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Upstreams[0].Addresses) != 2 || c.Breaker.Reset.String() != "2s" {
		t.Fatalf("%+v", c.Upstreams)
	}
}
