package ratelimit

import (
	"time"

	"github.com/tollgate-proxy/tollgate/internal/config"
)

// StoreConfig is the section "store" of every process that decides limits: how
// Redis is asked, and what happens without it.
type StoreConfig struct {
	Timeout       time.Duration `yaml:"timeout" doc:"Longest wait for one decision of Redis."`
	OnFailure     string        `yaml:"on_failure" doc:"While Redis is gone: local (decide in this process with this replica's share of each limit), allow, or deny."`
	Replicas      int           `yaml:"replicas" doc:"At least how many processes that decide limits share Redis; those seen in Redis count too. Each grants its share while Redis is gone."`
	DenyCache     int           `yaml:"deny_cache" doc:"Most denials remembered, so that a flood of one user costs Redis nothing; 0 remembers none."`
	LeaseLife     time.Duration `yaml:"lease_life" doc:"How long tokens of large buckets that were taken in advance may lie unused before they go back; 0s takes none."`
	LocalBuckets  int           `yaml:"local_buckets" doc:"Most buckets kept in this process while Redis is gone."`
	LogDenials    int           `yaml:"log_denials" doc:"Most denials logged each second, each with how many were left out before it; 0 logs none."`
	LogSubjects   bool          `yaml:"log_subjects" doc:"Log in clear whose request was denied, such as the user's name; else as a hash that only tells users apart until the process ends."`
	Failures      int           `yaml:"failures" doc:"Failed calls in a row after which Redis is not asked any more until it answers a probe."`
	ProbeInterval time.Duration `yaml:"probe_interval" doc:"How often a Redis that is gone is probed."`
}

// DefaultStore is the section where nothing is set.
func DefaultStore() StoreConfig {
	return StoreConfig{
		Timeout: 20 * time.Millisecond, OnFailure: string(FailLocal), Replicas: 1,
		DenyCache: 100_000, LeaseLife: 2 * time.Second, LocalBuckets: 100_000, LogDenials: 1, Failures: 3, ProbeInterval: 250 * time.Millisecond,
	}
}

// Validate checks the section.
func (c StoreConfig) Validate(r *config.Report) {
	if c.Timeout < time.Millisecond || c.Timeout > 10*time.Second {
		r.Fault("timeout", c.Timeout, "1ms to 10s")
	}
	switch FailureMode(c.OnFailure) {
	case FailLocal, FailAllow, FailDeny:
	default:
		r.Fault("on_failure", c.OnFailure, "local, allow or deny")
	}
	if c.Replicas < 1 || c.Replicas > 10_000 {
		r.Fault("replicas", c.Replicas, "1 to 10000")
	}
	if c.DenyCache < 0 || c.DenyCache > 100_000_000 {
		r.Fault("deny_cache", c.DenyCache, "0 to 100000000")
	}
	if c.LeaseLife != 0 && (c.LeaseLife < 10*time.Millisecond || c.LeaseLife > time.Minute) {
		r.Fault("lease_life", c.LeaseLife, "0s, or 10ms to 1m")
	}
	if c.LocalBuckets < 1000 || c.LocalBuckets > 100_000_000 {
		r.Fault("local_buckets", c.LocalBuckets, "1000 to 100000000")
	}
	if c.LogDenials < 0 || c.LogDenials > 10_000 {
		r.Fault("log_denials", c.LogDenials, "0 to 10000")
	}
	if c.Failures < 1 || c.Failures > 1000 {
		r.Fault("failures", c.Failures, "1 to 1000")
	}
	if c.ProbeInterval < 10*time.Millisecond || c.ProbeInterval > time.Minute {
		r.Fault("probe_interval", c.ProbeInterval, "10ms to 1m")
	}
}

// Options are the options that the section decides; the others remain to be set.
func (c StoreConfig) Options() Options {
	return Options{
		Timeout: c.Timeout, OnFailure: FailureMode(c.OnFailure), Replicas: c.Replicas,
		Denials: c.DenyCache, LeaseLife: c.LeaseLife, LocalBuckets: c.LocalBuckets,
		LogDenials: c.LogDenials, LogSubjects: c.LogSubjects, Failures: c.Failures, ProbeEvery: c.ProbeInterval,
	}
}

// LoadPaths is [LoadRules] for paths of a configuration. Where there are none,
// the rules are none.
func LoadPaths(files []config.Path) (*Rules, error) {
	if len(files) == 0 {
		return Compile()
	}
	paths := make([]string, len(files))
	for i, f := range files {
		paths[i] = string(f)
	}
	return LoadRules(paths...)
}
