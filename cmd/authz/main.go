// Command authz decides for Envoy which requests may pass: it serves ext_authz
// v3, and the HTTP API for tokens and flags.
package main

import (
	"os"

	"github.com/tollgate-proxy/tollgate/internal/app"
)

func main() {
	os.Exit(app.Main(process(), os.Args[1:], os.Environ(), os.Stdout, os.Stderr))
}

func process() app.Process[Config] {
	return app.Process[Config]{
		Name:     "authz",
		Defaults: defaults,
		Base:     func(c *Config) *app.Base { return &c.Base },
		Check:    check,
		Wire:     wire,
	}
}
