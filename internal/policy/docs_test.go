package policy

import (
	"os"
	"strings"
	"testing"

	"github.com/tollgate-proxy/tollgate/internal/config"
)

// The examples of the guide are configurations.
func TestGuide(t *testing.T) {
	const guide = "../../docs/guide/route-rules.md"
	text, err := os.ReadFile(guide)
	if err != nil {
		t.Fatal(err)
	}
	blocks := strings.Split(string(text), "```yaml\n")[1:]
	if len(blocks) == 0 {
		t.Fatal("no example in the guide")
	}
	type file struct {
		Policy Config `yaml:"policy" doc:"The section."`
	}
	for _, block := range blocks {
		block, _, _ = strings.Cut(block, "```")
		f, err := config.Decode(guide, []byte(block), file{Default()})
		if err != nil {
			t.Errorf("%v in\n%s", err, block)
			continue
		}
		if _, err := Compile(f.Policy); err != nil {
			t.Error(err)
		}
	}
}
