package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/tollgate-proxy/tollgate/internal/echo"
	"github.com/tollgate-proxy/tollgate/internal/stack"
)

// rogue is one more service behind pyproxy, which breaks HTTP in ways that no
// framework can be told to. The last segment of the path says how; "ok" echoes.
type rogue struct{ address string }

// rogueWays are the last segments, and what rogue does. Those without bytes are
// served by the handler.
var rogueWays = []struct{ name, bytes string }{
	{"ok", ""},
	{"hang", ""},
	{"stall", ""},
	{"reset", ""},
	{"garbage", "\x00\xff\xfe this is no HTTP\r\n\r\n"},
	{"silent", " "}, // one byte, then nothing
	{"cut", "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{\"half\":"},
	{"cut-chunked", "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n{\"half\":\r\n"},
	{"bad-chunk", "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n{\"half\":\r\nzz\r\n"},
	{"two-lengths", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 4\r\n\r\n{}{}"},
	{"huge-header", "HTTP/1.1 200 OK\r\nX-Huge: " + strings.Repeat("x", 100<<10) + "\r\nContent-Length: 2\r\n\r\n{}"},
}

func startRogue(t *testing.T) *rogue {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(serveRogue))
	t.Cleanup(server.Close)
	t.Cleanup(server.CloseClientConnections)
	return &rogue{address: server.Listener.Addr().String()}
}

func serveRogue(w http.ResponseWriter, r *http.Request) {
	way := path.Base(r.URL.Path)
	if way != "ok" {
		_, _ = io.Copy(io.Discard, r.Body) // only then does the server notice that its client left
	}
	switch way {
	case "ok", "health":
		echo.Handler().ServeHTTP(w, r)
		return
	case "hang":
		<-r.Context().Done()
		return
	case "stall":
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"half":`)) // the proxy may be gone
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		return
	}
	conn, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		panic(err)
	}
	defer func() { _ = conn.Close() }()
	if way == "reset" {
		_ = conn.(*net.TCPConn).SetLinger(0)
		return
	}
	for _, known := range rogueWays {
		if known.name == way {
			_, _ = conn.Write([]byte(known.bytes)) // the proxy may be gone
		}
	}
}

// editConfig gives both pyproxy the rogue upstream, each way with a breaker of its
// own, and short deadlines where a test waits for them.
func (s *system) editConfig(part string, text []byte) []byte {
	if part != stack.Pyproxy1 && part != stack.Pyproxy2 {
		return text
	}
	changed, err := editYAML(text, func(root map[string]any) error {
		upstreams, _ := root["upstreams"].([]any)
		routes, _ := root["routes"].([]any)
		if len(upstreams) == 0 || len(routes) == 0 {
			return errors.New("no upstreams or routes")
		}
		root["upstreams"] = append(upstreams, map[string]any{"name": "e2e", "addresses": []string{s.rogue.address}})
		for _, route := range routes {
			if r, ok := route.(map[string]any); ok && r["name"] == "nlp.languages" {
				r["timeout"], r["total_timeout"] = attemptTimeout, "4s"
			}
		}
		for _, way := range rogueWays {
			for _, method := range []string{http.MethodGet, http.MethodPost} {
				routes = append(routes, map[string]any{
					"name": "e2e." + strings.ToLower(method) + "-" + way.name, "upstream": "e2e", "class": way.name,
					"method": method, "path": "/api/v1/data/e2e/" + way.name, "timeout": attemptTimeout, "total_timeout": "4s",
				})
			}
		}
		root["routes"] = routes
		timeouts, _ := root["timeouts"].(map[string]any)
		timeouts["body_idle"] = attemptTimeout
		return nil
	})
	if err != nil {
		panic(fmt.Errorf("config of %s: %w", part, err))
	}
	return changed
}

// editYAML changes a YAML document as a tree.
func editYAML(text []byte, edit func(root map[string]any) error) ([]byte, error) {
	var tree map[string]any
	if err := yaml.Unmarshal(text, &tree); err != nil {
		return nil, err
	}
	if err := edit(tree); err != nil {
		return nil, err
	}
	return yaml.Marshal(tree)
}
