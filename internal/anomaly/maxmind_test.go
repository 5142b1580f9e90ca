package anomaly

import (
	"net/netip"
	"testing"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/config"
)

// maxMind names files that MaxMind publishes for tests: see testdata/README.md.
func maxMind(names ...string) PlacesConfig {
	c := DefaultConfig().Places
	for _, n := range names {
		c.Databases = append(c.Databases, config.Path("testdata/maxmind/"+n+".mmdb"))
	}
	return c
}

// Files that somebody else wrote are read as they are meant.
func TestMaxMindFiles(t *testing.T) {
	p := openPlaces(t, maxMind("GeoIP2-City-Test", "GeoLite2-ASN-Test"))
	for address, want := range map[string]Place{
		"81.2.69.142":   {"GB", 0, true, 51.5142, -0.0931, 10},
		"216.160.83.56": {"US", 209, true, 47.2513, -122.3149, 22},
		"89.160.20.112": {"SE", 29518, true, 58.4167, 15.6167, 76},
		"67.43.156.1":   {"BT", 35908, true, 27.5, 90.5, 534},
		"2001:218::1":   {"JP", 0, true, 35.68536, 139.75309, 100},
		"2c0f:ff40::1":  {Network: 10474},
		"127.0.0.1":     {},
	} {
		if got := p.Place(netip.MustParseAddr(address)); got != want {
			t.Errorf("%s: %+v, want %+v", address, got, want)
		}
	}
	// Coordinates that are damaged are unknown; the rest of the file holds.
	broken := openPlaces(t, maxMind("GeoIP2-City-Test-Broken-Double-Format"))
	if got := broken.Place(netip.MustParseAddr("81.2.69.142")); got != (Place{Country: "GB"}) {
		t.Errorf("damaged coordinates: %+v", got)
	}
	if _, err := OpenPlaces(maxMind("GeoIP2-City-Test-Invalid-Node-Count"), nil, nil); err == nil {
		t.Error("a damaged file was opened")
	}
}

// From Sweden to the west coast of America in an hour.
func TestTravelByMaxMindFiles(t *testing.T) {
	w := newWatch(t, NewMemory(), func(c *Config) { c.Places = maxMind("GeoIP2-City-Test", "GeoLite2-ASN-Test") })
	w.expect("home", sighting(-3*day, "89.160.20.112"), "", None)
	w.expect("home", sighting(-time.Hour, "89.160.20.112"), "", None)
	w.idle()
	w.expect("an hour later", sighting(0, "216.160.83.56"), "impossible_travel,new_country,new_network", RevokeSession)
	w.expect("a day later", sighting(day, "216.160.83.56", token("t2")), "new_country,new_network", Header)
}

func TestCities(t *testing.T) {
	p := openPlaces(t, maxMind("GeoLite2-ASN-Test", "GeoIP2-City-Test"))
	for address, want := range map[string]string{
		"81.2.69.142": "London", "216.160.83.56": "Milton", "89.160.20.112": "Linköping", "::ffff:81.2.69.142": "London",
		"67.43.156.1": "", "2001:218::1": "", "127.0.0.1": "",
	} {
		if got := p.City(netip.MustParseAddr(address)); got != want {
			t.Errorf("%s: %q, want %q", address, got, want)
		}
	}
	if got := openPlaces(t, maxMind()).City(netip.MustParseAddr("81.2.69.142")); got != "" {
		t.Errorf("without a file: %q", got)
	}
}
