package stack

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"

	"github.com/tollgate-proxy/tollgate/internal/envoyconf"
)

// configs returns the configuration file of each process. Where nothing has to
// change it is the file that is shipped; else a copy beside copies of its
// siblings, in Work/config.
func (s *Stack) configs() (map[string]string, error) {
	shipped := filepath.Join(s.options.Root, "config")
	derived := filepath.Join(s.options.Work, "config")
	if err := os.CopyFS(derived, os.DirFS(shipped)); err != nil {
		return nil, fmt.Errorf("copy the configuration: %w", err)
	}
	paths := map[string]string{}
	for part, base := range map[string]string{Authz: "authz", Ratelimit: "ratelimit", Pyproxy1: "pyproxy", Pyproxy2: "pyproxy"} {
		original := filepath.Join(shipped, base+".yaml")
		data, err := os.ReadFile(original)
		if err != nil {
			return nil, fmt.Errorf("configuration of %s: %w", part, err)
		}
		changed := readdress(data, moved(s.ports))
		if s.options.EditConfig != nil {
			changed = s.options.EditConfig(part, changed)
		}
		if bytes.Equal(changed, data) {
			paths[part] = original
			continue
		}
		paths[part] = filepath.Join(derived, part+".yaml")
		if err := os.WriteFile(paths[part], changed, 0o600); err != nil {
			return nil, fmt.Errorf("configuration of %s: %w", part, err)
		}
	}
	var err error
	paths[Envoy], err = s.envoyConfig()
	return paths, err
}

// envoyConfig returns the path of Envoy's configuration: the shipped one, or the
// same with other addresses.
func (s *Stack) envoyConfig() (string, error) {
	shipped := filepath.Join(s.options.Root, "envoy", "envoy.yaml")
	if len(moved(s.ports)) == 0 && s.options.EditEnvoy == nil {
		return shipped, nil
	}
	bootstrap, err := envoyconf.Load(shipped)
	if err != nil {
		return "", err
	}
	health := func(e Endpoint) uint32 { return uint32(s.ports[e]) } // complete bounds it
	changes := envoyconf.Options{
		Listener: s.ports.Address(EnvoyListener),
		Admin:    s.ports.Address(EnvoyAdmin),
		Clusters: map[string][]envoyconf.Endpoint{
			envoyconf.ClusterAuthz:     {{Address: s.ports.Address(AuthzGRPC)}},
			envoyconf.ClusterRateLimit: {{Address: s.ports.Address(RatelimitGRPC)}},
			envoyconf.ClusterPyproxy: {
				{Address: s.ports.Address(Pyproxy1HTTP), HealthPort: health(Pyproxy1Ops)},
				{Address: s.ports.Address(Pyproxy2HTTP), HealthPort: health(Pyproxy2Ops)},
			},
			envoyconf.ClusterAccount: {{Address: s.ports.Address(AuthzHTTP), HealthPort: health(AuthzOperations)}},
			envoyconf.ClusterBackend: {{Address: s.ports.Address(EchoBackend)}},
		},
	}
	if s.options.EditEnvoy != nil {
		s.options.EditEnvoy(&changes)
	}
	rendered, err := envoyconf.Render(bootstrap, changes)
	path := filepath.Join(s.options.Work, "config", "envoy.yaml")
	if err == nil {
		err = envoyconf.WriteFile(path, rendered)
	}
	if err != nil {
		return "", fmt.Errorf("configuration of envoy: %w", err)
	}
	return path, nil
}
