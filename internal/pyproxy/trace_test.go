package pyproxy_test

import (
	"slices"
	"testing"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/tollgate-proxy/tollgate/internal/polltest"
	"github.com/tollgate-proxy/tollgate/internal/pyproxy"
)

func TestEveryAttemptHasASpanOfItsOwn(t *testing.T) {
	spans := tracetest.NewSpanRecorder()
	b := newBackend(t, each(cuts(""), says(ok("x"))))
	g := newGate(t, settings(b.address), func(o *pyproxy.Options) {
		o.Tracer = sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))
		o.Propagator = propagation.TraceContext{}
	})
	g.want(g.do("GET", "/get", ""), 200, "")
	polltest.Until(t, "two spans", func() bool { return len(spans.Ended()) == 2 })
	first, second := spans.Ended()[0], spans.Ended()[1]
	if first.Status().Code != codes.Error || second.Status().Code != codes.Unset || first.Name() != "pyproxy get" {
		t.Fatalf("%v %v %s", first.Status(), second.Status(), first.Name())
	}
	var attributes []string
	for _, a := range second.Attributes() {
		attributes = append(attributes, string(a.Key)+"="+a.Value.String())
	}
	for _, want := range []string{"http.request.method=GET", "http.request.resend_count=1", "http.response.status_code=200", "tollgate.upstream=s", "tollgate.route=get", "server.address=" + b.address} {
		if !slices.Contains(attributes, want) {
			t.Errorf("no %s in %v", want, attributes)
		}
	}
	sc := second.SpanContext()
	if got, want := b.last().Header.Get("Traceparent"), "00-"+sc.TraceID().String()+"-"+sc.SpanID().String()+"-01"; got != want {
		t.Fatalf("traceparent %q, want %q", got, want)
	}
}

func TestWithoutTracingTheClientsTraceContextPasses(t *testing.T) {
	b := newBackend(t, says(ok("x")))
	g := newGate(t, settings(b.address))
	const tp = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	g.want(g.do("GET", "/get", "", "Traceparent", tp), 200, "")
	if got := b.last().Header.Get("Traceparent"); got != tp {
		t.Fatal(got)
	}
}
