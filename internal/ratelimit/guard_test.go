package ratelimit

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"
)

// TestOneStallIsOneFailure: calls that one short stall of the store fails
// together do not end its use; the same in a row do.
func TestOneStallIsOneFailure(t *testing.T) {
	l := newLab(t, mustLoad(t, shipped), func(o *Options) { o.Failures = 3 })
	gone, at := errors.New("gone"), l.clock.Now()
	call := func(start, end int64) {
		l.guard.failed(at.Add(time.Duration(start)*time.Millisecond), at.Add(time.Duration(end)*time.Millisecond), gone)
	}
	for i := range int64(5) {
		call(i, 20+i)
	}
	if !l.guard.allows() {
		t.Error("calls that failed together count each")
	}
	call(30, 50)
	if !l.guard.allows() {
		t.Error("two in a row are three")
	}
	if call(50, 70); l.guard.allows() {
		t.Error("three in a row are not")
	}
}

// TestSampledRequestsTellTheGuard: a traced request makes a call of its own. A
// caller that is gone by its end does not hide that the store is.
func TestSampledRequestsTellTheGuard(t *testing.T) {
	store := &broken{}
	l := newLab(t, mustLoad(t, shipped), func(o *Options) {
		store.Store = o.Store
		o.Store, o.Failures = store, 1
	})
	store.set(context.DeadlineExceeded)
	span := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{1}, TraceFlags: trace.FlagsSampled})
	ctx, leave := context.WithCancel(trace.ContextWithSpanContext(t.Context(), span))
	leave()
	var dec Decision
	req := request(of("free", "u", "x"))
	if err := l.Decide(ctx, &req, &dec); err != nil || dec.Path != PathLocal {
		t.Fatalf("%+v, %v", dec, err)
	}
	if l.guard.allows() {
		t.Error("the guard knows nothing")
	}
}
