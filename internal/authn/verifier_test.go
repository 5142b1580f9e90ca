package authn

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/config"
)

func BenchmarkVerify(b *testing.B) {
	file := filepath.Join(b.TempDir(), "key.pem")
	cfg := Default()
	cfg.Development.KeyFile = "x"
	cfg.Development.KeyFile = toPath(file)
	v, err := New(cfg, Options{Development: true})
	if err != nil {
		b.Fatal(err)
	}
	token, err := Mint(file, MintOptions{User: "alice", Tier: "premium", Roles: []string{"b", "a"}})
	if err != nil {
		b.Fatal(err)
	}
	now := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Verify(token, now); err != nil {
			b.Fatal(err)
		}
	}
}
func toPath(s string) config.Path { return config.Path(s) }
