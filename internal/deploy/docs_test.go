package deploy

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	_ "github.com/tollgate-proxy/tollgate/internal/envoyconf" // the extensions that examples may name
)

// documents returns the Markdown files that people read, by path from the root.
func documents(t *testing.T) map[string]string {
	t.Helper()
	found := make(map[string]string)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		name, relErr := filepath.Rel(root, path)
		switch {
		case err != nil || relErr != nil:
			return err
		case d.IsDir() && name != "." && (strings.HasPrefix(d.Name(), ".") || slices.Contains([]string{"bin", "var", "internal", "coverage"}, name)):
			return filepath.SkipDir
		case filepath.Ext(name) == ".md":
			found[name] = string(read(t, name))
		}
		return nil
	})
	if err != nil || len(found) < 20 {
		t.Fatalf("%d documents, %v", len(found), err)
	}
	return found
}

// guides are the documents about what is, not about what was.
func guides(t *testing.T) map[string]string {
	t.Helper()
	found := documents(t)
	delete(found, "CHANGELOG.md")
	return found
}

var (
	fenced  = regexp.MustCompile("(?ms)^ *```.*?^ *```$")
	heading = regexp.MustCompile(`(?m)^#+ (.*)$`)
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	coded   = regexp.MustCompile("`([^`\n]+)`")
)

// anchors returns the names by which a document's headings are linked to.
func anchors(text string) map[string]bool {
	found := make(map[string]bool)
	for _, h := range heading.FindAllStringSubmatch(fenced.ReplaceAllString(text, ""), -1) {
		title := regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)`).ReplaceAllString(strings.ToLower(h[1]), "$1")
		found[strings.ReplaceAll(regexp.MustCompile(`[^\p{L}\p{N}_ -]`).ReplaceAllString(title, ""), " ", "-")] = true
	}
	return found
}

// TestDocumentsLinkToWhatIsThere follows every link to a file of the project, and to a heading of it.
func TestDocumentsLinkToWhatIsThere(t *testing.T) {
	all := documents(t)
	for name, text := range all {
		for _, l := range link.FindAllStringSubmatch(fenced.ReplaceAllString(text, ""), -1) {
			target, err := url.Parse(l[1])
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if target.Scheme != "" {
				continue
			}
			path := name
			if target.Path != "" {
				path = filepath.Join(filepath.Dir(name), target.Path)
			}
			if _, err := os.Stat(filepath.Join(root, path)); err != nil {
				t.Errorf("%s links to %s: %v", name, l[1], err)
			} else if target.Fragment != "" && !anchors(all[path])[target.Fragment] {
				t.Errorf("%s links to %s, which has no such heading", name, l[1])
			}
		}
	}
}

// TestDocumentsNameFilesThatExist looks for every path that a document names in code.
func TestDocumentsNameFilesThatExist(t *testing.T) {
	path := regexp.MustCompile(`^(cmd|config|deploy|docs|envoy|examples|internal|scripts)/[\w./-]*$`)
	for name, text := range documents(t) {
		for _, c := range coded.FindAllStringSubmatch(fenced.ReplaceAllString(text, ""), -1) {
			if path.MatchString(c[1]) {
				if _, err := os.Stat(filepath.Join(root, c[1])); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
	}
}

// TestArchitectureNamesEveryPackage holds the table of layers to the packages that there are.
func TestArchitectureNamesEveryPackage(t *testing.T) {
	_, layers, _ := strings.Cut(string(read(t, "docs/architecture.md")), "\n## Layers\n")
	layers, _, _ = strings.Cut(layers, "\n## ")
	packages, err := os.ReadDir(filepath.Join(root, "internal"))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range packages {
		if p.IsDir() && !strings.Contains(layers, "`"+p.Name()+"`") {
			t.Errorf("docs/architecture.md does not say in which layer internal/%s is", p.Name())
		}
	}
}

// TestGuidesNameMetricsThatExist looks for every metric of the guides in the sources. A name that ends in _ stands for
// all that begin so.
func TestGuidesNameMetricsThatExist(t *testing.T) {
	known := metrics(t)
	for name, text := range guides(t) {
		for _, metric := range metricName.FindAllString(text, -1) {
			found := known[metric]
			for k := range known {
				found = found || strings.HasSuffix(metric, "_") && strings.HasPrefix(k, metric)
			}
			if !found {
				t.Errorf("%s names %s, which no program has", name, metric)
			}
		}
	}
}

// TestGuidesNameKeysThatExist looks for every configuration key with a dot, and every variable of the processes, in the
// reference. A key may be named from any of its sections on.
func TestGuidesNameKeysThatExist(t *testing.T) {
	all := guides(t)
	keys, sections := make(map[string]bool), make(map[string]bool)
	var reference strings.Builder
	for name, text := range all {
		if filepath.Dir(name) != filepath.Join("docs", "reference") {
			continue
		}
		reference.WriteString(text)
		for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(text, -1) {
			parts := strings.Split(strings.ReplaceAll(row[1], "[]", ""), ".")
			sections[parts[0]] = sections[parts[0]] || len(parts) > 1
			for from := range parts {
				for to := from + 1; to <= len(parts); to++ {
					keys[strings.Join(parts[from:to], ".")] = true
				}
			}
		}
	}
	if len(keys) < 100 {
		t.Fatalf("only %d keys in the reference", len(keys))
	}
	key := regexp.MustCompile(`^([a-z_]+)(\.[a-z0-9_]+)+(:.*)?$`)
	variable := regexp.MustCompile(`\bTOLLGATE_[A-Z0-9_]+`)
	for name, text := range all {
		for _, c := range coded.FindAllStringSubmatch(fenced.ReplaceAllString(text, ""), -1) {
			named, _, _ := strings.Cut(c[1], ":")
			if m := key.FindStringSubmatch(c[1]); m != nil && sections[m[1]] && !keys[named] {
				t.Errorf("%s names the key %s, which is not in the reference", name, named)
			}
		}
		for _, v := range variable.FindAllString(text, -1) {
			if v != "TOLLGATE_" && !strings.HasPrefix(v, "TOLLGATE_API_") && !strings.Contains(reference.String(), v) { // TOLLGATE_API_*: the operator's command
				t.Errorf("%s names the variable %s, which is not in the reference", name, v)
			}
		}
	}
}

// TestRunbookQuotesTheLog looks in the sources for what the runbook says that a process logs.
func TestRunbookQuotesTheLog(t *testing.T) {
	var sources strings.Builder
	err := filepath.WalkDir(filepath.Join(root, "internal"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		sources.Write(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	lines := regexp.MustCompile("; log:? `([^`]+)`").FindAllStringSubmatch(string(read(t, "docs/guide/troubleshooting.md")), -1)
	if len(lines) < 5 {
		t.Fatalf("the runbook quotes %d lines of the log", len(lines))
	}
	for _, line := range lines {
		if !strings.Contains(sources.String(), line[1]) {
			t.Errorf("no process logs %q", line[1])
		}
	}
}

// TestExamplesAreConfigurations puts every YAML example to the reader that it is for: authz, the readers of flag and of
// limit files, or Envoy's API.
func TestExamplesAreConfigurations(t *testing.T) {
	bin := programs(t)
	example := regexp.MustCompile("(?ms)^( *)```yaml\n(.*?)^ *```$")
	kinds := make(map[string]int)
	for name, text := range guides(t) {
		for i, e := range example.FindAllStringSubmatch(text, -1) {
			var lines []string
			for line := range strings.Lines(e[2]) {
				lines = append(lines, strings.TrimPrefix(line, e[1]))
			}
			t.Run(name+"#"+strconv.Itoa(i+1), func(t *testing.T) { kinds[checkExample(t, bin, strings.Join(lines, ""))]++ })
		}
	}
	for _, kind := range []string{"authz", "flags", "limits", "envoy"} {
		if kinds[kind] == 0 {
			t.Errorf("no example for %s", kind)
		}
	}
}

// checkExample returns whose example it is.
func checkExample(t *testing.T, bin, text string) string {
	t.Helper()
	var tree any
	if err := yaml.Unmarshal([]byte(text), &tree); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	sections, _ := tree.(map[string]any)
	_, ours := sections["flags"]
	for _, section := range []string{"tokens", "policy", "headers", "anomaly", "limits", "management", "signals"} {
		_, has := sections[section]
		ours = ours || has
	}
	switch {
	case sections["domain"] != nil:
		check(t, text, nil, filepath.Join(bin, "tollgate"), "check-config", "limits")
		return "limits"
	case !ours:
		if !envoyAccepts(t, tree) {
			t.Errorf("neither Tollgate nor Envoy knows what this is:\n%s", text)
		}
		return "envoy"
	case strings.Contains(text, "defaultVariant"):
		check(t, text, nil, filepath.Join(bin, "tollgate"), "check-config", "flags")
		return "flags"
	}
	text = regexp.MustCompile(`/data/[A-Za-z0-9-]+\.mmdb`).ReplaceAllString(text, "places.mmdb")
	var environ []string
	if sections["mode"] == nil { // an example of one section: the rest is a demo's, with the issuer that api.md speaks of
		environ = append(environ, "TOLLGATE_MODE=development", "TOLLGATE_DEVELOPMENT_KEY_FILE="+filepath.Join(t.TempDir(), "key.pem"))
	}
	if sections["tokens"] == nil {
		environ = append(environ, `TOLLGATE_TOKENS_ISSUERS=[{name: example, issuer: "https://example.okta.com/oauth2/default", algorithms: [RS256], `+
			`audiences: [my-api], keys: {jwks_url: "https://example.okta.com/oauth2/default/v1/keys"}}]`)
	}
	check(t, text, environ, filepath.Join(bin, "authz"), "-check-config", "-config")
	return "authz"
}

// check writes text to a file, beside what examples name, and runs the command with it as its last argument.
func check(t *testing.T, text string, environ []string, command ...string) {
	t.Helper()
	folder := t.TempDir()
	file := filepath.Join(folder, "example.yaml")
	project, err := filepath.Abs(root)
	if err := errors.Join(err, os.WriteFile(file, []byte(text), 0o600),
		os.Symlink(filepath.Join(project, "config", "limits"), filepath.Join(folder, "limits")),
		os.Symlink(filepath.Join(project, "internal", "anomaly", "testdata", "cities.mmdb"), filepath.Join(folder, "places.mmdb"))); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), command[0], append(command[1:], file)...)
	cmd.Env = append(environ, "PATH="+os.Getenv("PATH"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s in\n%s", err, out, text)
	}
}

// exampled are the messages of Envoy's API that examples are about.
var exampled = []protoreflect.FullName{
	"envoy.config.cluster.v3.Cluster", "envoy.config.endpoint.v3.LbEndpoint", "envoy.config.listener.v3.Listener", "envoy.config.route.v3.Route",
	"envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter", "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
}

// envoyAccepts says whether a part of Envoy's configuration, or each of a list, is one of those.
func envoyAccepts(t *testing.T, tree any) bool {
	t.Helper()
	list, ok := tree.([]any)
	if !ok {
		list = []any{tree}
	}
	for _, part := range list {
		text, err := json.Marshal(part)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(exampled, func(name protoreflect.FullName) bool {
			message, err := protoregistry.GlobalTypes.FindMessageByName(name)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			return protojson.Unmarshal(text, message.New().Interface()) == nil
		}) {
			return false
		}
	}
	return true
}
