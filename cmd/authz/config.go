package main

import (
	"time"

	"github.com/tollgate-proxy/tollgate/internal/account"
	"github.com/tollgate-proxy/tollgate/internal/anomaly"
	"github.com/tollgate-proxy/tollgate/internal/app"
	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/config"
	"github.com/tollgate-proxy/tollgate/internal/extauthz"
	"github.com/tollgate-proxy/tollgate/internal/policy"
	"github.com/tollgate-proxy/tollgate/internal/ratelimit"
	"github.com/tollgate-proxy/tollgate/internal/redisconn"
	"github.com/tollgate-proxy/tollgate/internal/session"
)

// The modes of the process.
const (
	production  = "production"
	development = "development"
)

// Config is the root of config/authz.yaml.
type Config struct {
	app.Base    `yaml:",inline"`
	Mode        string                  `yaml:"mode" doc:"production, or development: then tokens of the development key are accepted too."`
	Development authn.DevelopmentConfig `yaml:"development"`
	GRPC        ListenConfig            `yaml:"grpc"`
	HTTP        HTTPConfig              `yaml:"http"`
	Redis       redisconn.Config        `yaml:"redis"`
	Tokens      authn.Config            `yaml:"tokens"`
	Policy      policy.Config           `yaml:"policy" reload:"true"`
	Revocation  RevocationConfig        `yaml:"revocation"`
	Anomaly     anomaly.Config          `yaml:"anomaly" reload:"true"`
	Sessions    session.Config          `yaml:"sessions"`
	Flags       FlagsConfig             `yaml:"flags"`
	Experiments ExperimentsConfig       `yaml:"experiments"`
	Headers     extauthz.HeadersConfig  `yaml:"headers"`
	Limits      LimitsConfig            `yaml:"limits"`
	JWTAuthn    JWTAuthnConfig          `yaml:"jwt_authn"`
	Management  ManagementConfig        `yaml:"management"`
	Signals     account.SignalsConfig   `yaml:"signals" doc:"What identity providers may say here: logouts, security events, global token revocation."`
}

// Validate checks what concerns several sections.
func (c Config) Validate(r *config.Report) {
	c.Management.Tokens.check(r, c.Tokens.Issuers, c.Mode == development)
	checkSignals(c, r)
	switch c.Mode {
	case production:
		if len(c.Tokens.Issuers) == 0 {
			r.Fault("tokens.issuers", nil, "at least one issuer in production mode; without one no token can be verified")
		}
	case development:
		if c.Development.KeyFile == "" {
			r.Fault("development.key_file", nil, "the path of the development key in development mode")
		}
	default:
		r.Fault("mode", c.Mode, "production or development")
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

// RevocationConfig is the section "revocation".
type RevocationConfig struct {
	Mode         string        `yaml:"mode" doc:"replicated: every check is answered from memory, fed by Redis; or strict: Redis is asked on every check."`
	MaxStaleness time.Duration `yaml:"max_staleness" doc:"Oldest knowledge that counts as fresh; past it each route does as its on_stale says."`
	Heartbeat    time.Duration `yaml:"heartbeat" doc:"How often Redis is asked where the feed stands; at most half of max_staleness."`
	MaxEntries   int           `yaml:"max_entries" doc:"Most revocations kept in memory, at most 50 bytes each."`
}

const (
	replicated = "replicated"
	strict     = "strict"
)

// Validate checks the section.
func (c RevocationConfig) Validate(r *config.Report) {
	if c.Mode != replicated && c.Mode != strict {
		r.Fault("mode", c.Mode, "replicated or strict")
	}
	if c.MaxStaleness < 10*time.Millisecond || c.MaxStaleness > time.Hour {
		r.Fault("max_staleness", c.MaxStaleness, "10ms to 1h")
	}
	if c.Heartbeat < time.Millisecond || c.Heartbeat > c.MaxStaleness/2 {
		r.Fault("heartbeat", c.Heartbeat, "1ms to half of max_staleness")
	}
	if c.MaxEntries < 1000 || c.MaxEntries > 100_000_000 {
		r.Fault("max_entries", c.MaxEntries, "1000 to 100000000")
	}
}

// FlagsConfig is the section "flags".
type FlagsConfig struct {
	File config.Path   `yaml:"file" doc:"Definitions to begin with, in the flagd schema; Redis, where it knows a flag, has the last word. Empty begins with none."`
	Poll time.Duration `yaml:"poll" doc:"How often the version in Redis is read, beside the notices of changes."`
}

// Validate checks the section.
func (c FlagsConfig) Validate(r *config.Report) {
	r.File("file", c.File)
	if c.Poll < 10*time.Millisecond || c.Poll > time.Minute {
		r.Fault("poll", c.Poll, "10ms to 1m")
	}
}

// LimitsConfig is the section "limits": rate limits that authz decides itself.
type LimitsConfig struct {
	InAuthz       bool                  `yaml:"in_authz" doc:"Decide rate limits in the authorisation call, with the rules and buckets of ratelimit; Envoy's ratelimit filter must be gone then, or requests are charged twice."`
	Domain        string                `yaml:"domain" doc:"Domain of the rules that requests are held to."`
	Files         []config.Path         `yaml:"files" doc:"Rule files, and folders of *.yaml and *.yml files: those of ratelimit; watched, and loaded again when they change."`
	OverridesPoll time.Duration         `yaml:"overrides_poll" doc:"How often overrides of users' tiers are read from Redis."`
	Headers       bool                  `yaml:"headers" doc:"Tell clients of their limits: RateLimit, RateLimit-Policy, X-RateLimit-* and Retry-After."`
	Store         ratelimit.StoreConfig `yaml:"store"`
}

// Validate checks the section.
func (c LimitsConfig) Validate(r *config.Report) {
	if c.InAuthz && len(c.Files) == 0 {
		r.Fault("files", nil, "at least one rule file or folder where in_authz is set")
	}
	if c.Domain == "" {
		r.Fault("domain", c.Domain, "the name of a domain")
	}
	if c.OverridesPoll < 10*time.Millisecond || c.OverridesPoll > time.Hour {
		r.Fault("overrides_poll", c.OverridesPoll, "10ms to 1h")
	}
}

// JWTAuthnConfig is the section "jwt_authn".
type JWTAuthnConfig struct {
	PayloadKey string `yaml:"payload_key" doc:"payload_in_metadata of Envoy's jwt_authn filter, for issuers with keys.envoy; empty reads nothing of that filter."`
}

func defaults() Config {
	return Config{
		Base:        app.DefaultBase("127.0.0.1:7101"),
		Mode:        production,
		GRPC:        ListenConfig{"127.0.0.1:9101"},
		HTTP:        HTTPConfig{Listen: "127.0.0.1:8101"},
		Redis:       redisconn.Default(),
		Tokens:      authn.Default(),
		Policy:      policy.Default(),
		Revocation:  RevocationConfig{Mode: replicated, MaxStaleness: 5 * time.Second, Heartbeat: 500 * time.Millisecond, MaxEntries: 4_000_000},
		Anomaly:     anomaly.DefaultConfig(),
		Sessions:    session.DefaultConfig(),
		Flags:       FlagsConfig{Poll: 500 * time.Millisecond},
		Experiments: defaultExperiments(),
		Headers:     extauthz.DefaultHeaders(),
		Management:  ManagementConfig{Audit: account.DefaultTrail(), Tokens: ManagementTokensConfig{Audience: "tollgate-management"}},
		Limits:      LimitsConfig{Domain: "tollgate", OverridesPoll: time.Second, Headers: true, Store: ratelimit.DefaultStore()},
	}
}
