package telemetry

import (
	"bytes"
	"net"
	"strings"
	"sync"
	"testing"

	"context"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"

	"github.com/tollgate-proxy/tollgate/internal/config"
)

type root struct {
	Log     LogConfig     `yaml:"log"`
	Tracing TracingConfig `yaml:"tracing"`
}

func defaults() root { return root{DefaultLog(), DefaultTracing()} }

func TestConfig(t *testing.T) {
	if _, err := config.Decode("x.yaml", []byte("tracing: {endpoint: 'http://127.0.0.1:4317'}"), defaults()); err != nil {
		t.Error(err)
	}
	for text, want := range map[string]string{
		"log: {level: loud}":                                       "log.level",
		"log: {format: xml}":                                       "log.format",
		"tracing: {sample_ratio: 1.5}":                             "tracing.sample_ratio",
		"tracing: {endpoint: '127.0.0.1:4317'}":                    "tracing.endpoint",
		"tracing: {endpoint: 'http://user:hunter2@127.0.0.1:431'}": "tracing.endpoint",
	} {
		_, err := config.Decode("x.yaml", []byte(text), defaults())
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: got %v", text, err)
		}
	}
}

func TestLogger(t *testing.T) {
	var b bytes.Buffer
	NewLogger(LogConfig{Level: "warn", Format: "json"}, &b, "authz").Info("quiet")
	NewLogger(LogConfig{Level: "warn", Format: "json"}, &b, "authz").Warn("loud")
	NewLogger(LogConfig{Level: "debug", Format: "text"}, &b, "authz").Debug("plain")
	if s := b.String(); strings.Contains(s, "quiet") || !strings.Contains(s, `"msg":"loud","process":"authz"`) || !strings.Contains(s, "msg=plain") {
		t.Error(s)
	}
}

func TestMetricsHaveTheBuild(t *testing.T) {
	families, err := NewMetrics("authz", Version("v1")).Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "tollgate_build_info" {
			return
		}
	}
	t.Error("no tollgate_build_info")
}

func TestVersion(t *testing.T) {
	if Version("v1.2.3") != "v1.2.3" || Version("") == "" {
		t.Error("version")
	}
}

func TestNoCollectorMeansNoSpans(t *testing.T) {
	p, stop, err := NewTracing(t.Context(), DefaultTracing(), "authz", "v1")
	if err != nil {
		t.Fatal(err)
	}
	_, span := p.Tracer("x").Start(t.Context(), "x")
	if span.IsRecording() || stop(t.Context()) != nil {
		t.Error("a span is recorded though no collector is configured")
	}
}

type sink struct {
	collector.UnimplementedTraceServiceServer
	mu    sync.Mutex
	names []string
}

func (s *sink) Export(_ context.Context, r *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, rs := range r.GetResourceSpans() {
		for _, ss := range rs.GetScopeSpans() {
			for _, sp := range ss.GetSpans() {
				s.names = append(s.names, sp.GetName())
			}
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

func TestSpansReachTheCollector(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &sink{}
	server := grpc.NewServer()
	collector.RegisterTraceServiceServer(server, s)
	go func() { _ = server.Serve(l) }()
	defer server.Stop()

	p, stop, err := NewTracing(t.Context(), TracingConfig{Endpoint: "http://" + l.Addr().String(), SampleRatio: 1}, "authz", "v1")
	if err != nil {
		t.Fatal(err)
	}
	ctx, span := p.Tracer("x").Start(t.Context(), "check")
	carrier := map[string]string{}
	Propagator().Inject(ctx, mapCarrier(carrier))
	span.End()
	if err := stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.names) != 1 || s.names[0] != "check" || carrier["traceparent"] == "" {
		t.Errorf("spans %v, carrier %v", s.names, carrier)
	}
}

type mapCarrier map[string]string

func (m mapCarrier) Get(k string) string { return m[k] }
func (m mapCarrier) Set(k, v string)     { m[k] = v }
func (m mapCarrier) Keys() []string      { return nil }
