package revocation

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Options are shared by Store and Replica. The zero value of a field means its default.
type Options struct {
	// MaxStaleness bounds how old a replica's knowledge may be before its answers stop being fresh. Default 5 s.
	MaxStaleness time.Duration
	// Heartbeat is how often a replica asks Redis where the feed stands. Default 500 ms; at most half of MaxStaleness.
	Heartbeat time.Duration
	// MaxLifetime is the longest life that the verifier accepts of a token, at most 365 days. It must be the verifier's
	// own setting: what is revoked is remembered for this long at most, so a token that lived longer would come back to
	// life. Default 24 h.
	MaxLifetime time.Duration
	// Leeway is the verifier's clock leeway, added to every expiry. Default 1 min.
	Leeway time.Duration
	// MaxEntries bounds a replica's memory (at most 50 bytes an entry, and as many marks again). A replica that would
	// need more keeps what it has and is never fresh. Default 4,000,000.
	MaxEntries int
	// Sweep is how often expired entries are removed. Default 1 min.
	Sweep time.Duration

	Now     func() time.Time      // default time.Now
	Log     *slog.Logger          // default discards
	Metrics prometheus.Registerer // default none
}

// withDefaults fills in what was left zero and refuses what makes no sense.
func (o Options) withDefaults() (Options, error) {
	fill := func(d *time.Duration, value time.Duration) {
		if *d == 0 {
			*d = value
		}
	}
	fill(&o.MaxStaleness, 5*time.Second)
	fill(&o.Heartbeat, min(500*time.Millisecond, o.MaxStaleness/2))
	fill(&o.MaxLifetime, 24*time.Hour)
	fill(&o.Leeway, time.Minute)
	fill(&o.Sweep, time.Minute)
	if o.MaxEntries == 0 {
		o.MaxEntries = 4_000_000
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	switch {
	case o.MaxStaleness < 10*time.Millisecond:
		return o, fmt.Errorf("revocation: maximum staleness %s: want at least 10ms", o.MaxStaleness)
	case o.Heartbeat < time.Millisecond || o.Heartbeat > o.MaxStaleness/2:
		return o, fmt.Errorf("revocation: heartbeat %s: want from 1ms to half of the maximum staleness %s", o.Heartbeat, o.MaxStaleness)
	case o.MaxLifetime < time.Second || o.MaxLifetime > 365*24*time.Hour:
		return o, fmt.Errorf("revocation: maximum lifetime %s: want from 1s to 8760h", o.MaxLifetime)
	case o.Leeway < 0 || o.Leeway > time.Hour:
		return o, fmt.Errorf("revocation: leeway %s: want from 0s to 1h", o.Leeway)
	case o.MaxEntries < 1:
		return o, fmt.Errorf("revocation: maximum of entries %d: want at least 1", o.MaxEntries)
	case o.Sweep < time.Millisecond:
		return o, fmt.Errorf("revocation: sweep interval %s: want at least 1ms", o.Sweep)
	}
	return o, nil
}
