package rls

import (
	"errors"
	"fmt"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/tollgate-proxy/tollgate/internal/ratelimit"
)

// errText is what the generated code says too: protobuf's text is UTF-8.
var errText = errors.New("a string is not valid UTF-8")

// field is one field of a message: its number and type, and the value as a
// number or as text.
type field struct {
	num    protowire.Number
	typ    protowire.Type
	number uint64
	text   string
}

// is says whether the field has that number and type. One of another type is
// skipped, as the generated code does.
func (f *field) is(num protowire.Number, typ protowire.Type) bool {
	return f.num == num && f.typ == typ
}

// next cuts the first field off s.
func next(s string) (f field, rest string, err error) {
	tag, n := varint(s)
	if n == 0 {
		return f, "", fmt.Errorf("a tag: %w", protowire.ParseError(-1))
	}
	num := tag >> 3
	if num < uint64(protowire.MinValidNumber) || num > uint64(protowire.MaxValidNumber) {
		return f, "", fmt.Errorf("field number %d is out of range", num)
	}
	f.num, f.typ = protowire.Number(num), protowire.Type(tag&7) //nolint:gosec // Checked above.
	s = s[n:]
	switch f.typ {
	case protowire.VarintType:
		f.number, n = varint(s)
		if n == 0 {
			return f, "", fmt.Errorf("field %d: %w", num, protowire.ParseError(-1))
		}
		return f, s[n:], nil
	case protowire.BytesType:
		size, n := varint(s)
		if n == 0 || size > uint64(len(s)-n) {
			return f, "", fmt.Errorf("field %d: %w", num, protowire.ParseError(-1))
		}
		end := n + int(size) //nolint:gosec // At most len(s).
		f.text = s[n:end]
		return f, s[end:], nil
	default:
		// Nothing that is known here; rare enough to copy.
		size := protowire.ConsumeFieldValue(f.num, f.typ, []byte(s))
		if size < 0 {
			return f, "", fmt.Errorf("field %d: %w", num, protowire.ParseError(size))
		}
		return f, s[size:], nil
	}
}

// varint reads a number; n is 0 where there is none.
func varint(s string) (v uint64, n int) {
	for i := range min(len(s), 10) {
		b := s[i]
		if i == 9 && b > 1 {
			return 0, 0
		}
		v |= uint64(b&0x7f) << (7 * i)
		if b < 0x80 {
			return v, i + 1
		}
	}
	return 0, 0
}

// decode reads a RateLimitRequest, reusing what req holds. Strings of req
// share s. More descriptors or entries than are allowed are counted only as
// far as it takes to refuse them.
func decode(s string, req *ratelimit.Request) error {
	*req = ratelimit.Request{Descriptors: req.Descriptors[:0]}
	for s != "" {
		f, rest, err := next(s)
		if err != nil {
			return err
		}
		s = rest
		switch {
		case f.is(1, protowire.BytesType):
			if !utf8.ValidString(f.text) {
				return errText
			}
			req.Domain = f.text
		case f.is(2, protowire.BytesType):
			at := len(req.Descriptors)
			if at > ratelimit.MaxDescriptors {
				at = ratelimit.MaxDescriptors // Overwrite the one that is too many.
				req.Descriptors = req.Descriptors[:at]
			}
			req.Descriptors = grow(req.Descriptors)
			if err := decodeDescriptor(f.text, &req.Descriptors[at]); err != nil {
				return err
			}
		case f.is(3, protowire.VarintType):
			req.Hits = uint32(f.number) //nolint:gosec // A uint32 field keeps the lower 32 bits.
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
		f, rest, err := next(s)
		if err != nil {
			return err
		}
		s = rest
		switch {
		case f.is(1, protowire.BytesType):
			at := len(d.Entries)
			if at > ratelimit.MaxEntries {
				at = ratelimit.MaxEntries
				d.Entries = d.Entries[:at]
			}
			d.Entries = grow(d.Entries)
			if err := decodeEntry(f.text, &d.Entries[at]); err != nil {
				return err
			}
		case f.is(2, protowire.BytesType):
			if !limited {
				limited, o.Multiple = true, 1
			}
			if err := decodeOverride(f.text, &o); err != nil {
				return err
			}
		case f.is(3, protowire.BytesType):
			d.HasHits = true
			if err := decodeWrapper(f.text, &d.Hits); err != nil {
				return err
			}
		case f.is(4, protowire.VarintType):
			d.Refund = f.number != 0
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
		f, rest, err := next(s)
		if err != nil {
			return err
		}
		s = rest
		if f.typ != protowire.BytesType || f.num > 2 {
			continue
		}
		if !utf8.ValidString(f.text) {
			return errText
		}
		if f.num == 1 {
			e.Key = f.text
		} else {
			e.Value = f.text
		}
	}
	return nil
}

func decodeOverride(s string, o *ratelimit.Override) error {
	for s != "" {
		f, rest, err := next(s)
		if err != nil {
			return err
		}
		s = rest
		switch {
		case f.is(1, protowire.VarintType):
			o.Tokens = uint32(f.number) //nolint:gosec // A uint32 field keeps the lower 32 bits.
		case f.is(2, protowire.VarintType):
			o.Unit = ratelimit.UnknownUnit
			if unit := int32(f.number); unit > 0 && unit <= int32(ratelimit.Week) { //nolint:gosec // An enum keeps the lower 32 bits.
				o.Unit = ratelimit.Unit(unit)
			}
		case f.is(3, protowire.BytesType):
			var multiple uint64
			if err := decodeWrapper(f.text, &multiple); err != nil {
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
		f, rest, err := next(s)
		if err != nil {
			return err
		}
		s = rest
		if f.is(1, protowire.VarintType) {
			*v = f.number
		}
	}
	return nil
}
