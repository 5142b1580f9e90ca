package stack

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// tool is a program that the stack needs.
type tool struct {
	name, path string
	// remedy says how to get it.
	remedy string
}

// check returns one clear sentence where the tool is missing.
func (t tool) check() error {
	if t.path == filepath.Base(t.path) {
		if _, err := exec.LookPath(t.path); err != nil {
			return fmt.Errorf("%s is not installed: %s", t.name, t.remedy)
		}
		return nil
	}
	info, err := os.Stat(t.path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%s is missing at %s: %s", t.name, t.path, t.remedy)
	case err != nil:
		return fmt.Errorf("%s cannot be used: %w", t.name, err)
	case info.IsDir() || info.Mode()&0o111 == 0:
		return fmt.Errorf("%s at %s is not a program: %s", t.name, t.path, t.remedy)
	}
	return nil
}

func (s *Stack) tools() []tool {
	const build, install = "`make build` builds it", "`make demo` installs it"
	all := []tool{
		{"envoy", s.options.EnvoyPath, install},
		{"the Python services' interpreter", s.options.Python, install},
		{"authz", s.binary("authz"), build},
		{"ratelimit", s.binary("ratelimit"), build},
		{"pyproxy", s.binary("pyproxy"), build},
	}
	if s.options.RedisURL == "" && s.options.Redis == RedisProcess {
		all = append(all, tool{"redis-server", "redis-server", "`apt-get install redis-server` installs it, and the embedded Redis needs nothing"})
	}
	return all
}

func (s *Stack) binary(name string) string { return filepath.Join(s.options.Bin, name) }
