package ratelimit

import (
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/tollgate-proxy/tollgate/internal/config"
	"github.com/tollgate-proxy/tollgate/internal/health"
	"github.com/tollgate-proxy/tollgate/internal/redisconn"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

// TestSpans: the call of Redis for a sampled request is a span below the
// request's, and one that is not sampled has none.
func TestSpans(t *testing.T) {
	recorder := tracetest.NewSpanRecorder()
	tracer := sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.AlwaysSample())), sdktrace.WithSpanProcessor(recorder))
	c := redisconn.Default()
	c.URL = config.NewSecret("redis://" + redistest.Server(t))
	conn, err := redisconn.Open(c, redisconn.Options{
		Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(), Health: health.New(slog.New(slog.DiscardHandler), prometheus.NewRegistry()), Tracer: tracer,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	l := newLab(t, mustLoad(t, shipped), func(o *Options) {
		o.Store, o.Timeout, o.Now = NewRedis(conn.UniversalClient, false), 10*time.Second, time.Now
	})
	ctx, sampled := tracer.Tracer("test").Start(t.Context(), "request")
	req := request(of("free", "u", "x"))
	var dec Decision
	if err := l.Decide(ctx, &req, &dec); err != nil || dec.Path != PathExact {
		t.Fatalf("%+v, %v", dec, err)
	}
	sampled.End()
	below := 0
	for _, s := range recorder.Ended() {
		if s.Name() == "evalsha" && s.Parent().SpanID() == sampled.SpanContext().SpanID() {
			below++
		}
	}
	if below != 1 {
		t.Errorf("%d spans of the call below the request's", below)
	}
	ended := len(recorder.Ended())
	off := sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.NeverSample()))
	ctx, unsampled := off.Tracer("test").Start(t.Context(), "request")
	defer unsampled.End()
	if err := l.Decide(ctx, &req, &dec); err != nil {
		t.Fatal(err)
	}
	for _, s := range recorder.Ended()[ended:] {
		if s.Parent().SpanID() == unsampled.SpanContext().SpanID() {
			t.Errorf("a span %s of a request that is not sampled", s.Name())
		}
	}
}
