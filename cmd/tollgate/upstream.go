package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/tollgate-proxy/tollgate/internal/apiclient"
	"github.com/tollgate-proxy/tollgate/internal/pyproxy"
	"github.com/tollgate-proxy/tollgate/internal/stack"
)

const (
	defaultPyproxy = "http://127.0.0.1:8103"
	pyproxyDetails = "Circuits belong to one replica of pyproxy, so each is asked: those of -pyproxy, else of a running demo,\n" +
		"else " + defaultPyproxy + ". The operator's secret comes from -token-file, else " + tokenVariable + ",\n" +
		"else a running demo."
)

// replica is one pyproxy.
type replica struct {
	url    string
	client *apiclient.Client
}

// upstreamFlags registers what says where the replicas are, and returns what
// finds them.
func upstreamFlags(flags *flag.FlagSet) func(p *process) ([]replica, error) {
	pyproxies := flags.String("pyproxy", "", "base `URLs` of the pyproxy replicas, separated by commas")
	tokenFile := tokenFileFlag(flags)
	return func(p *process) ([]replica, error) {
		urls, token := list(*pyproxies), p.getenv(tokenVariable)
		if *tokenFile != "" {
			var err error
			if token, err = readToken(*tokenFile); err != nil {
				return nil, err
			}
		}
		if len(urls) == 0 && token == "" {
			operator, err := stack.LoadOperator(demoWork)
			if err == nil {
				urls, token = operator.Pyproxy, operator.Token
			} else if !errors.Is(err, os.ErrNotExist) {
				return nil, err
			}
		}
		if token == "" {
			return nil, errNoSecret()
		}
		if len(urls) == 0 {
			urls = []string{defaultPyproxy}
		}
		var found []replica
		for _, url := range urls {
			client, err := apiclient.New(url, token, apiTimeout)
			if err != nil {
				return nil, err
			}
			found = append(found, replica{url, client})
		}
		return found, nil
	}
}

func upstreamListCommand() command {
	return command{
		name:    "list",
		summary: "list the Python services as each pyproxy sees them: addresses and circuits",
		details: pyproxyDetails,
		setup: func(flags *flag.FlagSet) runFunc {
			replicas := upstreamFlags(flags)
			return func(ctx context.Context, p *process, arguments []string) error {
				if len(arguments) > 0 {
					return usagef("unexpected argument %q", arguments[0])
				}
				all, err := replicas(p)
				if err != nil {
					return err
				}
				table := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
				sayf(table, "PYPROXY\tUPSTREAM\tADDRESSES\tCIRCUITS\n")
				var failures []error
				for _, r := range all {
					upstreams, err := r.client.Upstreams(ctx)
					if err != nil {
						failures = append(failures, fmt.Errorf("%s: %w", r.url, err))
					}
					for _, u := range upstreams {
						sayf(table, "%s\t%s\t%s\t%s\n", r.url, u.Name, addressStates(u), circuitStates(u))
					}
				}
				return errors.Join(append(failures, table.Flush())...)
			}
		},
	}
}

func upstreamSwitchCommand(name, summary string, do func(*apiclient.Client, context.Context, string) (pyproxy.UpstreamStatus, error)) command {
	return command{
		name:      name,
		arguments: "UPSTREAM",
		summary:   summary,
		details:   pyproxyDetails,
		setup: func(flags *flag.FlagSet) runFunc {
			replicas := upstreamFlags(flags)
			return func(ctx context.Context, p *process, arguments []string) error {
				if len(arguments) != 1 {
					return usagef("the name of one upstream is needed")
				}
				all, err := replicas(p)
				if err != nil {
					return err
				}
				var failures []error
				for _, r := range all {
					now, err := do(r.client, ctx, arguments[0])
					if err != nil {
						failures = append(failures, fmt.Errorf("%s: %w", r.url, err))
						continue
					}
					sayf(p.stdout, "%s: %s: %s\n", r.url, now.Name, circuitStates(now))
				}
				return errors.Join(failures...)
			}
		},
	}
}

func addressStates(u pyproxy.UpstreamStatus) string {
	var states []string
	for _, a := range u.Addresses {
		states = append(states, a.Address+" "+a.State)
	}
	return dash(strings.Join(states, ", "))
}

// circuitStates names a circuit's class only where there are several.
func circuitStates(u pyproxy.UpstreamStatus) string {
	var states []string
	for _, c := range u.Circuits {
		state := c.State
		if len(u.Circuits) > 1 {
			state = c.Class + " " + state
		}
		if c.RetryAfterSeconds > 0 {
			state += fmt.Sprintf(" (%.1f s left)", c.RetryAfterSeconds)
		}
		states = append(states, state)
	}
	return dash(strings.Join(states, ", "))
}
