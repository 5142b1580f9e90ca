package pyproxy

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func addresses(es []*endpoint) []string {
	var out []string
	for _, e := range es {
		out = append(out, e.host+" "+e.address)
	}
	return out
}

func TestNamesAreLookedUpAgain(t *testing.T) {
	u := &upstream{Upstream: Upstream{Addresses: []string{"name:1", "192.0.2.1:2", "other:3"}}, log: slog.New(slog.DiscardHandler)}
	es := unresolved(u.Addresses)
	u.endpoints.Store(&es)
	answers := map[string][]netip.Addr{}
	var failed []string
	look := func(_ context.Context, host string) ([]netip.Addr, error) {
		if slices.Contains(failed, host) {
			return nil, errors.New("no such host")
		}
		return answers[host], nil
	}
	resolve := func(wantErr bool, want ...string) {
		t.Helper()
		if err := u.resolve(context.Background(), look); (err != nil) != wantErr {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, addresses(u.current())); d != "" {
			t.Fatal(d)
		}
	}
	// Before the first answer a name stands for itself.
	resolve(true, "name:1 name:1", "192.0.2.1:2 192.0.2.1:2", "other:3 other:3")
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("::ffff:10.0.0.2")
	answers["name"], answers["other"] = []netip.Addr{a, b, a}, []netip.Addr{a}
	resolve(false, "name:1 10.0.0.1:1", "name:1 10.0.0.2:1", "192.0.2.1:2 192.0.2.1:2", "other:3 10.0.0.1:3")
	kept := u.current()[1]
	// A failed look-up keeps what was known; the others go on.
	failed, answers["other"] = []string{"name"}, []netip.Addr{b}
	resolve(true, "name:1 10.0.0.1:1", "name:1 10.0.0.2:1", "192.0.2.1:2 192.0.2.1:2", "other:3 10.0.0.2:3")
	failed, answers["name"] = nil, []netip.Addr{b}
	resolve(false, "name:1 10.0.0.2:1", "192.0.2.1:2 192.0.2.1:2", "other:3 10.0.0.2:3")
	if u.current()[0] != kept {
		t.Fatal("what was known of an address is lost")
	}
}

func TestWatchNames(t *testing.T) {
	u := &upstream{Upstream: Upstream{Addresses: []string{"name:1"}}, log: slog.New(slog.DiscardHandler)}
	es := unresolved(u.Addresses)
	u.endpoints.Store(&es)
	ctx, cancel := context.WithCancel(context.Background())
	n := 0
	u.watchNames(ctx, TransportConfig{ResolveEvery: time.Millisecond, ResolveTimeout: time.Second}, func(context.Context, string) ([]netip.Addr, error) {
		if n++; n == 3 {
			cancel()
		}
		if n == 1 {
			return nil, errors.New("not yet")
		}
		return []netip.Addr{netip.MustParseAddr("10.0.0.1")}, nil
	})
	if got := u.current()[0].address; got != "10.0.0.1:1" {
		t.Fatal(got)
	}
	// Addresses alone need no look-up: it returns at once.
	(&upstream{Upstream: Upstream{Addresses: []string{"127.0.0.1:1", "[::1]:1"}}}).watchNames(context.Background(), TransportConfig{}, nil)
}

func TestPick(t *testing.T) {
	now := time.Unix(1000, 0)
	well := func(load int64) *endpoint { e := &endpoint{}; e.inFlight.Store(load); return e }
	a, b, sick, out := well(1), well(2), well(0), well(0)
	failed := well(0)
	failed.failed(EjectionConfig{Failures: 5, Base: time.Minute}, nil, now)
	sick.unhealthy.Store(true)
	out.until.Store(now.Add(time.Second).UnixNano())
	for _, tc := range []struct {
		name       string
		all, tried []*endpoint
		want       *endpoint
	}{
		{"the least loaded", []*endpoint{b, a, sick, out}, nil, a},
		{"not one that was tried", []*endpoint{a, b, sick, out}, []*endpoint{a}, b},
		{"not one that just failed", []*endpoint{failed, b, sick, out}, nil, b},
		{"a failed one rather than a tried one", []*endpoint{failed, b}, []*endpoint{b}, failed},
		{"a tried one rather than a sick one", []*endpoint{a, sick, out}, []*endpoint{a}, a},
		{"a sick one rather than none", []*endpoint{sick}, []*endpoint{sick}, sick},
	} {
		for range 20 { // ties are broken at random
			if got := pick(tc.all, tc.tried, now); got != tc.want {
				t.Fatalf("%s: another", tc.name)
			}
		}
	}
	if !out.available(now.Add(2 * time.Second)) {
		t.Fatal("an ejection that does not end")
	}
}

func TestEjection(t *testing.T) {
	now := time.Unix(1000, 0)
	c := EjectionConfig{Failures: 2, Base: 10 * time.Second, Max: 15 * time.Second}
	a, b, d := &endpoint{}, &endpoint{}, &endpoint{}
	all := []*endpoint{a, b, d}
	if a.failed(c, all, now) != 0 {
		t.Fatal("too early")
	}
	a.succeeded()
	if a.failed(c, all, now) != 0 {
		t.Fatal("a success did not count")
	}
	if got := a.failed(c, all, now); got != 10*time.Second {
		t.Fatal(got)
	}
	b.failed(c, all, now)
	if got := b.failed(c, all, now); got != 0 {
		t.Fatal("more than half are out")
	}
	now = now.Add(11 * time.Second)
	a.failed(c, all, now)
	if got := a.failed(c, all, now); got != 15*time.Second { // bounded by Max
		t.Fatal(got)
	}
}
