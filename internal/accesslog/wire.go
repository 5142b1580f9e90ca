package accesslog

import (
	"errors"
	"strings"
	"time"
	"unicode/utf8"

	datav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/tollgate-proxy/tollgate/internal/wirecodec"
)

var errMalformed = errors.New("not a StreamAccessLogsMessage")

// message is a StreamAccessLogsMessage, as far as it is looked at. With
// generated code reading one entry costs as much CPU as deciding the request
// that it is about.
type message struct {
	outcomes []Outcome
	ignored  int // entries that say nothing about a finished HTTP request
}

// UnmarshalWire implements wirecodec.Unmarshaler. Texts are copied out of data.
func (m *message) UnmarshalWire(data []byte) error {
	m.outcomes, m.ignored = m.outcomes[:0], 0
	http := true // log_entries is a oneof: the last kind counts
	tcp := 0
	ok := each(string(data), func(f wirecodec.Field) bool {
		switch {
		case f.Is(2, protowire.BytesType):
			if !http {
				http, tcp = true, 0
			}
			return each(f.Bytes, m.entry)
		case f.Is(3, protowire.BytesType):
			if http {
				http, m.outcomes, m.ignored = false, m.outcomes[:0], 0
			}
			return each(f.Bytes, func(f wirecodec.Field) bool {
				if f.Is(1, protowire.BytesType) {
					tcp++
				}
				return true
			})
		}
		return true
	})
	if !ok {
		return errMalformed
	}
	m.ignored += tcp
	return nil
}

// each calls step for every field of a message, until one is refused.
func each(s string, step func(wirecodec.Field) bool) bool {
	for s != "" {
		f, rest, ok := wirecodec.Next(s)
		if !ok || !step(f) {
			return false
		}
		s = rest
	}
	return true
}

// text takes a string, a copy of it; it reports false for invalid UTF-8.
func text(f wirecodec.Field, to *string) bool {
	*to = strings.Clone(f.Bytes)
	return utf8.ValidString(f.Bytes)
}

func (m *message) entry(f wirecodec.Field) bool {
	if !f.Is(1, protowire.BytesType) {
		return true
	}
	var e logEntry
	if !each(f.Bytes, e.part) {
		return false
	}
	switch e.kind {
	case datav3.AccessLogType_NotSet, datav3.AccessLogType_DownstreamEnd:
	default: // the request goes on, and its last entry says it all
		m.ignored++
		return true
	}
	o, ok := e.finish()
	m.outcomes = append(m.outcomes, o)
	return ok
}

// logEntry is an HTTPAccessLogEntry on its way to an Outcome.
type logEntry struct {
	Outcome
	kind                    datav3.AccessLogType
	start, took, downstream span
	decided                 string // the Struct that authz returned
}

// span is a Timestamp or a Duration; there tells one of zero from none.
type span struct {
	there   bool
	seconds int64
	nanos   int32
}

func (s *span) read(f wirecodec.Field) bool {
	s.there = true
	return each(f.Bytes, func(f wirecodec.Field) bool {
		switch {
		case f.Is(1, protowire.VarintType):
			s.seconds = int64(f.Value) //nolint:gosec // two's complement on the wire
		case f.Is(2, protowire.VarintType):
			s.nanos = int32(f.Value) //nolint:gosec // an int32 keeps the lower 32 bits
		}
		return true
	})
}

func (e *logEntry) part(f wirecodec.Field) bool {
	switch {
	case f.Is(1, protowire.BytesType):
		return each(f.Bytes, e.common)
	case f.Is(3, protowire.BytesType):
		return each(f.Bytes, e.request)
	case f.Is(4, protowire.BytesType):
		return each(f.Bytes, e.response)
	}
	return true
}

func (e *logEntry) common(f wirecodec.Field) bool {
	switch {
	case f.Is(5, protowire.BytesType):
		return e.start.read(f)
	case f.Is(12, protowire.BytesType):
		return e.downstream.read(f)
	case f.Is(17, protowire.BytesType):
		return each(f.Bytes, e.metadata)
	case f.Is(23, protowire.BytesType):
		return e.took.read(f)
	case f.Is(33, protowire.VarintType):
		e.kind = datav3.AccessLogType(f.Value) //nolint:gosec // an enum keeps the lower 32 bits
	}
	return true
}

// metadata finds authz's Struct. A later one of the same name replaces it.
func (e *logEntry) metadata(f wirecodec.Field) bool {
	if !f.Is(1, protowire.BytesType) {
		return true
	}
	name, value, ok := pair(f.Bytes)
	if ok && name == metadataNamespace {
		e.decided = value
	}
	return ok
}

// pair reads an entry of a map from strings to messages.
func pair(s string) (key, value string, ok bool) {
	ok = each(s, func(f wirecodec.Field) bool {
		switch {
		case f.Is(1, protowire.BytesType):
			key = f.Bytes
			return utf8.ValidString(key)
		case f.Is(2, protowire.BytesType):
			value += f.Bytes // messages behind one another are merged
		}
		return true
	})
	return key, value, ok
}

func (e *logEntry) request(f wirecodec.Field) bool {
	switch {
	case f.Is(9, protowire.BytesType):
		return text(f, &e.RequestID)
	case f.Is(12, protowire.VarintType):
		e.RequestBytes = f.Value
	}
	return true
}

func (e *logEntry) response(f wirecodec.Field) bool {
	switch {
	case f.Is(1, protowire.BytesType): // UInt32Value
		return each(f.Bytes, func(f wirecodec.Field) bool {
			if f.Is(1, protowire.VarintType) {
				e.Status = int(uint32(f.Value)) //nolint:gosec // a uint32 keeps the lower 32 bits
			}
			return true
		})
	case f.Is(3, protowire.VarintType):
		e.ResponseBytes = f.Value
	case f.Is(6, protowire.BytesType):
		return text(f, &e.Details)
	}
	return true
}

// finish makes the outcome. What is missing stays empty.
func (e *logEntry) finish() (Outcome, bool) {
	ok := each(e.decided, func(f wirecodec.Field) bool {
		if !f.Is(1, protowire.BytesType) {
			return true
		}
		key, value, ok := pair(f.Bytes)
		if to := e.decision(key); ok && to != nil {
			*to = ""
			ok = each(value, func(f wirecodec.Field) bool { return said(f, to) })
		}
		return ok
	})
	took := e.took
	if !took.there {
		took = e.downstream
	}
	e.Duration = max(0, (&durationpb.Duration{Seconds: took.seconds, Nanos: took.nanos}).AsDuration())
	e.Start = time.Unix(e.start.seconds, int64(e.start.nanos)).UTC()
	return e.Outcome, ok
}

// said takes a Value that is a string; any other kind leaves nothing.
func said(f wirecodec.Field, to *string) bool {
	switch {
	case f.Is(3, protowire.BytesType):
		return text(f, to)
	case f.Is(1, protowire.VarintType), f.Is(2, protowire.Fixed64Type), f.Is(4, protowire.VarintType), f.Is(5, protowire.BytesType), f.Is(6, protowire.BytesType):
		*to = ""
	}
	return true
}

// decision says where a value of authz's goes; nil for one that is not looked at.
func (e *logEntry) decision(key string) *string {
	switch key {
	case "user":
		return &e.User
	case "session":
		return &e.Session
	case "tier":
		return &e.Tier
	case "endpoint":
		return &e.Endpoint
	case "experiments":
		return &e.Experiments
	case "visitor":
		return &e.Visitor
	case "decision_id":
		return &e.DecisionID
	case "code":
		return &e.Code
	}
	return nil
}
