package anomaly

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// start is a Friday, 12:00 UTC.
var start = time.Date(2027, 1, 15, 12, 0, 0, 0, time.UTC)

func at(after time.Duration) time.Time { return start.Add(after) }

func mustCompile(t testing.TB, change func(*Config)) *Rules {
	t.Helper()
	c := DefaultConfig()
	c.Actions = []ActionConfig{{1, "header"}, {50, "step_up"}, {80, "revoke_session"}, {95, "deny"}}
	if change != nil {
		change(&c)
	}
	r, err := Compile(c)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// places of the tests, coarse.
var (
	placeBerlin  = Place{"DE", asBerlin, true, 52.52, 13.405, 20}.Coarse()
	placePotsdam = Place{"DE", asBerlin + 10, true, 52.39, 13.065, 20}.Coarse()
	placeNY      = Place{"US", asNY, true, 40.7128, -74.006, 20}.Coarse()
	placeSydney  = Place{"AU", asSydney, true, -33.8688, 151.2093, 20}.Coarse()
)

// seen is an observation of the user's usual device in Berlin.
func seen(after time.Duration, change ...func(*Observation)) *Observation {
	o := &Observation{At: at(after), Device: "laptop", Agent: "firefox", Address: "home", Token: "t1", Place: placeBerlin}
	for _, c := range change {
		c(o)
	}
	return o
}

func in(place Place, address string) func(*Observation) {
	return func(o *Observation) { o.Place, o.Address = place, address }
}

func with(token, device, agent string) func(*Observation) {
	return func(o *Observation) { o.Token, o.Device, o.Agent = token, device, agent }
}

// learn records observations and returns what is known then.
func learn(t testing.TB, observations ...*Observation) *History {
	t.Helper()
	m := NewMemory()
	for _, o := range observations {
		if _, err := m.Record(t.Context(), "u", o.facts(), DefaultConfig().Retention); err != nil {
			t.Fatal(err)
		}
	}
	h, err := m.History(t.Context(), "u", time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	return &h
}

const day = 24 * time.Hour

func TestJudge(t *testing.T) {
	settledIn := []*Observation{seen(-3 * day), seen(-time.Hour)}
	for name, c := range map[string]struct {
		known  []*Observation
		now    *Observation
		want   string // reasons
		score  int
		action Action
	}{
		"the first time is the user": {nil, seen(0), "", 0, None},
		"the same again":             {settledIn, seen(0), "", 0, None},
		"over the ocean in an hour": {settledIn, seen(0, in(placeNY, "x")),
			"impossible_travel,new_country,new_network", 80, RevokeSession},
		"on both sides of the ocean": {[]*Observation{seen(-3 * day), seen(-9 * time.Minute)}, seen(0, in(placeNY, "x")),
			"impossible_travel,concurrent_use,new_country,new_network", 100, Deny},
		"over the ocean in a day": {[]*Observation{seen(-3 * day), seen(-day)}, seen(0, in(placeNY, "x")),
			"new_country,new_network", 30, Header},
		"with another token in an hour": {settledIn, seen(0, in(placeNY, "x"), with("t2", "laptop", "firefox")),
			"impossible_travel,new_country,new_network", 80, RevokeSession},
		"next town, another provider": {settledIn, seen(0, in(placePotsdam, "x")), "new_network", 10, Header},
		"far away in the same network": {settledIn, seen(0, in(Place{"DE", asBerlin, true, 48.1, 11.6, 20}.Coarse(), "x")),
			"", 0, None},
		"across a border in the same network": {settledIn, seen(0, in(Place{"AT", asBerlin, true, 48.2, 16.4, 20}.Coarse(), "x")),
			"new_country", 20, Header},
		"both sides of a border in the same network": {[]*Observation{seen(-3 * day), seen(-time.Minute)},
			seen(0, in(Place{"AT", asBerlin, true, 48.2, 16.4, 20}.Coarse(), "x")), "new_country", 20, Header},
		"accuracy makes up for distance": {settledIn, seen(0, in(Place{"DE", 1, true, 50.1, 8.7, 900}.Coarse(), "x")),
			"new_network", 10, Header},
		"a country without coordinates": {settledIn, seen(0, in(Place{Country: "US"}, "x"), with("t2", "laptop", "firefox")),
			"new_country", 20, Header},
		"the token in a country without coordinates": {settledIn[:1], seen(-3*day+time.Minute, in(Place{Country: "US"}, "x")),
			"concurrent_use,new_country", 60, StepUp},
		"an unknown place": {settledIn, seen(0, in(Place{}, "x")), "", 0, None},
		"trusted egress": {settledIn, seen(0, in(placeNY, "x"), func(o *Observation) { o.Trusted, o.Failures = true, 1000 }),
			"", 0, None},
		"an anonymiser": {settledIn, seen(0, in(placeNY, "x"), func(o *Observation) { o.Anonymiser = true }), "", 0, None},
		"a new device":  {settledIn, seen(0, with("t2", "phone", "safari")), "new_device", 15, Header},
		"a device that is new for some hours": {[]*Observation{seen(-3 * day), seen(-20*time.Hour, with("t2", "phone", "safari"))},
			seen(0, with("t2", "phone", "safari")), "new_device", 15, Header},
		"a device that was new yesterday": {[]*Observation{seen(-3 * day), seen(-25*time.Hour, with("t2", "phone", "safari"))},
			seen(0, with("t2", "phone", "safari")), "", 0, None},
		"the first device is not new beside a second": {[]*Observation{seen(-2 * time.Hour), seen(-time.Hour, with("t2", "phone", "safari"))},
			seen(0), "", 0, None},
		"no device": {settledIn, seen(0, with("t2", "", "")), "", 0, None},
		"at home while somebody else is away": {[]*Observation{seen(-3 * day), seen(-time.Hour, in(placeNY, "x"), with("t2", "bot", "bot"))},
			seen(0, with("t3", "laptop", "firefox")), "", 0, None},
		"failures before": {settledIn, seen(0, func(o *Observation) { o.Failures = 20 }), "failed_verifications", 20, Header},
		"fewer failures":  {settledIn, seen(0, func(o *Observation) { o.Failures = 19 }), "", 0, None},
		"a clock that is behind another": {[]*Observation{seen(-3 * day), seen(20 * time.Second)}, seen(0, in(placeNY, "x"), with("t2", "laptop", "firefox")),
			"impossible_travel,new_country,new_network", 80, RevokeSession},
	} {
		t.Run(name, func(t *testing.T) {
			v := mustCompile(t, nil).Judge(learn(t, c.known...), c.now)
			if v.Reasons != c.want || v.Score != c.score || v.Action != c.action {
				t.Errorf("%q, %d, %s; want %q, %d, %s: %+v", v.Reasons, v.Score, v.Action, c.want, c.score, c.action, v.Signals)
			}
		})
	}
}

func TestEvidence(t *testing.T) {
	h := learn(t, seen(-3*day), seen(-time.Minute))
	v := mustCompile(t, func(c *Config) { c.Weights = []WeightConfig{{"anonymiser", 5}, {"new_network", 0}} }).
		Judge(h, seen(0, in(placeNY, "x"), with("t1", "phone", "safari")))
	var got []string
	for _, s := range v.Signals {
		got = append(got, string(s.Code)+": "+s.Evidence)
	}
	want := []string{
		"impossible_travel: at least 6331 km from DE (AS64496) to US (AS64497) within 1m0s: 379860 km/h",
		"concurrent_use: the token was used 1m0s apart in DE (AS64496) and US (AS64497), at least 6331 km",
		"new_country: US, seen since now; 1 known before it",
		"new_device: device phone, seen since now; 1 known before it",
	}
	for i := range want {
		w, _, _ := strings.Cut(want[i], " 63") // the distance depends on rounding
		if i >= len(got) || !strings.HasPrefix(got[i], w) {
			t.Errorf("got %q", got)
			break
		}
	}
	if len(got) != len(want) {
		t.Errorf("got %q", got)
	}
	v = mustCompile(t, func(c *Config) { c.Weights = []WeightConfig{{"anonymiser", 5}} }).
		Judge(h, seen(0, func(o *Observation) { o.Anonymiser = true }))
	if v.Reasons != "anonymiser" || v.Score != 5 {
		t.Errorf("%+v", v)
	}
}

func TestSpeedForPeople(t *testing.T) {
	for took, want := range map[time.Duration]string{0: "at once", time.Second: "36000 km/h", time.Hour: "10 km/h"} {
		if got := speed(10, took); got != want {
			t.Errorf("10 km in %s: %s", took, got)
		}
	}
}

func TestTooMany(t *testing.T) {
	rules := mustCompile(t, func(c *Config) {
		c.Many = ManyConfig{Window: time.Hour, TokenAddresses: 3, TokenAgents: 2, UserAddresses: 5, UserAgents: 4}
	})
	addresses := func(n int, token func(int) string, every time.Duration) *History {
		var list []*Observation
		for i := range n {
			list = append(list, seen(-time.Duration(n-i)*every, in(placeBerlin, "a"+strconv.Itoa(i)), with(token(i), "laptop", "firefox")))
		}
		return learn(t, list...)
	}
	agents := func(n int, token func(int) string) *History {
		var list []*Observation
		for i := range n {
			list = append(list, seen(-time.Duration(n-i)*time.Minute, with(token(i), "laptop", "g"+strconv.Itoa(i))))
		}
		return learn(t, list...)
	}
	one := func(int) string { return "t1" }
	each := func(i int) string { return "u" + strconv.Itoa(i) }
	for name, c := range map[string]struct {
		h    *History
		want string
	}{
		"two addresses before":        {addresses(2, one, time.Minute), ""},
		"three addresses before":      {addresses(3, one, time.Minute), "4 addresses of one token within 1h0m0s, more than 3"},
		"three in as many hours":      {addresses(3, one, time.Hour), ""},
		"four addresses of the user":  {addresses(4, each, time.Minute), ""},
		"five addresses of the user":  {addresses(5, each, time.Minute), "6 addresses of the user within 1h0m0s, more than 5"},
		"one agent before":            {agents(1, one), ""},
		"two agents before":           {agents(2, one), "3 agents of one token within 1h0m0s, more than 2"},
		"three agents of the user":    {agents(3, each), ""},
		"four agents of the user":     {agents(4, each), "5 agents of the user within 1h0m0s, more than 4"},
		"nothing":                     {&History{}, ""},
		"an address that came before": {learn(t, seen(-time.Minute), seen(-time.Second)), ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := ""
			for _, s := range rules.Judge(c.h, seen(0)).Signals {
				if s.Code == ManyAddresses || s.Code == ManyAgents {
					got += s.Evidence
				}
			}
			if got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

func TestHourNeedsHistory(t *testing.T) {
	office := func(days int) *History {
		var list []*Observation
		for d := days; d > 0; d-- {
			for h := -3; h <= 3; h++ { // 9 to 15 h
				list = append(list, seen(-time.Duration(d)*day+time.Duration(h)*time.Hour))
			}
		}
		return learn(t, list...)
	}
	night := -9 * time.Hour
	for name, c := range map[string]struct {
		h    *History
		now  time.Duration
		want string
	}{
		"three weeks, at night": {office(21), night, "unusual_hour"},
		"three weeks, at noon":  {office(21), 0, ""},
		"one week, at night":    {office(7), night, ""},
		"nothing":               {&History{}, night, ""},
	} {
		if v := mustCompile(t, nil).Judge(c.h, seen(c.now)); v.Reasons != c.want {
			t.Errorf("%s: %+v", name, v)
		} else if c.want != "" && !strings.HasPrefix(v.Signals[0].Evidence, "03 h UTC; 0.0 % of 147 active hours are near it, most around 12 h (deviation 2.") {
			t.Errorf("%s: %s", name, v.Signals[0].Evidence)
		}
	}
}

// A challenge is answered by authenticating again: the new token settles what was suspicious, but only where it is used
// first, and only for a while.
func TestProofSettles(t *testing.T) {
	known := []*Observation{seen(-3 * day), seen(-time.Hour)}
	proof := func(ago time.Duration) func(*Observation) {
		return func(o *Observation) { o.Authenticated = o.At.Add(-ago) }
	}
	fresh, away := with("t2", "phone", "safari"), in(placeNY, "x")
	for name, c := range map[string]struct {
		known []*Observation
		now   *Observation
		want  bool
	}{
		"a minute ago":            {nil, seen(0, fresh, away, proof(time.Minute)), true},
		"an hour ago":             {nil, seen(0, fresh, away, proof(time.Hour)), false},
		"never":                   {nil, seen(0, fresh, away), false},
		"by a clock a bit ahead":  {nil, seen(0, fresh, away, proof(-30*time.Second)), true},
		"in the future":           {nil, seen(0, fresh, away, proof(-time.Hour)), false},
		"the token again":         {[]*Observation{seen(-time.Minute, fresh, away)}, seen(0, fresh, away, proof(2*time.Minute)), true},
		"the token is elsewhere":  {[]*Observation{seen(-time.Minute, fresh)}, seen(0, fresh, away, proof(2*time.Minute)), false},
		"the token has moved":     {[]*Observation{seen(-time.Minute, fresh, in(placeSydney, "y"))}, seen(0, fresh, away, proof(2*time.Minute)), false},
		"the token changed agent": {[]*Observation{seen(-time.Minute, with("t2", "bot", "bot"), away)}, seen(0, fresh, away, proof(2*time.Minute)), false},
	} {
		t.Run(name, func(t *testing.T) {
			v := mustCompile(t, nil).Judge(learn(t, append(slices.Clone(known), c.known...)...), c.now)
			if v.Settled != c.want || len(v.Signals) == 0 || (v.Score == 0) != c.want || (v.Action == None) != c.want || (v.Reasons == "") != c.want {
				t.Errorf("%+v", v)
			}
		})
	}
}

func TestAsOf(t *testing.T) {
	h := learn(t, seen(-10*day), seen(-5*day), seen(-2*time.Hour, in(placeSydney, "s"), with("t9", "phone", "safari")), seen(-time.Hour, in(placeSydney, "s"), with("t9", "phone", "safari")))
	rules := mustCompile(t, nil)
	for name, c := range map[string]struct {
		now  *Observation
		want string
	}{
		"the very sighting":                  {seen(-2*time.Hour, in(placeSydney, "s"), with("t9", "phone", "safari")), "new_country,new_device,new_network"},
		"the new one is not known yet":       {seen(-3*day, with("t2", "phone", "safari")), "new_device"},
		"it came too early to get to Sydney": {seen(-3*time.Hour, with("t2", "tablet", "chrome")), "impossible_travel,new_device"},
		"between two sightings":              {seen(-7 * day), ""},
		"before everything":                  {seen(-11 * day), ""},
	} {
		past := h.AsOf(c.now.At)
		if v := rules.Judge(&past, c.now); v.Reasons != c.want {
			t.Errorf("%s: %+v", name, v)
		}
	}
}

func drawObservation(t *rapid.T, label string) *Observation {
	name := func(what string, n int) string {
		return fmt.Sprintf("%s%d", what, rapid.IntRange(0, n).Draw(t, label+" "+what))
	}
	o := seen(time.Duration(rapid.IntRange(0, 5000).Draw(t, label+" minutes"))*time.Minute,
		in(rapid.SampledFrom([]Place{{}, placeBerlin, placeNY, placePotsdam, placeSydney, {Country: "FR"}}).Draw(t, label+" place"), name("a", 12)),
		with(name("t", 3), name("d", 4), name("g", 10)))
	o.Trusted = rapid.IntRange(0, 9).Draw(t, label+" trusted") == 0
	o.Anonymiser = rapid.IntRange(0, 9).Draw(t, label+" anonymiser") == 0
	o.Failures = rapid.IntRange(0, 40).Draw(t, label+" failures")
	if rapid.IntRange(0, 4).Draw(t, label+" proof") == 0 {
		o.Authenticated = o.At.Add(-time.Duration(rapid.IntRange(-5, 20).Draw(t, label+" ago")) * time.Minute)
	}
	return o
}

// The score is the sum of what is shown, the reasons are the codes shown, and both fit into a header.
func TestVerdictIsExplained(t *testing.T) {
	rules := mustCompile(t, nil)
	rapid.Check(t, func(rt *rapid.T) {
		var list []*Observation
		for i := range rapid.IntRange(0, 30).Draw(rt, "n") {
			list = append(list, drawObservation(rt, strconv.Itoa(i)))
		}
		slices.SortFunc(list, func(a, b *Observation) int { return a.At.Compare(b.At) })
		h := learn(t, list...)
		v := rules.Judge(h, drawObservation(rt, "now"))
		sum, codes := 0, []string{}
		for _, s := range v.Signals {
			sum += s.Weight
			codes = append(codes, string(s.Code))
			if s.Weight <= 0 || s.Evidence == "" || !slices.Contains(Codes(), s.Code) {
				rt.Fatalf("signal %+v", s)
			}
		}
		if slices.Sort(codes); len(slices.Compact(codes)) != len(v.Signals) {
			rt.Fatalf("a signal twice: %v", codes)
		}
		if v.Settled {
			if v.Assessment != (Assessment{}) {
				rt.Fatalf("settled, and yet %+v", v.Assessment)
			}
			return
		}
		if v.Score != min(sum, MaxScore) || (v.Score == 0) != (v.Reasons == "") || v.Action != rules.action(v.Score) {
			rt.Fatalf("%+v", v)
		}
		if strings.Trim(v.Reasons, "abcdefghijklmnopqrstuvwxyz_,") != "" || len(v.Reasons) > 200 {
			rt.Fatalf("reasons %q", v.Reasons)
		}
		if v.Told() != (v.Score > 0) {
			rt.Fatalf("told: %v", v.Told())
		}
	})
}

// A request just like the one before is never suspicious for where or what it comes from, unless the one before was.
func TestSteadyUseIsNotSuspicious(t *testing.T) {
	rules := mustCompile(t, nil)
	rapid.Check(t, func(rt *rapid.T) {
		var list []*Observation
		for i := range rapid.IntRange(1, 300).Draw(rt, "n") {
			list = append(list, seen(time.Duration(i)*time.Duration(rapid.IntRange(1, 60).Draw(rt, "gap"))*time.Minute))
		}
		slices.SortFunc(list, func(a, b *Observation) int { return a.At.Compare(b.At) })
		h := learn(t, list...)
		now := *list[len(list)-1]
		if v := rules.Judge(h, &now); len(v.Signals) > 0 {
			rt.Fatalf("%+v", v)
		}
	})
}

func TestActions(t *testing.T) {
	for a := None; a <= Deny; a++ {
		text, _ := a.MarshalText()
		var again Action
		if err := again.UnmarshalText(text); err != nil || again != a {
			t.Errorf("%s: %v, %v", a, again, err)
		}
		if a.Refuses() != (a == StepUp || a == RevokeSession || a == Deny) {
			t.Errorf("%s refuses: %v", a, a.Refuses())
		}
	}
	if err := new(Action).UnmarshalText([]byte("shrug")); err == nil || Action(9).String() != "action(9)" {
		t.Errorf("%v", err)
	}
	r := mustCompile(t, func(c *Config) { c.Actions = []ActionConfig{{80, "deny"}, {30, "header"}} })
	for score, want := range map[int]Action{0: None, 29: None, 30: Header, 79: Header, 80: Deny, 100: Deny} {
		if got := r.action(score); got != want {
			t.Errorf("%d: %s, want %s", score, got, want)
		}
	}
	if (&Assessment{Score: 10, Action: Log}).Told() {
		t.Error("the audit mode tells backends")
	}
}
