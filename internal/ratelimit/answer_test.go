package ratelimit

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestHeaders(t *testing.T) {
	l := newLab(t, mustLoad(t, shipped))
	got := func(d Descriptor) map[string]string {
		h := map[string]string{}
		for _, x := range l.decide(request(d)).AppendHeaders(nil) {
			h[x.Name] = x.Value
		}
		return h
	}
	policy := `"minute";q=10;w=60, "hour";q=100;w=3600`
	if diff := cmp.Diff(map[string]string{
		HeaderPolicy: policy, HeaderState: `"minute";r=9;t=6`, HeaderLimit: "10", HeaderRemaining: "9", HeaderReset: "6",
	}, got(of("free", "u\r\nx: y", "x"))); diff != "" {
		t.Error(diff)
	}
	got(of("free", "u\r\nx: y", "x").with(9))
	l.clock.Advance(time.Microsecond)
	if diff := cmp.Diff(map[string]string{
		HeaderPolicy: policy, HeaderState: `"minute";r=0;t=6`, HeaderLimit: "10", HeaderRemaining: "0", HeaderReset: "6", HeaderRetryAfter: "6",
	}, got(of("free", "u\r\nx: y", "x"))); diff != "" {
		t.Error(diff)
	}
	system := &Status{Rule: l.Rules().domains["tollgate"].tiers["free"], Limit: &l.Rules().domains["tollgate"].system[0]}
	if want := policy + `, "system-second";q=10000;w=1`; system.policy() != want {
		t.Errorf("got %s", system.policy())
	}
	system.Rule = nil
	if want := `"system-second";q=10000;w=1`; system.policy() != want {
		t.Errorf("got %s", system.policy())
	}
	if h := (&Decision{Shown: -1}).AppendHeaders(nil); len(h) != 1 || h[0] != (Header{HeaderRetryAfter, "1"}) {
		t.Errorf("a denial without a status: %v", h)
	}
}
