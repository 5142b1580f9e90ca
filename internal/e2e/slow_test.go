package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/stack"
)

// testSlowClients: who dawdles is sent away and keeps nobody else waiting. The
// deadlines are those of envoy/envoy.yaml made short.
func testSlowClients(t *testing.T, s *system) {
	base := s.secondEnvoy(t, "envoy-slow", func(manager map[string]any) {
		for _, key := range []string{"request_headers_timeout", "request_timeout", "stream_idle_timeout"} {
			if manager[key] == nil {
				t.Errorf("envoy/envoy.yaml does not set %s", key)
			}
		}
		manager["request_headers_timeout"] = "1s"
		manager["request_timeout"] = "2s"
	})
	address := strings.TrimPrefix(base, "http://")
	_, token := s.user(t, "admin")
	dial := func(begin string) net.Conn {
		conn, err := (&net.Dialer{Timeout: askTimeout}).DialContext(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		if _, err := io.WriteString(conn, begin); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	// Many clients that stop within their headers or within their bodies.
	var headers, bodies []net.Conn
	for range 50 {
		headers = append(headers, dial("GET /orders HTTP/1.1\r\nHost: g\r\nX-Slow: "))
		bodies = append(bodies, dial("POST /orders HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer "+token+"\r\nContent-Length: 100\r\n\r\n{"))
	}
	for range 20 {
		s.want(t, http.StatusOK, ask{base: base, path: "/orders", token: token})
	}
	for what, conns := range map[string][]net.Conn{"headers": headers, "body": bodies} {
		for _, conn := range conns {
			if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
				t.Fatal(err)
			}
			response, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				continue // closed without a word
			}
			_ = response.Body.Close()
			if response.StatusCode != http.StatusRequestTimeout && response.StatusCode != http.StatusGatewayTimeout {
				t.Errorf("a client that stopped within its %s was answered %d", what, response.StatusCode)
			}
		}
	}
	s.want(t, http.StatusOK, ask{base: base, path: "/orders", token: token})

	// A client that leaves in the middle of its request or of the answer harms nobody.
	for range 20 {
		_ = dial("POST /api/v1/nlp/detect HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer " + token + "\r\nContent-Length: 100\r\n\r\n{").Close()
		_ = dial("GET /api/v1/data/e2e/hang HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer " + token + "\r\n\r\n").Close()
	}
	s.want(t, http.StatusOK, ask{base: base, path: "/api/v1/data/e2e/ok", token: token})
	await(t, "pyproxy to be done with the clients that left", func() error {
		if n := s.metric(t, stack.Pyproxy1Ops, "tollgate_pyproxy_requests_in_flight") + s.metric(t, stack.Pyproxy2Ops, "tollgate_pyproxy_requests_in_flight"); n != 0 {
			return fmt.Errorf("%v in flight", n)
		}
		return nil
	})
}

// wrong is an error where a status is not the one wanted.
func wrong(got, want int) error {
	if got != want {
		return fmt.Errorf("status %d instead of %d", got, want)
	}
	return nil
}
