package accesslog

import (
	"testing"
	"time"

	datav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	alsv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
)

// generated reads an entry with generated code, which is the definition of what
// is right.
func generated(e *datav3.HTTPAccessLogEntry) Outcome {
	common, request, response := e.GetCommonProperties(), e.GetRequest(), e.GetResponse()
	m := common.GetMetadata().GetFilterMetadata()[metadataNamespace].GetFields()
	text := func(key string) string {
		v, _ := m[key].GetKind().(*structpb.Value_StringValue)
		if v == nil {
			return ""
		}
		return v.StringValue
	}
	duration := common.GetDuration()
	if duration == nil {
		duration = common.GetTimeToLastDownstreamTxByte()
	}
	return Outcome{
		User: text("user"), Session: text("session"), Tier: text("tier"), Endpoint: text("endpoint"),
		Experiments: text("experiments"), Visitor: text("visitor"), DecisionID: text("decision_id"), Code: text("code"),
		RequestID: request.GetRequestId(),
		Status:    int(response.GetResponseCode().GetValue()),
		Details:   response.GetResponseCodeDetails(),
		Start:     common.GetStartTime().AsTime(), Duration: max(0, duration.AsDuration()),
		RequestBytes: request.GetRequestBodyBytes(), ResponseBytes: response.GetResponseBodyBytes(),
	}
}

// expected is what reading a message by hand must find.
func expected(m *alsv3.StreamAccessLogsMessage) (outcomes []Outcome, ignored int) {
	ignored = len(m.GetTcpLogs().GetLogEntry())
	for _, e := range m.GetHttpLogs().GetLogEntry() {
		switch e.GetCommonProperties().GetAccessLogType() {
		case datav3.AccessLogType_NotSet, datav3.AccessLogType_DownstreamEnd:
			outcomes = append(outcomes, generated(e))
		default:
			ignored++
		}
	}
	return outcomes, ignored
}

func wire(t testing.TB, entries ...*datav3.HTTPAccessLogEntry) []byte {
	t.Helper()
	data, err := proto.Marshal(&alsv3.StreamAccessLogsMessage{
		Identifier: &alsv3.StreamAccessLogsMessage_Identifier{LogName: "tollgate"},
		LogEntries: &alsv3.StreamAccessLogsMessage_HttpLogs{HttpLogs: &alsv3.StreamAccessLogsMessage_HTTPAccessLogEntries{LogEntry: entries}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestOddEntries(t *testing.T) {
	e := entry(t)
	e.CommonProperties.Duration = nil
	e.CommonProperties.TimeToLastDownstreamTxByte = durationpb.New(time.Second)
	e.CommonProperties.Metadata.FilterMetadata[metadataNamespace].Fields["user"] = structpb.NewNumberValue(7)
	past := proto.CloneOf(e)
	past.CommonProperties.TimeToLastDownstreamTxByte = durationpb.New(-time.Second)
	begun := proto.CloneOf(e)
	begun.CommonProperties.AccessLogType = datav3.AccessLogType_DownstreamPeriodic
	var m message
	if err := m.UnmarshalWire(wire(t, e, past, begun)); err != nil {
		t.Fatal(err)
	}
	if len(m.outcomes) != 2 || m.ignored != 1 {
		t.Fatalf("got %+v", m)
	}
	if o := m.outcomes[0]; o.Duration != time.Second || o.User != "" || o.Tier != "premium" {
		t.Errorf("got %+v", o)
	}
	if o := m.outcomes[1]; o.Duration != 0 {
		t.Errorf("a negative duration: %v", o.Duration)
	}
}

// TestMerged holds what comes twice to what generated code makes of it: the last
// scalar counts, messages are merged, and of HTTP and TCP entries the last kind.
func TestMerged(t *testing.T) {
	one := wire(t, entry(t))
	tcp, err := proto.Marshal(&alsv3.StreamAccessLogsMessage{LogEntries: &alsv3.StreamAccessLogsMessage_TcpLogs{TcpLogs: &alsv3.StreamAccessLogsMessage_TCPAccessLogEntries{LogEntry: []*datav3.TCPAccessLogEntry{{}, {}}}}})
	if err != nil {
		t.Fatal(err)
	}
	// An entry whose parts are there twice, the second time without some.
	e, err := proto.Marshal(entry(t))
	if err != nil {
		t.Fatal(err)
	}
	other := entry(t)
	other.CommonProperties.Duration, other.Response = nil, nil
	delete(other.CommonProperties.Metadata.FilterMetadata[metadataNamespace].Fields, "tier")
	other.CommonProperties.Metadata.FilterMetadata[metadataNamespace].Fields["user"] = structpb.NewBoolValue(true)
	o, err := proto.Marshal(other)
	if err != nil {
		t.Fatal(err)
	}
	both := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), append(e, o...))
	merged := protowire.AppendBytes(protowire.AppendTag(nil, 2, protowire.BytesType), both)
	for name, data := range map[string][]byte{
		"twice": append(one[:len(one):len(one)], one...), "HTTP, then TCP": append(one[:len(one):len(one)], tcp...),
		"TCP, then HTTP": append(tcp[:len(tcp):len(tcp)], one...), "merged": merged,
	} {
		if !same(t, data) {
			t.Errorf("%s: refused", name)
		}
	}
}

// same holds reading by hand equal to generated code, and says whether data is
// a message.
func same(t *testing.T, data []byte) bool {
	t.Helper()
	var m message
	var g alsv3.StreamAccessLogsMessage
	if proto.Unmarshal(data, &g) != nil {
		_ = m.UnmarshalWire(data) // reads less, and so may find no fault
		return false
	}
	if err := m.UnmarshalWire(data); err != nil {
		t.Fatalf("%x: %v", data, err)
	}
	outcomes, ignored := expected(&g)
	if diff := cmp.Diff(outcomes, m.outcomes, cmpopts.EquateEmpty()); diff != "" || ignored != m.ignored {
		t.Errorf("%x: %d ignored, want %d\n%s", data, m.ignored, ignored, diff)
	}
	return true
}

func TestMalformed(t *testing.T) {
	good := wire(t, entry(t))
	for i := 1; i < len(good); i++ {
		same(t, good[:i])
	}
	bad := entry(t)
	broken := wire(t, bad)
	at := len(broken) - len("via_upstream")
	broken[at] = 0xff // no UTF-8
	var m message
	if err := m.UnmarshalWire(broken); err == nil {
		t.Error("a text that is no UTF-8 is taken")
	}
}

func FuzzMessage(f *testing.F) {
	f.Add(wire(f, entry(f)))
	f.Add(wire(f, entry(f), &datav3.HTTPAccessLogEntry{}))
	f.Fuzz(func(t *testing.T, data []byte) { same(t, data) })
}

func BenchmarkMessage(b *testing.B) {
	var entries []*datav3.HTTPAccessLogEntry
	for range 12 { // about the 16 KiB after which Envoy sends
		entries = append(entries, entry(b))
	}
	data := wire(b, entries...)
	b.Run("by hand", func(b *testing.B) {
		b.ReportAllocs()
		var m message
		for b.Loop() {
			if err := m.UnmarshalWire(data); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("generated", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			var m alsv3.StreamAccessLogsMessage
			if err := proto.Unmarshal(data, &m); err != nil {
				b.Fatal(err)
			}
			expected(&m)
		}
	})
}
