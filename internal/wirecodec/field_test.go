package wirecodec

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
)

func TestNext(t *testing.T) {
	var b []byte
	b = protowire.AppendVarint(protowire.AppendTag(b, 1, protowire.VarintType), 300)
	b = protowire.AppendFixed64(protowire.AppendTag(b, 2, protowire.Fixed64Type), 1<<63+5)
	b = protowire.AppendFixed32(protowire.AppendTag(b, 3, protowire.Fixed32Type), 1<<31+7)
	b = protowire.AppendString(protowire.AppendTag(b, 4, protowire.BytesType), "text")
	b = protowire.AppendTag(b, 5, protowire.StartGroupType)
	b = protowire.AppendTag(b, 6, protowire.StartGroupType)
	b = protowire.AppendVarint(protowire.AppendTag(b, 1, protowire.VarintType), 9)
	b = protowire.AppendTag(b, 6, protowire.EndGroupType)
	b = protowire.AppendTag(b, 5, protowire.EndGroupType)
	want := []Field{
		{Number: 1, Type: protowire.VarintType, Value: 300},
		{Number: 2, Type: protowire.Fixed64Type, Value: 1<<63 + 5},
		{Number: 3, Type: protowire.Fixed32Type, Value: 1<<31 + 7},
		{Number: 4, Type: protowire.BytesType, Bytes: "text"},
		{Number: 5, Type: protowire.StartGroupType},
	}
	s := string(b)
	for _, w := range want {
		f, rest, ok := Next(s)
		if !ok || f != w || !f.Is(w.Number, w.Type) || f.Is(w.Number+1, w.Type) {
			t.Fatalf("Next = %+v, %v; want %+v", f, ok, w)
		}
		s = rest
	}
	if s != "" {
		t.Errorf("%q is left", s)
	}
}

// TestNextMalformed cuts and breaks fields.
func TestNextMalformed(t *testing.T) {
	group := func(depth int) string { return strings.Repeat("\x0b", depth) + strings.Repeat("\x0c", depth) }
	for name, s := range map[string]string{
		"empty":                 "",
		"number 0":              "\x00\x01",
		"number too large":      "\x80\x80\x80\x80\x10\x00",
		"tag cut":               "\x80",
		"tag too long":          strings.Repeat("\xff", 10),
		"varint cut":            "\x08\x80",
		"varint of 65 bits":     "\x08" + strings.Repeat("\xff", 9) + "\x02",
		"fixed64 cut":           "\x091234567",
		"fixed32 cut":           "\x0d123",
		"bytes cut":             "\x0a\x05text",
		"length cut":            "\x0a\x80",
		"group without an end":  "\x0b\x08\x01",
		"group ended by other":  "\x0b\x14",
		"group with a bad part": "\x0b\x08\x80",
		"groups too deep":       group(100_000),
		"an end alone":          "\x0c",
		"type 6":                "\x0e",
	} {
		if f, _, ok := Next(s); ok {
			t.Errorf("%s: %+v", name, f)
		}
	}
	if _, rest, ok := Next(group(100)); !ok || rest != "" {
		t.Error("groups as deep as is allowed are refused")
	}
}

// FuzzNext holds Next equal to protowire.
func FuzzNext(f *testing.F) {
	for _, seed := range []string{"\x08\x96\x01", "\x0a\x01a", "\x09" + "12345678", "\x0d1234", "\x0b\x08\x01\x0c", "\x0b\x13\x14\x0c!"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, rest, ok := Next(s)
		number, kind, n := protowire.ConsumeField([]byte(s))
		if ok != (n > 0 && number <= protowire.MaxValidNumber) {
			t.Fatalf("Next(%q) says %v, protowire %d", s, ok, n)
		}
		if ok && (got.Number != number || got.Type != kind || rest != s[n:]) {
			t.Fatalf("Next(%q) = %+v, %q; protowire %d, %d, %q", s, got, rest, number, kind, s[n:])
		}
	})
}
