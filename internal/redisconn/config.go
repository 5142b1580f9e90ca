package redisconn

import (
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/config"
)

// The modes of a connection.
const (
	Standalone = "standalone"
	Sentinel   = "sentinel"
	Cluster    = "cluster"
	Embedded   = "embedded"
)

var modes = []string{Standalone, Sentinel, Cluster, Embedded}

// Config is the section "redis".
type Config struct {
	Mode         string        `yaml:"mode" doc:"standalone, sentinel, cluster, or embedded: a Redis inside this process, for one machine and for trying out; it keeps nothing."`
	URL          config.Secret `yaml:"url" doc:"Standalone: redis://[user:password@]host:port/db, rediss:// for TLS, or unix:///path."`
	Addresses    []string      `yaml:"addresses" doc:"Sentinel or cluster: host:port of the sentinels or of some nodes."`
	MasterName   string        `yaml:"master_name" doc:"Sentinel: name of the master."`
	Username     string        `yaml:"username" doc:"Sentinel or cluster: ACL user."`
	Password     config.Secret `yaml:"password" doc:"Sentinel or cluster: password."`
	TLS          bool          `yaml:"tls" doc:"Sentinel or cluster: use TLS (rediss:// says so for standalone)."`
	TLSCAFile    config.Path   `yaml:"tls_ca_file" doc:"PEM file of the authorities to trust instead of the system's."`
	TLSCertFile  config.Path   `yaml:"tls_cert_file" doc:"PEM file of the client certificate, with tls_key_file."`
	TLSKeyFile   config.Path   `yaml:"tls_key_file" doc:"PEM file of the client certificate's key."`
	PoolSize     int           `yaml:"pool_size" doc:"Most connections to one server; 0 is ten for each processor."`
	DialTimeout  time.Duration `yaml:"dial_timeout" doc:"Longest wait for a connection to be made."`
	Timeout      time.Duration `yaml:"timeout" doc:"Longest wait for one read or write, and for a connection of the pool; calls on a request's way have shorter deadlines of their own."`
	PingInterval time.Duration `yaml:"ping_interval" doc:"How often the connection is checked for health and metrics."`
}

// Default is a standalone server on this machine.
func Default() Config {
	return Config{
		Mode:         Standalone,
		URL:          config.NewSecret("redis://127.0.0.1:6379/0"),
		DialTimeout:  time.Second,
		Timeout:      time.Second,
		PingInterval: time.Second,
	}
}

// Validate checks the section.
func (c Config) Validate(r *config.Report) {
	switch c.Mode {
	case Standalone:
		// The parser's error may repeat the password.
		if _, err := redis.ParseURL(c.URL.Reveal()); err != nil {
			r.Fault("url", c.URL, "redis://[user:password@]host:port/db, rediss://… or unix:///path")
		}
	case Sentinel, Cluster:
		if len(c.Addresses) == 0 {
			r.Fault("addresses", "", "at least one host:port in the mode "+c.Mode)
		}
		if c.Mode == Sentinel && c.MasterName == "" {
			r.Fault("master_name", "", "the name of the master that the sentinels watch")
		}
	case Embedded:
	default:
		r.Fault("mode", c.Mode, "one of "+strings.Join(modes, ", "))
	}
	if (c.TLSCertFile == "") != (c.TLSKeyFile == "") {
		r.Fault("tls_cert_file", c.TLSCertFile, "set together with tls_key_file")
	}
	if c.PoolSize < 0 || c.PoolSize > 10_000 {
		r.Fault("pool_size", c.PoolSize, "0 to 10000")
	}
	for _, d := range []struct {
		key   string
		value time.Duration
	}{{"dial_timeout", c.DialTimeout}, {"timeout", c.Timeout}, {"ping_interval", c.PingInterval}} {
		if d.value < time.Millisecond || d.value > time.Minute {
			r.Fault(d.key, d.value, "1ms to 1m")
		}
	}
}

// usesTLS says whether the settings ask for TLS in any way.
func (c Config) usesTLS() bool {
	return c.TLS || slices.ContainsFunc([]config.Path{c.TLSCAFile, c.TLSCertFile}, func(p config.Path) bool { return p != "" })
}
