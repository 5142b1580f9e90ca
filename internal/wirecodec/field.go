package wirecodec

import "google.golang.org/protobuf/encoding/protowire"

// Field is one field of a message on the wire
// (https://protobuf.dev/programming-guides/encoding/#structure).
type Field struct {
	Number protowire.Number
	Type   protowire.Type
	// Value is that of a varint or a fixed-width number.
	Value uint64
	// Bytes is what a length-delimited field holds: a part of the message.
	Bytes string
}

// Is says whether the field has the number and the type. A known number with
// another type is an unknown field.
func (f *Field) Is(number protowire.Number, t protowire.Type) bool {
	return f.Number == number && f.Type == t
}

// Next splits the first field off a message. A group is skipped as a whole. It
// reports false where the message is none.
func Next(message string) (f Field, rest string, ok bool) {
	tag, s, ok := consumeVarint(message)
	if !ok || tag>>3 < uint64(protowire.MinValidNumber) || tag>>3 > uint64(protowire.MaxValidNumber) {
		return f, "", false
	}
	f.Number, f.Type = protowire.Number(tag>>3), protowire.Type(tag&7) //nolint:gosec // in range, as checked
	switch f.Type {
	case protowire.VarintType:
		f.Value, s, ok = consumeVarint(s)
		return f, s, ok
	case protowire.Fixed64Type:
		f.Value, s, ok = consumeFixed(s, 8)
		return f, s, ok
	case protowire.Fixed32Type:
		f.Value, s, ok = consumeFixed(s, 4)
		return f, s, ok
	case protowire.BytesType:
		n, s, ok := consumeVarint(s)
		if !ok || n > uint64(len(s)) {
			return f, "", false
		}
		f.Bytes = s[:n]
		return f, s[n:], true
	default:
		// A group, which nothing here has: rare enough to copy.
		n := protowire.ConsumeFieldValue(f.Number, f.Type, []byte(s))
		if n < 0 {
			return f, "", false
		}
		return f, s[n:], true
	}
}

func consumeFixed(s string, size int) (value uint64, rest string, ok bool) {
	if len(s) < size {
		return 0, "", false
	}
	for i := range size {
		value |= uint64(s[i]) << (8 * i)
	}
	return value, s[size:], true
}

func consumeVarint(s string) (value uint64, rest string, ok bool) {
	for i := 0; i < len(s) && i < 10; i++ {
		b := s[i]
		if i == 9 && b > 1 {
			return 0, "", false
		}
		value |= uint64(b&0x7f) << (7 * i)
		if b < 0x80 {
			return value, s[i+1:], true
		}
	}
	return 0, "", false
}
