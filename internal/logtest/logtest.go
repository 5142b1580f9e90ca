// Package logtest keeps what code under test writes, for its test to read
// meanwhile: a log, or the output of a process.
package logtest

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
)

// Buffer is an io.Writer that can be read while it is written. The zero value is
// empty and ready. It is safe for concurrent use, and must not be copied.
type Buffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write implements io.Writer; it never fails.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

// String is what has been written so far.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// Count is how often part has been written so far.
func (b *Buffer) Count(part string) int { return strings.Count(b.String(), part) }

// Logger writes to the buffer, a line for each record from Info on.
func (b *Buffer) Logger() *slog.Logger { return slog.New(slog.NewTextHandler(b, nil)) }
