package faultproxy_test

import (
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/faultproxy"
)

const patience = 20 * time.Second

// server answers every line with the same text.
func server(t *testing.T, answer string) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b := make([]byte, 1)
				for {
					if _, err := c.Read(b); err != nil {
						return
					}
					if b[0] == '\n' {
						if _, err := io.WriteString(c, answer); err != nil {
							return
						}
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}

func start(t *testing.T, to string) *faultproxy.Proxy {
	p, err := faultproxy.New(to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func dial(t *testing.T, p *faultproxy.Proxy) net.Conn {
	c, err := net.Dial("tcp", p.Address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	io.WriteString(c, "\n")
	return c
}

func TestFaults(t *testing.T) {
	p := start(t, server(t, "0123456789"))
	for _, tc := range []struct {
		name  string
		fault faultproxy.Fault
		want  string // beginning of what arrives
		err   error  // after it; nil is an end in order
	}{
		{"close at once", faultproxy.Fault{Action: faultproxy.Close}, "", nil},
		{"close within", faultproxy.Fault{Action: faultproxy.Close, After: 4}, "0123", nil},
		{"reset within", faultproxy.Fault{Action: faultproxy.Reset, After: 4}, "", syscall.ECONNRESET},
		{"garbage", faultproxy.Fault{Action: faultproxy.Garbage, After: 2}, "01\x00\xff", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p.Set(tc.fault)
			got, err := io.ReadAll(dial(t, p))
			if !strings.HasPrefix(string(got), tc.want) || !errors.Is(err, tc.err) && !errors.Is(err, syscall.ECONNRESET) {
				t.Fatalf("%q %v", got, err)
			}
		})
	}
}

func TestPassAndSet(t *testing.T) {
	p := start(t, server(t, "0123456789"))
	c := dial(t, p)
	got := make([]byte, 10)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "0123456789" {
		t.Fatalf("%q %v", got, err)
	}
	p.Set(faultproxy.Fault{Action: faultproxy.Hang, After: 3})
	if _, err := io.ReadAll(c); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Fatal(err) // the old connection has ended
	}
	h := dial(t, p)
	if _, err := io.ReadFull(h, got[:3]); err != nil {
		t.Fatal(err)
	}
	h.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := h.Read(got); err == nil {
		t.Fatal("more arrived")
	}
	if p.Accepted() != 2 {
		t.Fatal(p.Accepted())
	}
}

func TestDripAndEndless(t *testing.T) {
	p := start(t, server(t, "0123456789"))
	p.Set(faultproxy.Fault{Action: faultproxy.Drip, After: 2, Every: time.Millisecond})
	got := make([]byte, 10)
	if _, err := io.ReadFull(dial(t, p), got); err != nil || string(got) != "0123456789" {
		t.Fatalf("%q %v", got, err)
	}
	for want, f := range map[string]faultproxy.Fault{
		"01xxxx":   {Action: faultproxy.Endless, After: 2},
		"0h abcab": {Action: faultproxy.Endless, After: 1, Head: "h ", Piece: "abc"},
	} {
		p.Set(f)
		c := dial(t, p)
		if _, err := io.ReadFull(c, got[:len(want)]); err != nil || string(got[:len(want)]) != want {
			t.Fatalf("%q %v", got, err)
		}
		if _, err := io.CopyN(io.Discard, c, 1<<20); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTheServerIsGone(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if got, err := io.ReadAll(dial(t, start(t, l.Addr().String()))); len(got) != 0 {
		t.Fatal(got, err)
	}
}
