package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/tollgate-proxy/tollgate/internal/app"
	"github.com/tollgate-proxy/tollgate/internal/config"
	"github.com/tollgate-proxy/tollgate/internal/credential"
	"github.com/tollgate-proxy/tollgate/internal/logtest"
	"github.com/tollgate-proxy/tollgate/internal/polltest"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

// running is a process under test, with one route /x to a service that echoes paths.
type running struct {
	*testing.T
	public, operations string
	path, text         string // of its configuration
	exit               chan int
	log                logtest.Buffer
}

const secret = "0123456789abcdef0123456789abcdef"

func hashed(secret string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(secret))) }

func launch(t *testing.T, more ...string) *running {
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "" {
			fmt.Fprint(w, r.URL.Path)
			return
		}
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		io.Copy(c, c)
	}))
	t.Cleanup(service.Close)
	p := &running{T: t, public: redistest.FreeAddr(t), operations: redistest.FreeAddr(t), path: filepath.Join(t.TempDir(), "pyproxy.yaml"), exit: make(chan int, 1)}
	p.text = fmt.Sprintf(`
http: {listen: %q}
operations: {listen: %q}
redis: {mode: embedded}
shutdown: {drain_delay: 0s}
management: {clients: [{name: op, secret_sha256: %s, roles: [operator]}]}
upstreams: [{name: s, addresses: [%q]}]
routes: [{name: r, upstream: s, method: GET, path: /x, cache: {ttl: 1m}}]
`, p.public, p.operations, hashed(secret), strings.TrimPrefix(service.URL, "http://")) + strings.Join(more, "\n")
	p.configure(p.text)
	go func() { p.exit <- app.Main(process(), []string{"-config", p.path}, nil, &p.log, &p.log) }()
	polltest.Until(t, "ready", func() bool {
		select {
		case code := <-p.exit:
			t.Fatalf("exit %d: %s", code, &p.log)
		default:
		}
		status, _ := p.call("GET", p.operations, "/readyz", "")
		return status == 200
	})
	return p
}

// configure replaces the file at once: half of one would be another refusal.
func (p *running) configure(text string) {
	p.Helper()
	next := p.path + ".next"
	if err := os.WriteFile(next, []byte(text), 0o600); err != nil {
		p.Fatal(err)
	}
	if err := os.Rename(next, p.path); err != nil {
		p.Fatal(err)
	}
}

func (p *running) call(method, address, path, token string) (int, string) {
	r, err := http.NewRequestWithContext(p.Context(), method, "http://"+address+path, nil)
	if err != nil {
		p.Fatal(err)
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body)
}

// stop ends the process as an operator would.
func (p *running) stop() {
	p.Helper()
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		p.Fatal(err)
	}
	if code := <-p.exit; code != 0 {
		p.Fatalf("exit %d: %s", code, &p.log)
	}
}

// The whole process: its configuration, routes, management API and metrics.
func TestTheProcess(t *testing.T) {
	p := launch(t)
	for _, c := range []struct {
		method, path, token string
		status              int
		body                string
	}{
		{"GET", "/x", "", 200, "/x"},
		{"GET", "/y", "", 404, "route_not_found"},
		{"GET", "/v1/upstreams", "", 401, "credentials_required"},
		{"GET", "/v1/upstreams", secret, 200, `"name":"s"`},
		{"POST", "/v1/upstreams/s/trip", secret, 200, `"state":"open"`},
		{"GET", "/x", "", 200, "/x"}, // kept
		{"GET", "/x?other", "", 503, "circuit_open"},
		{"POST", "/v1/upstreams/s/reset", secret, 200, `"state":"closed"`},
		{"GET", "/x?other", "", 200, "/x"},
		{"POST", "/v1/cache/r/purge", secret, 204, ""},
		{"GET", "/v1/elsewhere", secret, 404, "route_not_found"},
	} {
		if status, body := p.call(c.method, p.public, c.path, c.token); status != c.status || !strings.Contains(body, c.body) {
			t.Errorf("%s %s: %d %s, want %d %s", c.method, c.path, status, body, c.status, c.body)
		}
	}
	if _, metrics := p.call("GET", p.operations, "/metrics", ""); !strings.Contains(metrics, `tollgate_pyproxy_cache_requests_total{result="hit",route="r"} 1`) ||
		!strings.Contains(metrics, `tollgate_pyproxy_breaker_state{class="default",upstream="s"} 0`) {
		t.Error(metrics)
	}
	p.stop()
}

// A WebSocket passes all that lies around the proxy, spans too, and ends with the process.
func TestAWebSocketThroughTheProcess(t *testing.T) {
	p := launch(t, "tracing: {endpoint: 'http://127.0.0.1:1', sample_ratio: 1}")
	conn, err := net.Dial("tcp", p.public)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(polltest.Patience))
	io.WriteString(conn, "GET /x HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	br := bufio.NewReader(conn)
	resp, err := http.ReadResponse(br, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(resp, err)
	}
	io.WriteString(conn, "ping")
	if got, err := io.ReadAll(io.LimitReader(br, 4)); err != nil || string(got) != "ping" {
		t.Fatalf("%q %v", got, err)
	}
	p.stop()
	if _, err := br.ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
}

// Another file is in force without a restart; one with a fault is not, and the
// log says why.
func TestTheFileIsReadAgain(t *testing.T) {
	p := launch(t)
	p.call("POST", p.public, "/v1/upstreams/s/trip", secret)
	more := strings.Replace(p.text, "routes: [", "routes: [{name: more, upstream: s, method: GET, path: /more}, ", 1)
	const other = "another secret"
	more = strings.Replace(more, hashed(secret), hashed(other), 1)
	p.configure(strings.Replace(more, "drain_delay: 0s", "drain_delay: 1s", 1))
	polltest.Until(t, "the new route", func() bool {
		_, body := p.call("GET", p.public, "/more", "")
		return strings.Contains(body, "circuit_open")
	}) // still
	if status, _ := p.call("POST", p.public, "/v1/upstreams/s/reset", secret); status != 401 {
		t.Errorf("a client that is gone: %d", status)
	}
	p.call("POST", p.public, "/v1/upstreams/s/reset", other)
	p.configure(strings.Replace(more, "upstream: s, method: GET, path: /more", "upstream: gone, method: GET, path: /more", 1))
	polltest.Until(t, "the refusal", func() bool {
		_, metrics := p.call("GET", p.operations, "/metrics", "")
		return strings.Contains(metrics, `tollgate_reloads_total{result="refused"} 1`)
	})
	if status, body := p.call("GET", p.public, "/more", ""); status != 200 || body != "/more" {
		t.Errorf("after a refused file: %d %s", status, body)
	}
	p.stop()
	for _, want := range []string{"with a restart only", `["shutdown.drain_delay"]`, "reload refused", "routes[0].upstream", "gone"} {
		if !strings.Contains(p.log.String(), want) {
			t.Errorf("the log does not say %s: %s", want, &p.log)
		}
	}
}

func TestWhatNeedsARestart(t *testing.T) {
	c, err := config.Load(shipped, nil, defaults())
	if err != nil {
		t.Fatal(err)
	}
	next := c
	next.Timeouts.Attempt++
	next.Routes = next.Routes[1:]
	next.Management.Clients = []credential.Client{{Name: "desk"}}
	if got := config.NeedRestart(c, next); len(got) > 0 {
		t.Errorf("%v", got)
	}
	next.HTTP.Listen, next.Cache.Memory, next.Redis.Timeout, next.Log.Level = "x", 1, 1, "debug"
	if d := cmp.Diff([]string{"log.level", "cache.memory", "http.listen", "redis.timeout"}, config.NeedRestart(c, next)); d != "" {
		t.Error(d)
	}
}

// The routes that ship are those that the services' own documents describe.
func TestTheRoutesAreTheServicesOwn(t *testing.T) {
	files, err := filepath.Glob("../../examples/python-services/openapi/*.json")
	if err != nil || len(files) != 5 {
		t.Fatal(files, err)
	}
	var described []string
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var document struct {
			Paths map[string]map[string]any `json:"paths"`
		}
		if err := json.Unmarshal(data, &document); err != nil {
			t.Fatal(err)
		}
		for path, methods := range document.Paths {
			for method := range methods {
				if path != "/health" {
					described = append(described, strings.ToUpper(method)+" "+path)
				}
			}
		}
	}
	c, err := config.Load(shipped, nil, defaults())
	if err != nil {
		t.Fatal(err)
	}
	var routed []string
	for _, r := range c.Routes {
		routed = append(routed, r.Method+" "+r.Path)
	}
	slices.Sort(described)
	slices.Sort(routed)
	if d := cmp.Diff(described, routed); d != "" {
		t.Fatal(d)
	}
}

// The document of the management API has what the API answers to, and nothing else.
func TestTheManagementDocument(t *testing.T) {
	data, err := os.ReadFile("../../docs/reference/pyproxy-api.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var document struct {
		Paths map[string]map[string]any `yaml:"paths"`
	}
	if err := yaml.Unmarshal(data, &document); err != nil {
		t.Fatal(err)
	}
	var got []string
	for path, methods := range document.Paths {
		for method := range methods {
			if method != "parameters" {
				got = append(got, strings.ToUpper(method)+" "+path)
			}
		}
	}
	slices.Sort(got)
	want := []string{
		"GET /v1/upstreams", "GET /v1/upstreams/{name}", "POST /v1/cache/{name}/purge",
		"POST /v1/upstreams/{name}/reset", "POST /v1/upstreams/{name}/trip",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Fatal(d)
	}
}
