package main

import (
	"context"
	"flag"

	"github.com/tollgate-proxy/tollgate/internal/app"
)

func versionCommand() command {
	return command{
		name:    "version",
		summary: "print the version",
		setup: func(*flag.FlagSet) runFunc {
			return func(_ context.Context, p *process, _ []string) error {
				sayf(p.stdout, "tollgate %s\n", app.Version())
				return nil
			}
		},
	}
}
