// Package configtest holds a process's shipped configuration and its reference
// page to its source, the same way for every process.
package configtest

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tollgate-proxy/tollgate/internal/app"
	"github.com/tollgate-proxy/tollgate/internal/config"
)

var update = flag.Bool("update", false, "write the reference pages afresh")

// Process checks a process from the tests of its command: the shipped file
// loads and passes the process's own check, every key has a meaning, and
// docs/reference/NAME.md is what the source says. `go test ./cmd/... -update`
// writes the page.
func Process[C any](t *testing.T, p app.Process[C]) {
	t.Helper()
	root := filepath.Join("..", "..")
	for name, check := range map[string]func() error{
		"shipped file":           func() error { return shipped(root, p) },
		"every key is explained": explained[C],
		"reference page":         func() error { return reference(root, p, *update) },
	} {
		t.Run(name, func(t *testing.T) {
			if err := check(); err != nil {
				t.Error(err)
			}
		})
	}
}

func shipped[C any](root string, p app.Process[C]) error {
	cfg, err := config.Load(filepath.Join(root, "config", p.Name+".yaml"), nil, p.Defaults())
	if err != nil || p.Check == nil {
		return err
	}
	return p.Check(cfg)
}

func explained[C any]() error {
	if missing := config.Undocumented[C](); len(missing) > 0 {
		return fmt.Errorf("no doc tag: %s", strings.Join(missing, ", "))
	}
	return nil
}

func reference[C any](root string, p app.Process[C], write bool) error {
	page := filepath.Join(root, "docs", "reference", p.Name+".md")
	var want bytes.Buffer
	if err := config.WriteReference(&want, "Configuration of "+p.Name, p.Defaults()); err != nil {
		return err
	}
	if write {
		if err := os.MkdirAll(filepath.Dir(page), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(page, want.Bytes(), 0o644); err != nil {
			return err
		}
	}
	got, err := os.ReadFile(page)
	if err == nil && !bytes.Equal(got, want.Bytes()) {
		err = fmt.Errorf("%s is not what the source says: run `go test ./cmd/%s -update`", page, p.Name)
	}
	return err
}
