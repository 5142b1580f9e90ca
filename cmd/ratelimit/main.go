// Command ratelimit decides for Envoy how many requests may pass: it serves
// the rate limit service, version 3.
package main

import (
	"os"

	"github.com/tollgate-proxy/tollgate/internal/app"
	"github.com/tollgate-proxy/tollgate/internal/ratelimit"
)

func main() {
	os.Exit(app.Main(process(), os.Args[1:], os.Environ(), os.Stdout, os.Stderr))
}

func process() app.Process[Config] {
	return app.Process[Config]{
		Name:     "ratelimit",
		Defaults: defaults,
		Base:     func(c *Config) *app.Base { return &c.Base },
		Check: func(c Config) error {
			_, err := ratelimit.LoadPaths(c.Limits.Files)
			return err
		},
		Wire: wire,
	}
}
