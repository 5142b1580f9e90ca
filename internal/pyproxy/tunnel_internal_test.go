package pyproxy

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// An upgraded connection lasts as long as either end speaks, and no longer than is
// allowed after the last word.
func TestATunnelIsIdleFromTheLastWord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &setup{shared: &shared{streaming: context.Background()}, config: Config{Streams: StreamConfig{Idle: time.Minute}}}
		client, ours := net.Pipe()
		ctx, end := context.WithCancel(t.Context())
		c := p.tunnel(ctx, end, ours, bufio.NewReader(strings.NewReader("")))
		for range 5 {
			for _, way := range []struct{ from, to net.Conn }{{client, c}, {c, client}} {
				<-time.After(59 * time.Second)
				go io.WriteString(way.from, "x")
				if _, err := io.ReadFull(way.to, make([]byte, 1)); err != nil {
					t.Fatal(err)
				}
			}
		}
		last := time.Now()
		if _, err := client.Read(make([]byte, 1)); !errors.Is(err, io.EOF) || time.Since(last) != time.Minute || ctx.Err() == nil {
			t.Fatalf("%v after %s", err, time.Since(last))
		}
	})
}
