package gate_test

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/anomaly"
	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/gate"
	"github.com/tollgate-proxy/tollgate/internal/polltest"
)

// watching runs a real watch whose one action begins at a score of 1.
func watching(t *testing.T, action string) *anomaly.Watch {
	t.Helper()
	c := anomaly.DefaultConfig()
	c.Enabled, c.Wait, c.Timeout = true, polltest.Patience, polltest.Patience
	c.Actions = []anomaly.ActionConfig{{Score: 1, Action: action}}
	w, err := anomaly.NewWatch(c, anomaly.Options{
		Store: anomaly.NewMemory(), Now: time.Now,
		EndSession: func(context.Context, string, string, string) error { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return w
}

// A user who is in Paris, and the same moment in Sydney.
func TestSuspiciousRequests(t *testing.T) {
	for action, want := range map[string]struct {
		status int
		code   string
	}{
		"log":            {0, ""},
		"header":         {0, ""},
		"step_up":        {401, "step_up_required"},
		"revoke_session": {401, "session_ended"},
		"deny":           {403, "risk_denied"},
	} {
		t.Run(action, func(t *testing.T) {
			p := newPartsWith(t, true, watching(t, action))
			token := p.mint(t, authn.MintOptions{User: "ada", Session: "s-1"})
			from := func(address, country, network, lat, long string) *gate.Request {
				return &gate.Request{
					Request:   authn.Request{Host: "h", Method: "GET", Path: "/api", Authorization: "Bearer " + token},
					Address:   netip.MustParseAddr(address),
					UserAgent: "ua", Place: anomaly.PlaceText{Country: country, Network: network, Latitude: lat, Longitude: long},
				}
			}
			if o := p.gate.Decide(t.Context(), from("192.0.2.7", "FR", "64500", "48.85", "2.35")); !o.Allowed || o.Risk.Score != 0 {
				t.Fatalf("in Paris: %+v", o)
			}
			sydney := from("198.51.100.7", "AU", "64501", "-33.87", "151.21")
			e := p.gate.Explain(t.Context(), sydney)
			if last := e.Steps[len(e.Steps)-1]; want.status != 0 && (last.Name != "risk" || last.Passed || !strings.Contains(last.Detail, "impossible_travel")) {
				t.Errorf("explained as %+v", e.Steps)
			}
			o := p.gate.Decide(t.Context(), sydney)
			if o.Allowed != (want.status == 0) || o.Status != want.status || o.Code != want.code {
				t.Errorf("in Sydney: %v %d %s", o.Allowed, o.Status, o.Code)
			}
			if !strings.Contains(o.Risk.Reasons, "impossible_travel") || o.Risk.Told() != (action != "log") {
				t.Errorf("risk %+v", o.Risk)
			}
		})
	}
}

// What is switched off says nothing, and nothing is asked about it.
func TestSuspicionsSwitchedOff(t *testing.T) {
	w, err := anomaly.NewWatch(anomaly.Config{Refresh: time.Minute}, anomaly.Options{Store: anomaly.NewMemory(), Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	p := newPartsWith(t, true, w)
	r := &gate.Request{Request: authn.Request{Host: "h", Method: "GET", Path: "/api", Authorization: "Bearer " + p.mint(t, authn.MintOptions{})}}
	e := p.gate.Explain(t.Context(), r)
	if !e.Outcome.Allowed || slices.ContainsFunc(e.Steps, func(s gate.Step) bool { return s.Name == "risk" }) {
		t.Errorf("explained as %+v", e)
	}
}

// failures remembers what is told of failed verifications.
type failures struct {
	gate.Suspicions
	from []netip.Addr
}

func (f *failures) Failed(a netip.Addr, _ time.Time) { f.from = append(f.from, a) }

func TestOnlyBadTokensCountAsFailures(t *testing.T) {
	f := &failures{}
	p := newPartsWith(t, true, f)
	p.decide(t, "/api", "")
	p.decide(t, "/api", p.mint(t, authn.MintOptions{TTL: -time.Hour}))
	p.decide(t, "/public", "garbage")
	if len(f.from) != 0 {
		t.Errorf("%d failures counted", len(f.from))
	}
	p.decide(t, "/api", "garbage")
	if len(f.from) != 1 || f.from[0].String() != "192.0.2.7" {
		t.Errorf("got %v", f.from)
	}
}
