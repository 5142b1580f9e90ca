package authn

import (
	"os"
	"strings"
	"testing"

	"github.com/tollgate-proxy/tollgate/internal/config"
)

// The examples of the guide are configurations.
func TestGuide(t *testing.T) {
	const guide = "../../docs/guide/authentication.md"
	text, err := os.ReadFile(guide)
	if err != nil {
		t.Fatal(err)
	}
	blocks := strings.Split(string(text), "```yaml\n")[1:]
	if len(blocks) == 0 {
		t.Fatal("no example in the guide")
	}
	type file struct {
		Tokens Config `yaml:"tokens" doc:"The section."`
	}
	for _, block := range blocks {
		block, _, _ = strings.Cut(block, "```")
		if _, err := config.Decode(guide, []byte(block), file{Default()}); err != nil {
			t.Errorf("%v in\n%s", err, block)
		}
	}
}
