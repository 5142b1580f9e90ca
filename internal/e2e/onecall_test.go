package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"

	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/envoyconf"
	"github.com/tollgate-proxy/tollgate/internal/supervisor"
)

// edge is what a test of its own runs beside the system: Redis, a backend, and
// whatever processes and Envoys it starts on them.
type edge struct {
	work    string
	redis   *redisServer
	backend string
	key     string
	minter  *authn.Minter
}

func newEdge(t *testing.T) *edge {
	t.Helper()
	work := filepath.Join(root, "var", "e2e-"+strings.ToLower(t.Name()))
	e := &edge{work: work, redis: startRedis(t, filepath.Join(work, "redis")), key: filepath.Join(work, "signing-key.pem")}
	var err error
	if e.minter, err = authn.NewMinter(e.key); err != nil {
		t.Fatal(err)
	}
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }))
	t.Cleanup(backend.Close)
	e.backend = backend.Listener.Addr().String()
	return e
}

// spawn starts a process of ours as shipped, and returns where its gRPC side
// listens when it is ready.
func (e *edge) spawn(t *testing.T, name, program string, env ...string) (*supervisor.Process, string) {
	t.Helper()
	return e.spawnWith(t, name, program, filepath.Join(root, "config", program+".yaml"), env...)
}

// spawnWith is spawn with another configuration file.
func (e *edge) spawnWith(t *testing.T, name, program, config string, env ...string) (*supervisor.Process, string) {
	t.Helper()
	free := freeAddresses(t, 3)
	env = append([]string{
		"TOLLGATE_GRPC_LISTEN=" + free[0], "TOLLGATE_OPERATIONS_LISTEN=" + free[1], "TOLLGATE_REDIS_URL=" + e.redis.url(), "TOLLGATE_SHUTDOWN_DRAIN_DELAY=0s",
	}, env...)
	if program == "authz" {
		env = append(env, "TOLLGATE_HTTP_LISTEN="+free[2], "TOLLGATE_DEVELOPMENT_KEY_FILE="+e.key, "TOLLGATE_LIMITS_STORE_TIMEOUT="+storeWaits)
	} else {
		env = append(env, "TOLLGATE_STORE_TIMEOUT="+storeWaits)
	}
	p := e.start(t, name, filepath.Join(programs, program), []string{"-config", config}, env)
	await(t, name, func() error { return answers("http://" + free[1] + "/readyz") })
	return p, free[0]
}

func (e *edge) start(t *testing.T, name, path string, args, env []string) *supervisor.Process {
	t.Helper()
	p, err := supervisor.Start(supervisor.Spec{
		Name: name, Path: path, Args: args, Env: append(environ(), env...), Dir: root, Log: filepath.Join(e.work, name+".log"),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Kill(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// envoy starts an Envoy with the shipped configuration and changes, and returns
// its base URL when it serves.
func (e *edge) envoy(t *testing.T, name string, o envoyconf.Options) (*supervisor.Process, string) {
	t.Helper()
	b, err := envoyconf.Load(filepath.Join(root, "envoy", "envoy.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return e.envoyOf(t, name, b, o)
}

// envoyOf is envoy with another configuration.
func (e *edge) envoyOf(t *testing.T, name string, b *bootstrapv3.Bootstrap, o envoyconf.Options) (*supervisor.Process, string) {
	t.Helper()
	free := freeAddresses(t, 2)
	o.Listener, o.Admin, o.DecisionTimeout = free[0], free[1], unhurried
	o.Clusters[envoyconf.ClusterBackend] = []envoyconf.Endpoint{{Address: e.backend}}
	b, err := envoyconf.Render(b, o)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(e.work, name+".yaml")
	if err := envoyconf.WriteFile(path, b); err != nil {
		t.Fatal(err)
	}
	binary, err := envoyconf.Binary(os.Getenv, root)
	if err != nil {
		t.Fatal(err)
	}
	p := e.start(t, name, binary, []string{"-c", path, "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"}, nil)
	await(t, name, func() error { return answers("http://" + free[1] + "/ready") })
	for cluster, endpoints := range o.Clusters {
		await(t, name+" to find "+cluster, func() error {
			n := metric(t, "http://"+free[1]+"/stats/prometheus", "envoy_cluster_membership_healthy", `envoy_cluster_name="`+cluster+`"`)
			if int(n) != len(endpoints) {
				return fmt.Errorf("%v of %d are healthy", n, len(endpoints))
			}
			return nil
		})
	}
	return p, "http://" + free[0]
}

// answers is nil where the page answers 200.
func answers(url string) error {
	response, err := http.Get(url) //nolint:gosec,noctx // a page of ours on the loopback
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, response.Status)
	}
	return nil
}

// TestOneCall: limits decided in the authorisation call are those that the
// ratelimit filter decides. One user through both ways at once never gets more
// than its bucket holds, and the answers look the same.
func TestOneCall(t *testing.T) {
	e := newEdge(t)
	_, ratelimit := e.spawn(t, "ratelimit", "ratelimit")
	_, plain := e.spawn(t, "authz", "authz")
	_, one := e.spawn(t, "authz-one", "authz", "TOLLGATE_LIMITS_IN_AUTHZ=true")
	_, two := e.envoy(t, "envoy-two", envoyconf.Options{Clusters: map[string][]envoyconf.Endpoint{
		envoyconf.ClusterAuthz: {{Address: plain}}, envoyconf.ClusterRateLimit: {{Address: ratelimit}},
	}})
	_, single := e.envoy(t, "envoy-one", envoyconf.Options{OneCall: true, Clusters: map[string][]envoyconf.Endpoint{
		envoyconf.ClusterAuthz: {{Address: one}},
	}})
	ways := []string{two, single}
	s := &system{minter: e.minter}

	// Both ways serve.
	_, admin := s.user(t, "admin")
	for _, base := range ways {
		await(t, base, func() error {
			a, err := s.try(ask{base: base, path: "/orders", token: admin})
			if err == nil && a.status != http.StatusOK {
				err = fmt.Errorf("%d %s", a.status, a.body)
			}
			return err
		})
	}

	t.Run("never more than the bucket", func(t *testing.T) {
		_, token := s.user(t, "premium") // 50 a minute
		begin := time.Now()
		var passed, refused [2]atomic.Int64
		for way, base := range ways { // some each, so that neither comes too late for any
			for range 5 {
				s.want(t, http.StatusOK, ask{base: base, path: "/orders", token: token})
				passed[way].Add(1)
			}
		}
		var all sync.WaitGroup
		for way, base := range ways {
			for range 8 {
				all.Go(func() {
					for range 10 {
						switch a, err := s.try(ask{base: base, path: "/orders", token: token}); {
						case err != nil:
							t.Error(err)
						case a.status == http.StatusOK:
							passed[way].Add(1)
						case a.status == http.StatusTooManyRequests:
							refused[way].Add(1)
						default:
							t.Errorf("%d: %s", a.status, excerpt(a.body))
						}
					}
				})
			}
		}
		all.Wait()
		refilled := int64(time.Since(begin)/(1200*time.Millisecond)) + 1
		total := passed[0].Load() + passed[1].Load()
		if total < 50 || total > 50+refilled {
			t.Errorf("%d and %d passed: a bucket of 50 and %d more meanwhile", passed[0].Load(), passed[1].Load(), refilled)
		}
		for way := range ways {
			if refused[way].Load() == 0 {
				t.Errorf("way %d: %d passed and none was refused", way, passed[way].Load())
			}
		}
	})

	t.Run("the same answers", func(t *testing.T) {
		names := []string{"RateLimit-Policy", "X-RateLimit-Limit", "Content-Type", "X-RateLimit-Remaining"}
		within(t, limitRefill, func() error {
			_, token := s.user(t, "free") // 10 a minute
			for i := range 14 {
				// One after the other through both: a single bucket counts down.
				a := s.do(t, ask{base: ways[i%2], path: "/orders", token: token})
				want := max(9-i, 0)
				if passed := a.status == http.StatusOK; passed != (i < 10) || left(t, a) != want {
					return fmt.Errorf("request %d: %d, %d left", i+1, a.status, left(t, a))
				}
				if i == 12 || i == 13 {
					if err := a.problem(http.StatusTooManyRequests, "rate_limited"); err != nil {
						t.Errorf("way %d: %v: %s", i%2, err, excerpt(a.body))
					}
					if a.header.Get("Retry-After") == "" || a.header.Get("RateLimit") == "" {
						t.Errorf("way %d: headers %v", i%2, a.header)
					}
				}
			}
			both := [2]answer{s.do(t, ask{base: two, path: "/orders", token: token}), s.do(t, ask{base: single, path: "/orders", token: token})}
			for _, name := range names {
				if a, b := both[0].header.Values(name), both[1].header.Values(name); fmt.Sprint(a) != fmt.Sprint(b) || len(a) != 1 {
					return fmt.Errorf("%s: %q with the filter, %q without", name, a, b)
				}
			}
			return nil
		})
	})

	t.Run("costs", func(t *testing.T) {
		for way, base := range ways {
			within(t, time.Second, func() error {
				_, token := s.user(t, "premium")
				// The service is not there; the request is charged all the same.
				if got := 50 - left(t, s.do(t, ask{base: base, path: "/api/v1/blockchain/x", token: token})); got != 10 {
					return fmt.Errorf("way %d took %d instead of 10", way, got)
				}
				return nil
			})
		}
	})
}
