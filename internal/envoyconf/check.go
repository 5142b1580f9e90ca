package envoyconf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
)

// BinaryVariable names the environment variable that points to another Envoy than the one `make tools` installs.
const BinaryVariable = "TOLLGATE_ENVOY"

// ErrNoEnvoy is returned by Binary where there is no Envoy to run.
var ErrNoEnvoy = errors.New("no Envoy is installed: run `make tools`, or set " + BinaryVariable + " to the path of one")

// Binary returns the path of the Envoy to run: what the environment says, else .venv/envoy/bin/envoy under root,
// the top of the source tree.
func Binary(getenv func(string) string, root string) (string, error) {
	path := getenv(BinaryVariable)
	if path == "" {
		path = filepath.Join(root, ".venv", "envoy", "bin", "envoy")
	}
	info, err := os.Stat(path)
	if err != nil || info.IsDir() || info.Mode().Perm()&0o111 == 0 {
		return "", fmt.Errorf("%w (looked at %s)", ErrNoEnvoy, path)
	}
	return path, nil
}

// Check asks the Envoy at binary whether it would start with the file at path. The error holds what Envoy said.
func Check(ctx context.Context, binary, path string) error {
	cmd := exec.CommandContext(ctx, binary, "--mode", "validate", "-l", "error", "-c", path)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("envoy refuses %s: %w\n%s", path, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// exact returns the matcher of one string.
func exact(s string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: s}}
}
