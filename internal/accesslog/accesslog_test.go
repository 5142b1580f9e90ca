package accesslog

import (
	"fmt"
	"net"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	datav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	alsv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tollgate-proxy/tollgate/internal/wirecodec"
)

// collect is a sink that keeps everything.
type collect struct{ outcomes []Outcome }

func (c *collect) Take(o *Outcome) { c.outcomes = append(c.outcomes, *o) }

func entry(t testing.TB) *datav3.HTTPAccessLogEntry {
	t.Helper()
	m, err := structpb.NewStruct(map[string]any{
		"user": "ada", "session": "s-1", "tier": "premium", "endpoint": "ml", "experiments": "ml-v2:1=on", "visitor": "v-1", "decision_id": "d", "cost": 5,
	})
	if err != nil {
		t.Fatal(err)
	}
	return &datav3.HTTPAccessLogEntry{
		CommonProperties: &datav3.AccessLogCommon{
			StartTime: timestamppb.New(time.Unix(1_800_000_000, 0)), Duration: durationpb.New(25 * time.Millisecond),
			Metadata: &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{metadataNamespace: m}},
		},
		Request:  &datav3.HTTPRequestProperties{RequestId: "r-1", RequestBodyBytes: 3, Path: "/secret", RequestHeaders: map[string]string{"x-user-id": "mallory"}},
		Response: &datav3.HTTPResponseProperties{ResponseCode: wrapperspb.UInt32(200), ResponseBodyBytes: 7, ResponseCodeDetails: "via_upstream"},
	}
}

func TestStream(t *testing.T) {
	sink, registry := &collect{}, prometheus.NewRegistry()
	s := New(registry, sink)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(grpc.ForceServerCodecV2(wirecodec.New()))
	alsv3.RegisterAccessLogServiceServer(g, s)
	go func() { _ = g.Serve(l) }()
	defer g.Stop()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stream, err := alsv3.NewAccessLogServiceClient(conn).StreamAccessLogs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	first := entry(t)
	begun := proto.CloneOf(first)
	begun.CommonProperties.AccessLogType = datav3.AccessLogType_DownstreamStart
	for _, m := range []*alsv3.StreamAccessLogsMessage{
		{Identifier: &alsv3.StreamAccessLogsMessage_Identifier{LogName: "tollgate"}},
		{LogEntries: &alsv3.StreamAccessLogsMessage_HttpLogs{HttpLogs: &alsv3.StreamAccessLogsMessage_HTTPAccessLogEntries{LogEntry: []*datav3.HTTPAccessLogEntry{begun, first, {}}}}},
		{LogEntries: &alsv3.StreamAccessLogsMessage_TcpLogs{TcpLogs: &alsv3.StreamAccessLogsMessage_TCPAccessLogEntries{LogEntry: []*datav3.TCPAccessLogEntry{{}}}}},
	} {
		if err := stream.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := stream.CloseAndRecv(); err != nil {
		t.Fatal(err)
	}
	want := []Outcome{{
		User: "ada", Session: "s-1", Tier: "premium", Endpoint: "ml", Experiments: "ml-v2:1=on", Visitor: "v-1", DecisionID: "d", RequestID: "r-1",
		Status: 200, Details: "via_upstream", Start: time.Unix(1_800_000_000, 0).UTC(), Duration: 25 * time.Millisecond, RequestBytes: 3, ResponseBytes: 7,
	}, {Start: time.Unix(0, 0).UTC()}}
	if diff := cmp.Diff(want, sink.outcomes); diff != "" {
		t.Error(diff)
	}
	if n := testutil.ToFloat64(s.metrics.ignored); n != 2 {
		t.Errorf("%v entries ignored", n)
	}
	if n := testutil.ToFloat64(s.metrics.requests.WithLabelValues("ml", "2xx")); n != 1 {
		t.Errorf("%v requests counted", n)
	}
	if n := testutil.ToFloat64(s.metrics.requests.WithLabelValues("none", "none")); n != 1 {
		t.Errorf("%v requests without anything counted", n)
	}
}

// A graceful stop of the server must not wait for Envoy, which ends no stream.
func TestStopEndsStreams(t *testing.T) {
	s := New(prometheus.NewRegistry())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(grpc.ForceServerCodecV2(wirecodec.New()))
	alsv3.RegisterAccessLogServiceServer(g, s)
	go func() { _ = g.Serve(l) }()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stream, err := alsv3.NewAccessLogServiceClient(conn).StreamAccessLogs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&alsv3.StreamAccessLogsMessage{}); err != nil {
		t.Fatal(err)
	}
	s.Stop()
	s.Stop() // twice is no harm
	var answer alsv3.StreamAccessLogsResponse
	if err := stream.RecvMsg(&answer); err != nil {
		t.Errorf("the stream ended with %v", err)
	}
	g.GracefulStop()
}

func TestLabelsAreBounded(t *testing.T) {
	m := newMetrics(prometheus.NewRegistry())
	for i := range 10 * maxEndpoints {
		m.observe(&Outcome{Endpoint: fmt.Sprint("e", i), Status: i})
	}
	if n := testutil.CollectAndCount(m.duration); n > maxEndpoints+1 {
		t.Errorf("%d label values", n)
	}
	for status, want := range map[int]string{0: "none", 101: "1xx", 204: "2xx", 301: "3xx", 404: "4xx", 503: "5xx", 700: "none"} {
		if got := statusClass(status); got != want {
			t.Errorf("%d: %s", status, got)
		}
	}
}
