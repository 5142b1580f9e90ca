package pyproxy

import (
	"context"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/clocktest"
)

// A client that sends the end of its body just before the time-out leaves the
// service no time: enough such clients must not open its circuit.
func TestATimeoutIsTheClientsThatTookTheTime(t *testing.T) {
	const timeout = 30 * time.Second
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errDeadline)
	for took, want := range map[time.Duration]cause{time.Second: causeTimeout, 4 * time.Second: causeClientSlow} {
		clock := clocktest.New(time.Unix(1_800_000_000, 0))
		slow := iotest.OneByteReader(strings.NewReader("five."))
		body := &requestBody{now: clock.Now, ReadCloser: io.NopCloser(readerFunc(func(p []byte) (int, error) {
			clock.Advance(took)
			return slow.Read(p)
		}))}
		if _, err := io.ReadAll(body); err != nil {
			t.Fatal(err)
		}
		if got := classify(t.Context(), ctx, context.Canceled, body, timeout); got != want {
			t.Errorf("%s a byte: %s, want %s", took, got, want)
		}
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
