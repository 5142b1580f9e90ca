package idleconn_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/idleconn"
	"github.com/tollgate-proxy/tollgate/internal/polltest"
)

// patience bounds every wait of a test.
const patience = 20 * time.Second

type fixture struct {
	*testing.T
	listener *idleconn.Listener
	server   *http.Server
	ended    atomic.Int64 // connections that the server takes for ended
}

func start(t *testing.T, o idleconn.Options) *fixture {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{T: t, listener: idleconn.Wrap(l, o)}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	f.server = &http.Server{
		ReadHeaderTimeout: patience, IdleTimeout: patience, Protocols: protocols,
		ConnState: func(c net.Conn, s http.ConnState) {
			f.listener.State(c, s)
			if s == http.StateClosed {
				f.ended.Add(1)
			}
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/refuse" {
				http.Error(w, "too large", http.StatusRequestEntityTooLarge)
				return
			}
			body, _ := io.ReadAll(r.Body)
			fmt.Fprintf(w, "%s %s", r.Method, body)
		}),
	}
	done := make(chan error, 1)
	go func() { done <- f.server.Serve(f.listener) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := f.server.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return f
}

func (f *fixture) dial() (net.Conn, *bufio.Reader) {
	f.Helper()
	c, err := net.Dial("tcp", f.listener.Addr().String())
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c, bufio.NewReader(c)
}

func (f *fixture) answer(r *bufio.Reader, want string) {
	f.Helper()
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		f.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || string(body) != want {
		f.Fatalf("%q %v, want %q", body, err, want)
	}
}

func post(body string) string {
	return fmt.Sprintf("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

func TestAParkedConnectionGoesOn(t *testing.T) {
	released := make(chan struct{}, 1)
	f := start(t, idleconn.Options{After: 10 * time.Millisecond, Timeout: patience, Released: func() { released <- struct{}{} }})
	c, r := f.dial()
	for i := range 3 {
		io.WriteString(c, post(fmt.Sprint("a", i)))
		f.answer(r, fmt.Sprint("POST a", i))
		polltest.Until(f, "parked", func() bool { return f.listener.Parked() == 1 })
		polltest.Until(f, "ended for the server", func() bool { return f.ended.Load() == int64(i)+1 })
	}
	io.WriteString(c, post("b")+post("c")) // together
	f.answer(r, "POST b")
	f.answer(r, "POST c")
	select {
	case <-released:
		t.Fatal("memory given back for one connection")
	default:
	}
}

// The first bytes of a next request are in the server's buffer, not ours.
func TestAConnectionWithPartOfARequestIsNotParked(t *testing.T) {
	f := start(t, idleconn.Options{After: 10 * time.Millisecond})
	other, or := f.dial()
	c, r := f.dial()
	io.WriteString(c, post("a")+"PO")
	f.answer(r, "POST a")
	// Another that became idle later is parked: so would this one have been.
	io.WriteString(other, post("x"))
	f.answer(or, "POST x")
	polltest.Until(f, "parked", func() bool { return f.listener.Parked() == 1 })
	polltest.Until(f, "ended for the server", func() bool { return f.ended.Load() == 1 })
	io.WriteString(c, "ST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nb")
	f.answer(r, "POST b")
}

func TestAParkedConnectionEnds(t *testing.T) {
	f := start(t, idleconn.Options{After: 10 * time.Millisecond, Timeout: 20 * time.Millisecond})
	c, r := f.dial()
	io.WriteString(c, post("a"))
	f.answer(r, "POST a")
	if _, err := r.ReadByte(); !errors.Is(err, io.EOF) { // its time is over
		t.Fatal(err)
	}
	polltest.Until(f, "forgotten", func() bool { return f.listener.Parked() == 0 })
}

func TestTheClientLeavesAParkedConnection(t *testing.T) {
	f := start(t, idleconn.Options{After: 10 * time.Millisecond})
	c, r := f.dial()
	io.WriteString(c, post("a"))
	f.answer(r, "POST a")
	polltest.Until(f, "parked", func() bool { return f.listener.Parked() == 1 })
	c.Close()
	polltest.Until(f, "ended", func() bool { return f.listener.Parked() == 0 && f.ended.Load() == 2 })
}

func TestShutdownEndsParkedConnections(t *testing.T) {
	f := start(t, idleconn.Options{After: 10 * time.Millisecond})
	c, r := f.dial()
	io.WriteString(c, post("a"))
	f.answer(r, "POST a")
	polltest.Until(f, "parked", func() bool { return f.listener.Parked() == 1 })
	if err := f.server.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := r.ReadByte(); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
}

func TestHTTP2IsLeftAlone(t *testing.T) {
	f := start(t, idleconn.Options{After: time.Millisecond})
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	client := &http.Client{Transport: &http.Transport{Protocols: protocols}, Timeout: patience}
	defer client.CloseIdleConnections()
	other, or := f.dial()
	for i := range 2 {
		resp, err := client.Post("http://"+f.listener.Addr().String(), "text/plain", strings.NewReader("a"))
		if err != nil || resp.ProtoMajor != 2 {
			t.Fatal(err, resp)
		}
		resp.Body.Close()
		io.WriteString(other, post("x"))
		f.answer(or, "POST x")
		polltest.Until(f, "the HTTP/1.1 connection is parked", func() bool { return f.listener.Parked() == 1 && f.ended.Load() == int64(i)+1 })
	}
}

// net/http closes its side first, so that the client can read the refusal.
func TestARefusedUploadReadsItsAnswer(t *testing.T) {
	f := start(t, idleconn.Options{After: 10 * time.Millisecond})
	c, r := f.dial()
	go io.WriteString(c, "POST /refuse HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n"+strings.Repeat("x", 1<<20))
	f.answer(r, "too large\n")
}

func TestMemoryIsGivenBackAfterMany(t *testing.T) {
	released := make(chan struct{})
	f := start(t, idleconn.Options{After: 10 * time.Millisecond, Released: func() { close(released) }})
	for range 500 {
		c, r := f.dial()
		io.WriteString(c, post("a"))
		f.answer(r, "POST a")
	}
	select {
	case <-released:
	case <-time.After(patience):
		t.Fatal("never")
	}
}
