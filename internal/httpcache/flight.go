package httpcache

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"
)

// ErrPanic is what a request to the service ended with that ended in a panic.
var ErrPanic = errors.New("the request to the service ended in a panic")

// flight is one request to the service on behalf of all that ask the same. Its
// fields but resp are final when done is closed.
type flight struct {
	done      chan struct{}
	cancel    context.CancelFunc // ends the request to the service
	entry     *entry             // to answer everyone with
	stale     bool               // entry is an old one that stands in for a failing service
	err       error
	fwdStatus int

	mu   sync.Mutex
	resp *http.Response // what cannot be shared: the first caller's
	left bool
}

// fly joins the flight of a key, or starts it; first says which.
func (c *Cache) fly(t *transport, k key, r *http.Request, header http.Header, body []byte, e *entry) (f *flight, first bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f, ok := c.flights[k]; ok {
		return f, false
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
	f = &flight{done: make(chan struct{}), cancel: cancel}
	c.flights[k] = f
	go func() {
		defer func() {
			if v := recover(); v != nil { // no handler of a server is above us to end one request and not the process
				f.err = ErrPanic
				c.options.Panicked("cache", v)
				cancel()
			}
			c.mu.Lock()
			delete(c.flights, k)
			c.mu.Unlock()
			close(f.done)
		}()
		f.run(ctx, t, k, t.upstream(ctx, r, header, body, e), e)
		if f.entry != nil || f.err != nil {
			cancel()
		}
	}()
	return f, true
}

func (f *flight) run(ctx context.Context, t *transport, k key, r *http.Request, e *entry) {
	c := t.cache
	resp, err := t.next.RoundTrip(r)
	now := c.options.Now()
	if mayStandIn(e, resp, err, now) {
		if resp != nil {
			_ = resp.Body.Close()
		}
		f.entry, f.stale = e, true
		return
	}
	if err != nil {
		f.err = err
		return
	}
	f.fwdStatus = resp.StatusCode
	if e != nil && resp.StatusCode == http.StatusNotModified {
		_ = resp.Body.Close()
		h := e.merge(resp.Header, now)
		l, ok := t.policy.storable(e.Status, h, now)
		if !ok { // it is the first caller's alone from now on
			c.pass(k, now)
			f.give(e.whole(h)) //nolint:bodyclose // the first caller closes it
			return
		}
		f.entry = newEntry(e.Status, h, e.Body, l, now)
		c.put(ctx, k, f.entry, now)
		return
	}
	l, ok := t.policy.storable(resp.StatusCode, resp.Header, now)
	if !ok || resp.ContentLength > c.options.MaxEntry {
		if resp.StatusCode < http.StatusInternalServerError && resp.StatusCode != http.StatusTooManyRequests { // a service that fails or wants rest is asked once at a time
			c.pass(k, now)
		}
		f.give(resp)
		return
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, c.options.MaxEntry+1))
	switch {
	case err != nil:
		// Half an answer must reach nobody as a whole one.
		_ = resp.Body.Close()
		f.err = err
	case int64(len(body)) > c.options.MaxEntry:
		c.pass(k, now)
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.MultiReader(bytes.NewReader(body), resp.Body), resp.Body}
		f.give(resp)
	default:
		_ = resp.Body.Close()
		f.entry = newEntry(resp.StatusCode, resp.Header, body, l, now)
		c.put(ctx, k, f.entry, now)
	}
}

// mayStandIn says whether a stale entry answers for a service that failed.
func mayStandIn(e *entry, resp *http.Response, err error, now time.Time) bool {
	if e == nil || !now.Before(e.SIE) {
		return false
	}
	if err != nil {
		return true
	}
	switch resp.StatusCode {
	case http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	default:
		return false
	}
}

// pass lets requests for a key go one by one for a while.
func (c *Cache) pass(k key, now time.Time) {
	c.lru.put(k, &entry{pass: true, Fresh: now.Add(passFor)})
}

// give leaves an answer for the first caller; nobody takes it if that one left.
func (f *flight) give(resp *http.Response) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.left {
		_ = resp.Body.Close()
		f.cancel()
		return
	}
	f.resp = resp
}

// take is called by the first caller, once the flight is done: the answer is not
// shared, so it ends when that one's context does.
func (f *flight) take(r *http.Request) *http.Response {
	f.mu.Lock()
	defer f.mu.Unlock()
	resp := f.resp
	f.resp = nil
	resp.Request = r
	context.AfterFunc(r.Context(), f.cancel)
	return resp
}

// leave is called by a caller that does not wait any more.
func (f *flight) leave(first bool) {
	if !first {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.left = true
	if f.resp != nil {
		_ = f.resp.Body.Close()
		f.resp = nil
		f.cancel()
	}
}
