package main

import (
	"context"
	"flag"
	"fmt"
	"strings"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/apiclient"
)

func suspiciousListCommand() command {
	return callCommand{
		name: "list", arguments: "USER", needs: needsUser,
		summary: "list what was suspicious about a user, the newest first, with the evidence",
		setup: always(func(ctx context.Context, p *process, client *apiclient.Client, arguments []string) error {
			all, err := client.Suspicions(ctx, arguments[0])
			if err != nil {
				return err
			}
			return sayTable(p.stdout, "TIME\tSESSION\tSCORE\tACTION\tFROM\tSIGNALS", all, func(s *apiclient.Suspicion) []any {
				action := s.Action
				if s.Settled {
					action = "settled"
				}
				return []any{s.At, s.Session, s.Score, action, s.Country + " " + s.Range, signalsOf(s)}
			})
		}),
	}.command()
}

// signalsOf names the signals and what they go by.
func signalsOf(s *apiclient.Suspicion) string {
	var texts []string
	for _, signal := range s.Signals {
		texts = append(texts, fmt.Sprintf("%s (%s)", signal.Code, signal.Evidence))
	}
	return strings.Join(texts, "; ")
}

func suspiciousDetectCommand() command {
	return callCommand{
		name: "detect", arguments: "USER", needs: needsUser,
		summary: "say whether a request of a user, past or not, would be suspicious; nothing is learned or done",
		details: "What no flag says is not judged.",
		setup: func(flags *flag.FlagSet) callFunc {
			var d apiclient.Described
			at := flags.String("at", "", "`time` of the request, such as 2026-05-04T03:02:01Z (default now)")
			flags.StringVar(&d.Address, "address", "", "the client's `address`")
			flags.StringVar(&d.UserAgent, "agent", "", "the client's user `agent`")
			flags.StringVar(&d.Device, "device", "", "the token's `device_id`")
			flags.StringVar(&d.Session, "session", "", "the token's `session`")
			return func(ctx context.Context, p *process, client *apiclient.Client, arguments []string) error {
				if *at != "" {
					var err error
					if d.At, err = time.Parse(time.RFC3339, *at); err != nil {
						return usagef("-at %q: a time such as 2026-05-04T03:02:01Z is needed", *at)
					}
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
	}.command()
}

func suspiciousForgetCommand() command {
	return callCommand{
		name: "forget", arguments: "USER", needs: needsUser,
		summary: "forget what was learned about a user, and the events (role admin)",
		details: "The user's next request is as if they were new.",
		setup: func(flags *flag.FlagSet) callFunc {
			reason := flags.String("reason", "", "why, for the audit trail")
			return func(ctx context.Context, p *process, client *apiclient.Client, arguments []string) error {
				if err := client.ForgetSuspicions(ctx, arguments[0], *reason); err != nil {
					return err
				}
				sayf(p.stdout, "forgotten\n")
				return nil
			}
		},
	}.command()
}
