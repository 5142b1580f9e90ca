package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/tollgate-proxy/tollgate/internal/logtest"
)

// TestDemo runs the demo as a visitor does, in a folder of its own: the tour
// alone ends with 0; one that stays up ends with 0 when it is interrupted. Either
// way nothing is left running.
func TestDemo(t *testing.T) {
	folder := t.TempDir()
	for _, name := range []string{"config", "envoy", "examples", ".venv"} {
		if err := os.Symlink(filepath.Join(root, name), filepath.Join(folder, name)); err != nil {
			t.Fatal(err)
		}
	}
	pids := regexp.MustCompile(`(?m)^ *(?:envoy|authz|ratelimit|pyproxy-[12]|ml|nlp|fraud|data|blockchain) +([0-9]+) `)
	for _, tc := range []struct {
		tour, until string
		interrupt   bool
	}{
		{"only", "", false},
		{"none", "Ctrl-C", true},
	} {
		t.Run(tc.tour, func(t *testing.T) {
			var out logtest.Buffer
			command := exec.Command(filepath.Join(programs, "tollgate"), "demo", "-free-ports", "-root", folder, "-tour", tc.tour)
			command.Dir, command.Env, command.Stdout, command.Stderr = folder, environ(), &out, &out
			if err := command.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- command.Wait() }()
			if tc.interrupt {
				await(t, "the demo to stay up", func() error {
					select {
					case err := <-ended:
						t.Fatalf("the demo ended: %v\n%s", err, &out)
					default:
					}
					if !strings.Contains(out.String(), tc.until) {
						return errors.New("it does not say how to end it")
					}
					return nil
				})
				if err := command.Process.Signal(syscall.SIGINT); err != nil {
					t.Fatal(err)
				}
			}
			if err := <-ended; err != nil {
				t.Fatalf("%v\n%s", err, &out)
			}
			children := pids.FindAllStringSubmatch(out.String(), -1)
			if len(children) < 8 {
				t.Fatalf("%d processes are named\n%s", len(children), &out)
			}
			for _, child := range children {
				if _, err := os.Stat(fmt.Sprintf("/proc/%s", child[1])); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("process %s is still there: %v", child[1], err)
				}
			}
			if jwt.MatchString(out.String()) {
				t.Error("the demo shows a token")
			}
		})
	}
}
