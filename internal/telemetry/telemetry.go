// Package telemetry makes the logger, the metrics registry and the tracer
// provider of a process.
//
// Nothing here is global: what is made is handed on. Where no collector is
// configured the tracer provider is a no-op and costs nothing on a request's
// way. Trace context is W3C's (https://www.w3.org/TR/trace-context/); baggage is
// not propagated, since clients choose it.
package telemetry

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"runtime/debug"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/tollgate-proxy/tollgate/internal/config"
)

// LogConfig is the section "log".
type LogConfig struct {
	Level  string `yaml:"level" doc:"Least level that is logged: debug, info, warn or error."`
	Format string `yaml:"format" doc:"json, or text for people."`
}

// Validate checks the section.
func (c LogConfig) Validate(r *config.Report) {
	var level slog.Level
	if level.UnmarshalText([]byte(c.Level)) != nil {
		r.Fault("level", c.Level, "debug, info, warn or error")
	}
	if c.Format != "json" && c.Format != "text" {
		r.Fault("format", c.Format, "json or text")
	}
}

// TracingConfig is the section "tracing".
type TracingConfig struct {
	Endpoint    string  `yaml:"endpoint" doc:"OTLP/gRPC collector, as http://host:4317 or https://host:4317; empty exports nothing."`
	SampleRatio float64 `yaml:"sample_ratio" doc:"Share of traces that begin here to record, 0 to 1; a caller's own decision is kept."`
}

// Validate checks the section.
func (c TracingConfig) Validate(r *config.Report) {
	if c.SampleRatio < 0 || c.SampleRatio > 1 {
		r.Fault("sample_ratio", c.SampleRatio, "a number from 0 to 1")
	}
	if c.Endpoint == "" {
		return
	}
	u, err := url.Parse(c.Endpoint)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.User != nil {
		r.Fault("endpoint", "", "a collector's address such as http://127.0.0.1:4317, without a path or credentials")
	}
}

// Enabled says whether spans are exported.
func (c TracingConfig) Enabled() bool { return c.Endpoint != "" }

// DefaultLog logs JSON from level info.
func DefaultLog() LogConfig { return LogConfig{Level: "info", Format: "json"} }

// DefaultTracing exports nothing, and would record one trace in ten.
func DefaultTracing() TracingConfig { return TracingConfig{SampleRatio: 0.1} }

// NewLogger makes a logger that writes to w. Each line names the process.
func NewLogger(c LogConfig, w io.Writer, process string) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(c.Level)) // validated; info otherwise
	options := &slog.HandlerOptions{Level: level}
	var h slog.Handler = slog.NewJSONHandler(w, options)
	if c.Format == "text" {
		h = slog.NewTextHandler(w, options)
	}
	return slog.New(h).With("process", process)
}

// NewMetrics makes a registry with the collectors that every process has.
func NewMetrics(process, version string) *prometheus.Registry {
	r := prometheus.NewRegistry()
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "tollgate_build_info",
		Help: "1, labelled with the process and its version.",
	}, []string{"process", "version"})
	build.WithLabelValues(process, version).Set(1)
	r.MustRegister(build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// Propagator carries W3C trace context.
func Propagator() propagation.TextMapPropagator { return propagation.TraceContext{} }

// NewTracing makes the tracer provider of a process, and the function that
// flushes and stops it. The exporter connects in the background: a collector
// that is away costs spans, never requests.
func NewTracing(ctx context.Context, c TracingConfig, process, version string) (trace.TracerProvider, func(context.Context) error, error) {
	if !c.Enabled() {
		return noop.NewTracerProvider(), func(context.Context) error { return nil }, nil
	}
	exporter, err := otlptracegrpc.New(ctx, otlptracegrpc.WithEndpointURL(c.Endpoint))
	if err != nil {
		return nil, nil, fmt.Errorf("tracing.endpoint: %w", err)
	}
	res := resource.NewSchemaless(
		attribute.String("service.name", "tollgate-"+process),
		attribute.String("service.namespace", "tollgate"),
		attribute.String("service.version", version),
	)
	p := sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(exporter),
		sdktrace.WithResource(res),
		sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(c.SampleRatio))),
	)
	return p, p.Shutdown, nil
}

// Version returns the version that the binary was built from: set at link time,
// else the module's.
func Version(linked string) string {
	if linked != "" {
		return linked
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "development"
}
