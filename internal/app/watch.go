package app

import (
	"context"
	"crypto/sha256"
	"log/slog"
	"sync"
	"time"
)

// fileWatch notices changes of files by content. It reads them at an interval:
// that works for every way a file is replaced and on every file system, and the
// files are small.
type fileWatch struct {
	read func(string) ([]byte, error)
	seen map[string][sha256.Size]byte
}

func newFileWatch(paths []string, read func(string) ([]byte, error)) *fileWatch {
	w := &fileWatch{read: read, seen: map[string][sha256.Size]byte{}}
	for _, p := range paths {
		w.seen[p] = w.sum(p)
	}
	return w
}

// sum returns the hash of a file's content; the zero hash where it cannot be
// read, as for a moment while it is replaced.
func (w *fileWatch) sum(path string) [sha256.Size]byte {
	data, err := w.read(path)
	if err != nil {
		return [sha256.Size]byte{}
	}
	return sha256.Sum256(data)
}

// changed says whether a readable file differs from when it was last seen.
func (w *fileWatch) changed() bool {
	found := false
	for p, before := range w.seen {
		now := w.sum(p)
		if now != before && now != [sha256.Size]byte{} {
			w.seen[p], found = now, true
		}
	}
	return found
}

func (w *fileWatch) run(ctx context.Context, interval time.Duration, reload func(context.Context) error) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if w.changed() {
				_ = reload(ctx) // logged and counted there
			}
		}
	}
}

// exportErrors logs errors of the span exporter, at most one a minute.
type exportErrors struct {
	log *slog.Logger
	now func() time.Time

	mu   sync.Mutex
	last time.Time
}

func newExportErrors(log *slog.Logger, now func() time.Time) *exportErrors {
	return &exportErrors{log: log, now: now}
}

// Handle implements otel.ErrorHandler.
func (e *exportErrors) Handle(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if t := e.now(); t.Sub(e.last) >= time.Minute {
		e.last = t
		e.log.Warn("tracing failed; further failures within a minute are not logged", "error", err)
	}
}
