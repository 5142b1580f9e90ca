package e2e

import (
	"maps"
	"os"
	"path/filepath"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/tollgate-proxy/tollgate/internal/envoyconf"
)

// secondEnvoy starts one more Envoy in front of the same processes, with another
// configuration than the one that is shipped, and returns its base URL. It ends
// with the test.
func (s *system) secondEnvoy(t *testing.T, name string, edit func(manager map[string]any)) string {
	t.Helper()
	tree := readTree(t, s.config("envoy"))
	edit(findManager(t, tree))
	data, err := yaml.Marshal(tree)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "envoy.yaml")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	bootstrap, err := envoyconf.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	free := freeAddresses(t, 2)
	if bootstrap, err = envoyconf.Render(bootstrap, envoyconf.Options{Listener: free[0], Admin: free[1]}); err != nil {
		t.Fatal(err)
	}
	if err := envoyconf.WriteFile(path, bootstrap); err != nil {
		t.Fatal(err)
	}
	binary, err := envoyconf.Binary(os.Getenv, root)
	if err != nil {
		t.Fatal(err)
	}
	s.spawn(t, name, binary, []string{"-c", path, "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"}, environ())
	url := "http://" + free[0]
	_, token := s.user(t, "admin")
	await(t, "the second Envoy", func() error {
		a, err := s.try(ask{base: url, path: "/orders", token: token})
		if err != nil {
			return err
		}
		return wrong(a.status, 200)
	})
	return url
}

func readTree(t *testing.T, path string) map[string]any {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var tree map[string]any
	if err := yaml.Unmarshal(data, &tree); err != nil {
		t.Fatal(err)
	}
	return tree
}

// asShipped gives an HTTP filter the deadlines that are shipped.
func asShipped(t *testing.T, name string) func(manager map[string]any) {
	return func(manager map[string]any) {
		t.Helper()
		settings := filter(t, manager, name)
		clear(settings)
		maps.Copy(settings, filter(t, findManager(t, readTree(t, filepath.Join(root, "envoy", "envoy.yaml"))), name))
	}
}

// findManager finds the HTTP connection manager's settings.
func findManager(t *testing.T, tree map[string]any) map[string]any {
	t.Helper()
	var found map[string]any
	var walk func(any)
	walk = func(node any) {
		switch n := node.(type) {
		case map[string]any:
			if n["http_filters"] != nil && n["route_config"] != nil {
				found = n
				return
			}
			for _, child := range n {
				walk(child)
			}
		case []any:
			for _, child := range n {
				walk(child)
			}
		}
	}
	walk(tree)
	if found == nil {
		t.Fatal("Envoy's configuration has no HTTP connection manager")
	}
	return found
}

// filter finds the settings of an HTTP filter.
func filter(t *testing.T, manager map[string]any, name string) map[string]any {
	t.Helper()
	filters, _ := manager["http_filters"].([]any)
	for _, f := range filters {
		if f, ok := f.(map[string]any); ok && f["name"] == name {
			if settings, ok := f["typed_config"].(map[string]any); ok {
				return settings
			}
		}
	}
	t.Fatalf("Envoy's configuration has no filter %s", name)
	return nil
}
