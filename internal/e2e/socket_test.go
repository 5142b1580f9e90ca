package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/tollgate-proxy/tollgate/internal/envoyconf"
)

// TestUnixSockets: beside Envoy on one machine the processes are reached through
// sockets, decide the same, and leave none behind.
func TestUnixSockets(t *testing.T) {
	e := newEdge(t)
	folder, err := os.MkdirTemp("", "e2e") //nolint:usetesting // a socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	authz, limits := "unix://"+filepath.Join(folder, "a.sock"), "unix://"+filepath.Join(folder, "r.sock")
	process, _ := e.spawn(t, "authz", "authz", "TOLLGATE_GRPC_LISTEN="+authz)
	e.spawn(t, "ratelimit", "ratelimit", "TOLLGATE_GRPC_LISTEN="+limits)
	_, base := e.envoy(t, "envoy", envoyconf.Options{Clusters: map[string][]envoyconf.Endpoint{
		envoyconf.ClusterAuthz: {{Address: authz}}, envoyconf.ClusterRateLimit: {{Address: limits}},
	}})
	s := &system{minter: e.minter}
	_, admin := s.user(t, "admin")
	await(t, "decisions", func() error {
		return wrong(s.do(t, ask{base: base, path: "/orders", token: admin}).status, http.StatusOK)
	})
	s.refused(t, http.StatusUnauthorized, "token_missing", ask{base: base, path: "/orders"})
	within(t, limitRefill, func() error {
		_, token := s.user(t, "free")
		for i := range 11 {
			if a := s.do(t, ask{base: base, path: "/orders", token: token}); left(t, a) != max(9-i, 0) {
				return fmt.Errorf("request %d: %d, %d left", i+1, a.status, left(t, a))
			}
		}
		return nil
	})
	if err := process.Stop(patience); err != nil {
		t.Error(err)
	}
	s.refused(t, http.StatusServiceUnavailable, "dependency_unavailable", ask{base: base, path: "/orders", token: admin})
	if _, err := os.Stat(filepath.Join(folder, "a.sock")); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}
}
