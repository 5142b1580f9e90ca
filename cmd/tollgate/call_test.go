package main

import (
	"strings"
	"testing"
	"time"
)

func TestTableCells(t *testing.T) {
	var out strings.Builder
	rows := []any{"one\ttwo\nthree\x1b[31m", "", "  ", 7, time.Date(2026, 5, 4, 3, 2, 1, 0, time.FixedZone("", 3600))}
	if err := sayTable(&out, "CELL", rows, func(v *any) []any { return []any{*v} }); err != nil {
		t.Fatal(err)
	}
	if want := "CELL\none two three [31m\n-\n-\n7\n2026-05-04 02:02:01\n"; out.String() != want {
		t.Errorf("table %q, want %q", out.String(), want)
	}
}
