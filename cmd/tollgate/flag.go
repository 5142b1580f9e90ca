package main

import (
	"context"
	"flag"
	"math"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/apiclient"
)

func flagListCommand() command {
	return command{
		name:    "list",
		summary: "list the feature flags, and who gets what",
		details: apiDetails,
		setup: func(flags *flag.FlagSet) runFunc {
			api := apiFlags(flags)
			return func(ctx context.Context, p *process, arguments []string) error {
				if len(arguments) > 0 {
					return usagef("unexpected argument %q", arguments[0])
				}
				client, err := api.client(p)
				if err != nil {
					return err
				}
				all, err := client.Flags(ctx)
				if err != nil {
					return err
				}
				table := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
				sayf(table, "FLAG\tSERVES\tOWNER\tVERSION\tCHANGED\tBY\n")
				for _, f := range all {
					sayf(table, "%s\t%s\t%s\t%d\t%s\t%s\n", f.Key, f.Summary, dash(f.Owner),
						f.Version, f.Updated.UTC().Format(time.DateTime), dash(f.UpdatedBy))
				}
				return table.Flush()
			}
		},
	}
}

func dash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

func flagSetCommand() command {
	return command{
		name:      "set",
		arguments: "KEY on|off|VARIANT|NN%",
		summary:   "turn a flag on or off, serve a variant to everyone, or roll it out to a percentage",
		details:   apiDetails,
		setup: func(flags *flag.FlagSet) runFunc {
			api := apiFlags(flags)
			reason := flags.String("reason", "", "why, for the flag's history")
			version := flags.Int64("version", 0, "change the flag only if it is at this `version`")
			return func(ctx context.Context, p *process, arguments []string) error {
				if len(arguments) != 2 {
					return usagef("a flag's key and its new value are needed")
				}
				change, err := flagChange(arguments[1])
				if err != nil {
					return err
				}
				change.Reason = *reason
				if *version != 0 {
					change.Version = version
				}
				client, err := api.client(p)
				if err != nil {
					return err
				}
				now, err := client.ChangeFlag(ctx, arguments[0], change)
				if err != nil {
					return err
				}
				sayf(p.stdout, "%s: %s (version %d)\n", now.Key, now.Summary, now.Version)
				return nil
			}
		},
	}
}

// flagChange reads on, off, NN% or the name of a variant.
func flagChange(value string) (apiclient.FlagChange, error) {
	if number, ok := strings.CutSuffix(value, "%"); ok {
		percent, err := strconv.ParseFloat(number, 64)
		if err != nil || math.IsNaN(percent) || percent < 0 || percent > 100 {
			return apiclient.FlagChange{}, usagef("%q is not a percentage from 0%% to 100%%", value)
		}
		return apiclient.FlagChange{Rollout: &percent}, nil
	}
	switch value {
	case "":
		return apiclient.FlagChange{}, usagef("the new value is empty")
	case "on", "off":
		return apiclient.FlagChange{State: value}, nil
	}
	return apiclient.FlagChange{Variant: value}, nil
}
