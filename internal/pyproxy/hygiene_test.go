package pyproxy_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// raw sends bytes as they are and returns the status of the answer, 0 for none.
func (g *gate) raw(request string) int {
	g.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(g.url, "http://"))
	if err != nil {
		g.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, request); err != nil {
		return 0
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}

func TestWhatReachesTheService(t *testing.T) {
	for _, tc := range []struct {
		name, header string
		want         http.Header
		status       int
	}{
		{"underscored twin", "X-User-Id: real\r\nX_User_Id: forged\r\nx_user-ID: forged", http.Header{"X-User-Id": {"real"}}, 200},
		{"dotted twin", "X.User.Id: forged", http.Header{}, 200},
		{"hop-by-hop", "Connection: x-private, close\r\nX-Private: 1\r\nKeep-Alive: 1\r\nProxy-Authorization: x\r\nTe: trailers", http.Header{"Te": {"trailers"}}, 200},
		{"hop-by-hop against an identity", "X-User-Id: real\r\nConnection: close, X-User-Id", nil, 400},
		{"hop-by-hop against a request id", "Connection: x-request-ID", nil, 400},
		{"upgrade to h2c", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA", http.Header{}, 200},
		{"upgrade to two protocols", "Connection: Upgrade\r\nUpgrade: websocket, h2c", http.Header{}, 200},
		{"expectations", "Expect: 100-continue", http.Header{}, 200},
		{"upgrade without a connection option", "Upgrade: h2c", http.Header{}, 200},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBackend(t, says(ok("x")))
			g := newGate(t, settings(b.address))
			if got := g.raw("GET /get HTTP/1.1\r\nHost: x\r\n" + tc.header + "\r\n\r\n"); got != tc.status {
				t.Fatalf("status %d", got)
			}
			if tc.want == nil {
				if b.calls.Load() != 0 {
					t.Fatal("reached the service")
				}
				return
			}
			got := b.last().Header
			delete(got, "User-Agent")
			delete(got, "X-Request-Id")
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Fatal(d)
			}
		})
	}
}

// Requests whose end a proxy and a service could see in different places.
func TestSmugglingIsRefused(t *testing.T) {
	smuggled := "GET /items/smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
	for name, request := range map[string]string{
		"two lengths":               "POST /post HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: " + itoa(len(smuggled)) + "\r\n\r\n" + smuggled,
		"a length with a sign":      "POST /post HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\nhello",
		"an unknown encoding":       "POST /post HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + smuggled,
		"two encodings":             "POST /post HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + smuggled,
		"a space before the colon":  "POST /post HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + smuggled,
		"a NUL in a value":          "POST /post HTTP/1.1\r\nHost: x\r\nX-A: a\x00b\r\n\r\n",
		"a bare CR in a value":      "POST /post HTTP/1.1\r\nHost: x\r\nX-A: a\rX-User-Id: forged\r\n\r\n",
		"two hosts":                 "POST /post HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
		"a chunk size that is none": "POST /post HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			b := newBackend(t, says(ok("x")))
			g := newGate(t, settings(b.address))
			if got := g.raw(request); got == 200 {
				t.Fatalf("status %d", got)
			}
			b.mu.Lock()
			defer b.mu.Unlock()
			for _, r := range b.seen {
				if strings.Contains(r.URL.Path, "smuggled") {
					t.Fatal("smuggled")
				}
			}
		})
	}
}

// Content-Length beside Transfer-Encoding is resolved one way for both sides:
// chunked counts, the length is dropped, and the connection is not used again.
func TestLengthBesideChunkedCannotDesynchronise(t *testing.T) {
	b := newBackend(t, says(ok("x")))
	g := newGate(t, settings(b.address))
	g.raw("POST /post HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nGET /get HTTP/1.1\r\nHost: x\r\n\r\n")
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, r := range b.seen {
		if r.URL.Path == "/post" && b.bodies[i] != "hello" {
			t.Fatalf("body %q", b.bodies[i])
		}
		if r.URL.Path == "/post" && len(r.Header["Content-Length"])+len(r.TransferEncoding) != 1 {
			t.Fatalf("%v %v", r.Header, r.TransferEncoding)
		}
	}
}

func TestTrailersDoNotBecomeHeaders(t *testing.T) {
	b := newBackend(t, says(ok("x")))
	g := newGate(t, settings(b.address))
	if got := g.raw("POST /post HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: X-User-Id\r\n\r\n5\r\nhello\r\n0\r\nX-User-Id: forged\r\n\r\n"); got != 200 {
		t.Fatal(got)
	}
	r := b.last()
	if len(r.Trailer) != 0 || r.Header.Get("X-User-Id") != "" || r.Header.Get("Trailer") != "" {
		t.Fatalf("%v %v", r.Header, r.Trailer)
	}
}

func TestAnUntrustedPeerHasNoIdentity(t *testing.T) {
	b := newBackend(t, says(ok("x")))
	c := settings(b.address)
	c.TrustedPeers = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	g := newGate(t, c)
	g.do("GET", "/get", "", "X-User-Id", "u", "X-User-Tier", "admin", "X-Feature-Flags", "a=on", "X-Risk-Score", "0", "X-Consent", "all", "X-Session-Id", "s", "X-Forwarded-For", "192.0.2.1", "X-Envoy-External-Address", "192.0.2.1", "X-Other", "kept")
	h := b.last().Header
	delete(h, "User-Agent")
	delete(h, "X-Request-Id")
	if d := cmp.Diff(http.Header{"X-Other": {"kept"}}, h); d != "" {
		t.Fatal(d)
	}
}

// Whatever a client calls its headers, no name that folds to one of ours
// arrives beside or instead of it.
func TestNoTwinArrives(t *testing.T) {
	b := newBackend(t, says(ok("x")))
	g := newGate(t, settings(b.address))
	fold := func(s string) string {
		return strings.Map(func(r rune) rune {
			if r == '_' || r == '.' {
				return '-'
			}
			return r
		}, strings.ToLower(s))
	}
	rapid.Check(t, func(rt *rapid.T) {
		name := rapid.StringMatching(`[xX][-_.][uU]ser[-_.](id|ID|Id|tier|roles)`).Draw(rt, "name")
		if !strings.ContainsAny(name, "_.") {
			return
		}
		g.raw("GET /get HTTP/1.1\r\nHost: x\r\n" + name + ": forged\r\nConnection: close\r\n\r\n")
		for have, v := range b.last().Header {
			if fold(have) == fold(name) || slices.Contains(v, "forged") {
				rt.Fatalf("%s arrived as %s", name, have)
			}
		}
	})
}
