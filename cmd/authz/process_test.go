package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/tollgate-proxy/tollgate/internal/app"
	"github.com/tollgate-proxy/tollgate/internal/logtest"
	"github.com/tollgate-proxy/tollgate/internal/polltest"
)

// running is the whole process under test, with a Redis inside.
type running struct {
	*testing.T
	rt   *app.Runtime
	path string // of its configuration
	exit chan int
	log  logtest.Buffer
}

func (p *running) configure(client, rule string) {
	p.Helper()
	text := fmt.Sprintf(`
mode: development
development: {key_file: key.pem}
grpc: {listen: "127.0.0.1:0"}
http: {listen: "127.0.0.1:0"}
operations: {listen: "127.0.0.1:0"}
redis: {mode: embedded}
shutdown: {drain_delay: 0s}
management: {clients: [{name: %s, secret_sha256: "%x", roles: [operator]}]}
policy: {routes: [{name: %s, match: {prefix: /}}]}
`, client, sha256.Sum256([]byte(client)), rule)
	if err := os.WriteFile(p.path, []byte(text), 0o600); err != nil {
		p.Fatal(err)
	}
}

func launch(t *testing.T, client, rule string) *running {
	t.Helper()
	p := &running{T: t, path: filepath.Join(t.TempDir(), "authz.yaml"), exit: make(chan int, 1)}
	p.configure(client, rule)
	wired := make(chan *app.Runtime, 1)
	tested := process()
	tested.Wire = func(ctx context.Context, c Config, rt *app.Runtime) error {
		err := wire(ctx, c, rt)
		wired <- rt
		return err
	}
	go func() { p.exit <- app.Main(tested, []string{"-config", p.path}, nil, &p.log, &p.log) }()
	select {
	case p.rt = <-wired:
	case code := <-p.exit:
		t.Fatalf("exit %d: %s", code, &p.log)
	}
	polltest.Until(t, "started", func() bool { return p.log.Count(`"msg":"started"`) == 1 })
	return p
}

// explained is what the process says to a client that asks about a request.
func (p *running) explained(client string) (int, string) {
	p.Helper()
	r, err := http.NewRequestWithContext(p.Context(), http.MethodPost, "http://"+p.rt.Addr("http")+"/v1/explain", strings.NewReader(`{"method":"GET","path":"/x"}`))
	if err != nil {
		p.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+client)
	r.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		p.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		p.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// Who manages, and the route rules, change together and without a restart; and
// not at all where one of them has a fault.
func TestTheFileIsReadAgain(t *testing.T) {
	p := launch(t, "old", "first")
	want := func(client string, status int, part string) {
		t.Helper()
		if got, body := p.explained(client); got != status || !strings.Contains(body, part) {
			t.Errorf("%s: %d %s, want %d %s", client, got, body, status, part)
		}
	}
	want("old", http.StatusOK, "rule first")
	want("new", http.StatusUnauthorized, "credentials_required")
	p.configure("new", "{}")
	if err := p.rt.Reload(t.Context()); err == nil {
		t.Error("a faulty file is taken")
	}
	want("old", http.StatusOK, "rule first")
	want("new", http.StatusUnauthorized, "credentials_required")
	p.configure("new", "second")
	if err := p.rt.Reload(t.Context()); err != nil {
		t.Error(err)
	}
	want("new", http.StatusOK, "rule second")
	want("old", http.StatusUnauthorized, "credentials_required")

	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := <-p.exit; code != 0 {
		t.Errorf("exit %d: %s", code, &p.log)
	}
}
