package httpcache

import (
	"context"
	"time"
)

// Store keeps entries and epochs for all replicas. Its methods end with their
// context, and are safe for concurrent use. A missing entry is nil without an
// error.
type Store interface {
	Get(ctx context.Context, key string) ([]byte, error)
	Set(ctx context.Context, key string, value []byte, ttl time.Duration) error
	// Epochs returns every name that was ever purged, with the value of its last purge.
	Epochs(ctx context.Context) (map[string]string, error)
	// SetEpoch records a purge.
	SetEpoch(ctx context.Context, name, value string) error
}
