package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/apiclient"
)

func explainCommand() command {
	return command{
		name:      "explain",
		arguments: "[METHOD] PATH",
		summary:   "say what would become of a request, and why, step by step",
		details: "The token is the value of -bearer, or - for the first line of the standard input.\n" +
			"Nothing is taken of any limit, and nothing learned.\n" + apiDetails,
		setup: func(flags *flag.FlagSet) runFunc {
			api := apiFlags(flags)
			host := flags.String("host", "", "the request's `host`")
			address := flags.String("address", "", "the client's `address`")
			bearer := flags.String("bearer", "", "the `token` that the request has")
			certificate := flags.String("certificate", "", "`file` with the client's certificate in PEM")
			headers := map[string]string{}
			flags.Func("header", "a header of the request, `NAME: VALUE`, such as user-agent; may be given again", func(text string) error {
				name, value, ok := strings.Cut(text, ":")
				if !ok || name == "" {
					return errors.New("NAME: VALUE is needed")
				}
				headers[strings.ToLower(name)] = strings.TrimSpace(value)
				return nil
			})
			return func(ctx context.Context, p *process, arguments []string) error {
				q := apiclient.Question{Method: "GET", Host: *host, Address: *address, Token: *bearer, Headers: headers}
				switch len(arguments) {
				case 1:
					q.Path = arguments[0]
				case 2:
					q.Method, q.Path = strings.ToUpper(arguments[0]), arguments[1]
				default:
					return usagef("a path is needed")
				}
				if q.Token == "-" {
					given, err := lines(p)
					if err != nil {
						return err
					}
					if len(given) == 0 {
						return usagef("no token on the standard input")
					}
					q.Token = given[0]
				}
				if *certificate != "" {
					pem, err := os.ReadFile(*certificate)
					if err != nil {
						return fmt.Errorf("the client's certificate: %w", err)
					}
					q.Certificate = string(pem)
				}
				client, err := api.client(p)
				if err != nil {
					return err
				}
				e, err := client.Explain(ctx, q)
				if err != nil {
					return err
				}
				return sayExplanation(p, &e)
			}
		},
	}
}

func sayExplanation(p *process, e *apiclient.Explanation) error {
	table := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	for _, s := range e.Steps {
		mark := "ok"
		if !s.Passed {
			mark = "no"
		}
		text := s.Detail
		if s.Wanted != "" {
			text += " wanted " + s.Wanted
		}
		if s.Got != "" {
			text += " got " + s.Got
		}
		sayf(table, "%s\t%s\t%s\n", mark, s.Name, strings.TrimSpace(text))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if e.Allowed {
		sayf(p.stdout, "allowed: route %s, endpoint %s, cost %d, user %s, tier %s\n", dash(e.Route), dash(e.Endpoint), e.Cost, dash(e.User), e.Tier)
		for _, key := range slices.Sorted(maps.Keys(e.Flags)) {
			sayf(p.stdout, "flag %s: %s (%s)\n", key, dash(e.Flags[key].Variant), strings.ToLower(e.Flags[key].Reason))
		}
		return nil
	}
	sayf(p.stdout, "refused: %d %s, route %s: %s\n", e.Status, e.Code, dash(e.Route), e.Detail)
	return nil
}

func tokenStatusCommand() command {
	return command{
		name:      "status",
		arguments: "[TOKEN]",
		summary:   "say what the gateway would make of a token",
		details:   "Without an argument the token is the first line of the standard input.\n" + apiDetails,
		setup: func(flags *flag.FlagSet) runFunc {
			api := apiFlags(flags)
			return func(ctx context.Context, p *process, arguments []string) error {
				given := arguments
				if len(given) == 0 {
					var err error
					if given, err = lines(p); err != nil {
						return err
					}
				}
				if len(given) != 1 {
					return usagef("one token is needed")
				}
				client, err := api.client(p)
				if err != nil {
					return err
				}
				s, err := client.TokenStatus(ctx, given[0])
				if err != nil {
					return err
				}
				word := "active"
				if !s.Active {
					word = "not active: " + cmp.Or(s.Code, "unknown")
				}
				sayf(p.stdout, "%s\n", word)
				if s.Subject != "" {
					sayf(p.stdout, "user %s, session %s, issuer %s, expires %s\n", s.Subject, dash(s.Session), s.Issuer,
						time.Unix(s.ExpiresAt, 0).UTC().Format(time.DateTime))
				}
				return nil
			}
		},
	}
}
