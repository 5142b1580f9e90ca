package anomaly

import (
	"bytes"
	"context"
	"flag"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/tollgate-proxy/tollgate/internal/config"
	"github.com/tollgate-proxy/tollgate/internal/polltest"
)

var update = flag.Bool("update", false, "write testdata afresh")

// The files in testdata are what their generator in mmdb_test.go makes.
func TestTestdata(t *testing.T) {
	for name, data := range map[string][]byte{"cities.mmdb": cities(), "systems.mmdb": systems(), "countries.mmdb": countries()} {
		path := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(path, data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s is not what its generator makes (%v): run the test with -update", path, err)
		}
	}
}

func testPlaces() PlacesConfig {
	c := DefaultConfig().Places
	c.Databases = []config.Path{"testdata/cities.mmdb", "testdata/systems.mmdb"}
	return c
}

func openPlaces(t testing.TB, c PlacesConfig) *Places {
	t.Helper()
	p, err := OpenPlaces(c, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPlace(t *testing.T) {
	flat := writeFile(t, "flat.mmdb", encodeMMDB(4, 1, map[string]map[string]any{
		"192.0.2.0/25":    {"country_code": "de", "latitude": float32(52.5), "longitude": float32(13.25)},
		"192.0.2.128/25":  {"country": "AT", "asn": "AS64500"},
		"198.51.100.0/24": {"country": uint32(7), "asn": uint32(7), "latitude": "north", "longitude": "west"},
	}))
	nestedFiles := testPlaces()
	flatFile := testPlaces()
	flatFile.Databases = []config.Path{config.Path(flat)}
	both := testPlaces()
	both.Databases = append([]config.Path{config.Path(flat)}, both.Databases...)
	realFile := testPlaces()
	realFile.Databases = []config.Path{"testdata/countries.mmdb"}
	for name, c := range map[string]struct {
		config  PlacesConfig
		address string
		want    Place
	}{
		"two files":                     {nestedFiles, berlin, Place{"DE", asBerlin, true, 52.52, 13.405, 20}},
		"IPv6":                          {nestedFiles, sydney, Place{"AU", asSydney, true, -33.8688, 151.2093, 20}},
		"IPv4 in IPv6":                  {nestedFiles, "::ffff:" + newYork, Place{"US", asNY, true, 40.7128, -74.006, 20}},
		"a zone":                        {nestedFiles, sydney + "%eth0", Place{"AU", asSydney, true, -33.8688, 151.2093, 20}},
		"country only":                  {nestedFiles, "198.18.0.1", Place{Country: "FR"}},
		"unknown":                       {nestedFiles, nowhere, Place{}},
		"flat":                          {flatFile, berlin, Place{"DE", 0, true, 52.5, 13.25, defaultRadius}},
		"flat, of text":                 {flatFile, berlin2, Place{Country: "AT", Network: 64500}},
		"other types":                   {flatFile, newYork, Place{}},
		"IPv6 in a file of IPv4":        {flatFile, sydney, Place{}},
		"the first that knows decides":  {both, berlin2, Place{"AT", 64500, true, 52.52, 13.405, 20}},
		"the next fills in what is not": {both, newYork, Place{"US", asNY, true, 40.7128, -74.006, 20}},
		"real data: RIPE NCC":           {realFile, "193.0.6.139", Place{Country: "NL"}},
		"real data: LACNIC":             {realFile, "2001:13c7:7002:3000::11", Place{Country: "UY"}},
		"real data: not in it":          {realFile, "8.8.8.8", Place{}},
		"no file":                       {PlacesConfig{}, berlin, Place{}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := openPlaces(t, c.config).Place(netip.MustParseAddr(c.address)); got != c.want {
				t.Errorf("%+v, want %+v", got, c.want)
			}
		})
	}
	if got := openPlaces(t, nestedFiles).Place(netip.Addr{}); got != (Place{}) {
		t.Errorf("no address: %+v", got)
	}
}

func TestPlacesThatCannotBe(t *testing.T) {
	whole := cities()
	for name, c := range map[string]struct {
		path, want string
		size       config.Bytes
	}{
		"missing":   {"testdata/missing.mmdb", "no such file", 1 << 20},
		"not one":   {writeFile(t, "a.mmdb", []byte("hello")), "a.mmdb", 1 << 20},
		"empty":     {writeFile(t, "b.mmdb", nil), "b.mmdb", 1 << 20},
		"cut short": {writeFile(t, "c.mmdb", whole[:len(whole)/2]), "c.mmdb", 1 << 20},
		"too large": {writeFile(t, "d.mmdb", whole), "is larger than 64B", 64},
	} {
		if _, err := OpenPlaces(PlacesConfig{Databases: []config.Path{config.Path(c.path)}, MaxSize: c.size}, nil, nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	registry := prometheus.NewRegistry()
	for i := range 2 {
		if _, err := OpenPlaces(testPlaces(), nil, registry); (err != nil) != (i == 1) {
			t.Errorf("registered %d times: %v", i+1, err)
		}
	}
}

// Whatever bytes a file has, reading it is an error at worst.
func FuzzPlaces(f *testing.F) {
	f.Add(cities())
	f.Add(systems())
	f.Add([]byte("\xab\xcd\xefMaxMind.com"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := OpenPlaces(PlacesConfig{Databases: []config.Path{config.Path(writeFile(t, "f", data))}, MaxSize: 1 << 20}, nil, nil)
		if err == nil {
			p.Place(netip.MustParseAddr(berlin))
			p.Place(netip.MustParseAddr(sydney))
		}
	})
}

func TestPlacesAreReplaced(t *testing.T) {
	path := writeFile(t, "places.mmdb", cities())
	var log bytes.Buffer
	c := PlacesConfig{Databases: []config.Path{config.Path(path)}, MaxSize: 1 << 20, Poll: time.Millisecond}
	p, err := OpenPlaces(c, slog.New(slog.NewTextHandler(&log, nil)), nil)
	if err != nil {
		t.Fatal(err)
	}
	address := netip.MustParseAddr(berlin)
	country := func() string { return p.Place(address).Country }
	d := p.inUse.Load().files[0]
	moved := encodeMMDB(6, 1_800_000_000, map[string]map[string]any{"192.0.2.0/24": nested("PL", 52.2, 21, 10)})

	p.refresh(d, 512<<20)
	if log.Len() > 0 || country() != "DE" {
		t.Fatalf("nothing changed: %s", &log)
	}
	replace(t, path, []byte("not one"))
	p.refresh(d, 512<<20)
	p.refresh(d, 512<<20)
	if strings.Count(log.String(), "stays in use") != 1 || country() != "DE" {
		t.Fatalf("a broken file: %s", &log)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	p.refresh(d, 512<<20)
	p.refresh(d, 512<<20)
	if country() != "DE" || strings.Count(log.String(), "stays in use") != 1 {
		t.Fatalf("no file: %s", &log)
	}
	replace(t, path, moved)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	polltest.Until(t, "the new file is in use", func() bool { return country() == "PL" })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got := testutil.ToFloat64(p.built.WithLabelValues("places.mmdb")); got != 1_800_000_000 {
		t.Errorf("built %v", got)
	}
	if got := testutil.ToFloat64(p.loads.WithLabelValues("loaded")); got != 1 {
		t.Errorf("loaded %v times", got)
	}
	if got := testutil.ToFloat64(p.lookups[lookupFound]); got < 4 {
		t.Errorf("found %v", got)
	}

	idle := openPlaces(t, PlacesConfig{})
	if err := idle.Run(ctx); err != nil {
		t.Error(err)
	}
}

func BenchmarkPlace(b *testing.B) {
	p, address := openPlaces(b, testPlaces()), netip.MustParseAddr(berlin)
	b.ReportAllocs()
	for b.Loop() {
		p.Place(address)
	}
}
