// Package accesslog receives Envoy's gRPC access log
// (https://www.envoyproxy.io/docs/envoy/latest/api-v3/service/accesslog/v3/als.proto)
// and hands on what became of each request: who asked, which variants the
// request was dealt, its status, its duration and its size.
//
// Envoy writes an entry after the request, in batches, and drops entries where
// the sink is away: outcomes are good for statistics and for noting that a
// session was used, and no audit. Nothing here is on a request's way. Who asked
// is read from the metadata that authz gave, never from a client's header.
package accesslog

import (
	"errors"
	"io"
	"sync"
	"time"

	alsv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	"github.com/prometheus/client_golang/prometheus"
)

// metadataNamespace is where authz's answer is found in an entry.
const metadataNamespace = "envoy.filters.http.ext_authz"

// Outcome is what became of one request.
type Outcome struct {
	// User is empty for an anonymous request, Session where there is none.
	User, Session, Tier, Endpoint string
	// Experiments are the variants that experiments dealt the request, as authz
	// wrote them, and Visitor the key that they went by where there is no user.
	Experiments, Visitor string
	// DecisionID and RequestID name the request in logs and traces.
	DecisionID, RequestID string
	// Status is the HTTP status; 0 where the client left before there was one.
	Status int
	// Code is authz's code of a refusal, else empty.
	Code string
	// Details say where the answer came from, as Envoy puts it, such as
	// via_upstream or ext_authz_denied.
	Details string
	// Start is when the request came, Duration how long it took until the last
	// byte was sent.
	Start    time.Time
	Duration time.Duration
	// RequestBytes and ResponseBytes are the sizes of the bodies.
	RequestBytes, ResponseBytes uint64
}

// Sink takes outcomes. Take must not block: a sink that cannot keep up drops,
// and counts what it drops. The outcome is the caller's again afterwards.
type Sink interface {
	Take(o *Outcome)
}

// Server implements the access log service, on a gRPC server whose codec is
// wirecodec's. It is safe for concurrent use.
type Server struct {
	alsv3.UnimplementedAccessLogServiceServer
	sinks   []Sink
	metrics *metrics
	stopped chan struct{}
	stop    sync.Once
}

// New makes a server that hands every outcome to every sink.
func New(m prometheus.Registerer, sinks ...Sink) *Server {
	return &Server{sinks: sinks, metrics: newMetrics(m), stopped: make(chan struct{})}
}

// Stop ends all streams, now and from now on: Envoy opens another to another
// replica. What is on its way is lost.
func (s *Server) Stop() { s.stop.Do(func() { close(s.stopped) }) }

// StreamAccessLogs receives entries until Envoy, or Stop, ends the stream.
func (s *Server) StreamAccessLogs(stream alsv3.AccessLogService_StreamAccessLogsServer) error {
	s.metrics.streams.Inc()
	defer s.metrics.streams.Dec()
	ended := make(chan error, 1)
	go func() { ended <- s.receive(stream) }() // ends with the stream, at the latest when this returns
	select {
	case err := <-ended:
		if err != nil {
			return err
		}
	case <-s.stopped:
	}
	return stream.SendAndClose(&alsv3.StreamAccessLogsResponse{})
}

func (s *Server) receive(stream alsv3.AccessLogService_StreamAccessLogsServer) error {
	var m message
	for {
		switch err := stream.RecvMsg(&m); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		s.metrics.ignored.Add(float64(m.ignored))
		for i := range m.outcomes {
			s.metrics.observe(&m.outcomes[i])
			for _, sink := range s.sinks {
				sink.Take(&m.outcomes[i])
			}
		}
	}
}
