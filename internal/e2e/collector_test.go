package e2e

import (
	"context"
	"encoding/hex"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// collector receives spans by OTLP, over gRPC and over HTTP.
type collector struct {
	collectorpb.UnimplementedTraceServiceServer
	// grpc and http are its addresses.
	grpc, http string

	mu    sync.Mutex
	spans map[string][]span // by trace id
}

// span is what the tests look at.
type span struct {
	service, name, id, parent string
	kind                      tracepb.Span_SpanKind
	attributes                map[string]string
}

func startCollector(t *testing.T) *collector {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &collector{grpc: listener.Addr().String(), spans: map[string][]span{}}
	server := grpc.NewServer()
	collectorpb.RegisterTraceServiceServer(server, c)
	go func() { _ = server.Serve(listener) }() // ends with Stop
	t.Cleanup(server.Stop)
	overHTTP := httptest.NewServer(http.HandlerFunc(c.receive))
	t.Cleanup(overHTTP.Close)
	c.http = overHTTP.Listener.Addr().String()
	return c
}

// Export implements the service.
func (c *collector) Export(_ context.Context, request *collectorpb.ExportTraceServiceRequest) (*collectorpb.ExportTraceServiceResponse, error) {
	c.keep(request)
	return new(collectorpb.ExportTraceServiceResponse), nil
}

func (c *collector) receive(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	request := new(collectorpb.ExportTraceServiceRequest)
	if err != nil || r.URL.Path != "/v1/traces" || proto.Unmarshal(body, request) != nil {
		http.Error(w, "not spans", http.StatusBadRequest)
		return
	}
	c.keep(request)
	w.Header().Set("Content-Type", "application/x-protobuf")
}

func (c *collector) keep(request *collectorpb.ExportTraceServiceRequest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, resource := range request.GetResourceSpans() {
		service := ""
		for _, a := range resource.GetResource().GetAttributes() {
			if a.GetKey() == "service.name" {
				service = a.GetValue().GetStringValue()
			}
		}
		for _, scope := range resource.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				attributes := map[string]string{}
				for _, a := range s.GetAttributes() {
					attributes[a.GetKey()] = a.GetValue().GetStringValue()
				}
				trace := hex.EncodeToString(s.GetTraceId())
				c.spans[trace] = append(c.spans[trace], span{
					service: service, name: s.GetName(), kind: s.GetKind(), attributes: attributes,
					id: hex.EncodeToString(s.GetSpanId()), parent: hex.EncodeToString(s.GetParentSpanId()),
				})
			}
		}
	}
}

// trace returns the spans of a trace that have arrived.
func (c *collector) trace(id string) []span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]span(nil), c.spans[id]...)
}

// draw writes spans as a tree, for messages.
func draw(spans []span) string {
	var b strings.Builder
	known := map[string]bool{}
	for _, s := range spans {
		known[s.id] = true
	}
	var under func(parent string, depth int)
	write := func(s span, depth int) {
		b.WriteString("\n" + strings.Repeat("  ", depth) + s.service + ": " + s.name + " (" + strings.TrimPrefix(s.kind.String(), "SPAN_KIND_") + ")")
		under(s.id, depth+1)
	}
	under = func(parent string, depth int) {
		for _, s := range spans {
			if s.parent == parent {
				write(s, depth)
			}
		}
	}
	for _, s := range spans {
		if !known[s.parent] {
			write(s, 1)
		}
	}
	return b.String()
}
