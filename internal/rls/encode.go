package rls

import (
	"math"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/tollgate-proxy/tollgate/internal/problem"
	"github.com/tollgate-proxy/tollgate/internal/ratelimit"
)

// The codes of an answer.
const (
	codeOK        = 1
	codeOverLimit = 2
)

func code(denied bool) uint64 {
	if denied {
		return codeOverLimit
	}
	return codeOK
}

// append appends the answer as a RateLimitResponse.
func (x *exchange) append(b []byte) ([]byte, error) {
	dec := &x.dec
	b = appendNumber(b, 1, code(!dec.Allowed))
	for i := range dec.Statuses {
		b = appendStatus(b, &dec.Statuses[i])
	}
	if x.server.headers {
		x.value = dec.VisitHeaders(x.value, func(name string, value []byte) { b = appendHeader(b, name, value) })
	}
	if !dec.Allowed {
		b = appendHeader(b, "content-type", []byte(problem.ContentType))
		b = protowire.AppendTag(b, 5, protowire.BytesType)
		b = protowire.AppendBytes(b, x.server.denied)
	}
	s, err := quotaMetadata(&x.req, dec)
	if err != nil {
		return nil, err
	}
	if s != nil {
		m, err := proto.Marshal(s)
		if err != nil {
			return nil, err
		}
		b = protowire.AppendTag(b, 6, protowire.BytesType)
		b = protowire.AppendBytes(b, m)
	}
	return b, nil
}

func appendStatus(b []byte, s *ratelimit.Status) []byte {
	b, status := open(b, 2)
	b = appendNumber(b, 1, code(s.Denied))
	switch {
	case s.Limit != nil:
		var limit int
		b, limit = open(b, 2)
		b = appendNumber(b, 1, uint64(s.Limit.Tokens))
		b = appendNumber(b, 2, uint64(s.Limit.Unit))
		b = protowire.AppendTag(b, 3, protowire.BytesType)
		b = protowire.AppendString(b, s.Limit.Name)
		if s.Limit.Multiple > 1 {
			var wrapper int
			b, wrapper = open(b, 4)
			b = shut(appendNumber(b, 1, uint64(s.Limit.Multiple)), wrapper)
		}
		b = shut(b, limit)
		b = appendNumber(b, 3, uint64(s.Remaining))
		var duration int
		b, duration = open(b, 4)
		b = appendNumber(b, 1, uint64(s.Reset/1e9)) //nolint:gosec // Never negative.
		b = appendNumber(b, 2, uint64(s.Reset%1e9)) //nolint:gosec // Never negative.
		b = shut(b, duration)
	case s.Rule != nil && s.Rule.Unlimited:
		b = appendNumber(b, 3, math.MaxUint32)
	}
	return shut(b, status)
}

func appendHeader[V string | []byte](b []byte, name string, value V) []byte {
	b, header := open(b, 3)
	b = protowire.AppendTag(b, 1, protowire.BytesType)
	b = protowire.AppendString(b, name)
	b = protowire.AppendTag(b, 2, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(len(value)))
	b = append(b, value...)
	return shut(b, header)
}

// appendNumber appends a number; 0 is the default and not written.
func appendNumber(b []byte, num protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), v)
}

// open begins a message within a message and returns where its content
// begins; shut ends it.
func open(b []byte, num protowire.Number) ([]byte, int) {
	b = append(protowire.AppendTag(b, num, protowire.BytesType), 0)
	return b, len(b)
}

// shut writes the length of the message that began at start: mostly one byte,
// else what follows is moved.
func shut(b []byte, start int) []byte {
	size := len(b) - start
	if size < 0x80 {
		b[start-1] = byte(size)
		return b
	}
	n := protowire.SizeVarint(uint64(size))
	var room [10]byte
	b = append(b, room[:n-1]...)
	copy(b[start-1+n:], b[start:start+size])
	protowire.AppendVarint(b[:start-1], uint64(size))
	return b
}

// quotaMetadata tells of descriptors that are over a limit in quota mode, in
// the shape that envoyproxy/ratelimit gives it. Nil where there is none.
func quotaMetadata(req *ratelimit.Request, dec *ratelimit.Decision) (*structpb.Struct, error) {
	var over []any
	for i := range dec.Statuses {
		if s := &dec.Statuses[i]; s.Over && s.Rule.Quota {
			over = append(over, float64(i))
		}
	}
	if over == nil {
		return nil, nil //nolint:nilnil // There is nothing to tell.
	}
	descriptors := make([]any, len(dec.Statuses))
	for i := range descriptors {
		var entries []any
		if i < len(req.Descriptors) {
			for _, e := range req.Descriptors[i].Entries {
				entries = append(entries, e.Key+"="+e.Value)
			}
		}
		d := map[string]any{"entries": entries}
		if r := dec.Statuses[i].Rule; r != nil && len(r.Metadata) > 0 {
			d["metadata"] = r.Metadata
		}
		descriptors[i] = d
	}
	return structpb.NewStruct(map[string]any{
		"domain": req.Domain, "descriptors": descriptors, "quotaModeEnabled": true, "quotaModeViolations": over,
	})
}
