package app

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/metric/noop"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/tollgate-proxy/tollgate/internal/config"
	"github.com/tollgate-proxy/tollgate/internal/problem"
)

// OperationsConfig is the section "operations": the side for probes, metrics
// and debugging.
type OperationsConfig struct {
	Listen            string `yaml:"listen" doc:"host:port or unix:///path of /livez, /readyz, /metrics and /debug."`
	DebugSecretSHA256 string `yaml:"debug_secret_sha256" doc:"SHA-256 in hexadecimal of the secret that /debug (profiles) wants as a Bearer token; empty closes /debug."`
}

// Validate checks the section.
func (c OperationsConfig) Validate(r *config.Report) {
	if err := CheckListen(c.Listen); err != nil {
		r.Fault("listen", c.Listen, err.Error())
	}
	if c.DebugSecretSHA256 != "" {
		if b, err := hex.DecodeString(c.DebugSecretSHA256); err != nil || len(b) != sha256.Size {
			r.Fault("debug_secret_sha256", config.NewSecret("x"), "64 hexadecimal digits, or empty")
		}
	}
}

const unixScheme = "unix://"

// CheckListen says what is wrong with an address to listen on: host:port, or
// unix:///path of a socket.
func CheckListen(listen string) error {
	if path, ok := strings.CutPrefix(listen, unixScheme); ok {
		if !filepath.IsAbs(path) || len(path) > 100 {
			return errors.New("unix:// and an absolute path of at most 100 bytes")
		}
		return nil
	}
	if _, port, err := net.SplitHostPort(listen); err != nil || port == "" {
		return errors.New("host:port, or unix:///path of a socket")
	}
	return nil
}

// Listen listens on host:port or unix:///path. A socket file that nobody
// listens on any more is replaced; the new one is for its user and group only.
func Listen(listen string) (net.Listener, error) {
	if err := CheckListen(listen); err != nil {
		return nil, fmt.Errorf("listen on %q: want %w", listen, err)
	}
	path, ok := strings.CutPrefix(listen, unixScheme)
	if !ok {
		return net.Listen("tcp", listen)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = c.Close()
		return nil, fmt.Errorf("listen on %s: another process listens there", listen)
	} else if info, statErr := os.Lstat(path); statErr == nil && info.Mode()&os.ModeSocket != 0 {
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("listen on %s: %w", listen, err)
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o660); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("listen on %s: %w", listen, err)
	}
	return l, nil
}

// ServeGRPC listens and registers a gRPC server with grpc.health.v1, recovery
// from panics, bounds on connections, and tracing where spans are exported.
func (rt *Runtime) ServeGRPC(name, listen string, register func(*grpc.Server), extra ...grpc.ServerOption) error {
	options := append([]grpc.ServerOption{
		grpc.MaxRecvMsgSize(1 << 20),
		grpc.MaxHeaderListSize(MaxHeaderBytes), // not 16 MiB for each of the streams
		grpc.MaxConcurrentStreams(10_000),
		grpc.ConnectionTimeout(10 * time.Second),
		// Goroutines that stay keep their grown stacks; a call that finds none
		// free gets one of its own.
		grpc.NumStreamWorkers(streamWorkers),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Minute, Timeout: 20 * time.Second}),
		grpc.ChainUnaryInterceptor(rt.recoverUnary),
		grpc.ChainStreamInterceptor(rt.recoverStream),
	}, extra...)
	if rt.Tracing {
		options = append(options, grpc.StatsHandler(otelgrpc.NewServerHandler(
			otelgrpc.WithTracerProvider(rt.Tracer),
			otelgrpc.WithPropagators(rt.Propagator),
			otelgrpc.WithMeterProvider(noop.NewMeterProvider()),
		)))
	}
	l, err := Listen(listen)
	if err != nil {
		return err
	}
	s := grpc.NewServer(options...)
	register(s)
	grpc_health_v1.RegisterHealthServer(s, rt.Health.GRPC())
	rt.addrs[name] = l.Addr().String()
	rt.serve(name, func() error { return s.Serve(l) }, func(ctx context.Context) error {
		defer l.Close() // never served, where Wire failed
		done := make(chan struct{})
		go func() {
			s.GracefulStop()
			close(done)
		}()
		select {
		case <-done:
		case <-ctx.Done():
			s.Stop()
			<-done
		}
		return nil
	})
	return nil
}

// streamWorkers is how many goroutines wait for gRPC calls: as many as calls are
// usually under way at once. Measured with 64 under way on one processor, growing
// the stacks of new goroutines was a seventh of authz's time with 4 of them.
const streamWorkers = 128

// Panicked logs the value of a panic, with the stack, and counts it. The servers
// call it for their handlers; whoever starts goroutines within a request calls it
// from the deferred function that recovers there, or the process would end.
func (rt *Runtime) Panicked(where string, value any) {
	rt.metrics.panics.Inc()
	rt.Log.Error("panic", "in", where, "value", fmt.Sprint(value), "stack", string(debug.Stack()))
}

func (rt *Runtime) recoverUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	defer func() {
		if v := recover(); v != nil {
			rt.Panicked(info.FullMethod, v)
			resp, err = nil, status.Error(codes.Internal, "internal error")
		}
	}()
	return handler(ctx, req)
}

func (rt *Runtime) recoverStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	defer func() {
		if v := recover(); v != nil {
			rt.Panicked(info.FullMethod, v)
			err = status.Error(codes.Internal, "internal error")
		}
	}()
	return handler(srv, stream)
}

// MaxHeaderBytes bounds the header of a request to an HTTP server of ours.
const MaxHeaderBytes = 96 << 10

// ServeHTTP listens and registers an HTTP/1.1 and h2c server with recovery from
// panics, bounds on headers and idle connections, and tracing where spans are
// exported. Handlers bound bodies themselves, since some of them stream. A wrap may
// put itself around the listener, and complete the server.
func (rt *Runtime) ServeHTTP(name, listen string, h http.Handler, wrap ...func(net.Listener, *http.Server) net.Listener) error {
	l, err := Listen(listen)
	if err != nil {
		return err
	}
	h = rt.recoverHTTP(name, h)
	if rt.Tracing {
		h = otelhttp.NewHandler(h, name,
			otelhttp.WithTracerProvider(rt.Tracer),
			otelhttp.WithPropagators(rt.Propagator),
			otelhttp.WithMeterProvider(noop.NewMeterProvider()),
			otelhttp.WithSpanNameFormatter(func(_ string, r *http.Request) string { return name + " " + r.Method }),
		)
	}
	rt.serveHTTP(name, l, h, wrap...)
	return nil
}

func (rt *Runtime) serveHTTP(name string, l net.Listener, h http.Handler, wrap ...func(net.Listener, *http.Server) net.Listener) {
	s := newServer(h, restOfBody, restOfAnswer)
	// What it logs is about single broken connections.
	s.ErrorLog = slog.NewLogLogger(rt.Log.Handler(), slog.LevelDebug)
	for _, w := range wrap {
		l = w(l, s)
	}
	rt.addrs[name] = l.Addr().String()
	rt.serve(name, func() error {
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	}, func(ctx context.Context) error {
		defer l.Close() // never served, where Wire failed
		if err := s.Shutdown(ctx); err != nil {
			_ = s.Close()
		}
		return nil
	})
}

// restOfBody is how long a client has for what a handler has left of its body.
const restOfBody = 5 * time.Second

// restOfAnswer is how long a client has to take what a handler has left in buffers.
const restOfAnswer = time.Minute

// newServer returns a server that waits for no client for ever: body and answer are
// how long for what a handler has left, and an HTTP/2 client that takes nothing for
// as long as answer, or does not answer a ping, is let go with all its streams.
func newServer(h http.Handler, body, answer time.Duration) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:           boundRest(h, body, answer),
		Protocols:         protocols,
		HTTP2:             &http.HTTP2Config{WriteByteTimeout: answer, SendPingTimeout: time.Minute, PingTimeout: 15 * time.Second},
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    MaxHeaderBytes,
	}
}

// boundRest bounds how long the server waits for a client once a handler has
// returned. Of a request's body net/http reads what is left, up to 256 KiB, before
// a small answer goes out, and for ever if the client sends nothing; and a small
// answer goes out only then, which takes for ever if the client reads nothing. A
// stream of HTTP/2 has deadlines of its own.
func boundRest(next http.Handler, body, answer time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(w, r)
		rc := http.NewResponseController(w) // the next request has its own deadlines
		if r.ContentLength != 0 {
			_ = rc.SetReadDeadline(time.Now().Add(body))
		}
		if r.ProtoMajor == 1 {
			_ = rc.SetWriteDeadline(time.Now().Add(answer))
		}
	})
}

func (rt *Runtime) recoverHTTP(name string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			v := recover()
			if v == nil {
				return
			}
			if v == http.ErrAbortHandler { //nolint:errorlint // the sentinel itself is what net/http compares
				panic(v) // net/http closes the connection: a broken answer must look broken
			}
			rt.Panicked(name, v)
			problem.Write(w, problem.New(http.StatusInternalServerError, "internal_error", "").WithRequestID(r.Header.Get("X-Request-Id")))
		}()
		next.ServeHTTP(w, r)
	})
}

// serveOperations registers the operations side.
func (rt *Runtime) serveOperations(c OperationsConfig) error {
	l, err := Listen(c.Listen)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", rt.Health.Live)
	mux.HandleFunc("GET /readyz", rt.Health.ServeReady)
	mux.Handle("GET /metrics", promhttp.HandlerFor(rt.Metrics, promhttp.HandlerOpts{Registry: rt.Metrics, EnableOpenMetrics: true}))
	mux.Handle("/debug/", debugHandler(c.DebugSecretSHA256))
	rt.serveHTTP("operations", l, rt.recoverHTTP("operations", mux))
	return nil
}

// debugHandler serves profiles to those who hold the secret.
func debugHandler(secretSHA256 string) http.Handler {
	want, err := hex.DecodeString(secretSHA256)
	if err != nil || len(want) != sha256.Size {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			problem.Write(w, problem.New(http.StatusNotFound, "not_found", "Debugging is closed; operations.debug_secret_sha256 opens it."))
		})
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		secret, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		got := sha256.Sum256([]byte(secret))
		if !ok || subtle.ConstantTimeCompare(got[:], want) != 1 {
			w.Header().Set("WWW-Authenticate", `Bearer realm="tollgate"`)
			problem.Write(w, problem.New(http.StatusUnauthorized, "credentials_required", "Present the debug secret as a Bearer token."))
			return
		}
		mux.ServeHTTP(w, r)
	})
}
