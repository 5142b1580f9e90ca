package anomaly

import (
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tollgate-proxy/tollgate/internal/config"
)

type root struct {
	Anomaly Config `yaml:"anomaly"`
}

func TestDefaultIsTheAuditMode(t *testing.T) {
	c, err := config.Decode("authz.yaml", nil, root{DefaultConfig()})
	if err != nil {
		t.Fatal(err)
	}
	r, err := Compile(c.Anomaly)
	if err != nil {
		t.Fatal(err)
	}
	for score := 1; score <= MaxScore; score++ {
		if r.action(score) != Log {
			t.Errorf("%d: %s", score, r.action(score))
		}
	}
	if r.action(0) != None || c.Anomaly.Wait != 0 {
		t.Error("the default does something")
	}
	if missing := config.Undocumented[root](); len(missing) != 0 {
		t.Errorf("no doc tag: %s", missing)
	}
}

func TestConfig(t *testing.T) {
	testdata, err := filepath.Abs("testdata")
	if err != nil {
		t.Fatal(err)
	}
	c, err := config.Decode("authz.yaml", []byte(`anomaly:
  actions: [{score: 20, action: header}, {score: 60, action: step_up}]
  weights: [{signal: anonymiser, weight: 30}]
  wait: 20ms
  trusted: {ranges: [192.0.2.0/24], asns: [64496]}
  places: {databases: [`+filepath.Join(testdata, "cities.mmdb")+`]}
  headers: {country: cf-ipcountry, latitude: cf-iplatitude, longitude: cf-iplongitude}
`), root{DefaultConfig()})
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Anomaly; got.Wait != 20*time.Millisecond || len(got.Actions) != 2 || got.Headers.Country != "cf-ipcountry" {
		t.Errorf("%+v", got)
	}
	headers := map[string]string{"cf-ipcountry": "DE", "cf-iplatitude": "52", "": "never"}
	if diff := cmp.Diff(PlaceText{Country: "DE", Latitude: "52"}, c.Anomaly.Headers.Text(func(name string) string { return headers[name] })); diff != "" {
		t.Error(diff)
	}
}

func TestFaults(t *testing.T) {
	for text, want := range map[string]string{
		"wait: 2s":                              "anomaly.wait",
		"refresh: 1s":                           "anomaly.refresh",
		"familiar_after: 1s":                    "anomaly.familiar_after",
		"proof: 2h":                             "anomaly.proof",
		"retention: 1h":                         "anomaly.retention",
		"{familiar_after: 48h, retention: 24h}": "at least familiar_after",
		"concurrent: 0s":                        "anomaly.concurrent",
		"timeout: 1ms":                          "anomaly.timeout",
		"tracked: 1":                            "anomaly.tracked",
		"actions: [{score: 0, action: log}]":    "anomaly.actions[0].score",
		"actions: [{score: 1, action: none}]":   "anomaly.actions[0].action",
		"actions: [{score: 1, action: shout}]":  "log, header, step_up, revoke_session or deny",
		"actions: [{score: 1, action: log}, {score: 1, action: deny}]":                "each score once",
		"weights: [{signal: bad_hair, weight: 1}]":                                    "impossible_travel",
		"weights: [{signal: new_device, weight: 101}]":                                "anomaly.weights[0].weight",
		"weights: [{signal: new_device, weight: 1}, {signal: new_device, weight: 2}]": "each signal once",
		"travel: {speed: 1}":                          "anomaly.travel.speed",
		"travel: {distance: 0}":                       "anomaly.travel.distance",
		"many: {window: 1s}":                          "anomaly.many.window",
		"many: {token_addresses: 64}":                 "1 to 63",
		"many: {token_agents: 0}":                     "anomaly.many.token_agents",
		"many: {user_addresses: 0}":                   "anomaly.many.user_addresses",
		"many: {user_agents: 32}":                     "1 to 31",
		"hours: {active: 1}":                          "anomaly.hours.active",
		"hours: {learn: 1h}":                          "anomaly.hours.learn",
		"hours: {rare: 0}":                            "anomaly.hours.rare",
		"failures: {count: 0}":                        "anomaly.failures.count",
		"failures: {window: 1ms}":                     "anomaly.failures.window",
		"failures: {tracked: 1}":                      "anomaly.failures.tracked",
		"trusted: {ranges: [office]}":                 "anomaly.trusted.ranges[0]",
		"trusted: {ranges: ['::ffff:192.0.2.0/120']}": "anomaly.trusted.ranges[0]",
		"anonymisers: {asns: [0]}":                    "anomaly.anonymisers.asns[0]",
		"places: {databases: [missing.mmdb]}":         "anomaly.places.databases[0]",
		"places: {databases: [.]}":                    "an MMDB file that is there",
		"places: {poll: 1ms}":                         "anomaly.places.poll",
		"places: {max_size: 1B}":                      "anomaly.places.max_size",
		"headers: {country: CF IPCountry}":            "anomaly.headers.country",
		"headers: {latitude: x-lat}":                  "anomaly.headers.longitude",
	} {
		if !strings.HasPrefix(text, "{") {
			text = "{" + text + "}"
		}
		_, err := config.Decode("authz.yaml", []byte("anomaly: "+text), root{DefaultConfig()})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}

func TestNetworks(t *testing.T) {
	n, err := newNetworks(NetworksConfig{Ranges: []string{"192.0.2.77/24", "10.0.0.0/8", "2001:db8::/32", "0.0.0.0/32"}, ASNs: []uint32{64496}})
	if err != nil {
		t.Fatal(err)
	}
	for address, want := range map[string]bool{
		"192.0.2.1": true, "192.0.3.1": false, "10.255.0.1": true, "::ffff:10.0.0.1": true,
		"2001:db8:ffff::1": true, "2001:db9::1": false, "fe80::1%eth0": false, "0.0.0.0": true, "::": false,
	} {
		if n.has(netip.MustParseAddr(address), 1) != want {
			t.Errorf("%s: %v", address, !want)
		}
	}
	if !n.has(netip.MustParseAddr("203.0.113.1"), 64496) || n.has(netip.Addr{}, 0) {
		t.Error("autonomous systems")
	}
}
