// Package idleconn keeps idle HTTP/1.1 connections cheaply.
//
// A connection of net/http holds two buffers and a deep goroutine for as long as
// it lives, about 20 KiB, although most keep-alive connections do nothing most of
// the time. A Listener takes a connection that has been idle for a while out of
// the server: the server sees its end, while the Listener waits for the client's
// next byte with a shallow goroutine and no buffer, and then has it accepted
// afresh. The client notices nothing.
//
// HTTP/2 connections, hijacked ones and those with a byte of a next request
// stay with the server.
package idleconn

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Options are how a Listener parks.
type Options struct {
	// After is how long a connection is idle before it is parked.
	After time.Duration
	// Timeout is how long a parked connection may last before it is closed; 0
	// is for ever.
	Timeout time.Duration
	// Released is called, by a goroutine of its own, when many connections have
	// been parked: there is memory to give back. It may be nil.
	Released func()
}

// many is how many parked connections make it worth to give memory back.
const many = 500

// rest is the least time between two such.
const rest = 30 * time.Second

// serverBuffer is the size of net/http's buffer for reading. An idle connection's
// Read for less says that the buffer holds up to three bytes of a next request,
// which parking would lose. Were net/http to change the size, nothing would be
// parked, and the tests would say so.
const serverBuffer = 4 << 10

// Listener is a net.Listener for an http.Server whose ConnState is the
// Listener's State. It is safe for concurrent use.
type Listener struct {
	net.Listener
	options  Options
	accepted chan accepted
	closed   chan struct{}
	once     sync.Once

	mu      sync.Mutex
	parked  map[net.Conn]bool
	since   int  // parked since Released was last called
	release bool // due, or not long ago
}

type accepted struct {
	conn net.Conn
	err  error
}

// Wrap takes over a listener; the server must serve the result, and be given
// its State.
func Wrap(l net.Listener, o Options) *Listener {
	w := &Listener{Listener: l, options: o, accepted: make(chan accepted), closed: make(chan struct{}), parked: map[net.Conn]bool{}}
	go w.accept()
	return w
}

func (l *Listener) accept() {
	for {
		c, err := l.Listener.Accept()
		if !l.offer(c, err) || errors.Is(err, net.ErrClosed) {
			return
		}
	}
}

// offer has a connection accepted; a closed listener's is closed.
func (l *Listener) offer(c net.Conn, err error) bool {
	a := accepted{err: err}
	if err == nil {
		a.conn = &conn{Conn: c, listener: l}
	}
	select {
	case l.accepted <- a:
		return true
	case <-l.closed:
		if c != nil {
			_ = c.Close()
		}
		return false
	}
}

// Accept returns a new connection, or a parked one whose client has spoken.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case a := <-l.accepted:
		return a.conn, a.err
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close ends the listener and all parked connections.
func (l *Listener) Close() error {
	err := l.Listener.Close()
	l.once.Do(func() { close(l.closed) })
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.parked {
		_ = c.Close()
	}
	return err
}

// Parked is how many connections are parked.
func (l *Listener) Parked() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.parked)
}

// State is the server's ConnState.
func (l *Listener) State(c net.Conn, s http.ConnState) {
	if c, ok := c.(*conn); ok {
		c.idle.Store(s == http.StateIdle)
	}
}

// park waits for the client's next byte, and has the connection accepted then.
func (l *Listener) park(c net.Conn) {
	l.mu.Lock()
	l.parked[c] = true
	l.since++
	l.want()
	l.mu.Unlock()
	go l.wait(c)
	select {
	case <-l.closed: // Close may have come before it was entered
		_ = c.Close()
	default:
	}
}

// want has memory given back where that is worth it; l.mu is held.
func (l *Listener) want() {
	if l.since >= many && !l.release && l.options.Released != nil {
		l.release = true
		time.AfterFunc(l.options.After, l.released) // more are being parked
	}
}

func (l *Listener) released() {
	l.mu.Lock()
	l.since = 0
	l.mu.Unlock()
	l.options.Released()
	time.AfterFunc(rest, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.release = false
		l.want()
	})
}

func (l *Listener) wait(c net.Conn) {
	err := readable(c)
	l.mu.Lock()
	delete(l.parked, c)
	l.mu.Unlock()
	if err != nil || c.SetReadDeadline(time.Time{}) != nil {
		_ = c.Close()
		return
	}
	// Accepted by a goroutine of the server: nothing of this one's is held.
	l.offer(c, nil)
}

// readable returns when there is something to read, if only the end.
func readable(c net.Conn) error {
	s, ok := c.(syscall.Conn)
	if !ok {
		return errors.ErrUnsupported
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool {
		p := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}} //nolint:gosec // a descriptor is an int
		n, err := unix.Poll(p[:], 0)
		return n > 0 || err != nil && !errors.Is(err, unix.EINTR)
	})
}

// conn is a connection as the server has it.
type conn struct {
	net.Conn
	listener *Listener

	// Of whoever reads; the server lets one at a time.
	read, http2 bool

	idle     atomic.Bool
	mu       sync.Mutex
	deadline time.Time // as the server set it while idle
	leaves   bool      // for the listener; the server has been told the end
}

// SetReadDeadline remembers the deadline, which parking must not move.
func (c *conn) SetReadDeadline(t time.Time) error {
	if c.idle.Load() {
		c.mu.Lock()
		c.deadline = t
		c.mu.Unlock()
	}
	return c.Conn.SetReadDeadline(t)
}

// CloseWrite ends the answer and not the request, where the connection can.
func (c *conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// Read reads; while the connection is idle, and for too long, it tells the
// server that the client has left.
func (c *conn) Read(p []byte) (int, error) {
	if !c.idle.Load() {
		n, err := c.Conn.Read(p)
		if !c.read && n > 0 {
			c.read = true
			c.http2 = p[0] == 'P' && (n == 1 || p[1] == 'R') // "PRI * HTTP/2.0"
		}
		return n, err
	}
	c.mu.Lock()
	deadline := c.deadline
	c.mu.Unlock()
	parkAt := time.Now().Add(c.listener.options.After)
	_, waits := c.Conn.(syscall.Conn)
	if !waits || c.http2 || len(p) != serverBuffer || !deadline.IsZero() && deadline.Before(parkAt) {
		return c.Conn.Read(p)
	}
	if err := c.Conn.SetReadDeadline(parkAt); err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(p)
	if n == 0 && errors.Is(err, os.ErrDeadlineExceeded) {
		c.mu.Lock()
		c.leaves = true
		c.mu.Unlock()
		return 0, io.EOF
	}
	_ = c.Conn.SetReadDeadline(deadline) // what follows fails anyway where this does
	return n, err
}

// Close closes the connection, or parks it where the server closes it for what
// Read has told.
func (c *conn) Close() error {
	c.mu.Lock()
	leaves := c.leaves
	c.leaves = false
	c.mu.Unlock()
	if !leaves {
		return c.Conn.Close()
	}
	var until time.Time
	if t := c.listener.options.Timeout; t > 0 {
		until = time.Now().Add(t)
	}
	if err := errors.Join(c.Conn.SetReadDeadline(until), c.Conn.SetWriteDeadline(time.Time{})); err != nil {
		return errors.Join(err, c.Conn.Close())
	}
	c.listener.park(c.Conn)
	return nil
}
