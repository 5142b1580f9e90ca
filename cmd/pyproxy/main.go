// Command pyproxy is the reverse proxy in front of the Python services.
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
		Name:     "pyproxy",
		Defaults: defaults,
		Base:     func(c *Config) *app.Base { return &c.Base },
		Wire:     wire,
	}
}
