package experiment

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"strconv"
)

// Call collects what one call of a service reports of one experiment, under an
// id of the service's own: written again, as after an answer that was lost, it
// counts once. It is not safe for concurrent use.
type Call struct {
	id      string
	batches []*Batch
}

// NewCall returns an empty call. Any id will do; for an hour, it is one call.
func NewCall(id string) *Call {
	sum := sha256.Sum256([]byte(id))
	return &Call{id: "call-" + base64.RawURLEncoding.EncodeToString(sum[:16])}
}

// Report is [Batch.Report].
func (c *Call) Report(d *Definition, user string, variant int, values ...Value) error {
	return c.into(d, func(b *Batch) error { return b.Report(user, variant, values...) })
}

// Before is [Batch.Before].
func (c *Call) Before(d *Definition, user string, values ...Value) error {
	return c.into(d, func(b *Batch) error { return b.Before(user, values...) })
}

// into adds to the last batch, and to a new one if that is full. The same
// observations in the same order make the same batches.
func (c *Call) into(d *Definition, add func(*Batch) error) error {
	if n := len(c.batches); n > 0 {
		if err := add(c.batches[n-1]); !errors.Is(err, ErrFull) {
			return err
		}
	}
	b, err := NewBatch(d)
	if err != nil { // not reached: the sketch's error is a constant
		return err
	}
	b.id = c.id + "." + strconv.Itoa(len(c.batches))
	c.batches = append(c.batches, b)
	return add(b)
}

// WriteCall writes a call, in one atomic script for each 2,000 entries. After an
// error it may be written again: what had been written counts once.
func (s *Store) WriteCall(ctx context.Context, c *Call) error {
	for _, b := range c.batches {
		if _, err := s.Write(ctx, b); err != nil {
			return err
		}
	}
	return nil
}
