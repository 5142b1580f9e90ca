package pyproxy

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// isUpgrade says whether a request asks for another protocol. Without a Connection
// header that says so, too, ReverseProxy asks the service for none.
func isUpgrade(h http.Header) bool { return h.Get("Upgrade") != "" }

// isSwitch says whether a 101 is what the request has asked for, on a connection
// that can carry it. ReverseProxy would leave any other open.
func isSwitch(req *http.Request, resp *http.Response) bool {
	_, carries := resp.Body.(io.ReadWriteCloser)
	return carries && isUpgrade(req.Header) && strings.EqualFold(req.Header.Get("Upgrade"), resp.Header.Get("Upgrade"))
}

// tunnel is a client's connection that carries another protocol. All that either
// end says passes through it.
type tunnel struct {
	net.Conn
	early  *bufio.Reader // what the server has read already, until that is empty
	within time.Duration
	idle   *time.Timer
}

// tunnel takes over a connection. Both ends are let go when nothing has come from
// either for a while, or the process stops: end, which ends ctx, lets the
// service's go.
func (p *setup) tunnel(ctx context.Context, end func(), c net.Conn, early *bufio.Reader) net.Conn {
	stop := context.AfterFunc(p.streaming, end)
	context.AfterFunc(ctx, func() {
		stop()
		_ = c.Close()
	})
	within := p.config.Streams.Idle
	return &tunnel{Conn: c, early: early, within: within, idle: time.AfterFunc(within, end)}
}

// Read reads from the client.
func (t *tunnel) Read(p []byte) (int, error) {
	var n int
	var err error
	if left := t.early.Buffered(); left > 0 {
		n, err = t.early.Read(p[:min(len(p), left)])
	} else {
		n, err = t.Conn.Read(p)
	}
	return t.moved(n), err
}

// Write writes to the client.
func (t *tunnel) Write(p []byte) (int, error) {
	n, err := t.Conn.Write(p)
	return t.moved(n), err
}

func (t *tunnel) moved(n int) int {
	if n > 0 {
		t.idle.Reset(t.within)
	}
	return n
}

// CloseWrite tells the client that the service has no more to say.
func (t *tunnel) CloseWrite() error {
	if half, ok := t.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// Close ends the connection.
func (t *tunnel) Close() error {
	t.idle.Stop()
	return t.Conn.Close()
}
