package session

import (
	"slices"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/config"
)

// Config is the section "sessions".
type Config struct {
	Max      int           `yaml:"max" doc:"Most sessions that a user may have at a time; 1 to 1000."`
	Tiers    []TierConfig  `yaml:"tiers" doc:"Tiers with another maximum."`
	Policy   string        `yaml:"policy" doc:"What happens to a login beyond the maximum: evict_oldest ends the session that was created first, refuse_new refuses the login."`
	Idle     time.Duration `yaml:"idle" doc:"A session that was not seen for so long has ended; at least 1m, since sightings are written behind."`
	Absolute time.Duration `yaml:"absolute" doc:"A session that is so old has ended, however busy; at least idle."`
	Flush    time.Duration `yaml:"flush" doc:"How often sightings are written behind; 100ms to 30s."`
	Tracked  int           `yaml:"tracked" doc:"Most sessions whose sightings one process keeps in memory, about 300 bytes each; at least 1000."`
}

// TierConfig is another maximum for one tier.
type TierConfig struct {
	Tier string `yaml:"tier" doc:"The tier."`
	Max  int    `yaml:"max" doc:"Most sessions that a user of this tier may have at a time; 1 to 1000."`
}

// DefaultConfig is five sessions a user, the oldest giving way.
func DefaultConfig() Config {
	return Config{
		Max: 5, Policy: string(EvictOldest), Idle: 12 * time.Hour, Absolute: 30 * 24 * time.Hour,
		Flush: 5 * time.Second, Tracked: 100_000,
	}
}

// Validate checks the section.
func (c Config) Validate(r *config.Report) {
	if c.Max < 1 || c.Max > MaxSessions {
		r.Fault("max", c.Max, "1 to 1000")
	}
	if p := Policy(c.Policy); p != EvictOldest && p != RefuseNew {
		r.Fault("policy", c.Policy, "evict_oldest or refuse_new")
	}
	if c.Idle < time.Minute || c.Idle > maxAbsolute {
		r.Fault("idle", c.Idle, "1m to 8760h")
	}
	if c.Absolute < c.Idle || c.Absolute > maxAbsolute {
		r.Fault("absolute", c.Absolute, "idle to 8760h")
	}
	if c.Flush < 100*time.Millisecond || c.Flush > 30*time.Second {
		r.Fault("flush", c.Flush, "100ms to 30s")
	}
	if c.Tracked < 1000 || c.Tracked > 10_000_000 {
		r.Fault("tracked", c.Tracked, "1000 to 10000000")
	}
	var names []string
	for _, t := range c.Tiers {
		if slices.Contains(names, t.Tier) {
			r.Fault("tiers", t.Tier, "each tier once")
		}
		names = append(names, t.Tier)
	}
}

const maxAbsolute = 8760 * time.Hour

// Validate checks the element.
func (c TierConfig) Validate(r *config.Report) {
	if c.Tier == "" {
		r.Fault("tier", c.Tier, "the name of a tier")
	}
	if c.Max < 1 || c.Max > MaxSessions {
		r.Fault("max", c.Max, "1 to 1000")
	}
}

// For gives the limits of a tier. tombstone is how long an ended session is remembered: the longest lifetime of a token
// and the verifier's leeway, at least.
func (c Config) For(tier string, tombstone time.Duration) Limits {
	l := Limits{Max: c.Max, Policy: Policy(c.Policy), Idle: c.Idle, Absolute: c.Absolute, Tombstone: tombstone}
	for _, t := range c.Tiers {
		if t.Tier == tier {
			l.Max = t.Max
		}
	}
	return l
}
