package extauthz

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/baggage"

	"github.com/tollgate-proxy/tollgate/internal/anomaly"
	"github.com/tollgate-proxy/tollgate/internal/config"
	"github.com/tollgate-proxy/tollgate/internal/flag"
	"github.com/tollgate-proxy/tollgate/internal/gate"
)

func TestBaggage(t *testing.T) {
	both := BaggageConfig{Flags: "feature-flags", Experiments: "experiments"}
	many := func(n int, member string) string {
		return strings.TrimSuffix(strings.Repeat(member+",", n), ",")
	}
	for name, tt := range map[string]struct {
		c                          BaggageConfig
		client, flags, experiments string
		want                       string
	}{
		"ours":               {both, "", "a=on,b=x", "b:1=x", "feature-flags=a%3Don%2Cb%3Dx,experiments=b:1%3Dx"},
		"flags alone":        {BaggageConfig{Flags: "f"}, "", "a=on", "b:1=x", "f=a%3Don"},
		"nothing":            {both, "", "", "", ""},
		"the client's stay":  {both, "tenant=7;secret, trace-me=yes", "a=on", "", "feature-flags=a%3Don,tenant=7;secret,trace-me=yes"},
		"forged":             {both, "feature-flags=a%3Doff,tenant=7,experiments=b:1=y", "a=on", "", "feature-flags=a%3Don,tenant=7"},
		"forged by spelling": {both, "feature%2Dflags=x,Feature-Flags=x, feature-flags = x,+feature-flags=x,experiments%20=x", "", "", ""},
		"no members":         {both, "x,=y,,%zz=1,,", "a=on", "", "feature-flags=a%3Don"},
		"too many":           {both, many(100, "k=v"), "a=on", "b:1=x", "feature-flags=a%3Don,experiments=b:1%3Dx," + many(62, "k=v")},
		"too long":           {both, many(3, "k="+strings.Repeat("v", 4000)), "a=on", "", "feature-flags=a%3Don," + many(2, "k="+strings.Repeat("v", 4000))},
		"ours too long":      {both, "k=v", strings.Repeat("a", maxBaggageBytes), "b:1=x", "experiments=b:1%3Dx,k=v"},
	} {
		got := string(tt.c.append(nil, tt.client, tt.flags, tt.experiments))
		if got != tt.want {
			t.Errorf("%s: got %.300q, want %.300q", name, got, tt.want)
		}
	}
}

// Whatever the client sends, OpenTelemetry reads ours and nothing forged, within
// the limits of the W3C.
func FuzzBaggage(f *testing.F) {
	for _, client := range []string{"", "a=b", "feature-flags=forged", "a=b;c=d;e , f=g", "%66eature-flags=x", strings.Repeat("a=b,", 200)} {
		f.Add(client, "ml-v2=on,x=y")
	}
	c := BaggageConfig{Flags: "feature-flags", Experiments: "experiments"}
	f.Fuzz(func(t *testing.T, client, flags string) {
		got := string(c.append(nil, client, flags, ""))
		if len(got) > maxBaggageBytes || strings.Count(got, ",") >= maxBaggageMembers {
			t.Fatalf("%d bytes", len(got))
		}
		for member := range strings.SplitSeq(got, ",") {
			name, value, _ := strings.Cut(member, "=")
			if name == "experiments" {
				t.Fatalf("forged: %q", got)
			}
			if decoded, err := url.PathUnescape(value); name == "feature-flags" && (err != nil || decoded != flags) {
				t.Fatalf("%q reads %q, %v", flags, decoded, err)
			}
		}
	})
}

func TestBaggageIsReadByOpenTelemetry(t *testing.T) {
	b, err := baggage.Parse(string(BaggageConfig{Flags: "feature-flags"}.append(nil, "tenant=7;p=1", "ml-v2=on,checkout=blue", "")))
	if err != nil || b.Member("feature-flags").Value() != "ml-v2=on,checkout=blue" || b.Member("tenant").Value() != "7" {
		t.Errorf("got %v, %v", b, err)
	}
}

// experimentOutcome is allowedOutcome with an experiment that deals everybody
// the red checkout, and counts.
func experimentOutcome(t *testing.T, dealt *int) gate.Outcome {
	o := allowedOutcome(t)
	var err error
	o.FlagSet, err = o.FlagSet.With([]flag.Experiment{{
		Name: "x", Flag: "checkout", Variants: []string{"blue", "red"}, Marks: []string{"x:1=blue", "x:1=red"}, Visitors: true,
		Assign: func(string, string, int64) (int, bool) { return 1, true }, Dealt: func(int) { *dealt++ },
	}})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// What an experiment dealt goes to the access log, and where it is asked for on
// to the services; each request counts once.
func TestExperiments(t *testing.T) {
	dealt := 0
	o := experimentOutcome(t, &dealt)
	names := DefaultHeaders()
	names.Baggage = BaggageConfig{Flags: "feature-flags", Experiments: "experiments"}
	s := New(Options{Decider: decide(func(*gate.Request) gate.Outcome { return o }), Headers: names})
	a := check(t, s, envoyRequest(map[string]string{"baggage": "tenant=7,experiments=forged"}, ""))
	if got := headersOf(a)["baggage"]; got != "feature-flags=checkout%3Dred%2Cml-v2%3Don,experiments=x:1%3Dred,tenant=7" {
		t.Errorf("baggage %q", got)
	}
	if m := a.GetDynamicMetadata().AsMap(); m["experiments"] != "x:1=red" || m["measured"] != "true" || m["visitor"] != nil || dealt != 1 {
		t.Errorf("metadata %v, dealt %d times", m, dealt)
	}
	// A visitor is named, since there is no user.
	o.Principal, o.Tier = nil, "anonymous"
	o.Subject = flag.Subject{Key: "visitor:v-1", Anonymous: true, Visitor: true}
	if m := check(t, s, envoyRequest(nil, "")).GetDynamicMetadata().AsMap(); m["experiments"] != "x:1=red" || m["visitor"] != "visitor:v-1" {
		t.Errorf("metadata %v", m)
	}
	o.Subject = flag.Subject{Key: "192.0.2.7", Anonymous: true}
	if m := check(t, s, envoyRequest(nil, "")).GetDynamicMetadata().AsMap(); m["experiments"] != nil || m["measured"] != nil || m["visitor"] != nil {
		t.Errorf("an address takes part: %v", m)
	}
	// Where there is nothing of ours to say, what was forged is removed all the same.
	o.Route = route(t, ", flags: []")
	o.Route.AllFlags = false
	a = check(t, s, envoyRequest(map[string]string{"baggage": "experiments=forged"}, ""))
	if _, set := headersOf(a)["baggage"]; set || !slices.Contains(a.GetOkResponse().GetHeadersToRemove(), "baggage") {
		t.Errorf("got %v", a.GetOkResponse())
	}
}

// Those whom no experiment deals a variant are measured where one measures the
// time before it begins.
func TestMeasureAll(t *testing.T) {
	dealt, all := 0, false
	o := experimentOutcome(t, &dealt)
	o.Principal, o.Tier = nil, "anonymous"
	o.Subject = flag.Subject{Key: "visitor:v-1", Anonymous: true, Visitor: true}
	o.Route = route(t, ", flags: []")
	o.Route.AllFlags = false
	s := New(Options{Decider: decide(func(*gate.Request) gate.Outcome { return o }), Headers: DefaultHeaders(), MeasureAll: func() bool { return all }})
	for _, all = range []bool{true, false} {
		m := check(t, s, envoyRequest(nil, "")).GetDynamicMetadata().AsMap()
		if _, marked := m["measured"]; marked != all || (m["visitor"] == "visitor:v-1") != all || m["experiments"] != nil {
			t.Errorf("%v: metadata %v", all, m)
		}
	}
}

func TestVisitor(t *testing.T) {
	for i, tt := range []struct {
		c       VisitorConfig
		headers map[string]string
		want    string
	}{
		{VisitorConfig{}, map[string]string{"x-device-id": "d", "cookie": "v=c"}, ""},
		{VisitorConfig{Header: "x-device-id"}, map[string]string{"x-device-id": "d"}, "d"},
		{VisitorConfig{Header: "x-visitor", Cookie: "v"}, map[string]string{"x-visitor": "h", "cookie": "v=c"}, "h"},
		{VisitorConfig{Header: "x-visitor", Cookie: "v"}, map[string]string{"cookie": "vv=no; v=c==; v=d"}, "c=="},
		{VisitorConfig{Header: "x-visitor", Cookie: "v"}, map[string]string{"x-visitor": "not a key", "cookie": "v=c"}, "c"},
		{VisitorConfig{Cookie: "v"}, map[string]string{"cookie": "v; w=1; v=" + strings.Repeat("x", 129)}, ""},
		{VisitorConfig{Cookie: "v"}, map[string]string{"cookie": "v=a,b"}, ""},
		{VisitorConfig{Cookie: "v"}, nil, ""},
	} {
		var got gate.Request
		names := DefaultHeaders()
		names.Visitor = tt.c
		s := New(Options{Headers: names, Decider: decide(func(r *gate.Request) gate.Outcome { got = *r; return gate.Outcome{Status: 403, Tier: "anonymous"} })})
		check(t, s, envoyRequest(tt.headers, ""))
		if got.Visitor != tt.want {
			t.Errorf("%d: got %q, want %q", i, got.Visitor, tt.want)
		}
	}
}

func TestBaggageAndVisitorConfig(t *testing.T) {
	good := "baggage: {flags: feature-flags, experiments: exp}\nvisitor: {header: x-device-id, cookie: tg_visitor}"
	if _, err := config.Decode("x.yaml", []byte(good), DefaultHeaders()); err != nil {
		t.Error(err)
	}
	for _, text := range []string{
		"baggage: {flags: A}", "baggage: {flags: a, experiments: a}", "baggage: {experiments: 'a b'}",
		"visitor: {header: device}", "visitor: {cookie: 'a b'}",
	} {
		if _, err := config.Decode("x.yaml", []byte(text), DefaultHeaders()); err == nil || !strings.Contains(err.Error(), fmt.Sprintf(": %s.", text[:7])) {
			t.Errorf("%s: got %v", text, err)
		}
	}
	if n := newHeaderNames("", anomaly.PlaceHeadersConfig{}, DefaultHeaders()); n.any {
		t.Errorf("got %+v", n)
	}
}
