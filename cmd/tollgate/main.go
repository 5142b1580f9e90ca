// Command tollgate is the operator's command: it runs the demo, mints and revokes
// tokens, sets feature flags, runs experiments, switches circuits, checks configuration files and asks for health.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/tollgate-proxy/tollgate/internal/apiclient"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second Ctrl-C ends the command at once, and with it its children.
	context.AfterFunc(ctx, stop)
	code := run(ctx, &process{
		environ: os.Environ(),
		stdin:   os.Stdin,
		stdout:  os.Stdout,
		stderr:  os.Stderr,
		colour:  isTerminal(os.Stdout) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb",
	}, os.Args[1:])
	stop()
	os.Exit(code)
}

// process is what a command knows of the world around it.
type process struct {
	environ        []string
	stdin          io.Reader
	stdout, stderr io.Writer
	// colour says that stdout is a terminal that shows colours.
	colour bool
}

// getenv returns an environment variable, empty where it is not set.
func (p *process) getenv(name string) string {
	for _, variable := range p.environ {
		if value, ok := strings.CutPrefix(variable, name+"="); ok {
			return value
		}
	}
	return ""
}

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// root is the whole command.
func root() command {
	return command{
		name:    "tollgate",
		summary: "the operator's command",
		commands: []command{
			demoCommand(),
			{
				name: "token", summary: "mint development tokens, revoke tokens, ask about one",
				commands: []command{mintCommand(), revokeCommand(), tokenStatusCommand()},
			},
			{
				name: "session", summary: "list and end users' sessions",
				commands: []command{sessionListCommand(), sessionEndCommand()},
			},
			{
				name: "suspicious", summary: "show what was suspicious about a user, judge a request, forget",
				commands: []command{suspiciousListCommand(), suspiciousDetectCommand(), suspiciousForgetCommand()},
			},
			explainCommand(),
			flagCommand(),
			experimentCommand(),
			{
				name: "upstream", summary: "show the Python services' circuits, open and close them",
				commands: []command{
					upstreamListCommand(),
					upstreamSwitchCommand("trip", "open an upstream's circuits for their reset time", (*apiclient.Client).TripUpstream),
					upstreamSwitchCommand("reset", "close an upstream's circuits", (*apiclient.Client).ResetUpstream),
				},
			},
			{
				name: "limit", summary: "show and reset a user's rate limits, lend a tier",
				commands: []command{limitShowCommand(), limitResetCommand(), limitOverrideCommand()},
			},
			checkConfigCommand(),
			healthCommand(),
			versionCommand(),
		},
	}
}
