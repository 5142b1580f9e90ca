package main

import (
	"github.com/tollgate-proxy/tollgate/internal/app"
	"github.com/tollgate-proxy/tollgate/internal/config"
	"github.com/tollgate-proxy/tollgate/internal/credential"
	"github.com/tollgate-proxy/tollgate/internal/pyproxy"
	"github.com/tollgate-proxy/tollgate/internal/redisconn"
)

// Config is the root of config/pyproxy.yaml.
type Config struct {
	app.Base       `yaml:",inline"`
	pyproxy.Config `yaml:",inline"`
	HTTP           ListenConfig     `yaml:"http"`
	Redis          redisconn.Config `yaml:"redis"`
	Management     ManagementConfig `yaml:"management"`
}

// Validate checks the proxy's part; sections check themselves.
func (c Config) Validate(r *config.Report) { c.Config.Check(r) }

// ListenConfig is a section with an address to listen on.
type ListenConfig struct {
	Listen string `yaml:"listen" doc:"host:port, or unix:///path of a socket, of the routes and of the management API; HTTP/1.1 and h2c."`
}

// Validate checks the section.
func (c ListenConfig) Validate(r *config.Report) {
	if err := app.CheckListen(c.Listen); err != nil {
		r.Fault("listen", c.Listen, err.Error())
	}
}

// ManagementConfig is the section "management".
type ManagementConfig struct {
	Clients []credential.Client `yaml:"clients" reload:"true" doc:"Who may see the upstreams' live state (service, operator) and switch circuits (operator)."`
}

// Validate checks the section.
func (c ManagementConfig) Validate(r *config.Report) {
	if _, err := credential.New(c.Clients); err != nil {
		r.Fault("clients", nil, err.Error())
	}
}

func defaults() Config {
	return Config{
		Base:   app.DefaultBase("127.0.0.1:7103"),
		Config: pyproxy.Defaults(),
		HTTP:   ListenConfig{"127.0.0.1:8103"},
		Redis:  redisconn.Default(),
	}
}
