package main

import (
	"context"
	"flag"

	"github.com/tollgate-proxy/tollgate/internal/apiclient"
)

const needsUser = "one user is"

func sessionListCommand() command {
	return callCommand{
		name: "list", arguments: "USER", summary: "list a user's sessions, the oldest first", needs: needsUser,
		setup: always(func(ctx context.Context, p *process, client *apiclient.Client, arguments []string) error {
			all, err := client.Sessions(ctx, arguments[0])
			if err != nil {
				return err
			}
			return sayTable(p.stdout, "SESSION\tDEVICE\tADDRESS\tPLACE\tISSUER\tCREATED\tLAST SEEN", all, func(s *apiclient.Session) []any {
				return []any{s.ID, s.Device.Name, s.Address, s.Place.City + " " + s.Place.Country, s.Issuer, s.Created, s.LastSeen}
			})
		}),
	}.command()
}

func sessionEndCommand() command {
	return command{
		name:      "end",
		arguments: "USER [SESSION]",
		summary:   "end a session with all its tokens, everywhere; or all of a user's",
		details:   "Without a session, -all ends every one of the user's, and -keep every one but that.\n" + apiDetails,
		setup: func(flags *flag.FlagSet) runFunc {
			api := apiFlags(flags)
			reason := flags.String("reason", "", "why, for the audit trail")
			all := flags.Bool("all", false, "end all sessions of the user")
			keep := flags.String("keep", "", "end all but this `session`")
			issuer := flags.String("iss", "", "leave the sessions with other issuers than this `issuer` alone")
			return func(ctx context.Context, p *process, arguments []string) error {
				ways := 0
				for _, chosen := range []bool{len(arguments) == 2, *all, *keep != ""} {
					if chosen {
						ways++
					}
				}
				if len(arguments) == 0 || len(arguments) > 2 || ways != 1 {
					return usagef("a user is needed, and one of a session, -all and -keep")
				}
				client, err := api.client(p)
				if err != nil {
					return err
				}
				if len(arguments) == 2 {
					if err := client.EndSession(ctx, arguments[0], arguments[1], *issuer, *reason); err != nil {
						return err
					}
					sayf(p.stdout, "1 ended\n")
					return nil
				}
				n, err := client.EndSessions(ctx, arguments[0], *keep, *issuer, *reason)
				if err != nil {
					return err
				}
				sayf(p.stdout, "%d ended\n", n)
				return nil
			}
		},
	}
}
