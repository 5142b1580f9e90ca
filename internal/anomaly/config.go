package anomaly

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/config"
)

// Config is the section "anomaly".
type Config struct {
	Enabled    bool               `yaml:"enabled" doc:"Whether requests with a token are looked at."`
	Actions    []ActionConfig     `yaml:"actions" doc:"What is done from which score on; the highest score reached decides. The default only logs."`
	Weights    []WeightConfig     `yaml:"weights" doc:"Signals with another weight than their own; 0 switches a signal off."`
	Wait       time.Duration      `yaml:"wait" doc:"How long a request with a new token, address, agent or device waits for its assessment; 0s lets it pass, and the assessment holds from the next request on. With step_up or deny, 20ms is a choice; at most 1s."`
	Refresh    time.Duration      `yaml:"refresh" doc:"How often a token in steady use is looked at again; 10s to 1h."`
	Familiar   time.Duration      `yaml:"familiar_after" doc:"How long a device, country or network counts as new; 1m to 720h."`
	Proof      time.Duration      `yaml:"proof" doc:"How long after the user authenticated a token that has been nowhere else settles what is suspicious, which is the answer to step_up; 0s never, at most 1h."`
	Retention  time.Duration      `yaml:"retention" doc:"How long what was seen is remembered; 24h to 8760h."`
	Travel     TravelConfig       `yaml:"travel"`
	Concurrent time.Duration      `yaml:"concurrent" doc:"A token seen in two places within so long is in use in both; above 0s, at most 1h."`
	Many       ManyConfig         `yaml:"many"`
	Hours      HoursConfig        `yaml:"hours"`
	Failures   FailuresConfig     `yaml:"failures"`
	Trusted    NetworksConfig     `yaml:"trusted" doc:"Egress of the users' own, such as offices and VPNs: such an address says nothing about where the user is."`
	Anonymiser NetworksConfig     `yaml:"anonymisers" doc:"Networks that hide where their users are: such an address says nothing about where the user is; the signal anonymiser has a weight of 0 by default."`
	Places     PlacesConfig       `yaml:"places"`
	Tracked    int                `yaml:"tracked" doc:"Most combinations of token, address, agent and device that one process keeps assessments of, about 300 bytes each; at least 1000."`
	Timeout    time.Duration      `yaml:"timeout" doc:"How long Redis may take to answer one assessment, behind the request; 10ms to 10s."`
	Headers    PlaceHeadersConfig `yaml:"headers"`
}

// ActionConfig is one threshold.
type ActionConfig struct {
	Score  int    `yaml:"score" doc:"The lowest score, 1 to 100."`
	Action string `yaml:"action" doc:"log stores and logs an event; header also tells the backend; step_up refuses with a challenge to authenticate again; revoke_session refuses and ends the session; deny refuses."`
}

// WeightConfig is the weight of one signal.
type WeightConfig struct {
	Signal string `yaml:"signal" doc:"The signal's code, such as impossible_travel."`
	Weight int    `yaml:"weight" doc:"0 to 100."`
}

// TravelConfig is the section "anomaly.travel".
type TravelConfig struct {
	Speed    int `yaml:"speed" doc:"Kilometres an hour that nobody exceeds; 100 to 10000."`
	Distance int `yaml:"distance" doc:"Kilometres, after the accuracy of both places, up to which places count as one; 1 to 20000."`
}

// ManyConfig is the section "anomaly.many".
type ManyConfig struct {
	Window         time.Duration `yaml:"window" doc:"The window; 1m to 24h."`
	TokenAddresses int           `yaml:"token_addresses" doc:"Most addresses (IPv6: /64 networks) of one token within the window; 1 to 63."`
	TokenAgents    int           `yaml:"token_agents" doc:"Most user agents of one token within the window; 1 to 63."`
	UserAddresses  int           `yaml:"user_addresses" doc:"Most addresses of one user within the window; 1 to 63."`
	UserAgents     int           `yaml:"user_agents" doc:"Most user agents of one user within the window; 1 to 31."`
}

// HoursConfig is the section "anomaly.hours".
type HoursConfig struct {
	Active int           `yaml:"active" doc:"Active hours that must be known before an hour can be unusual; 10 to 1000."`
	Learn  time.Duration `yaml:"learn" doc:"How long the user must have been known before an hour can be unusual; at least 24h."`
	Rare   float64       `yaml:"rare" doc:"Share of the active hours, within two hours of the time of day, below which it is unusual; above 0, at most 0.2."`
}

// FailuresConfig is the section "anomaly.failures".
type FailuresConfig struct {
	Count   int           `yaml:"count" doc:"Failed verifications from one address within the window that make its next good token suspicious; each process counts its own; at least 1."`
	Window  time.Duration `yaml:"window" doc:"The window; 1s to 1h."`
	Tracked int           `yaml:"tracked" doc:"Most addresses that one process counts failures of; at least 1000."`
}

// NetworksConfig names networks.
type NetworksConfig struct {
	Ranges []string `yaml:"ranges" doc:"Address ranges, such as 192.0.2.0/24."`
	ASNs   []uint32 `yaml:"asns" doc:"Numbers of autonomous systems; they need a place that tells them."`
}

// PlaceHeadersConfig is the section "anomaly.headers": names of headers that say where the client is.
type PlaceHeadersConfig struct {
	Country   string `yaml:"country" doc:"Header with the country of the client, set by a proxy before Envoy that also removes a client's own; empty reads none. What headers say goes before the databases."`
	Network   string `yaml:"network" doc:"Header with the number of the client's autonomous system, likewise."`
	Latitude  string `yaml:"latitude" doc:"Header with the latitude in degrees, likewise."`
	Longitude string `yaml:"longitude" doc:"Header with the longitude in degrees, likewise."`
	Radius    string `yaml:"radius" doc:"Header with the accuracy in kilometres, likewise; without one it is 50."`
}

// Text reads the place from headers: value returns the value of the header of a name, or "".
func (c PlaceHeadersConfig) Text(value func(name string) string) PlaceText {
	get := func(name string) string {
		if name == "" {
			return ""
		}
		return value(name)
	}
	return PlaceText{
		Country: get(c.Country), Network: get(c.Network),
		Latitude: get(c.Latitude), Longitude: get(c.Longitude), Radius: get(c.Radius),
	}
}

// Validate checks the section.
func (c PlaceHeadersConfig) Validate(r *config.Report) {
	for _, f := range []struct{ key, name string }{
		{"country", c.Country}, {"network", c.Network}, {"latitude", c.Latitude}, {"longitude", c.Longitude}, {"radius", c.Radius},
	} {
		if strings.ContainsFunc(f.name, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' }) {
			r.Fault(f.key, f.name, "a header name of lower-case letters, digits and dashes")
		}
	}
	if (c.Latitude == "") != (c.Longitude == "") {
		r.Fault("longitude", c.Longitude, "set where latitude is set, and only there")
	}
}

// DefaultConfig is the audit mode: everything is judged, and only logged.
func DefaultConfig() Config {
	return Config{
		Enabled: true,
		Actions: []ActionConfig{{1, Log.String()}},
		Refresh: 5 * time.Minute, Familiar: 24 * time.Hour, Proof: 10 * time.Minute, Retention: 30 * 24 * time.Hour,
		Travel:     TravelConfig{Speed: 900, Distance: 100},
		Concurrent: 10 * time.Minute,
		Many:       ManyConfig{Window: time.Hour, TokenAddresses: 8, TokenAgents: 2, UserAddresses: 20, UserAgents: 8},
		Hours:      HoursConfig{Active: 60, Learn: 14 * 24 * time.Hour, Rare: 0.02},
		Failures:   FailuresConfig{Count: 20, Window: time.Minute, Tracked: 65_536},
		Places:     PlacesConfig{Poll: 10 * time.Second, MaxSize: 512 << 20},
		Tracked:    100_000,
		Timeout:    250 * time.Millisecond,
	}
}

// Validate checks the section.
func (c Config) Validate(r *config.Report) {
	within := func(key string, value, least, most time.Duration, allowed string) {
		if value < least || value > most {
			r.Fault(key, value, allowed)
		}
	}
	within("wait", c.Wait, 0, time.Second, "0s to 1s")
	within("refresh", c.Refresh, 10*time.Second, time.Hour, "10s to 1h")
	within("familiar_after", c.Familiar, time.Minute, 720*time.Hour, "1m to 720h")
	within("proof", c.Proof, 0, time.Hour, "0s to 1h")
	within("retention", c.Retention, 24*time.Hour, 8760*time.Hour, "24h to 8760h")
	within("concurrent", c.Concurrent, time.Millisecond, time.Hour, "above 0s, at most 1h")
	within("timeout", c.Timeout, 10*time.Millisecond, 10*time.Second, "10ms to 10s")
	if c.Retention < c.Familiar {
		r.Fault("retention", c.Retention, "at least familiar_after")
	}
	if c.Tracked < 1000 || c.Tracked > 10_000_000 {
		r.Fault("tracked", c.Tracked, "1000 to 10000000")
	}
	scores := map[int]bool{}
	for i, a := range c.Actions {
		if scores[a.Score] {
			r.Fault(fmt.Sprintf("actions[%d].score", i), a.Score, "each score once")
		}
		scores[a.Score] = true
	}
	signals := map[string]bool{}
	for i, w := range c.Weights {
		if signals[w.Signal] {
			r.Fault(fmt.Sprintf("weights[%d].signal", i), w.Signal, "each signal once")
		}
		signals[w.Signal] = true
	}
}

// Validate checks the element.
func (c ActionConfig) Validate(r *config.Report) {
	if c.Score < 1 || c.Score > MaxScore {
		r.Fault("score", c.Score, "1 to 100")
	}
	if a := new(Action); a.UnmarshalText([]byte(c.Action)) != nil || *a == None {
		r.Fault("action", c.Action, "log, header, step_up, revoke_session or deny")
	}
}

// Validate checks the element.
func (c WeightConfig) Validate(r *config.Report) {
	if !slices.Contains(Codes(), Code(c.Signal)) {
		r.Fault("signal", c.Signal, fmt.Sprintf("one of %s", Codes()))
	}
	if c.Weight < 0 || c.Weight > MaxScore {
		r.Fault("weight", c.Weight, "0 to 100")
	}
}

// Validate checks the section.
func (c TravelConfig) Validate(r *config.Report) {
	if c.Speed < 100 || c.Speed > 10_000 {
		r.Fault("speed", c.Speed, "100 to 10000")
	}
	if c.Distance < 1 || c.Distance > 20_000 {
		r.Fault("distance", c.Distance, "1 to 20000")
	}
}

// Validate checks the section.
func (c ManyConfig) Validate(r *config.Report) {
	if c.Window < time.Minute || c.Window > 24*time.Hour {
		r.Fault("window", c.Window, "1m to 24h")
	}
	for _, f := range []struct {
		key         string
		value, most int
	}{
		// One more must fit into what is kept, or it could never be too many.
		{"token_addresses", c.TokenAddresses, KindTokenPlace.most() - 1},
		{"token_agents", c.TokenAgents, KindTokenAgent.most() - 1},
		{"user_addresses", c.UserAddresses, KindAddress.most() - 1},
		{"user_agents", c.UserAgents, KindAgent.most() - 1},
	} {
		if f.value < 1 || f.value > f.most {
			r.Fault(f.key, f.value, fmt.Sprintf("1 to %d", f.most))
		}
	}
}

// Validate checks the section.
func (c HoursConfig) Validate(r *config.Report) {
	if c.Active < 10 || c.Active > 1000 {
		r.Fault("active", c.Active, "10 to 1000")
	}
	if c.Learn < 24*time.Hour {
		r.Fault("learn", c.Learn, "at least 24h")
	}
	if !(c.Rare > 0 && c.Rare <= 0.2) {
		r.Fault("rare", c.Rare, "above 0, at most 0.2")
	}
}

// Validate checks the section.
func (c FailuresConfig) Validate(r *config.Report) {
	if c.Count < 1 {
		r.Fault("count", c.Count, "at least 1")
	}
	if c.Window < time.Second || c.Window > time.Hour {
		r.Fault("window", c.Window, "1s to 1h")
	}
	if c.Tracked < 1000 || c.Tracked > 10_000_000 {
		r.Fault("tracked", c.Tracked, "1000 to 10000000")
	}
}

// Validate checks the section.
func (c NetworksConfig) Validate(r *config.Report) {
	for i, s := range c.Ranges {
		if p, err := netip.ParsePrefix(s); err != nil || p.Addr().Is4In6() {
			r.Fault(fmt.Sprintf("ranges[%d]", i), s, "an address range such as 192.0.2.0/24 or 2001:db8::/32")
		}
	}
	if i := slices.Index(c.ASNs, 0); i >= 0 {
		r.Fault(fmt.Sprintf("asns[%d]", i), 0, "the number of an autonomous system")
	}
}
