package main

import (
	"context"
	"flag"
	"runtime/debug"
)

func versionCommand() command {
	return command{
		name:    "version",
		summary: "print the version",
		setup: func(*flag.FlagSet) runFunc {
			return func(_ context.Context, p *process, _ []string) error {
				say(p.stdout, "tollgate %s\n", version())
				return nil
			}
		},
	}
}

// version is what the build knows: the module's version and the commit.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	text := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			text += " " + s.Value
		}
	}
	return text + " " + info.GoVersion
}
