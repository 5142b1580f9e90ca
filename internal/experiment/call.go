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
	id, content string
	batches     []*Batch
}

// NewCall returns an empty call of an experiment. Any id will do; for an hour,
// it is one call, with one content.
func NewCall(d *Definition, id string, content []byte) (*Call, error) {
	c := &Call{id: "call-" + digest([]byte(id)), content: digest(content)}
	// A call of which nothing counts has an id too.
	return c, c.begin(d)
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return base64.RawURLEncoding.EncodeToString(sum[:16])
}

// begin begins a batch.
func (c *Call) begin(d *Definition) error {
	b, err := NewBatch(d)
	if err != nil { // not reached: the sketch's error is a constant
		return err
	}
	b.id, b.content = c.id+"."+strconv.Itoa(len(c.batches)), c.content
	c.batches = append(c.batches, b)
	return nil
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
	if err := add(c.batches[len(c.batches)-1]); !errors.Is(err, ErrFull) {
		return err
	}
	if err := c.begin(d); err != nil {
		return err
	}
	return add(c.batches[len(c.batches)-1])
}

// WriteCall writes a call, in one atomic script for each 2,000 entries. After an
// error it may be written again: what had been written counts once. ErrReused
// where its id came with other content within the hour; then nothing is written.
func (r *Recorder) WriteCall(ctx context.Context, c *Call) error {
	for _, b := range c.batches {
		strays, err := r.options.Store.Write(ctx, b)
		if err != nil {
			return err
		}
		r.astray(b, strays)
	}
	return nil
}
