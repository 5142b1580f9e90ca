package anomaly

import (
	"context"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/tollgate-proxy/tollgate/internal/polltest"
)

// One story, over every store: a user at home, a new phone, a thief overseas.
func TestWatch(t *testing.T) {
	onEach(t, func(t *testing.T, s Store) {
		w := newWatch(t, s, nil)
		w.expect("the first day", sighting(-3*day, berlin), "", None)
		w.expect("another version of the browser", sighting(-day, berlin2, func(s *Sighting) {
			s.Agent = strings.ReplaceAll(s.Agent, "130.0", "131.0")
		}), "", None)
		w.expect("a new phone", sighting(-time.Hour, berlin, token("t2"), phone), "new_device", Header)
		w.expect("the thief", sighting(-30*time.Minute, newYork), "impossible_travel,new_country,new_network", RevokeSession)
		if got := <-w.ended; got != "ada/s1" {
			t.Errorf("ended %s", got)
		}
		w.expect("the user meanwhile", sighting(-29*time.Minute, berlin, token("t3")), "", None)
		w.expect("the thief again", sighting(-20*time.Minute, newYork), "impossible_travel,new_country,new_network", RevokeSession)
		<-w.ended // ended once more: the first time may not have been enough
		w.idle()

		// What was refused has taught nothing, and a year of trying will not make it familiar.
		h := mustHistory(t, s, "ada")
		if h.find(KindCountry, "US") != nil || h.find(KindNetwork, strconv.Itoa(asNY)) != nil {
			t.Errorf("learned %+v", h)
		}

		// The user travels in earnest, is challenged, and authenticates.
		w.expect("away", sighting(-10*time.Minute, sydney, token("t4"), phone), "impossible_travel,new_country,new_device,new_network", Deny)
		w.expect("after the challenge", sighting(-5*time.Minute, sydney, token("t5"), phone, func(s *Sighting) {
			s.Authenticated = s.At.Add(-10 * time.Second)
		}), "", None)
		w.expect("next token", sighting(-time.Minute, sydney, token("t6"), phone), "", None)

		events, err := w.Events(t.Context(), "ada")
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range events {
			got = append(got, e.Action.String()+" "+e.Session+" "+e.Country+" "+e.Range+" "+strconv.FormatBool(e.Settled))
		}
		want := []string{
			"none of-t5 AU 2001:db8:1::/48 true", "deny of-t4 AU 2001:db8:1::/48 false",
			"revoke_session s1 US 198.51.100.0/24 false", "header of-t2 DE 192.0.2.0/24 false",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if n := strings.Count(w.log.String(), "suspicious activity"); n != len(want) {
			t.Errorf("logged %d times: %s", n, w.log)
		}
		if err := w.Erase(t.Context(), "ada"); err != nil {
			t.Fatal(err)
		}
		if events, err := w.Events(t.Context(), "ada"); err != nil || len(events) > 0 {
			t.Errorf("after erasure: %+v, %v", events, err)
		}
		for result, want := range map[int]float64{clean: 4, suspicious: 4, settled: 1, failed: 0, late: 0} {
			if w.counted(result) != want {
				t.Errorf("result %d: %v, want %v", result, w.counted(result), want)
			}
		}
	})
}

func TestObserveAsksOnlyWhereSomethingChanged(t *testing.T) {
	w := newWatch(t, NewMemory(), nil)
	for i := range 1000 {
		w.expect("steady", sighting(time.Duration(i)*100*time.Millisecond, berlin), "", None)
	}
	if n := w.store.calls.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
	for what, change := range map[string]func(*Sighting){
		"address": func(s *Sighting) { s.Address = netip.MustParseAddr(berlin2) },
		"agent":   func(s *Sighting) { s.Agent = "curl/8" },
		"device":  func(s *Sighting) { s.Device = "tablet" },
		"token":   token("t2"),
		"user":    func(s *Sighting) { s.User, s.Token = "bob", [32]byte{} },
		"session": func(s *Sighting) { s.Session, s.Token = "s2", [32]byte{} },
	} {
		before := w.store.calls.Load()
		w.Observe(t.Context(), sighting(2*time.Minute, berlin, change))
		w.Observe(t.Context(), sighting(2*time.Minute, berlin, change))
		if n := w.store.calls.Load() - before; n != 1 {
			t.Errorf("another %s: asked %d times", what, n)
		}
	}
	before := w.store.calls.Load()
	w.Observe(t.Context(), sighting(5*time.Minute, berlin))
	polltest.Until(t, "a steady token is looked at again", func() bool { return w.store.calls.Load() == before+1 })

	if a := w.Observe(t.Context(), &Sighting{At: start}); a != (Assessment{}) || w.store.calls.Load() != before+1 {
		t.Errorf("without a user: %+v", a)
	}
	off := newWatch(t, NewMemory(), func(c *Config) { c.Enabled = false })
	off.Failed(netip.MustParseAddr(berlin), start)
	if a := off.Observe(t.Context(), sighting(0, berlin)); a != (Assessment{}) || off.store.calls.Load() != 0 || off.failures.Load().len() != 0 {
		t.Errorf("switched off: %+v", a)
	}
}

// Without a wait the assessment holds for the next request.
func TestObserveDoesNotWait(t *testing.T) {
	w := newWatch(t, NewMemory(), func(c *Config) { c.Wait = 0 })
	w.Observe(t.Context(), sighting(-3*day, berlin))
	polltest.Until(t, "home is known", func() bool { return w.counted(clean) == 1 })
	w.store.hang = make(chan struct{})
	thief := sighting(0, newYork, token("t2"))
	w.expect("at first", thief, "", None)
	close(w.store.hang)
	polltest.Until(t, "an assessment", func() bool { return w.Observe(t.Context(), thief).Reasons == "new_country,new_network" })
}

func TestObserveWaitsNoLongerThanAllowed(t *testing.T) {
	w := newWatch(t, NewMemory(), func(c *Config) { c.Wait = time.Millisecond })
	w.store.hang = make(chan struct{})
	w.expect("late", sighting(0, berlin), "", None)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w.reconfigure(func(c *Config) { c.Wait = time.Hour })
	if a := w.Observe(ctx, sighting(0, berlin)); a != (Assessment{}) {
		t.Errorf("%+v", a)
	}
	if w.counted(late) != 2 {
		t.Errorf("%v late", w.counted(late))
	}
	close(w.store.hang)
}

func TestFailedVerifications(t *testing.T) {
	w := newWatch(t, NewMemory(), nil)
	for range 20 {
		w.Failed(netip.MustParseAddr("2001:db8:1:0:a::1"), start)
		w.Failed(netip.Addr{}, start)
	}
	w.expect("next address of the network", sighting(time.Second, "2001:db8:1::b"), "failed_verifications", Header)
	w.expect("another network", sighting(time.Second, "2001:db8:1:1::b"), "", None)
	w.expect("later", sighting(3*time.Minute, "2001:db8:1::c"), "", None)
}

func TestTrustedAndAnonymisers(t *testing.T) {
	w := newWatch(t, NewMemory(), func(c *Config) {
		c.Trusted = NetworksConfig{Ranges: []string{"198.51.100.0/24"}, ASNs: []uint32{65000}}
		c.Anonymiser = NetworksConfig{Ranges: []string{"2001:db8:1::/48"}}
		c.Weights = []WeightConfig{{"anonymiser", 7}}
	})
	w.expect("home", sighting(-3*day, berlin), "", None)
	w.expect("home", sighting(-time.Minute, berlin), "", None)
	w.idle()
	w.expect("the office's egress in New York", sighting(0, newYork), "", None)
	w.expect("an anonymiser in Sydney", sighting(0, sydney), "anonymiser", Header)
	w.expect("an office by its network", sighting(0, nowhere, func(s *Sighting) {
		s.Place = PlaceText{Country: "US", Network: "65000", Latitude: "40", Longitude: "-100"}
	}), "", None)
	w.expect("headers go before files", sighting(0, berlin2, func(s *Sighting) { s.Place = PlaceText{Country: "FR"} }), "new_country", Header)
}

func TestNewWatchRefuses(t *testing.T) {
	revoke, unknown, trusted, hidden := DefaultConfig(), DefaultConfig(), DefaultConfig(), DefaultConfig()
	revoke.Actions = []ActionConfig{{90, "revoke_session"}}
	unknown.Actions = []ActionConfig{{90, "shrug"}}
	trusted.Trusted.Ranges = []string{"x"}
	hidden.Anonymiser.Ranges = []string{"x"}
	for want, c := range map[string]Config{"ends sessions": revoke, "shrug": unknown, "trusted": trusted, "anonymisers": hidden} {
		if _, err := NewWatch(c, Options{Store: NewMemory()}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	if _, err := NewWatch(DefaultConfig(), Options{}); err == nil {
		t.Error("without a store")
	}
	registry := prometheus.NewRegistry()
	for i := range 2 {
		if _, err := NewWatch(DefaultConfig(), Options{Store: NewMemory(), Metrics: registry}); (err != nil) != (i == 1) {
			t.Errorf("registered %d times: %v", i+1, err)
		}
	}
	problems, err := testutil.GatherAndLint(registry)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}
