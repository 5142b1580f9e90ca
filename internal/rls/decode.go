package rls

import (
	"errors"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/tollgate-proxy/tollgate/internal/ratelimit"
	"github.com/tollgate-proxy/tollgate/internal/wirecodec"
)

// What the generated code says too.
var (
	errText = errors.New("a string is not valid UTF-8")
	errWire = errors.New("not a message on the wire")
)

// decode reads a RateLimitRequest, reusing what req holds. Strings of req
// share s. More descriptors or entries than are allowed are counted only as
// far as it takes to refuse them.
func decode(s string, req *ratelimit.Request) error {
	*req = ratelimit.Request{Descriptors: req.Descriptors[:0]}
	for s != "" {
		f, rest, ok := wirecodec.Next(s)
		if !ok {
			return errWire
		}
		s = rest
		switch {
		case f.Is(1, protowire.BytesType):
			if !utf8.ValidString(f.Bytes) {
				return errText
			}
			req.Domain = f.Bytes
		case f.Is(2, protowire.BytesType):
			at := len(req.Descriptors)
			if at > ratelimit.MaxDescriptors {
				at = ratelimit.MaxDescriptors // Overwrite the one that is too many.
				req.Descriptors = req.Descriptors[:at]
			}
			req.Descriptors = grow(req.Descriptors)
			if err := decodeDescriptor(f.Bytes, &req.Descriptors[at]); err != nil {
				return err
			}
		case f.Is(3, protowire.VarintType):
			req.Hits = uint32(f.Value) //nolint:gosec // A uint32 field keeps the lower 32 bits.
		}
	}
	return nil
}

// grow appends one element, keeping what its place held.
func grow[T any](s []T) []T {
	if len(s) < cap(s) {
		return s[:len(s)+1]
	}
	var zero T
	return append(s, zero)
}

func decodeDescriptor(s string, d *ratelimit.Descriptor) error {
	*d = ratelimit.Descriptor{Entries: d.Entries[:0]}
	var o ratelimit.Override
	limited := false
	for s != "" {
		f, rest, ok := wirecodec.Next(s)
		if !ok {
			return errWire
		}
		s = rest
		switch {
		case f.Is(1, protowire.BytesType):
			at := len(d.Entries)
			if at > ratelimit.MaxEntries {
				at = ratelimit.MaxEntries
				d.Entries = d.Entries[:at]
			}
			d.Entries = grow(d.Entries)
			if err := decodeEntry(f.Bytes, &d.Entries[at]); err != nil {
				return err
			}
		case f.Is(2, protowire.BytesType):
			if !limited {
				limited, o.Multiple = true, 1
			}
			if err := decodeOverride(f.Bytes, &o); err != nil {
				return err
			}
		case f.Is(3, protowire.BytesType):
			d.HasHits = true
			if err := decodeWrapper(f.Bytes, &d.Hits); err != nil {
				return err
			}
		case f.Is(4, protowire.VarintType):
			d.Refund = f.Value != 0
		}
	}
	if limited && o.Unit != ratelimit.UnknownUnit {
		d.Override = &o
	}
	return nil
}

func decodeEntry(s string, e *ratelimit.Entry) error {
	*e = ratelimit.Entry{}
	for s != "" {
		f, rest, ok := wirecodec.Next(s)
		if !ok {
			return errWire
		}
		s = rest
		if f.Type != protowire.BytesType || f.Number > 2 {
			continue
		}
		if !utf8.ValidString(f.Bytes) {
			return errText
		}
		if f.Number == 1 {
			e.Key = f.Bytes
		} else {
			e.Value = f.Bytes
		}
	}
	return nil
}

func decodeOverride(s string, o *ratelimit.Override) error {
	for s != "" {
		f, rest, ok := wirecodec.Next(s)
		if !ok {
			return errWire
		}
		s = rest
		switch {
		case f.Is(1, protowire.VarintType):
			o.Tokens = uint32(f.Value) //nolint:gosec // A uint32 field keeps the lower 32 bits.
		case f.Is(2, protowire.VarintType):
			o.Unit = ratelimit.UnknownUnit
			if unit := int32(f.Value); unit > 0 && unit <= int32(ratelimit.Week) { //nolint:gosec // An enum keeps the lower 32 bits.
				o.Unit = ratelimit.Unit(unit)
			}
		case f.Is(3, protowire.BytesType):
			var multiple uint64
			if err := decodeWrapper(f.Bytes, &multiple); err != nil {
				return err
			}
			o.Multiple = uint32(multiple) //nolint:gosec // A uint32 field keeps the lower 32 bits.
		}
	}
	return nil
}

// decodeWrapper reads a wrapped number; one that is not there leaves v.
func decodeWrapper(s string, v *uint64) error {
	for s != "" {
		f, rest, ok := wirecodec.Next(s)
		if !ok {
			return errWire
		}
		s = rest
		if f.Is(1, protowire.VarintType) {
			*v = f.Value
		}
	}
	return nil
}
