package pyproxy

import (
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"time"
)

// requestBody watches a client's body while it is streamed to an upstream, so
// that a client that stalls or breaks off is not taken for a failing upstream.
// A nil one is an absent or fully buffered body.
type requestBody struct {
	io.ReadCloser
	now     func() time.Time
	reading atomic.Bool
	waited  atomic.Int64 // nanoseconds in which the client was waited for, before the present read
	err     atomic.Pointer[error]
}

// Read reads from the client.
func (b *requestBody) Read(p []byte) (int, error) {
	start := b.now()
	b.reading.Store(true)
	n, err := b.ReadCloser.Read(p)
	b.reading.Store(false)
	b.waited.Add(int64(b.now().Sub(start)))
	if err != nil && !errors.Is(err, io.EOF) {
		b.err.Store(&err)
	}
	return n, err
}

// slow says whether it is the client that made an attempt reach its time-out: it
// is being waited for, or has taken most of the time.
func (b *requestBody) slow(timeout time.Duration) bool {
	return b != nil && (b.reading.Load() || time.Duration(b.waited.Load()) > timeout/2)
}

// failed is the error that the client's side ended with, or nil.
func (b *requestBody) failed() error {
	if b == nil {
		return nil
	}
	if e := b.err.Load(); e != nil {
		return *e
	}
	return nil
}

// timedBody bounds how long a client may take to send its body. The time also
// ends the read that a cancelled transport waits for, and the server's own of a
// body that nobody has asked for, without which no answer goes out. It is lifted at
// the body's end: the server goes on reading from the connection to notice a
// client that leaves.
type timedBody struct {
	io.ReadCloser
	rc *http.ResponseController
}

// newTimedBody starts the time. A connection without deadlines is read without.
func newTimedBody(body io.ReadCloser, w http.ResponseWriter, within time.Duration) *timedBody {
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Now().Add(within))
	return &timedBody{body, rc}
}

// Read reads from the client.
func (b *timedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		_ = b.rc.SetReadDeadline(time.Time{})
	}
	return n, err
}
