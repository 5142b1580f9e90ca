package anomaly

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/config"
	"github.com/tollgate-proxy/tollgate/internal/polltest"
)

// Other actions hold for what is known, at once; other weights from the next request on.
func TestConfigurationIsReplaced(t *testing.T) {
	w := newWatch(t, NewMemory(), nil)
	w.expect("home", sighting(-3*day, berlin), "", None)
	w.expect("home", sighting(-time.Hour, berlin), "", None)
	w.idle()
	thief := func() *Sighting { return sighting(0, newYork, token("t2"), phone) }
	w.expect("the thief", thief(), "impossible_travel,new_country,new_device,new_network", Deny)

	// Nobody can be asked: what holds comes of the scores that are known.
	w.store.away.Store(true)
	w.reconfigure(func(c *Config) { c.Actions = []ActionConfig{{1, "log"}} })
	w.expect("back to the audit mode", thief(), "impossible_travel,new_country,new_device,new_network", Log)
	w.idle()
	asked := w.store.calls.Load()
	w.expect("still", thief(), "impossible_travel,new_country,new_device,new_network", Log)
	if w.store.calls.Load() != asked {
		t.Error("a store that is away is asked on every request")
	}
	w.store.away.Store(false)

	w.reconfigure(func(c *Config) {
		c.Weights = []WeightConfig{{"impossible_travel", 0}, {"new_network", 0}, {"new_device", 0}}
		c.Actions = []ActionConfig{{20, "step_up"}}
	})
	polltest.Until(t, "the new weights hold", func() bool {
		a := w.Observe(t.Context(), thief())
		return a.Reasons == "new_country" && a.Action == StepUp
	})

	// Failures of a window that is no more are forgotten; others stay.
	for range 20 {
		w.Failed(netip.MustParseAddr(berlin2), start)
	}
	w.reconfigure(func(c *Config) { c.Actions = []ActionConfig{{20, "header"}} })
	w.expect("after 20 failures", sighting(0, berlin2), "failed_verifications", Header)
	w.reconfigure(func(c *Config) { c.Failures.Window = 2 * time.Minute })
	w.expect("by another window", sighting(0, berlin2, token("t3")), "", None)

	w.reconfigure(func(c *Config) { c.Enabled = false })
	w.expect("switched off", thief(), "", None)
	w.reconfigure(func(c *Config) { c.Enabled, c.Tracked = true, 64 })
	for i := range 500 {
		w.Observe(t.Context(), sighting(0, berlin, token(strings.Repeat("x", i))))
	}
	if n := w.len(); n > 64 {
		t.Errorf("%d tracked of at most 64", n)
	}
}

func TestConfigurationIsRefused(t *testing.T) {
	w := newWatch(t, NewMemory(), nil, func(o *Options) {})
	w.options.EndSession = nil
	c := w.config
	c.Actions = []ActionConfig{{1, "revoke_session"}}
	if _, err := w.Prepare(c); err == nil {
		t.Error("revoke_session without something that ends sessions")
	}
	c.Actions = []ActionConfig{{1, "shrug"}}
	if _, err := w.Prepare(c); err == nil {
		t.Error("an action that is none")
	}
}

func TestOtherPlaces(t *testing.T) {
	c := PlacesConfig{MaxSize: 1 << 20, Poll: time.Hour}
	p := openPlaces(t, c)
	place := func() Place { return p.Place(netip.MustParseAddr(berlin)) }
	if place().Known() {
		t.Fatalf("known without a file: %+v", place())
	}
	with := func(names ...string) PlacesConfig {
		c.Databases = nil
		for _, n := range names {
			c.Databases = append(c.Databases, config.Path(n))
		}
		return c
	}
	cityFile, systemFile := writeFile(t, "cities.mmdb", cities()), writeFile(t, "systems.mmdb", systems())
	for _, s := range []struct {
		c       PlacesConfig
		country string
		network bool
	}{{with(cityFile), "DE", false}, {with(cityFile, systemFile), "DE", true}, {with(systemFile), "", true}, {with(systemFile), "", true}, {with(), "", false}} {
		use, err := p.Prepare(s.c)
		if err != nil {
			t.Fatal(err)
		}
		use()
		if got := place(); got.Country != s.country || (got.Network != 0) != s.network {
			t.Errorf("%v: %+v", s.c.Databases, got)
		}
	}
	if _, err := p.Prepare(with(cityFile, writeFile(t, "bad.mmdb", []byte("no")))); err == nil || place().Known() {
		t.Errorf("a file that is none: %v, %+v", err, place())
	}
}
