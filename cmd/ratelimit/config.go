package main

import (
	"time"

	"github.com/tollgate-proxy/tollgate/internal/app"
	"github.com/tollgate-proxy/tollgate/internal/config"
	"github.com/tollgate-proxy/tollgate/internal/credential"
	"github.com/tollgate-proxy/tollgate/internal/ratelimit"
	"github.com/tollgate-proxy/tollgate/internal/redisconn"
	"github.com/tollgate-proxy/tollgate/internal/rls/xds"
)

// Config is the root of config/ratelimit.yaml.
type Config struct {
	app.Base   `yaml:",inline"`
	GRPC       ListenConfig          `yaml:"grpc"`
	Redis      redisconn.Config      `yaml:"redis"`
	Limits     LimitsConfig          `yaml:"limits"`
	Store      ratelimit.StoreConfig `yaml:"store"`
	Quotas     QuotasConfig          `yaml:"quotas"`
	Management ManagementConfig      `yaml:"management"`
}

// ManagementConfig is the section "management": the HTTP API of limits.
type ManagementConfig struct {
	Listen  string              `yaml:"listen" doc:"host:port, or unix:///path, of the HTTP API that shows and resets limits and overrides tiers; empty serves none."`
	Domain  string              `yaml:"domain" doc:"Domain that the API means where a request names none."`
	Clients []credential.Client `yaml:"clients" reload:"true" doc:"Callers of the API; without one it refuses everybody."`
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
	XDS           xds.Config    `yaml:"xds"`
}

// Validate checks the section.
func (c LimitsConfig) Validate(r *config.Report) {
	if len(c.Files) == 0 && c.XDS.Server == "" {
		r.Fault("files", nil, "at least one rule file or folder, or xds.server")
	}
	if c.OverridesPoll < 10*time.Millisecond || c.OverridesPoll > time.Hour {
		r.Fault("overrides_poll", c.OverridesPoll, "10ms to 1h")
	}
}

// QuotasConfig is the section "quotas": the rate limit quota service.
type QuotasConfig struct {
	TimeToLive time.Duration `yaml:"time_to_live" doc:"How long an Envoy may follow an assignment without hearing another; whole seconds, and at least two of Envoy's reporting intervals of 5s."`
	Idle       time.Duration `yaml:"idle" doc:"How long a bucket may go without a request until Envoy is told to forget it."`
	MaxBuckets int           `yaml:"max_buckets" doc:"Most buckets of all Envoys; for more there is no assignment."`
}

// Validate checks the section.
func (c QuotasConfig) Validate(r *config.Report) {
	if c.TimeToLive < 10*time.Second || c.TimeToLive > time.Hour || c.TimeToLive%time.Second != 0 {
		r.Fault("time_to_live", c.TimeToLive, "10s to 1h, in whole seconds")
	}
	if c.Idle < 10*time.Second || c.Idle > 24*time.Hour {
		r.Fault("idle", c.Idle, "10s to 24h")
	}
	if c.MaxBuckets < 1 || c.MaxBuckets > 10_000_000 {
		r.Fault("max_buckets", c.MaxBuckets, "1 to 10000000")
	}
}

// gcPercent lets garbage grow to several times the live heap, which is a few
// megabytes: collecting it as often as Go does by default costs a sixth of the
// time of a request.
const gcPercent = 800

func defaults() Config {
	base := app.DefaultBase("127.0.0.1:7102")
	base.Memory.GCPercent = gcPercent
	return Config{
		Base:       base,
		GRPC:       ListenConfig{"127.0.0.1:9102"},
		Redis:      redisconn.Default(),
		Limits:     LimitsConfig{Headers: true, OverridesPoll: time.Second, XDS: xds.Default()},
		Management: ManagementConfig{Domain: "tollgate"},
		Store:      ratelimit.DefaultStore(),
		Quotas:     QuotasConfig{TimeToLive: 15 * time.Second, Idle: time.Minute, MaxBuckets: 100_000},
	}
}
