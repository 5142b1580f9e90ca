package app

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"

	"github.com/tollgate-proxy/tollgate/internal/polltest"
)

// dial connects a client that waits for nothing for ever.
func dial(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(polltest.Patience))
	return conn
}

// A client that owes a body which no handler wants is answered and let go, and one
// that sends it keeps its connection.
func TestAnUnreadBodyHoldsNoConnection(t *testing.T) {
	for _, tc := range []struct {
		name, body string
		wait       time.Duration
		kept       bool
	}{{"owed", "", 100 * time.Millisecond, false}, {"sent", strings.Repeat("x", 1000), time.Minute, true}} {
		t.Run(tc.name, func(t *testing.T) {
			s := httptest.NewServer(boundRest(http.NotFoundHandler(), tc.wait, time.Minute))
			defer s.Close()
			defer s.CloseClientConnections()
			conn := dial(t, s.Listener)
			br := bufio.NewReader(conn)
			ask := func() error {
				io.WriteString(conn, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"+tc.body)
				resp, err := http.ReadResponse(br, nil)
				if err != nil {
					return err
				}
				_, err = io.Copy(io.Discard, resp.Body)
				if err == nil && resp.StatusCode != http.StatusNotFound {
					t.Fatalf("status %d", resp.StatusCode)
				}
				return err
			}
			if err := ask(); err != nil {
				t.Fatal(err)
			}
			if err := ask(); (err == nil) != tc.kept {
				t.Fatalf("asked again: %v", err)
			}
		})
	}
}

// A client that asks again and again and reads nothing fills every buffer, however
// small the answers; one that reads at last keeps its connection.
func TestAnAnswerNobodyReadsHoldsNoConnection(t *testing.T) {
	s := httptest.NewServer(boundRest(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, strings.Repeat("x", 1500)) // less than any buffer
		if r.URL.Path == "/now" {
			w.(http.Flusher).Flush()
		}
	}), time.Minute, 300*time.Millisecond))
	defer s.Close()
	defer s.CloseClientConnections()
	conn := dial(t, s.Listener)
	br := bufio.NewReader(conn)
	for range 2 { // the second after the first one's time
		io.WriteString(conn, "GET /now HTTP/1.1\r\nHost: x\r\n\r\n")
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		<-time.After(400 * time.Millisecond)
	}
	var err error
	for err == nil {
		_, err = io.WriteString(conn, strings.Repeat("GET / HTTP/1.1\r\nHost: x\r\n\r\n", 100))
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("not let go")
	}
}

// A client of HTTP/2 that grants every window and takes nothing off the connection
// ends the handler that writes to it.
func TestAnHTTP2ClientThatTakesNothingIsLetGo(t *testing.T) {
	over := make(chan error, 1)
	s := newServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var err error
		for part := make([]byte, 64<<10); err == nil; {
			_, err = w.Write(part)
		}
		over <- err
	}), time.Minute, 300*time.Millisecond)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(l)
	defer s.Close()
	conn := dial(t, l)
	io.WriteString(conn, http2.ClientPreface)
	frames := http2.NewFramer(conn, nil)
	var headers bytes.Buffer
	fields := hpack.NewEncoder(&headers)
	for _, f := range []hpack.HeaderField{{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "http"}, {Name: ":authority", Value: "x"}, {Name: ":path", Value: "/"}} {
		fields.WriteField(f)
	}
	err = errors.Join(
		frames.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1}),
		frames.WriteWindowUpdate(0, 1<<30),
		frames.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: headers.Bytes(), EndStream: true, EndHeaders: true}),
	)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-over:
	case <-time.After(polltest.Patience):
		t.Fatal("not let go")
	}
}

func TestALargeHeaderOfACallIsRefused(t *testing.T) {
	r := launch(t, "", func(_ context.Context, _ sample, rt *Runtime) error {
		return rt.ServeGRPC("grpc", "127.0.0.1:0", func(*grpc.Server) {})
	})
	defer func() { r.stop(); <-r.code }()
	conn, err := grpc.NewClient(r.rt.Addr("grpc"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := grpc_health_v1.NewHealthClient(conn)
	for size, fine := range map[int]bool{MaxHeaderBytes / 2: true, 2 * MaxHeaderBytes: false} {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "x", strings.Repeat("x", size))
		if _, err := client.Check(ctx, &grpc_health_v1.HealthCheckRequest{}); (err == nil) != fine {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

// A client that stays until the end does not make a clean stop look failed.
func TestALongAnswerDoesNotFailTheStop(t *testing.T) {
	r := launch(t, "shutdown: {timeout: 50ms}", func(_ context.Context, _ sample, rt *Runtime) error {
		rt.Background("work", func(ctx context.Context) error { <-ctx.Done(); return nil })
		return rt.ServeHTTP("http", "127.0.0.1:0", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}))
	})
	resp, err := http.Get("http://" + r.rt.Addr("http"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	r.stop()
	if code := <-r.code; code != 0 {
		t.Fatalf("exit %d: %s", code, r.log)
	}
}
