// Package configtest holds a process's shipped configuration and its reference
// page to its source, the same way for every process.
package configtest

import (
	"bytes"
	"flag"
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
	shipped := filepath.Join("..", "..", "config", p.Name+".yaml")
	t.Run("shipped file", func(t *testing.T) {
		cfg, err := config.Load(shipped, nil, p.Defaults())
		if err != nil {
			t.Fatal(err)
		}
		if p.Check != nil {
			if err := p.Check(cfg); err != nil {
				t.Fatal(err)
			}
		}
	})
	t.Run("every key is explained", func(t *testing.T) {
		if missing := config.Undocumented[C](); len(missing) > 0 {
			t.Errorf("no doc tag: %s", strings.Join(missing, ", "))
		}
	})
	t.Run("reference page", func(t *testing.T) {
		page := filepath.Join("..", "..", "docs", "reference", p.Name+".md")
		var want bytes.Buffer
		if err := config.WriteReference(&want, "Configuration of "+p.Name, p.Defaults()); err != nil {
			t.Fatal(err)
		}
		if *update {
			if err := os.MkdirAll(filepath.Dir(page), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(page, want.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want.Bytes()) {
			t.Errorf("%s is not what the source says: run `go test ./cmd/%s -update`", page, p.Name)
		}
	})
}
