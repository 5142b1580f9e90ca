package envoyconf

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/tollgate-proxy/tollgate/internal/polltest"
)

func itoa(n int) string { return strconv.Itoa(n) }

func number(t *testing.T, text string) uint32 {
	t.Helper()
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(n)
}

// wantProblem checks the one form that every error of the gateway has.
func wantProblem(t *testing.T, resp *http.Response, body string, status int, code string) {
	t.Helper()
	if resp.StatusCode != status {
		t.Fatalf("status %d, want %d: %s", resp.StatusCode, status, body)
	}
	if got := resp.Header.Get("content-type"); got != "application/problem+json" {
		t.Errorf("content-type %q, want application/problem+json", got)
	}
	var p struct {
		Type, Title, Detail, Code string
		Status                    int
		RequestID                 string `json:"request_id"`
	}
	if err := json.Unmarshal([]byte(body), &p); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	if p.Status != status || p.Code != code || p.Type == "" || p.Title == "" || p.Detail == "" {
		t.Errorf("problem %+v, want status %d and code %q", p, status, code)
	}
	// What Envoy refuses while reading it never gets an id.
	if id := resp.Header.Get("x-request-id"); (id == "" && status >= 500) || p.RequestID != id {
		t.Errorf("request_id %q, header %q", p.RequestID, id)
	}
}

// TestGateway holds every property that envoy/envoy.yaml claims, on the real Envoy.
func TestGateway(t *testing.T) {
	g := start(t, patience, nil)

	t.Run("a client's identity headers never arrive", func(t *testing.T) {
		spoofs := []string{
			"X-User-Id", "x-user-tier", "x-user-roles", "x-session-id", "x-feature-flags", "x-feature-a", "x-consent",
			"x-risk-score", "x-risk-reasons", "x.user.id", "x-user.id", "x.user-tier", "X.Session.Id", "x-session.id",
			"x.consent", "x.feature.flags", "x.risk.score", "x!user!id", "x~consent", "x|session|id", "x'user'id",
			"x-client-trace-id", "x-tollgate-anything", "x-envoy-original-path", "x-envoy-upstream-rq-timeout-ms",
			"x-envoy-retry-on", "x-envoy-max-retries", "x-envoy-force-trace", "x-envoy-internal",
		}
		header := map[string]string{"X-Kept": "yes", "X-Username": "kept too"}
		for _, name := range spoofs {
			header[name] = "spoofed"
		}
		for name, answer := range map[string]map[string]string{
			"authz sets nothing": nil,
			"authz sets its own": {"x-user-id": "ann", "x-feature-flags": "a=on", "x-feature-a": "on", "x-risk-score": "7", "x-consent": "ads", "x-session-id": "s"},
		} {
			g.authz.set(allow(ann(), answer))
			got, _ := g.reach(t, "/", header)
			for key, values := range got.Header {
				if strings.Contains(strings.Join(values, ","), "spoofed") {
					t.Errorf("%s: %s: %v arrived", name, key, values)
				}
			}
			for key, value := range answer {
				if have := got.Header.Values(key); len(have) != 1 || have[0] != value {
					t.Errorf("%s: %s is %v, want only %q", name, key, have, value)
				}
			}
			if got.Header.Get("X-Kept") != "yes" || got.Header.Get("X-Username") != "kept too" {
				t.Errorf("%s: other headers were lost: %v", name, got.Header)
			}
		}
		g.authz.set(allow(ann(), nil))
	})

	t.Run("underscored headers are refused before authz", func(t *testing.T) {
		g.authz.set(allow(ann(), nil))
		resp, body := g.send(t, http.MethodGet, "/", map[string]string{"X_User_Id": "root"}, nil)
		wantProblem(t, resp, body, http.StatusBadRequest, "request_refused")
		if _, calls := g.authz.asked(); calls != 0 {
			t.Errorf("authz was asked %d times", calls)
		}
	})

	t.Run("one path for all", func(t *testing.T) {
		for raw, want := range map[string]string{
			"/a//b": "/a/b", "/a/../b": "/b", "/a/%2e%2e/b": "/b", `/a\b`: "/a/b", "/%61": "/a", "/x/..;/y": "/y",
			"/A;x=1?q=%2F": "/A;x=1?q=%2F",
		} {
			g.authz.set(allow(ann(), nil))
			code, body := rawGet(t, g, raw)
			if code != http.StatusOK {
				t.Errorf("%s: %d %s", raw, code, body)
				continue
			}
			arrived := decode(t, body).Path
			asked, _ := g.authz.asked()
			if told := asked.GetAttributes().GetRequest().GetHttp().GetPath(); told != arrived {
				t.Errorf("%s: authz judged %q, the backend got %q", raw, told, arrived)
			}
			if arrived != want {
				t.Errorf("%s arrived as %q, want %q", raw, arrived, want)
			}
		}
		for _, raw := range []string{"/a%2Fb", "/a%2fb", "/a%5Cb", "/a%00b"} {
			g.authz.set(allow(ann(), nil))
			if code, body := rawGet(t, g, raw); code != http.StatusBadRequest || !strings.Contains(body, "request_refused") {
				t.Errorf("%s: %d %s, want 400", raw, code, body)
			}
			if _, calls := g.authz.asked(); calls != 0 {
				t.Errorf("%s: authz was asked", raw)
			}
		}
	})

	t.Run("routes", func(t *testing.T) {
		for path, want := range map[string]string{
			"/api/v1/ml/predict": "pyproxy", "/api/v1/nlp": "pyproxy", "/api/v1/fraud/assess?x=1": "pyproxy",
			"/api/v1/data/process": "pyproxy", "/api/v1/blockchain/x": "pyproxy",
			"/api/v1/mlx": "backend", "/": "backend", "/healthz": "backend",
		} {
			if got, _ := g.reach(t, path, nil); got.Upstream != want {
				t.Errorf("%s went to %s, want %s", path, got.Upstream, want)
			}
		}
	})

	t.Run("authz gets little, and the true address", func(t *testing.T) {
		g.authz.set(allow(ann(), nil))
		got, resp := g.reach(t, "/", map[string]string{
			"Authorization": "Bearer t", "User-Agent": "u", "X-Other": "o", "X-Forwarded-For": "1.2.3.4",
			"X-Envoy-External-Address": "1.2.3.4", "X-Request-Id": "mine",
		})
		asked, _ := g.authz.asked()
		headers := asked.GetAttributes().GetRequest().GetHttp().GetHeaders()
		id := resp.Header.Get("x-request-id")
		for name, want := range map[string]string{"authorization": "Bearer t", "user-agent": "u", "x-envoy-external-address": "127.0.0.1", "x-request-id": id, "x-other": ""} {
			if headers[name] != want {
				t.Errorf("%s is %q, want %q", name, headers[name], want)
			}
		}
		if id == "" || id == "mine" || got.Header.Get("x-request-id") != id {
			t.Errorf("request id: answer %q, backend %q", id, got.Header.Get("x-request-id"))
		}
	})

	t.Run("traces continue, and only from a valid parent", func(t *testing.T) {
		const id = "0af7651916cd43dd8448eb211c80319c"
		for parent, kept := range map[string]bool{
			"00-" + id + "-b7ad6b7169203331-01": true,
			"garbage":                           false,
			"00-00000000000000000000000000000000-b7ad6b7169203331-01": false,
			"00-" + id + "-0000000000000000-01":                       false,
			"00-" + strings.ToUpper(id) + "-b7ad6b7169203331-01":      false,
			"": false,
		} {
			header := map[string]string{}
			if parent != "" {
				header["traceparent"] = parent
			}
			got, _ := g.reach(t, "/", header)
			arrived := got.Header.Get("traceparent")
			if len(arrived) != 55 || strings.Contains(arrived, id) != kept || arrived == parent {
				t.Errorf("%q became %q; its trace kept: %t is wanted", parent, arrived, kept)
			}
			if len(got.Header.Values("traceparent")) != 1 {
				t.Errorf("%q became %v", parent, got.Header.Values("traceparent"))
			}
			if got.Header.Get("x-envoy-internal") != "" {
				t.Error("the client counts as internal")
			}
		}
	})

	t.Run("more headers than fit", func(t *testing.T) {
		g.authz.set(allow(ann(), map[string]string{"x-user-id": "a", "x-user-tier": "b", "x-feature-flags": "c", "x-session-id": "d"}))
		header := make(map[string]string)
		for i := range 94 {
			header["h-"+itoa(i)] = "1"
		}
		resp, body := g.send(t, http.MethodGet, "/", header, nil)
		wantProblem(t, resp, body, http.StatusRequestHeaderFieldsTooLarge, "request_refused")
		g.authz.set(allow(ann(), nil))
	})

	t.Run("rate limit is asked by metadata", func(t *testing.T) {
		without := func(key string) map[string]any {
			m := ann()
			delete(m, key)
			return m
		}
		anonymous := without("user")
		anonymous["tier"], anonymous["remote_address"] = "anonymous", "127.0.0.1"
		for _, tc := range []struct {
			name     string
			metadata map[string]any
			want     []string
		}{
			{"a user", ann(), []string{"tier=free user=ann endpoint=ml cost=5", "generic_key=floor"}},
			{"anonymous", anonymous, []string{"tier=anonymous remote_address=127.0.0.1 endpoint=ml cost=5", "generic_key=floor"}},
			{"no cost", without("cost"), []string{"generic_key=floor"}},
			{"no tier", without("tier"), []string{"generic_key=floor"}},
			{"nothing", nil, []string{"generic_key=floor"}},
		} {
			g.authz.set(allow(tc.metadata, nil))
			g.limit.set(&rlsv3.RateLimitResponse{OverallCode: rlsv3.RateLimitResponse_OK})
			g.reach(t, "/", map[string]string{"x-user-tier": "admin"})
			asked, _ := g.limit.asked()
			var got []string
			for _, d := range asked.GetDescriptors() {
				var parts []string
				for _, e := range d.GetEntries() {
					parts = append(parts, e.GetKey()+"="+e.GetValue())
				}
				if d.GetHitsAddend() != nil {
					parts = append(parts, "cost="+strconv.FormatUint(d.GetHitsAddend().GetValue(), 10))
				}
				got = append(got, strings.Join(parts, " "))
			}
			if diff := cmp.Diff(tc.want, got); diff != "" || asked.GetDomain() != "tollgate" {
				t.Errorf("%s: domain %q\n%s", tc.name, asked.GetDomain(), diff)
			}
		}
		g.authz.set(allow(ann(), nil))
	})

	t.Run("the servers' own answers arrive", func(t *testing.T) {
		g.limit.set(&rlsv3.RateLimitResponse{
			OverallCode:          rlsv3.RateLimitResponse_OVER_LIMIT,
			RawBody:              []byte(`{"code":"rate_limited"}`),
			ResponseHeadersToAdd: []*corev3.HeaderValue{{Key: "content-type", Value: "application/problem+json"}, {Key: "retry-after", Value: "7"}},
		})
		resp, body := g.send(t, http.MethodGet, "/", nil, nil)
		wantProblem(t, resp, body, http.StatusTooManyRequests, "rate_limited")
		if resp.Header.Get("retry-after") != "7" || len(resp.Header.Values("content-type")) != 1 {
			t.Errorf("429: %v %s", resp.Header, body)
		}
		g.limit.set(&rlsv3.RateLimitResponse{OverallCode: rlsv3.RateLimitResponse_OK})

		g.authz.set(func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
			return &authv3.CheckResponse{
				Status: &status.Status{Code: int32(codes.PermissionDenied)},
				HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
					Status:  &typev3.HttpStatus{Code: typev3.StatusCode_Unauthorized},
					Headers: []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: "content-type", Value: "application/problem+json"}}},
					Body:    `{"code":"token_missing"}`,
				}},
			}, nil
		})
		resp, body = g.send(t, http.MethodGet, "/", nil, nil)
		if resp.StatusCode != http.StatusUnauthorized || body != `{"code":"token_missing"}` || resp.Header.Get("content-type") != "application/problem+json" {
			t.Errorf("401: %d %v %s", resp.StatusCode, resp.Header, body)
		}
		if resp.Header.Get("x-request-id") == "" {
			t.Error("401 without a request id")
		}
		g.authz.set(allow(ann(), nil))
	})

	t.Run("authz may not touch anything else", func(t *testing.T) {
		for _, name := range []string{"host", ":path", "content-length", "x-forwarded-for", "authorization"} {
			g.authz.set(allow(ann(), map[string]string{name: "1"}))
			resp, body := g.send(t, http.MethodGet, "/", nil, nil)
			if resp.StatusCode < 500 {
				t.Errorf("%s: %d %s", name, resp.StatusCode, body)
				continue
			}
			wantProblem(t, resp, body, http.StatusServiceUnavailable, "dependency_unavailable")
		}
		g.authz.set(allow(ann(), map[string]string{"x-user-id": "a\r\nx-user-tier: admin"}))
		resp, body := g.send(t, http.MethodGet, "/", nil, nil)
		wantProblem(t, resp, body, http.StatusServiceUnavailable, "dependency_unavailable")
		g.authz.set(allow(ann(), nil))
	})

	t.Run("bodies have a limit", func(t *testing.T) {
		resp, body := g.send(t, http.MethodPost, "/", nil, bytes.NewReader(make([]byte, 10<<20)))
		if resp.StatusCode != http.StatusOK || decode(t, body).Body != 10<<20 {
			t.Errorf("10 MiB: %d %.200s", resp.StatusCode, body)
		}
		resp, body = g.send(t, http.MethodPost, "/", nil, io.LimitReader(zeros{}, 10<<20+1)) // chunked
		wantProblem(t, resp, body, http.StatusRequestEntityTooLarge, "request_refused")
		resp, body = g.send(t, http.MethodGet, "/", map[string]string{"X-Large": strings.Repeat("a", 64<<10)}, nil)
		wantProblem(t, resp, body, http.StatusRequestHeaderFieldsTooLarge, "request_refused")
	})

	t.Run("admin answers only what is listed", func(t *testing.T) {
		for _, path := range []string{"/quitquitquit", "/logging", "/runtime_modify", "/healthcheck/fail", "/cpuprofiler"} {
			resp, err := http.Post(g.admin+path, "", nil)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusForbidden {
				t.Errorf("%s: %d, want 403", path, resp.StatusCode)
			}
		}
		if code, _ := get(t, g.admin+"/stats/prometheus"); code != http.StatusOK {
			t.Errorf("/stats/prometheus: %d", code)
		}
	})

	t.Run("the access log says what was decided", func(t *testing.T) {
		_, resp := g.reach(t, "/logged?secret=1", nil)
		id := resp.Header.Get("x-request-id")
		var entry map[string]any
		polltest.Until(t, "the entry is written", func() bool {
			text, err := os.ReadFile(g.accessLog)
			if err != nil {
				return false
			}
			for line := range strings.Lines(string(text)) {
				if strings.Contains(line, id) && strings.HasSuffix(line, "\n") {
					return json.Unmarshal([]byte(line), &entry) == nil
				}
			}
			return false
		})
		for key, want := range map[string]any{
			"path": "/logged", "status": 200.0, "user": "ann", "tier": "free", "endpoint": "ml", "cost": 5.0,
			"decision_id": "d1", "route": "backend", "client": "127.0.0.1",
		} {
			if entry[key] != want {
				t.Errorf("%s is %v, want %v", key, entry[key], want)
			}
		}
	})

	// The last ones break what the others need.
	t.Run("without the rate limiter requests pass", func(t *testing.T) {
		g.limit.server.Stop()
		g.reach(t, "/", nil)
		// The alerts and dashboards ask for these by name.
		_, stats := get(t, g.admin+"/stats/prometheus")
		for _, name := range []string{
			"envoy_cluster_ratelimit_ratelimit_failure_mode_allowed", "envoy_cluster_membership_healthy",
			`envoy_http_downstream_rq_xx{envoy_response_code_class="5",envoy_http_conn_manager_prefix="public"}`,
			`envoy_http_downstream_rq_time_bucket{envoy_http_conn_manager_prefix="public"`,
		} {
			if !strings.Contains(string(stats), name) {
				t.Errorf("Envoy has no metric %s", name)
			}
		}
	})

	t.Run("an authz that fails is 503", func(t *testing.T) {
		g.authz.set(func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
			return nil, context.Canceled
		})
		resp, body := g.send(t, http.MethodGet, "/", nil, nil)
		wantProblem(t, resp, body, http.StatusServiceUnavailable, "dependency_unavailable")
	})

	t.Run("no authz is 503", func(t *testing.T) {
		g.authz.server.Stop()
		for range 5 {
			resp, body := g.send(t, http.MethodGet, "/", nil, nil)
			wantProblem(t, resp, body, http.StatusServiceUnavailable, "dependency_unavailable")
		}
	})
}

// TestGatewayDoesNotWait: an authz that does not answer is 503, by the deadline that is shipped.
func TestGatewayDoesNotWait(t *testing.T) {
	g := start(t, 0, nil)
	g.authz.set(func(ctx context.Context, _ *authv3.CheckRequest) (*authv3.CheckResponse, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	resp, body := g.send(t, http.MethodGet, "/", nil, nil)
	wantProblem(t, resp, body, http.StatusServiceUnavailable, "dependency_unavailable")
}

// TestGatewayTrailers sends trailers over HTTP/2 to an HTTP/2 backend, the only way on which they travel.
func TestGatewayTrailers(t *testing.T) {
	g := start(t, patience, func(b *bootstrapv3.Bootstrap) {
		clusters := make(map[string]*clusterv3.Cluster)
		for _, c := range b.GetStaticResources().GetClusters() {
			clusters[c.GetName()] = c
		}
		clusters[ClusterBackend].TypedExtensionProtocolOptions = clusters[ClusterAuthz].GetTypedExtensionProtocolOptions()
	})
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, g.url+"/", io.LimitReader(zeros{}, 10))
	if err != nil {
		t.Fatal(err)
	}
	req.Trailer = http.Header{"X-User-Id": {"root"}, "X.user.tier": {"admin"}, "X-Session-Id": {"s"}, "X-Kept": {"yes"}}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%d %v %s", resp.StatusCode, err, body)
	}
	got := decode(t, string(body)).Trailer
	for name := range got {
		if name != "X-Kept" && len(got[name]) > 0 {
			t.Errorf("trailer %s: %v arrived", name, got[name])
		}
	}
	if got.Get("X-Kept") != "yes" {
		t.Errorf("trailers %v, want X-Kept", got)
	}
}

// TestGatewayTriesAnotherAuthz loses one of two replicas: no client may notice.
func TestGatewayTriesAnotherAuthz(t *testing.T) {
	spare := &authzStub{}
	spare.set(allow(ann(), nil))
	spare.server, spare.addr = serveGRPC(t, func(s *grpc.Server) { authv3.RegisterAuthorizationServer(s, spare) })
	g := start(t, patience, func(b *bootstrapv3.Bootstrap) {
		for _, c := range b.GetStaticResources().GetClusters() {
			if c.GetName() == ClusterAuthz {
				hosts := c.GetLoadAssignment().GetEndpoints()[0]
				other, err := address(spare.addr)
				if err != nil {
					t.Error(err)
					return
				}
				clone := proto.CloneOf(hosts.GetLbEndpoints()[0])
				clone.GetEndpoint().Address = other
				hosts.LbEndpoints = append(hosts.LbEndpoints, clone)
			}
		}
	})
	g.authz.server.Stop()
	for range 40 {
		g.reach(t, "/", nil)
	}
}

// zeros is an endless body of zero bytes.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// rawGet sends path exactly as it is spelt, which net/http would tidy.
func rawGet(t *testing.T, g *gateway, path string) (int, string) {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(g.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET "+path+" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(answer)), nil)
	if err != nil {
		t.Fatalf("%v: %s", err, answer)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}
