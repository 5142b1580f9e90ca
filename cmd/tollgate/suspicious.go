package main

import (
	"context"
	"flag"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/apiclient"
)

func suspiciousListCommand() command {
	return command{
		name:      "list",
		arguments: "USER",
		summary:   "list what was suspicious about a user, the newest first, with the evidence",
		details:   apiDetails,
		setup: func(flags *flag.FlagSet) runFunc {
			api := apiFlags(flags)
			return func(ctx context.Context, p *process, arguments []string) error {
				if len(arguments) != 1 {
					return usagef("one user is needed")
				}
				client, err := api.client(p)
				if err != nil {
					return err
				}
				all, err := client.Suspicions(ctx, arguments[0])
				if err != nil {
					return err
				}
				table := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
				sayf(table, "TIME\tSESSION\tSCORE\tACTION\tFROM\tSIGNALS\n")
				for i := range all {
					s := &all[i]
					action := s.Action
					if s.Settled {
						action = "settled"
					}
					from := strings.TrimSpace(s.Country + " " + s.Range)
					sayf(table, "%s\t%s\t%d\t%s\t%s\t%s\n", s.At.UTC().Format(time.DateTime), dash(s.Session), s.Score, action, dash(from), signalsOf(s))
				}
				return table.Flush()
			}
		},
	}
}

// signalsOf names the signals and what they go by.
func signalsOf(s *apiclient.Suspicion) string {
	var texts []string
	for _, signal := range s.Signals {
		texts = append(texts, fmt.Sprintf("%s (%s)", signal.Code, signal.Evidence))
	}
	return dash(strings.Join(texts, "; "))
}

func suspiciousDetectCommand() command {
	return command{
		name:      "detect",
		arguments: "USER",
		summary:   "say whether a request of a user, past or not, would be suspicious; nothing is learned or done",
		details:   "What no flag says is not judged.\n" + apiDetails,
		setup: func(flags *flag.FlagSet) runFunc {
			api := apiFlags(flags)
			var d apiclient.Described
			at := flags.String("at", "", "`time` of the request, such as 2026-05-04T03:02:01Z (default now)")
			flags.StringVar(&d.Address, "address", "", "the client's `address`")
			flags.StringVar(&d.UserAgent, "agent", "", "the client's user `agent`")
			flags.StringVar(&d.Device, "device", "", "the token's `device_id`")
			flags.StringVar(&d.Session, "session", "", "the token's `session`")
			return func(ctx context.Context, p *process, arguments []string) error {
				if len(arguments) != 1 {
					return usagef("one user is needed")
				}
				if *at != "" {
					var err error
					if d.At, err = time.Parse(time.RFC3339, *at); err != nil {
						return usagef("-at %q: a time such as 2026-05-04T03:02:01Z is needed", *at)
					}
				}
				client, err := api.client(p)
				if err != nil {
					return err
				}
				v, err := client.Detect(ctx, arguments[0], d)
				if err != nil {
					return err
				}
				sayf(p.stdout, "score %d, action %s\n", v.Score, v.Action)
				for _, s := range v.Signals {
					sayf(p.stdout, "  %s %d: %s\n", s.Code, s.Weight, s.Evidence)
				}
				if v.Settled {
					sayf(p.stdout, "settled: the user had just proved who they are\n")
				}
				return nil
			}
		},
	}
}

func suspiciousForgetCommand() command {
	return command{
		name:      "forget",
		arguments: "USER",
		summary:   "forget what was learned about a user, and the events (role admin)",
		details:   "The user's next request is as if they were new.\n" + apiDetails,
		setup: func(flags *flag.FlagSet) runFunc {
			api := apiFlags(flags)
			reason := flags.String("reason", "", "why, for the audit trail")
			return func(ctx context.Context, p *process, arguments []string) error {
				if len(arguments) != 1 {
					return usagef("one user is needed")
				}
				client, err := api.client(p)
				if err != nil {
					return err
				}
				if err := client.ForgetSuspicions(ctx, arguments[0], *reason); err != nil {
					return err
				}
				sayf(p.stdout, "forgotten\n")
				return nil
			}
		},
	}
}
