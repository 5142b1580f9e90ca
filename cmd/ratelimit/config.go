package main

import (
	"time"

	"github.com/tollgate-proxy/tollgate/internal/app"
	"github.com/tollgate-proxy/tollgate/internal/config"
	"github.com/tollgate-proxy/tollgate/internal/credential"
	"github.com/tollgate-proxy/tollgate/internal/ratelimit"
	"github.com/tollgate-proxy/tollgate/internal/redisconn"
)

// Config is the root of config/ratelimit.yaml.
type Config struct {
	app.Base   `yaml:",inline"`
	GRPC       ListenConfig     `yaml:"grpc"`
	Redis      redisconn.Config `yaml:"redis"`
	Limits     LimitsConfig     `yaml:"limits"`
	Store      StoreConfig      `yaml:"store"`
	Management ManagementConfig `yaml:"management"`
}

// ManagementConfig is the section "management": the HTTP API of limits.
type ManagementConfig struct {
	Listen  string              `yaml:"listen" doc:"host:port, or unix:///path, of the HTTP API that shows and resets limits and overrides tiers; empty serves none."`
	Domain  string              `yaml:"domain" doc:"Domain that the API means where a request names none."`
	Clients []credential.Client `yaml:"clients" doc:"Callers of the API; without one it refuses everybody."`
}

// Validate checks the section.
func (c ManagementConfig) Validate(r *config.Report) {
	if c.Listen != "" {
		if err := app.CheckListen(c.Listen); err != nil {
			r.Fault("listen", c.Listen, err.Error()+", or empty")
		}
	}
	if _, err := credential.New(c.Clients); err != nil {
		r.Fault("clients", nil, err.Error())
	}
}

// ListenConfig is a section with an address to listen on.
type ListenConfig struct {
	Listen string `yaml:"listen" doc:"host:port, or unix:///path of a socket."`
}

// Validate checks the section.
func (c ListenConfig) Validate(r *config.Report) {
	if err := app.CheckListen(c.Listen); err != nil {
		r.Fault("listen", c.Listen, err.Error())
	}
}

// LimitsConfig is the section "limits".
type LimitsConfig struct {
	Files         []config.Path `yaml:"files" doc:"Rule files, and folders of *.yaml and *.yml files; watched, and loaded again when they change."`
	OverridesPoll time.Duration `yaml:"overrides_poll" doc:"How often overrides of users' tiers are read from Redis."`
	Headers       bool          `yaml:"headers" doc:"Tell clients of their limits: RateLimit, RateLimit-Policy, X-RateLimit-* and Retry-After."`
}

// Validate checks the section.
func (c LimitsConfig) Validate(r *config.Report) {
	if len(c.Files) == 0 {
		r.Fault("files", nil, "at least one rule file or folder")
	}
	if c.OverridesPoll < 10*time.Millisecond || c.OverridesPoll > time.Hour {
		r.Fault("overrides_poll", c.OverridesPoll, "10ms to 1h")
	}
}

// load reads the rules.
func (c LimitsConfig) load() (*ratelimit.Rules, error) {
	paths := make([]string, len(c.Files))
	for i, f := range c.Files {
		paths[i] = string(f)
	}
	return ratelimit.LoadRules(paths...)
}

// StoreConfig is the section "store": how Redis is asked, and what happens
// without it.
type StoreConfig struct {
	Timeout       time.Duration `yaml:"timeout" doc:"Longest wait for one decision of Redis."`
	OnFailure     string        `yaml:"on_failure" doc:"While Redis is gone: local (decide in this process with this replica's share of each limit), allow, or deny."`
	Replicas      int           `yaml:"replicas" doc:"How many ratelimit processes share Redis; each grants its share while Redis is gone."`
	DenyCache     int           `yaml:"deny_cache" doc:"Most denials remembered, so that a flood of one user costs Redis nothing; 0 remembers none."`
	LeaseLife     time.Duration `yaml:"lease_life" doc:"How long tokens of large buckets that were taken in advance may lie unused before they go back; 0s takes none."`
	LocalBuckets  int           `yaml:"local_buckets" doc:"Most buckets kept in this process while Redis is gone."`
	Failures      int           `yaml:"failures" doc:"Failed calls in a row after which Redis is not asked any more until it answers a probe."`
	ProbeInterval time.Duration `yaml:"probe_interval" doc:"How often a Redis that is gone is probed."`
}

// Validate checks the section.
func (c StoreConfig) Validate(r *config.Report) {
	if c.Timeout < time.Millisecond || c.Timeout > 10*time.Second {
		r.Fault("timeout", c.Timeout, "1ms to 10s")
	}
	switch ratelimit.FailureMode(c.OnFailure) {
	case ratelimit.FailLocal, ratelimit.FailAllow, ratelimit.FailDeny:
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
	if c.Failures < 1 || c.Failures > 1000 {
		r.Fault("failures", c.Failures, "1 to 1000")
	}
	if c.ProbeInterval < 10*time.Millisecond || c.ProbeInterval > time.Minute {
		r.Fault("probe_interval", c.ProbeInterval, "10ms to 1m")
	}
}

func defaults() Config {
	return Config{
		Base:       app.DefaultBase("127.0.0.1:7102"),
		GRPC:       ListenConfig{"127.0.0.1:9102"},
		Redis:      redisconn.Default(),
		Limits:     LimitsConfig{Headers: true, OverridesPoll: time.Second},
		Management: ManagementConfig{Domain: "tollgate"},
		Store: StoreConfig{
			Timeout: 20 * time.Millisecond, OnFailure: string(ratelimit.FailLocal), Replicas: 1,
			DenyCache: 100_000, LeaseLife: 2 * time.Second, LocalBuckets: 100_000, Failures: 3, ProbeInterval: 250 * time.Millisecond,
		},
	}
}
