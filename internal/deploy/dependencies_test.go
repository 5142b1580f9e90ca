package deploy

import (
	"regexp"
	"strings"
	"testing"
)

// TestDependenciesAreExplained holds docs/dependencies.md against what go.mod requires directly.
func TestDependenciesAreExplained(t *testing.T) {
	required := map[string]bool{}
	for line := range strings.Lines(string(read(t, "go.mod"))) {
		fields := strings.Fields(strings.TrimPrefix(strings.TrimSpace(line), "require "))
		if len(fields) >= 2 && strings.Contains(fields[0], ".") && strings.HasPrefix(fields[1], "v") {
			required[fields[0]] = !strings.HasSuffix(strings.TrimSpace(line), "// indirect")
		}
	}
	if len(required) < 10 {
		t.Fatalf("only %d modules in go.mod", len(required))
	}
	explained := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z][^`/]*\\.[^`]*)` \\| (.+) \\|$").FindAllStringSubmatch(string(read(t, "docs/dependencies.md")), -1) {
		explained[row[1]] = true
		if _, known := required[row[1]]; !known {
			t.Errorf("docs/dependencies.md explains %s, which go.mod does not require", row[1])
		}
	}
	for module, direct := range required {
		if direct && !explained[module] {
			t.Errorf("docs/dependencies.md does not say why %s is needed", module)
		}
	}
}
