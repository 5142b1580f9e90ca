package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/faultproxy"
	"github.com/tollgate-proxy/tollgate/internal/polltest"
	"github.com/tollgate-proxy/tollgate/internal/pyproxy"
)

const languagesPath = "/api/v1/nlp/languages"

// replicas puts networks that can break between pyproxy and one real service, and
// returns them with the proxy that sees a replica behind each.
func replicas(t *testing.T, c pyproxy.Config, service string, n int) ([]*faultproxy.Proxy, *pyproxy.Proxy, string) {
	t.Helper()
	var networks []*faultproxy.Proxy
	u := pyproxy.Upstream{Name: "nlp"}
	for range n {
		p, err := faultproxy.New(service)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Close)
		networks = append(networks, p)
		u.Addresses = append(u.Addresses, p.Address())
	}
	proxy, url := serveUpstream(t, c, u)
	return networks, proxy, url
}

// serveUpstream serves the routes of nlp, without a cache, with health checks.
func serveUpstream(t *testing.T, c pyproxy.Config, u pyproxy.Upstream) (*pyproxy.Proxy, string) {
	t.Helper()
	c.Upstreams = []pyproxy.Upstream{u}
	c.Routes = slices.DeleteFunc(slices.Clone(c.Routes), func(r pyproxy.Route) bool { return r.Upstream != "nlp" })
	for i := range c.Routes {
		c.Routes[i].Cache = nil
	}
	c.Retry.Base = time.Millisecond
	proxy := pyproxy.New(c, pyproxy.Options{})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = proxy.Run(ctx) })
	server := httptest.NewServer(proxy)
	t.Cleanup(func() {
		server.Close()
		cancel()
		running.Wait()
	})
	return proxy, server.URL
}

// Two of four replicas fail every call: clients notice nothing.
func testHalfBad(t *testing.T, c pyproxy.Config, service string) {
	networks, _, url := replicas(t, c, service, 4)
	networks[0].Set(faultproxy.Fault{Action: faultproxy.Reset})
	networks[1].Set(faultproxy.Fault{Action: faultproxy.Garbage})
	for range 100 {
		if r, err := get(t, url+languagesPath); err != nil || r.status != http.StatusOK {
			t.Fatalf("%v %d %s", err, r.status, r.body)
		}
	}
}

// All replicas fail under load, and come back: meanwhile clients are told at once
// and when to come again; afterwards the circuit closes by itself, and until it
// has, only a few of them reach the service.
func testAllBadAndBack(t *testing.T, c pyproxy.Config, service string) {
	c.Health.Interval = 50 * time.Millisecond
	networks, proxy, url := replicas(t, c, service, 2)
	state := func() string { return proxy.Status()[0].Circuits[0].State }
	for _, n := range networks {
		n.Set(faultproxy.Fault{Action: faultproxy.Reset})
	}
	var stop atomic.Bool
	var odd atomic.Pointer[string]
	var clients sync.WaitGroup
	for range 16 {
		clients.Go(func() {
			for !stop.Load() {
				r, err := get(t, url+languagesPath)
				known := r.status == http.StatusOK || r.status == http.StatusBadGateway && r.problem() == "upstream_failed" ||
					r.status == http.StatusServiceUnavailable && r.problem() == "circuit_open" && r.header.Get("Retry-After") != ""
				if err != nil || !known {
					text := fmt.Sprint(err, r.status, string(r.body))
					odd.Store(&text)
				}
			}
		})
	}
	polltest.Until(t, "open", func() bool { return state() == "open" })
	// Whose checks never failed is left alone for all of breaker.reset, and a fast machine opens circuits between two of them.
	polltest.Until(t, "seen down", func() bool {
		return !slices.ContainsFunc(proxy.Status()[0].Addresses, func(a pyproxy.AddressStatus) bool { return a.State != "unhealthy" })
	})
	for _, n := range networks {
		n.Set(faultproxy.Fault{})
	}
	polltest.Until(t, "closed", func() bool { return state() == "closed" })
	stop.Store(true)
	clients.Wait()
	if p := odd.Load(); p != nil {
		t.Fatal(*p)
	}
	if r, err := get(t, url+languagesPath); err != nil || r.status != http.StatusOK {
		t.Fatalf("%v %d %s", err, r.status, r.body)
	}
}

// A name that cannot be found is a failure like any other: another address
// answers, and without one the client is told.
func testNameNotFound(t *testing.T, c pyproxy.Config, service string) {
	const nowhere = "no..such.host:1" // no resolver is asked for a name of this form
	_, url := serveUpstream(t, c, pyproxy.Upstream{Name: "nlp", Addresses: []string{nowhere, service}})
	for range 20 {
		if r, err := get(t, url+languagesPath); err != nil || r.status != http.StatusOK {
			t.Fatalf("%v %d %s", err, r.status, r.body)
		}
	}
	_, url = serveUpstream(t, c, pyproxy.Upstream{Name: "nlp", Addresses: []string{nowhere}})
	if r, err := get(t, url+languagesPath); err != nil || r.status != http.StatusBadGateway || r.problem() != "upstream_failed" || strings.Contains(string(r.body), "such") {
		t.Fatalf("%v %d %s", err, r.status, r.body)
	}
}

// A body that never ends is broken off when its time is up, kept or not.
func testEndlessBody(t *testing.T, c pyproxy.Config, service string) {
	network, err := faultproxy.New(service)
	if err != nil {
		t.Fatal(err)
	}
	defer network.Close()
	c.Timeouts.BodyIdle, c.Timeouts.Body = 200*time.Millisecond, 300*time.Millisecond
	url := serve(t, c, map[string]string{"nlp": network.Address()})
	network.Set(faultproxy.Fault{Action: faultproxy.Endless, After: int64(len("HTTP/1.1 200 OK\r\n")),
		Head: "content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n", Piece: "4\r\nxxxx\r\n"})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+languagesPath, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if n, err := io.Copy(io.Discard, resp.Body); err == nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%d, and %d bytes that end", resp.StatusCode, n)
	}
	network.Set(faultproxy.Fault{})
	polltest.Until(t, "a whole answer after it", func() bool { // its time is short
		r, err := get(t, url+languagesPath)
		return err == nil && r.status == http.StatusOK && bytes.Contains(r.body, []byte("languages"))
	})
}

// However a client hides a second request within a first, the service never sees
// it, and the client gets no answer to it.
func testSmuggling(t *testing.T, c pyproxy.Config, service string) {
	hidden := "GET " + languagesPath + " HTTP/1.1\r\nHost: x\r\n\r\n"
	const question = `{"text":"hello"}`
	post := func(headers, body string) string {
		return "POST /api/v1/nlp/detect HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" + headers + "\r\n" + body
	}
	chunked := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(question), question)
	for name, request := range map[string]string{
		"a length beside chunked": post(fmt.Sprintf("Content-Length: %d\r\nTransfer-Encoding: chunked\r\n", len(chunked)+len(hidden)), chunked+hidden),
		"chunked beside a length": post("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", chunked+hidden),
		"two lengths":             post(fmt.Sprintf("Content-Length: 0\r\nContent-Length: %d\r\n", len(hidden)), hidden),
		"an unknown encoding":     post("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"+hidden),
		"chunked twice":           post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"+hidden),
		"a space before colon":    post("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"+hidden),
		"a folded header":         post("X-A: b\r\n Transfer-Encoding: chunked\r\nContent-Length: 0\r\n", "") + strings.Replace(hidden, "GET", "\x00GET", 1),
	} {
		t.Run(name, func(t *testing.T) {
			_, url := serveUpstream(t, c, pyproxy.Upstream{Name: "nlp", Addresses: []string{service}})
			conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(url, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(conn, request); err != nil {
				t.Fatal(err)
			}
			if err := conn.(*net.TCPConn).CloseWrite(); err != nil { //nolint:forcetypeassert // dialled as tcp
				t.Fatal(err)
			}
			in := bufio.NewReader(conn)
			for answers := 0; ; answers++ {
				resp, err := http.ReadResponse(in, nil)
				if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || err != nil && answers > 0 {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil {
					t.Fatal(err)
				}
				if bytes.Contains(body, []byte(`"languages"`)) {
					t.Fatalf("the hidden request is answered: %s", body)
				}
				if resp.StatusCode == http.StatusOK && !strings.Contains(name, "beside") {
					t.Errorf("accepted: %s", body)
				}
			}
		})
	}
}
