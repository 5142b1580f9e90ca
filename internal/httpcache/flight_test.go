package httpcache_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/httpcache"
	"github.com/tollgate-proxy/tollgate/internal/polltest"
)

type closer struct {
	io.Reader
	closed chan struct{}
}

func (c closer) Close() error { close(c.closed); return nil }

// Many ask at once; the service is asked once, and not by the first's leave.
func TestRequestsAreCoalesced(t *testing.T) {
	release := make(chan struct{})
	f := newFixture(t, minute, func(r *http.Request, n int) (*http.Response, error) {
		select {
		case <-release:
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
		return reply(200, fmt.Sprint("answer ", n)), nil
	})
	ctx, cancel := context.WithCancel(context.Background())
	first := make(chan got, 1)
	go func() { first <- ask(ctx, f.next, "GET", "/", "") }()
	polltest.Until(t, "the first is on its way", func() bool { return f.count() == 1 })
	const n = 50
	others := make(chan got, n)
	for range n {
		go func() { others <- ask(context.Background(), f.next, "GET", "/", "") }()
	}
	cancel()
	if g := <-first; !errors.Is(g.err, context.Canceled) {
		t.Fatal(g)
	}
	close(release)
	for range n {
		if g := <-others; g.body != "answer 1" {
			t.Fatal(g)
		}
	}
	if f.count() != 1 {
		t.Fatalf("%d calls", f.count())
	}
}

func TestWhatCannotBeSharedIsNot(t *testing.T) {
	release := make(chan struct{})
	f := newFixture(t, minute, func(_ *http.Request, n int) (*http.Response, error) {
		<-release
		return reply(200, fmt.Sprint("private ", n), "Cache-Control", "private"), nil
	})
	const n = 20
	all := make(chan got, n)
	for range n {
		go func() { all <- ask(context.Background(), f.next, "GET", "/", "") }()
	}
	polltest.Until(t, "on the way", func() bool { return f.count() == 1 })
	close(release)
	seen := map[string]bool{}
	for range n {
		g := <-all
		if g.err != nil || seen[g.body] {
			t.Fatalf("twice: %v", g)
		}
		seen[g.body] = true
	}
}

// A key whose answers cannot be kept is no queue.
func TestRequestsForWhatCannotBeKeptDoNotWaitForOneAnother(t *testing.T) {
	release := make(chan struct{})
	f := newFixture(t, minute, func(_ *http.Request, n int) (*http.Response, error) {
		if n > 1 {
			<-release
		}
		return reply(200, fmt.Sprint("answer ", n), "Cache-Control", "private"), nil
	})
	f.want(f.ask("GET", "/", ""), "answer 1", "fwd=miss")
	all := make(chan got, 5)
	for range 5 {
		go func() { all <- ask(context.Background(), f.next, "GET", "/", "") }()
	}
	polltest.Until(t, "all on their way at once", func() bool { return f.count() == 6 })
	if g := f.ask("GET", "/", "", "Cache-Control", "only-if-cached"); g.status != 504 {
		t.Fatal(g)
	}
	close(release)
	for range 5 {
		if g := <-all; g.status != 200 || g.header.Get("Cache-Status") != "tollgate; fwd=miss; detail=pass" {
			t.Fatal(g)
		}
	}
	// After a while it is tried again whether it can.
	f.Advance(6 * time.Second)
	f.want(f.ask("GET", "/", ""), "answer 7", "fwd=miss")
}

func TestAnEncodedBodyStaysOne(t *testing.T) {
	p := minute
	p.Body = true
	f := newFixture(t, p, numbered())
	f.want(f.ask("POST", "/", "x", "Content-Encoding", "gzip"), "answer 1", "fwd=miss")
	f.want(f.ask("POST", "/", "x"), "answer 2", "fwd=miss")
	if got := f.seen[0].Header.Get("Content-Encoding"); got != "gzip" {
		t.Fatal(got)
	}
}

func TestALargeAnswerStreamsWhole(t *testing.T) {
	body := strings.Repeat("x", 64<<10+1)
	for _, known := range []bool{true, false} {
		f := newFixture(t, minute, func(_ *http.Request, _ int) (*http.Response, error) {
			resp := reply(200, body)
			if !known {
				resp.ContentLength = -1
			}
			return resp, nil
		})
		for range 2 {
			if g := f.ask("GET", "/", ""); g.body != body || g.err != nil {
				t.Fatal(len(g.body), g.err)
			}
		}
		if f.count() != 2 {
			t.Fatal("kept")
		}
	}
}

func TestHalfAnAnswerIsNeverKept(t *testing.T) {
	f := newFixture(t, minute, func(_ *http.Request, n int) (*http.Response, error) {
		if n > 1 {
			return reply(200, "whole"), nil
		}
		resp := reply(200, "")
		resp.Body, resp.ContentLength = io.NopCloser(io.MultiReader(strings.NewReader("half"), failing{})), 8
		return resp, nil
	})
	if g := f.ask("GET", "/", ""); !errors.Is(g.err, errBroken) {
		t.Fatal(g)
	}
	f.want(f.ask("GET", "/", ""), "whole", "fwd=miss; stored")
}

func (f *fixture) metric(name string) (sum float64) {
	f.Helper()
	families, err := f.registry.Gather()
	if err != nil {
		f.Fatal(err)
	}
	for _, x := range families {
		if x.GetName() == name {
			for _, m := range x.GetMetric() {
				sum += m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

// An answer that is not shared is its caller's: when that one leaves, the service
// hears of it, although it was not asked on that caller's behalf.
func TestWhoLeavesAnUnsharedAnswerEndsIt(t *testing.T) {
	asked := make(chan context.Context, 1)
	f := newFixture(t, minute, func(r *http.Request, _ int) (*http.Response, error) {
		asked <- r.Context()
		return reply(200, "data: 1\n\n", "Content-Type", "text/event-stream"), nil
	})
	ctx, leave := context.WithCancel(t.Context())
	r, err := http.NewRequestWithContext(ctx, "GET", "http://s/", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := f.next.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	service := <-asked
	if service.Err() != nil {
		t.Fatal("ended while its caller is there")
	}
	leave()
	select {
	case <-service.Done():
	case <-time.After(patience):
		t.Fatal("the service goes on for nobody")
	}
}

// A service that wants rest must not get every request for a key at once, as one
// whose answers cannot be shared does.
func TestRequestsAreCoalescedWhileTheServiceWantsRest(t *testing.T) {
	status := 429
	f := newFixture(t, minute, func(*http.Request, int) (*http.Response, error) { return reply(status, "x"), nil })
	f.want(f.ask("GET", "/", ""), "x", "fwd=miss")
	status = 200
	f.want(f.ask("GET", "/", ""), "x", "fwd=miss; stored")
}

// Nobody waits for the beginning of an answer that turns out too large, twice.
func TestAnAnswerOfUnknownLengthThatIsTooLargeIsPassedAtOnceNextTime(t *testing.T) {
	f := newFixture(t, minute, func(*http.Request, int) (*http.Response, error) {
		r := reply(200, strings.Repeat("x", 64<<10+1))
		r.ContentLength = -1
		return r, nil
	})
	f.want(f.ask("GET", "/", ""), strings.Repeat("x", 64<<10+1), "fwd=miss")
	f.want(f.ask("GET", "/", ""), strings.Repeat("x", 64<<10+1), "fwd=miss; detail=pass")
}

func TestAPanicEndsOneRequestAndNotTheProcess(t *testing.T) {
	f := newFixture(t, minute, func(_ *http.Request, n int) (*http.Response, error) {
		if n == 1 {
			panic("a fault")
		}
		return reply(200, "well"), nil
	})
	if g := f.ask("GET", "/", ""); !errors.Is(g.err, httpcache.ErrPanic) || f.panics.Load() != "a fault" {
		t.Fatal(g, f.panics.Load())
	}
	f.want(f.ask("GET", "/", ""), "well", "fwd=miss; stored")
}
