package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/apiclient"
	"github.com/tollgate-proxy/tollgate/internal/ratelimit"
	"github.com/tollgate-proxy/tollgate/internal/stack"
)

const (
	defaultRatelimit = "http://127.0.0.1:8102"
	limitDetails     = "ratelimit's API is where -ratelimit says, else in a running demo, else at " + defaultRatelimit + ".\n" +
		"The operator's secret comes from -token-file, else " + tokenVariable + ", else a running demo."
)

// limitSettings say where ratelimit's API is, who calls, and about whom.
type limitSettings struct{ url, tokenFile, entry, domain *string }

func limitFlags(flags *flag.FlagSet) limitSettings {
	return limitSettings{
		url:       flags.String("ratelimit", "", "base `URL` of ratelimit's API (default "+defaultRatelimit+")"),
		tokenFile: tokenFileFlag(flags),
		entry:     flags.String("entry", "", "descriptor `entry` that names whose limits they are (default user)"),
		domain:    flags.String("domain", "", "`domain` of the rules (default the API's own)"),
	}
}

func (l limitSettings) client(p *process) (*apiclient.Client, error) {
	url, token := *l.url, p.getenv(tokenVariable)
	if *l.tokenFile != "" {
		var err error
		if token, err = readToken(*l.tokenFile); err != nil {
			return nil, err
		}
	}
	// The demo's secret goes to the demo and nowhere else.
	if url == "" && token == "" {
		operator, err := stack.LoadOperator(demoWork)
		if err == nil {
			url, token = operator.Ratelimit, operator.Token
		} else if !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	if token == "" {
		return nil, errNoSecret()
	}
	return apiclient.New(cmp.Or(url, defaultRatelimit), token, apiTimeout)
}

func (l limitSettings) subject(name string) apiclient.LimitSubject {
	return apiclient.LimitSubject{Name: name, Entry: *l.entry, Domain: *l.domain}
}

func limitShowCommand() command {
	return command{
		name:      "show",
		arguments: "USER",
		summary:   "show what a user's buckets hold, without charging them",
		details:   limitDetails,
		setup: func(flags *flag.FlagSet) runFunc {
			limits := limitFlags(flags)
			tier := flags.String("tier", "", "the user's `tier`, which gives the buckets their sizes (default the rules' own)")
			return func(ctx context.Context, p *process, arguments []string) error {
				if len(arguments) != 1 {
					return usagef("the name of one user is needed")
				}
				client, err := limits.client(p)
				if err != nil {
					return err
				}
				buckets, err := client.Limits(ctx, limits.subject(arguments[0]), *tier)
				if err != nil {
					return err
				}
				return sayTable(p.stdout, "LIMIT\tREMAINING\tOF\tPER\tFULL IN\tOF ALL USERS", buckets, func(b *apiclient.LimitBucket) []any {
					shared := ""
					if b.System {
						shared = "yes"
					}
					per := fmt.Sprintf("%d in %s", b.Limit, duration(b.WindowSeconds))
					return []any{b.Name, b.Remaining, b.Size, per, duration(b.FullInSeconds).Round(time.Millisecond), shared}
				})
			}
		},
	}
}

func duration(seconds float64) time.Duration { return time.Duration(seconds * float64(time.Second)) }

func limitResetCommand() command {
	return command{
		name:      "reset",
		arguments: "USER",
		summary:   "make a user's buckets full",
		details:   limitDetails,
		setup: func(flags *flag.FlagSet) runFunc {
			limits := limitFlags(flags)
			reason := flags.String("reason", "", "why, for the audit log")
			return func(ctx context.Context, p *process, arguments []string) error {
				if len(arguments) != 1 {
					return usagef("the name of one user is needed")
				}
				client, err := limits.client(p)
				if err != nil {
					return err
				}
				if err := client.ResetLimits(ctx, limits.subject(arguments[0]), *reason); err != nil {
					return err
				}
				sayf(p.stdout, "%s: the buckets are full\n", arguments[0])
				return nil
			}
		},
	}
}

func limitOverrideCommand() command {
	return command{
		name:      "override",
		arguments: "[USER [TIER]]",
		summary:   "give a user another tier for a while, end that, or list who has one",
		details:   "With a user and a tier, gives it; with -end and a user, ends it; with neither, lists what is in force.\n" + limitDetails,
		setup: func(flags *flag.FlagSet) runFunc {
			limits := limitFlags(flags)
			length := flags.Duration("for", time.Hour, "how long")
			end := flags.Bool("end", false, "end the user's override")
			reason := flags.String("reason", "", "why, for the audit log")
			return func(ctx context.Context, p *process, arguments []string) error {
				switch {
				case *end && len(arguments) != 1:
					return usagef("with -end the name of one user is needed")
				case !*end && len(arguments) != 0 && len(arguments) != 2:
					return usagef("a user and a tier are needed, or neither")
				case *length <= 0:
					return usagef("-for %s: it must be longer than nothing", *length)
				}
				client, err := limits.client(p)
				if err != nil {
					return err
				}
				switch {
				case *end:
					if err := client.EndOverride(ctx, limits.subject(arguments[0]), *reason); err != nil {
						return err
					}
					sayf(p.stdout, "%s: the user's own tier\n", arguments[0])
					return nil
				case len(arguments) == 0:
					return listOverrides(ctx, p, client)
				}
				o, err := client.OverrideTier(ctx, limits.subject(arguments[0]), arguments[1], time.Now().Add(*length), *reason)
				if err != nil {
					return err
				}
				sayf(p.stdout, "%s: tier %s until %s\n", o.Subject, o.Tier, o.Until.UTC().Format(time.DateTime))
				return nil
			}
		},
	}
}

func listOverrides(ctx context.Context, p *process, client *apiclient.Client) error {
	all, err := client.LimitOverrides(ctx)
	if err != nil {
		return err
	}
	return sayTable(p.stdout, "DOMAIN\tENTRY\tSUBJECT\tTIER\tUNTIL", all, func(o *apiclient.LimitOverride) []any {
		return []any{o.Domain, o.Entry, o.Subject, o.Tier, o.Until}
	})
}

// explainLimits says which rule of the files a descriptor meets in each of
// their domains: KEY=VALUE,KEY=VALUE.
func explainLimits(p *process, descriptor string, files []string) error {
	var entries []ratelimit.Entry
	for part := range strings.SplitSeq(descriptor, ",") {
		key, value, _ := strings.Cut(part, "=")
		if key = strings.TrimSpace(key); key == "" {
			return usagef("descriptor %q: entries are KEY=VALUE, separated by commas", descriptor)
		}
		entries = append(entries, ratelimit.Entry{Key: key, Value: value})
	}
	rules, err := ratelimit.LoadRules(files...)
	if err != nil {
		return err
	}
	for _, domain := range rules.Domains() {
		sayf(p.stdout, "%s: %s\n", domain, rules.Explain(domain, entries))
	}
	return nil
}
