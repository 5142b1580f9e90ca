package envoyconf

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/tollgate-proxy/tollgate/internal/polltest"
)

// gateway is the real Envoy with the shipped configuration between small servers that the test controls.
type gateway struct {
	url, admin string
	authz      *authzStub
	limit      *limitStub
	accessLog  string
}

// seen is what reached a backend, which sends it back as JSON.
type seen struct {
	Upstream string
	Path     string
	Header   http.Header
	Trailer  http.Header
	Body     int
}

// authzStub answers Check with what the test sets and remembers the last request.
type authzStub struct {
	authv3.UnimplementedAuthorizationServer
	server *grpc.Server
	addr   string

	mu     sync.Mutex
	answer func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error)
	last   *authv3.CheckRequest
	calls  int
}

func (s *authzStub) Check(ctx context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	s.mu.Lock()
	s.last, s.calls = r, s.calls+1
	answer := s.answer
	s.mu.Unlock()
	return answer(ctx, r)
}

// set changes the answer and forgets what was asked.
func (s *authzStub) set(answer func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer, s.last, s.calls = answer, nil, 0
}

func (s *authzStub) asked() (*authv3.CheckRequest, int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last, s.calls
}

// limitStub is the same for ShouldRateLimit.
type limitStub struct {
	rlsv3.UnimplementedRateLimitServiceServer
	server *grpc.Server
	addr   string

	mu     sync.Mutex
	answer *rlsv3.RateLimitResponse
	last   *rlsv3.RateLimitRequest
	calls  int
}

func (s *limitStub) ShouldRateLimit(_ context.Context, r *rlsv3.RateLimitRequest) (*rlsv3.RateLimitResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last, s.calls = r, s.calls+1
	return s.answer, nil
}

func (s *limitStub) set(answer *rlsv3.RateLimitResponse) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer, s.last, s.calls = answer, nil, 0
}

func (s *limitStub) asked() (*rlsv3.RateLimitRequest, int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last, s.calls
}

// allow answers OK with metadata, as authz always does, and headers for the backend.
func allow(metadata map[string]any, headers map[string]string) func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	fields, err := structpb.NewStruct(metadata)
	if err != nil {
		panic(err) // a fault of the test itself
	}
	ok := new(authv3.OkHttpResponse)
	for name, value := range headers {
		ok.Headers = append(ok.Headers, &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: name, Value: value}})
	}
	return func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
		return &authv3.CheckResponse{
			Status:          &status.Status{Code: int32(codes.OK)},
			HttpResponse:    &authv3.CheckResponse_OkResponse{OkResponse: ok},
			DynamicMetadata: fields,
		}, nil
	}
}

// ann is the metadata of an ordinary signed-in caller.
func ann() map[string]any {
	return map[string]any{"user": "ann", "tier": "free", "endpoint": "ml", "cost": 5, "decision_id": "d1"}
}

// patience is how long Envoy waits for decisions in tests that are not about that: the machine may be slow.
const patience = time.Minute

// start runs Envoy, which waits so long for decisions; 0 is as shipped. change, when not nil, has the last word on the
// configuration.
func start(t *testing.T, wait time.Duration, change func(*bootstrapv3.Bootstrap)) *gateway {
	t.Helper()
	g := &gateway{authz: &authzStub{}, limit: &limitStub{}}
	g.authz.set(allow(ann(), nil))
	g.limit.set(&rlsv3.RateLimitResponse{OverallCode: rlsv3.RateLimitResponse_OK})
	g.authz.server, g.authz.addr = serveGRPC(t, func(s *grpc.Server) { authv3.RegisterAuthorizationServer(s, g.authz) })
	g.limit.server, g.limit.addr = serveGRPC(t, func(s *grpc.Server) { rlsv3.RegisterRateLimitServiceServer(s, g.limit) })

	dir := t.TempDir()
	g.accessLog = filepath.Join(dir, "access.json")
	pyproxy := serveHTTP(t, "pyproxy")
	_, port, err := net.SplitHostPort(pyproxy)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Render(shipped(t), Options{
		Listener: "127.0.0.1:0",
		Admin:    "127.0.0.1:0",
		Clusters: map[string][]Endpoint{
			ClusterAuthz:     {{Address: g.authz.addr}},
			ClusterRateLimit: {{Address: g.limit.addr}},
			ClusterPyproxy:   {{Address: pyproxy, HealthPort: number(t, port)}},
			ClusterBackend:   {{Address: serveHTTP(t, "backend")}},
		},
		AccessLog:       g.accessLog,
		DecisionTimeout: wait,
	})
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(b)
	}
	file, adminFile := filepath.Join(dir, "envoy.yaml"), filepath.Join(dir, "admin")
	if err := WriteFile(file, b); err != nil {
		t.Fatal(err)
	}
	logFile, err := os.Create(filepath.Join(dir, "envoy.log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(envoy(t), "-c", file, "--admin-address-path", adminFile, "--concurrency", "1", "--disable-hot-restart", "--file-flush-interval-msec", "50", "-l", "warn")
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed on purpose
		_ = logFile.Close()
		if t.Failed() {
			said, _ := os.ReadFile(logFile.Name())
			t.Logf("Envoy said:\n%s", said)
		}
	})

	polltest.Until(t, "Envoy is ready", func() bool {
		address, err := os.ReadFile(adminFile)
		if err != nil || len(address) == 0 {
			return false
		}
		g.admin = "http://" + string(address)
		code, _ := get(t, g.admin+"/ready")
		return code == http.StatusOK
	})
	polltest.Until(t, "Envoy finds everybody well", func() bool {
		_, stats := get(t, g.admin+"/stats?filter=membership_(healthy|total)$")
		for _, cluster := range []string{ClusterAuthz, ClusterRateLimit, ClusterPyproxy, ClusterBackend} {
			_, total, _ := strings.Cut(string(stats), "cluster."+cluster+".membership_total: ")
			total, _, found := strings.Cut(total, "\n")
			if !found || !strings.Contains(string(stats), "cluster."+cluster+".membership_healthy: "+total+"\n") {
				return false
			}
		}
		return true
	})
	var listeners struct {
		Statuses []struct {
			Address struct {
				Socket struct {
					Address string `json:"address"`
					Port    int    `json:"port_value"`
				} `json:"socket_address"`
			} `json:"local_address"`
		} `json:"listener_statuses"`
	}
	_, body := get(t, g.admin+"/listeners?format=json")
	if err := json.Unmarshal(body, &listeners); err != nil || len(listeners.Statuses) == 0 {
		t.Fatalf("listeners: %v: %s", err, body)
	}
	socket := listeners.Statuses[0].Address.Socket
	g.url = "http://" + net.JoinHostPort(socket.Address, itoa(socket.Port))
	return g
}

// serveGRPC serves with grpc.health, as Envoy's health check asks for it.
func serveGRPC(t *testing.T, register func(*grpc.Server)) (*grpc.Server, string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	register(server)
	grpc_health_v1.RegisterHealthServer(server, health.NewServer())
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	return server, listener.Addr().String()
}

// serveHTTP serves HTTP/1.1 and h2c, sending back what arrived.
func serveHTTP(t *testing.T, name string) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{
		ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			n, err := io.Copy(io.Discard, r.Body)
			if err != nil {
				return // Envoy has gone
			}
			w.Header().Set("content-type", "application/json")
			_ = json.NewEncoder(w).Encode(seen{Upstream: name, Path: r.URL.RequestURI(), Header: r.Header, Trailer: r.Trailer, Body: int(n)})
		}),
		Protocols: new(http.Protocols),
	}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	return listener.Addr().String()
}

// get fetches url; a refused connection is status 0.
func get(t *testing.T, url string) (int, []byte) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		return 0, nil
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, nil
	}
	return resp.StatusCode, body
}

// send makes one request through the gateway. Header names go out as they are spelt.
func (g *gateway) send(t *testing.T, method, path string, header map[string]string, body io.Reader) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, g.url+path, body)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range header {
		req.Header[name] = []string{value}
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(text)
}

// reach is send for a request that should arrive.
func (g *gateway) reach(t *testing.T, path string, header map[string]string) (seen, *http.Response) {
	t.Helper()
	resp, body := g.send(t, http.MethodGet, path, header, nil)
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %d %s", path, resp.StatusCode, body)
	}
	return decode(t, body), resp
}

func decode(t *testing.T, body string) seen {
	t.Helper()
	var s seen
	if err := json.NewDecoder(strings.NewReader(body)).Decode(&s); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	return s
}
