package ratelimit

import (
	"fmt"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestEnvoyproxyGrammar(t *testing.T) {
	l := newLab(t, mustLoad(t, "testdata/envoyproxy.yaml"))
	ask := func(key, value string) *Decision {
		t.Helper()
		return l.decide(Request{Domain: "edge", Descriptors: []Descriptor{{Entries: []Entry{{key, value}}}}})
	}
	for i := range 3 { // shadow_mode: counted, not enforced
		dec := ask("code", "10")
		if s := dec.Statuses[0]; !dec.Allowed || s.Denied || s.Over != (i > 0) {
			t.Errorf("shadow %d: %+v", i, dec)
		}
	}
	ask("quota", "a")
	if dec := ask("quota", "a"); !dec.Allowed || !dec.Statuses[0].Over || !dec.Statuses[0].Rule.Quota {
		t.Errorf("quota: %+v", dec)
	}
	for i := range 4 { // share_threshold: one bucket for all that match
		if dec := ask("path", fmt.Sprint("/files/", i)); dec.Allowed != (i < 3) {
			t.Errorf("shared %d: %+v", i, dec)
		}
	}
	for i := range 30 { // without it: one bucket each
		if dec := ask("path", fmt.Sprint("/api/", i)); !dec.Allowed {
			t.Errorf("wildcard %d: %+v", i, dec)
		}
	}
	for i := range 2 {
		if dec := ask("404", "yes"); !dec.Allowed || dec.Statuses[0].Over != (i > 0) {
			t.Errorf("numbers and words %d: %+v", i, dec)
		}
	}
	if s := ask("405", "x").Statuses[0]; s.Rule == nil || !s.Rule.Unlimited {
		t.Errorf("%+v", s)
	}
	number, vip := Descriptor{Entries: []Entry{{"to_number", "7"}}}, Descriptor{Entries: []Entry{{"vip", "7"}}}
	if dec := l.decide(Request{Domain: "edge", Hits: 200, Descriptors: []Descriptor{number}}); dec.Allowed {
		t.Error("200 of 100 were allowed")
	}
	if dec := l.decide(Request{Domain: "edge", Hits: 200, Descriptors: []Descriptor{number, vip}}); !dec.Allowed || dec.Statuses[0].Rule != nil {
		t.Errorf("the limit that replaces another did not: %+v", dec)
	}
	for _, c := range []struct {
		rule    string
		outcome outcome
		want    float64
	}{{"path_/api/7", outcomeAllowed, 1}, {"path_/files/3", outcomeDenied, 0}, {"path_/files/*", outcomeDenied, 1}, {"code_10", outcomeShadow, 2}} {
		if got := testutil.ToFloat64(l.metrics.decisions.WithLabelValues("edge", c.rule, "exact", c.outcome.String())); got != c.want {
			t.Errorf("%s %s: %v, want %v", c.rule, c.outcome, got, c.want)
		}
	}
}

func TestDetailedMetricsAreBounded(t *testing.T) {
	l := newLab(t, mustLoad(t, "testdata/envoyproxy.yaml"))
	for i := range 3 * maxDetailed {
		l.decide(Request{Domain: "edge", Descriptors: []Descriptor{{Entries: []Entry{{"path", fmt.Sprint("/api/\xff", i)}}}}})
	}
	if n := testutil.CollectAndCount(l.metrics.decisions); n > maxDetailed+10 {
		t.Errorf("%d series", n)
	}
}

func TestOverride(t *testing.T) {
	l := newLab(t, mustLoad(t, shipped))
	d := of("free", "u", "x")
	d.Override = &Override{Tokens: 2, Unit: Second, Multiple: 1}
	for i := range 3 {
		if dec := l.decide(request(d)); dec.Allowed != (i < 2) || dec.Statuses[0].Limit.Tokens != 2 {
			t.Errorf("request %d: %+v", i, dec)
		}
	}
	d.Override.Unit = UnknownUnit
	if dec := l.decide(request(d)); dec.Statuses[0].Limit.Tokens != 10 {
		t.Errorf("an impossible limit took the place of the configured one: %+v", dec)
	}
}
