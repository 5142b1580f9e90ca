package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/stack"
)

// silent are the guides without an example to run, and why. A guide may also say
// so itself, in a comment: <!-- nothing to run: why -->.
var silent = map[string]string{
	"README.md":          "the list of the guides",
	"authentication.md":  "its examples are configuration, tested by internal/deploy",
	"envoy.md":           "its examples are configuration, tested by internal/deploy",
	"feature-flags.md":   "its examples are commands, tested by cmd/tollgate, and definitions, tested by internal/deploy",
	"operator.md":        "its examples are commands, tested by cmd/tollgate",
	"troubleshooting.md": "a table of what other tests show, and of metrics that testRunbook looks for",
}

// testGuides runs the examples of the guides: docs/guide/README.md says which, and
// how the expected status is written.
func testGuides(t *testing.T, s *system) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Fatal("curl is not installed: apt-get install curl installs it")
	}
	guides, err := filepath.Glob(filepath.Join(root, "docs", "guide", "*.md"))
	if err != nil || len(guides) < 5 {
		t.Fatalf("%d guides, %v", len(guides), err)
	}
	folder := s.projectFolder(t)
	for _, guide := range append(guides, filepath.Join(root, "README.md")) {
		text, err := os.ReadFile(guide)
		if err != nil {
			t.Fatal(err)
		}
		examples := examplesOf(string(text))
		name := filepath.Base(guide)
		if len(examples) == 0 {
			if filepath.Base(filepath.Dir(guide)) == "guide" && silent[name] == "" && !nothingToRun.Match(text) {
				t.Errorf("%s has no example to run: add one, or <!-- nothing to run: why --> (docs/guide/README.md)", name)
			}
			continue
		}
		for _, e := range examples {
			t.Run(fmt.Sprintf("%s:%d", name, e.line), func(t *testing.T) { s.runExample(t, folder, e) })
		}
	}
}

// projectFolder is like the project's folder, with the programs of this run and
// what a demo would have left.
func (s *system) projectFolder(t *testing.T) string {
	t.Helper()
	folder := t.TempDir()
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	links := map[string]string{
		"bin":                      programs,
		"var/dev/signing-key.pem":  s.KeyFile(),
		"var/demo/operator.json":   filepath.Join(s.work, stack.OperatorFile),
		"examples/python-services": filepath.Join(root, "examples", "python-services"),
	}
	for _, entry := range entries {
		if !slices.Contains([]string{"bin", "var", "examples", ".git"}, entry.Name()) {
			links[entry.Name()] = filepath.Join(root, entry.Name())
		}
	}
	for name, target := range links {
		path := filepath.Join(folder, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.Symlink(target, path)); err != nil {
			t.Fatal(err)
		}
	}
	return folder
}

// example is a block of commands, and the statuses that its calls of curl are to
// get; 0 is any of success.
type example struct {
	line   int
	script string
	want   []int
}

var (
	shellBlock   = regexp.MustCompile("(?s)\n```sh\n(.*?)\n```")
	curlCall     = regexp.MustCompile(`(?:^|[;&|(]|\bdo)\s*curl\s`)
	nothingToRun = regexp.MustCompile(`<!-- nothing to run: \S.* -->`)
	marker       = regexp.MustCompile(`#.*-> ([1-5][0-9]{2})\b`)
	address      = regexp.MustCompile(`\b(?:127\.0\.0\.1|localhost):([0-9]{2,5})`)
)

// examplesOf finds the blocks that call curl.
func examplesOf(text string) []example {
	var found []example
	for _, at := range shellBlock.FindAllStringSubmatchIndex(text, -1) {
		e := example{line: 2 + strings.Count(text[:at[0]], "\n"), script: text[at[2]:at[3]]}
		for line := range strings.Lines(e.script) {
			if curlCall.MatchString(line) {
				e.want = append(e.want, 0)
			}
			if m := marker.FindStringSubmatch(line); m != nil && len(e.want) > 0 {
				e.want[len(e.want)-1], _ = strconv.Atoi(m[1]) // digits only
			}
		}
		if len(e.want) > 0 {
			found = append(found, e)
		}
	}
	return found
}

// prelude makes curl note each status, and keeps examples from ending processes
// that are not theirs.
const prelude = `set -euo pipefail
curl() {
	local head
	head=$(mktemp -p "$E2E_FOLDER")
	command curl --silent --show-error --max-time 20 --dump-header "$head" "$@"
	awk '/^HTTP\//{s=$2} END{print s}' "$head" >> "$E2E_FOLDER/statuses"
}
kill() { :; }
pidof() { :; }
cd "$E2E_PROJECT"
`

func (s *system) runExample(t *testing.T, project string, e example) {
	script := address.ReplaceAllStringFunc(e.script, func(found string) string {
		port, _ := strconv.Atoi(address.FindStringSubmatch(found)[1]) // digits only
		for endpoint, contract := range stack.ContractPorts() {
			if contract == port {
				return s.Ports().Address(endpoint)
			}
		}
		return found
	})
	_, other := s.user(t, "premium")
	script = strings.ReplaceAll(script, "eyJ…", other)
	token := s.mint(t, authn.MintOptions{User: "ada", Tier: "enterprise", Roles: []string{"editor"}})
	folder := t.TempDir()
	command := exec.CommandContext(t.Context(), "bash", "-c", prelude+script)
	command.Env = s.environFor("E2E_FOLDER="+folder, "E2E_PROJECT="+project, "TOKEN="+token, "SECRET="+s.Operator().Token,
		"PATH="+programs+":"+os.Getenv("PATH"))
	out, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, script, excerpt(out))
	}
	data, err := os.ReadFile(filepath.Join(folder, "statuses"))
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Fields(string(data))
	if len(e.want) == 1 && len(got) > 1 { // a loop: the last one counts
		got = got[len(got)-1:]
	}
	if len(got) != len(e.want) {
		t.Fatalf("%d calls of curl, answered %v", len(e.want), got)
	}
	for i, status := range got {
		if ok := strings.HasPrefix(status, "2") && e.want[i] == 0 || status == strconv.Itoa(e.want[i]); !ok {
			t.Errorf("call %d of curl was answered %s, not %d\n%s\n%s", i+1, status, e.want[i], script, excerpt(out))
		}
	}
}

func TestExamplesOf(t *testing.T) {
	text := "# Title\n\n```sh\nmake demo\n```\n\n```sh\nT=$(curl localhost:1 \\\n  -d x)   # it says -> 201\ncurl -s a\n# -> 404\nfor i in 1 2; do curl b; done\n```\n\n```console\ncurl c\n```\n"
	found := examplesOf(text)
	if len(found) != 1 || found[0].line != 7 || !slices.Equal(found[0].want, []int{201, 404, 0}) {
		t.Errorf("%+v", found)
	}
}
