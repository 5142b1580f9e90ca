// Package faultproxy is a TCP proxy for tests that breaks the answers of a real
// server in the ways that networks and dying processes do.
//
// It knows no protocol: a fault begins after a number of bytes of the answer, so
// that it can fall before, within or after the headers.
package faultproxy

import (
	"cmp"
	"io"
	"net"
	"strings"
	"sync"
	"time"
)

// Action is what happens to a connection when its fault begins.
type Action uint8

// The actions. Pass is no fault at all.
const (
	Pass    Action = iota
	Hang           // nothing more arrives; the connection stays
	Close          // the connection ends in order
	Reset          // the connection ends with a TCP reset
	Garbage        // bytes that are no HTTP arrive, then the connection ends
	Drip           // bytes arrive one at a time, Fault.Every apart
	Endless        // the same arrives for ever: Fault.Head once, then Fault.Piece
)

// Fault is what is wrong with new connections.
type Fault struct {
	Action Action
	After  int64         // bytes of the answer that arrive before it begins
	Every  time.Duration // pace of Drip
	Head   string        // what Endless begins with
	Piece  string        // what it goes on with; one x where empty
}

// Proxy stands between a client and a server. It is safe for concurrent use.
type Proxy struct {
	listener net.Listener
	to       string
	wg       sync.WaitGroup

	mu       sync.Mutex
	fault    Fault
	open     map[net.Conn]bool
	accepted int
	closed   chan struct{}
}

// New starts a proxy on a free port of the loopback. Close ends it.
func New(to string) (*Proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{listener: l, to: to, open: map[net.Conn]bool{}, closed: make(chan struct{})}
	p.wg.Go(p.accept)
	return p, nil
}

// Address is where the proxy listens.
func (p *Proxy) Address() string { return p.listener.Addr().String() }

// Accepted is how many connections were made to it.
func (p *Proxy) Accepted() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.accepted
}

// Set changes what is wrong, and ends the connections there are, so that no
// healthy one of a client's pool lives on.
func (p *Proxy) Set(f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = f
	for c := range p.open {
		_ = c.Close()
	}
}

// Close ends the proxy and every connection, and waits until they are gone.
func (p *Proxy) Close() {
	close(p.closed)
	_ = p.listener.Close()
	p.Set(Fault{})
	p.wg.Wait()
}

func (p *Proxy) accept() {
	for {
		c, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		p.accepted++
		f := p.fault
		p.open[c] = true
		p.mu.Unlock()
		p.wg.Go(func() { p.carry(c, f) })
	}
}

func (p *Proxy) track(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open[c] = true
}

func (p *Proxy) end(c net.Conn) {
	_ = c.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.open, c)
}

func (p *Proxy) carry(client net.Conn, f Fault) {
	defer p.end(client)
	if f.Action != Pass && f.After == 0 {
		p.strike(client, client, f)
		return
	}
	server, err := net.Dial("tcp", p.to)
	if err != nil {
		return
	}
	p.track(server)
	defer p.end(server)
	p.wg.Go(func() {
		_, _ = io.Copy(server, client)
		if f.Action == Pass {
			_ = server.(*net.TCPConn).CloseWrite() //nolint:forcetypeassert // dialled as tcp
		}
	})
	if f.Action == Pass {
		_, _ = io.Copy(client, server)
		return
	}
	if _, err := io.CopyN(client, server, f.After); err != nil {
		return
	}
	p.strike(client, server, f)
}

// strike does what the fault says; rest is where more of the answer would come
// from.
func (p *Proxy) strike(client net.Conn, rest io.Reader, f Fault) {
	switch f.Action {
	case Hang:
		_, _ = io.Copy(io.Discard, client) // until the client, Set or Close ends it
	case Reset:
		_ = client.(*net.TCPConn).SetLinger(0) //nolint:forcetypeassert // accepted from a TCP listener
	case Garbage:
		_, _ = client.Write([]byte("\x00\xff\x17garbage\r\n\r\n<html>"))
	case Endless:
		pieces := strings.Repeat(cmp.Or(f.Piece, "x"), 32<<10/max(len(f.Piece), 1))
		_, err := io.WriteString(client, f.Head)
		for err == nil {
			_, err = io.WriteString(client, pieces)
		}
	case Drip:
		p.drip(client, rest, f.Every)
	case Pass, Close:
	}
}

func (p *Proxy) drip(client net.Conn, rest io.Reader, every time.Duration) {
	t := time.NewTicker(every)
	defer t.Stop()
	b := make([]byte, 1)
	for {
		select {
		case <-p.closed:
			return
		case <-t.C:
		}
		if _, err := rest.Read(b); err != nil {
			return
		}
		if _, err := client.Write(b); err != nil {
			return
		}
	}
}
