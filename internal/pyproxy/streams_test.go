package pyproxy_test

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/polltest"
)

func TestStreamsAreFlushed(t *testing.T) {
	next := make(chan string)
	b := newBackend(t, func(c net.Conn, _ *http.Request, _ int64) bool {
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n\r\n")
		for s := range next {
			io.WriteString(c, s)
		}
		return false
	})
	g := newGate(t, settings(b.address))
	resp, err := g.client.Get(g.url + "/get")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for _, event := range []string{"data: 1\n\n", "data: 2\n\n"} {
		next <- event // only then may the next one be read: each arrives alone
		got := make([]byte, len(event))
		if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != event {
			t.Fatalf("%q %v", got, err)
		}
	}
	close(next)
	if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) != 0 {
		t.Fatalf("%q %v", rest, err)
	}
}

// A stream lasts as long as its client likes, but not longer than the process.
func TestStreamsEndWithTheProcess(t *testing.T) {
	b := newBackend(t, hangs("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n"))
	g := newGate(t, settings(b.address))
	resp, err := g.client.Get(g.url + "/get")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	g.proxy.EndStreams()
	if got, err := io.ReadAll(resp.Body); !errors.Is(err, io.ErrUnexpectedEOF) || string(got) != "data: 1\n\n" {
		t.Fatalf("%q %v", got, err) // broken off, so that it is not taken for whole
	}
	if g.metric("tollgate_pyproxy_attempts_total", "outcome", "body") != 0 {
		t.Fatal("counted against the service")
	}
}

const (
	handshake = " HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
	switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
)

// switches upgrades the connection, and says when it is over.
func switches(then func(c net.Conn), over chan<- struct{}) answer {
	return func(c net.Conn, r *http.Request, n int64) bool {
		if r.Header.Get("Upgrade") != "websocket" {
			return says(ok("no upgrade"))(c, r, n)
		}
		io.WriteString(c, switching)
		then(c)
		over <- struct{}{}
		return false
	}
}

func echo(c net.Conn) { io.Copy(c, c) }

// upgrade asks for a WebSocket, and sends more at once.
func (g *gate) upgrade(request, more string) (net.Conn, *bufio.Reader, *http.Response) {
	g.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(g.url, "http://"))
	if err != nil {
		g.Fatal(err)
	}
	g.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	io.WriteString(conn, request+handshake+more)
	br := bufio.NewReader(conn)
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		g.Fatal(err)
	}
	return conn, br, resp
}

func (g *gate) streams(want float64) {
	g.Helper()
	polltest.Until(g, "the streams are counted", func() bool { return g.metric("tollgate_pyproxy_streams", "upstream", "s") == want })
}

// ends waits for the end of a connection on either side.
func (g *gate) ends(br io.Reader, over <-chan struct{}) {
	g.Helper()
	if _, err := io.Copy(io.Discard, br); errors.Is(err, net.ErrClosed) || isTimeout(err) {
		g.Fatalf("the client's: %v", err)
	}
	select {
	case <-over:
	case <-time.After(patience):
		g.Fatal("the service's goes on")
	}
	g.streams(0)
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

func TestUpgradesPass(t *testing.T) {
	over := make(chan struct{}, 1)
	b := newBackend(t, switches(echo, over))
	g := newGate(t, settings(b.address))
	conn, br, resp := g.upgrade("GET /get", "ping") // some do not wait for the answer
	if resp.StatusCode != 101 || resp.Header.Get("X-Request-Id") == "" {
		t.Fatal(resp)
	}
	g.streams(1)
	io.WriteString(conn, "pong")
	conn.(*net.TCPConn).CloseWrite() // the service hears of the end, and answers what came before
	if got, err := io.ReadAll(br); err != nil || string(got) != "pingpong" {
		t.Fatalf("%q %v", got, err)
	}
	g.ends(br, over)
	polltest.Until(t, "the request is over", func() bool { return g.metric("tollgate_pyproxy_requests_in_flight") == 0 })
	if g.metric("tollgate_pyproxy_requests_total", "status", "1xx") != 1 || g.metric("tollgate_pyproxy_attempts_total", "outcome", "ok") != 1 {
		t.Fatal("counted as something else")
	}
}

// However it is idle, and whoever of the two is to blame: both are let go.
func TestAnUpgradedConnectionThatIsIdleIsBrokenOff(t *testing.T) {
	for name, tc := range map[string]struct {
		service func(c net.Conn, idle <-chan struct{})
		client  func(net.Conn)
	}{
		"nobody speaks":             {func(c net.Conn, _ <-chan struct{}) { io.Copy(io.Discard, c) }, func(net.Conn) {}},
		"the client does not read":  {func(c net.Conn, _ <-chan struct{}) { io.Copy(c, zeros{}) }, func(net.Conn) {}},
		"the service does not read": {func(c net.Conn, idle <-chan struct{}) { <-idle; io.Copy(io.Discard, c) }, func(c net.Conn) { io.Copy(c, zeros{}) }},
	} {
		t.Run(name, func(t *testing.T) {
			over, idle := make(chan struct{}, 1), make(chan struct{})
			b := newBackend(t, switches(func(c net.Conn) { tc.service(c, idle) }, over))
			c := settings(b.address)
			c.Streams.Idle = 500 * time.Millisecond
			g := newGate(t, c)
			conn, br, resp := g.upgrade("GET /get", "")
			if resp.StatusCode != 101 {
				t.Fatal(resp)
			}
			tc.client(conn)
			g.streams(0) // before either reads
			close(idle)
			g.ends(br, over)
			if g.state() != "closed" || g.metric("tollgate_pyproxy_attempts_total", "outcome", "ok") != 1 {
				t.Fatal("counted against the service")
			}
		})
	}
}

// So is an event stream of which the service sends nothing.
func TestAnEventStreamThatIsSilentIsBrokenOff(t *testing.T) {
	b := newBackend(t, hangs("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n"))
	c := settings(b.address)
	c.Streams.Idle = 100 * time.Millisecond
	g := newGate(t, c)
	if r := g.do("GET", "/get", ""); !errors.Is(r.err, io.ErrUnexpectedEOF) || r.body != "data: 1\n\n" {
		t.Fatalf("%+v", r)
	}
	g.streams(0)
}

// One stream too many is refused, and is not the service's fault; a reload forgets none.
func TestTheStreamsOfAnUpstreamAreBounded(t *testing.T) {
	over := make(chan struct{}, 2)
	b := newBackend(t, func(c net.Conn, r *http.Request, n int64) bool {
		if r.Header.Get("Upgrade") != "" {
			return switches(echo, over)(c, r, n)
		}
		return hangs("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")(c, r, n)
	})
	c := settings(b.address)
	c.Streams.Max = 1
	g := newGate(t, c)
	conn, _, resp := g.upgrade("GET /get", "")
	if resp.StatusCode != 101 {
		t.Fatal(resp)
	}
	g.streams(1)
	refused := func(calls int64) {
		t.Helper()
		_, _, second := g.upgrade("GET /get", "")
		r := g.do("GET", "/items/1", "")
		g.want(r, 503, "dependency_unavailable")
		if second.StatusCode != 503 || second.Header.Get("Retry-After") == "" || r.header.Get("Retry-After") == "" {
			t.Fatalf("%v %+v", second, r)
		}
		if n := b.calls.Load(); n != calls { // only a service can tell that its answer is a stream
			t.Fatalf("the service was asked %d times", n)
		}
	}
	refused(2)
	c.Breaker.Reset++
	g.reload(c)
	refused(3)
	conn.Close()
	g.ends(strings.NewReader(""), over)
	if g.metric("tollgate_pyproxy_attempts_total", "outcome", "streams") != 4 || g.state() != "closed" {
		t.Fatal("not counted, or against the service")
	}
	events, err := g.client.Get(g.url + "/get")
	if err != nil || events.StatusCode != 200 {
		t.Fatal(events, err)
	}
	g.streams(1)
	refused(5)
	events.Body.Close()
	g.streams(0)
	_, br, resp := g.upgrade("GET /get", "")
	if resp.StatusCode != 101 {
		t.Fatal(resp)
	}
	g.proxy.EndStreams()
	g.ends(br, over)
}

// Of a service that switches to what nobody has asked for no connection stays.
func TestAProtocolNobodyAskedForIsABrokenAnswer(t *testing.T) {
	for name, request := range map[string]string{
		"another": "GET /get" + handshake,
		"unasked": "POST /post HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			over := make(chan struct{}, 1)
			b := newBackend(t, func(c net.Conn, _ *http.Request, _ int64) bool {
				io.WriteString(c, strings.Replace(switching, "websocket", "other", 1))
				echo(c)
				over <- struct{}{}
				return false
			})
			g := newGate(t, settings(b.address))
			if got := g.raw(request); got != 502 {
				t.Fatal(got)
			}
			g.ends(strings.NewReader(""), over)
			if g.metric("tollgate_pyproxy_attempts_total", "outcome", "broken") != 1 {
				t.Fatal("not counted as broken")
			}
		})
	}
}

// Nothing that asks for another protocol is sent twice, by whatever method.
func TestAnUpgradeIsNotRepeated(t *testing.T) {
	for _, request := range []string{"GET /get", "POST /pure"} {
		b := newBackend(t, says(status("503 x", "no")))
		g := newGate(t, settings(b.address))
		if _, _, resp := g.upgrade(request, ""); resp.StatusCode != 503 || b.calls.Load() != 1 {
			t.Errorf("%s: %d after %d calls", request, resp.StatusCode, b.calls.Load())
		}
	}
}
