package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"

	"github.com/tollgate-proxy/tollgate/internal/apiclient"
	featureflag "github.com/tollgate-proxy/tollgate/internal/flag"
)

const needsFlag = "a flag's key is"

func flagCommand() command {
	return command{
		name: "flag", summary: "show, set and target feature flags",
		commands: []command{
			flagListCommand(),
			flagShowCommand(),
			flagEvaluateCommand(),
			flagHistoryCommand(),
			flagSetCommand(),
			flagStateCommand("kill", "serve the off variant to everyone, whatever the rules say", "off"),
			flagStateCommand("revive", "let the flag's rules decide again, after kill or set", "auto"),
			flagTargetCommand(),
			flagPutCommand(),
			flagRevertCommand(),
			flagDeleteCommand(),
		},
	}
}

func flagListCommand() command {
	return callCommand{
		name: "list", summary: "list the feature flags, and who gets what",
		setup: always(func(ctx context.Context, p *process, client *apiclient.Client, _ []string) error {
			all, err := client.Flags(ctx)
			if err != nil {
				return err
			}
			err = sayTable(p.stdout, "FLAG\tSERVES\tOWNER\tVERSION\tCHANGED\tBY", all.Flags, func(f *apiclient.Flag) []any {
				return []any{f.Key, f.Summary, f.Owner, f.Version, f.Updated, f.UpdatedBy}
			})
			sayBroken(p, "flag", all.Broken)
			return err
		}),
	}.command()
}

// sayBroken names what a list leaves out.
func sayBroken(p *process, of string, keys []string) {
	for _, key := range keys {
		sayf(p.stdout, "\n%s is stored in a form that the server cannot read: `tollgate %s show %s` says why.\n", cell(key), of, cell(key))
	}
}

func flagShowCommand() command {
	return callCommand{
		name: "show", arguments: "KEY", summary: "show a flag with its definition, as JSON", needs: needsFlag,
		setup: always(func(ctx context.Context, p *process, client *apiclient.Client, arguments []string) error {
			now, err := client.Flag(ctx, arguments[0])
			if err != nil {
				return err
			}
			return sayJSON(p.stdout, now)
		}),
	}.command()
}

func flagEvaluateCommand() command {
	return callCommand{
		name: "evaluate", arguments: "KEY", summary: "say which variant a user gets now, and why",
		details: "Without -user it is decided for an anonymous caller. -role and -claim may be given more than once.", needs: needsFlag,
		setup: func(flags *flag.FlagSet) callFunc {
			s := apiclient.FlagSubject{Claims: map[string]any{}}
			flags.StringVar(&s.Key, "user", "", "the `user`")
			flags.StringVar(&s.Tier, "tier", "", "the user's `tier`")
			flags.Func("role", "a `role` of the user", appendTo(&s.Roles))
			flags.Func("claim", "a claim of the token, as `NAME=VALUE`; the value is JSON, or text", func(text string) error {
				name, value, ok := strings.Cut(text, "=")
				if !ok || name == "" {
					return errors.New("NAME=VALUE is needed")
				}
				var claim any
				if json.Unmarshal([]byte(value), &claim) != nil {
					claim = value
				}
				s.Claims[name] = claim
				return nil
			})
			return func(ctx context.Context, p *process, client *apiclient.Client, arguments []string) error {
				s.Anonymous = s.Key == ""
				d, err := client.EvaluateFlag(ctx, arguments[0], s)
				if err != nil {
					return err
				}
				value, err := json.Marshal(d.Value)
				if err != nil {
					return err
				}
				sayf(p.stdout, "%s: %s, value %s (%s)\n", arguments[0], cmp.Or(d.Variant, "no variant"), value, strings.TrimSpace(d.Reason+" "+d.ErrorCode))
				return nil
			}
		},
	}.command()
}

func flagHistoryCommand() command {
	return callCommand{
		name: "history", arguments: "KEY", summary: "list a flag's changes, the newest first; those of a deleted flag too", needs: needsFlag,
		setup: func(flags *flag.FlagSet) callFunc {
			limit := flags.Int("limit", 50, fmt.Sprintf("show so many `changes` at most, of the %d that are kept", featureflag.MaxHistory))
			return func(ctx context.Context, p *process, client *apiclient.Client, arguments []string) error {
				if *limit < 1 || *limit > featureflag.MaxHistory {
					return usagef("-limit %d: from 1 to %d is allowed", *limit, featureflag.MaxHistory)
				}
				key := arguments[0]
				all, err := client.FlagHistory(ctx, key, *limit)
				if err != nil {
					return err
				}
				return sayTable(p.stdout, "VERSION\tCHANGED\tBY\tACTION\tSERVES\tREASON", all, func(e *featureflag.Entry) []any {
					return []any{e.Version, e.At, e.Actor, e.Action, served(key, e.Definition), e.Reason}
				})
			}
		},
	}.command()
}

// served says who got what by a definition of the history, nothing where there
// is none.
func served(key string, definition json.RawMessage) string {
	if string(definition) == "null" {
		return ""
	}
	d, err := featureflag.ParseFlag("history", key, definition)
	if err != nil {
		return "not readable"
	}
	return d.Summary()
}

// sayFlag says what a change has made of a flag.
func sayFlag(p *process) func(now apiclient.Flag, err error) error {
	return func(now apiclient.Flag, err error) error {
		if err == nil {
			sayf(p.stdout, "%s: %s (version %d)\n", now.Key, now.Summary, now.Version)
		}
		return err
	}
}

func flagSetCommand() command {
	return callCommand{
		name: "set", arguments: "KEY on|off|auto|VARIANT|NN%",
		summary: "turn a flag on or off, serve a variant to everyone, or roll it out to a percentage",
		details: "auto lets the flag's rules decide again.",
		needs:   "a flag's key and its new value are",
		setup: func(flags *flag.FlagSet) callFunc {
			terms := termsFlags(flags, "flag", "version")
			return func(ctx context.Context, p *process, client *apiclient.Client, arguments []string) error {
				change, err := flagChange(arguments[1])
				if err != nil {
					return err
				}
				return changeFlag(ctx, p, client, arguments[0], change, terms)
			}
		},
	}.command()
}

// flagStateCommand is set with one of the states.
func flagStateCommand(name, summary, state string) command {
	return callCommand{
		name: name, arguments: "KEY", summary: summary, details: "It is `set KEY " + state + "`.", needs: needsFlag,
		setup: func(flags *flag.FlagSet) callFunc {
			terms := termsFlags(flags, "flag", "version")
			return func(ctx context.Context, p *process, client *apiclient.Client, arguments []string) error {
				return changeFlag(ctx, p, client, arguments[0], apiclient.FlagChange{State: state}, terms)
			}
		},
	}.command()
}

func changeFlag(ctx context.Context, p *process, client *apiclient.Client, key string, change apiclient.FlagChange, terms *apiclient.Terms) error {
	change.Reason, change.Version = terms.Reason, terms.At
	return sayFlag(p)(client.ChangeFlag(ctx, key, change))
}

// flagChange reads on, off, auto, NN% or the name of a variant.
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
	case "on", "off", "auto":
		return apiclient.FlagChange{State: value}, nil
	}
	return apiclient.FlagChange{Variant: value}, nil
}

func flagPutCommand() command {
	return callCommand{
		name: "put", arguments: "KEY FILE", summary: "write a flag's whole definition from a JSON file, new or not",
		details: "The file is what `show` calls the definition. -version 0 writes only a flag that does not exist.",
		needs:   "a flag's key and a file with its definition are",
		setup: func(flags *flag.FlagSet) callFunc {
			terms := termsFlags(flags, "flag", "version")
			return func(ctx context.Context, p *process, client *apiclient.Client, arguments []string) error {
				data, err := os.ReadFile(arguments[1])
				if err != nil {
					return err
				}
				if !json.Valid(data) {
					return fmt.Errorf("%s: it is not JSON", arguments[1])
				}
				return sayFlag(p)(client.WriteFlag(ctx, arguments[0], json.RawMessage(data), *terms))
			}
		},
	}.command()
}

func flagRevertCommand() command {
	return callCommand{
		name: "revert", arguments: "KEY VERSION", summary: "bring back the definition that a flag had at a version of its history",
		details: "It becomes a new version; a flag that was deleted comes back.",
		needs:   "a flag's key and a version of its history are",
		setup: func(flags *flag.FlagSet) callFunc {
			terms := termsFlags(flags, "flag", "version")
			return func(ctx context.Context, p *process, client *apiclient.Client, arguments []string) error {
				to, err := past("flag", "version", arguments)
				if err != nil {
					return err
				}
				return sayFlag(p)(client.RevertFlag(ctx, arguments[0], to, *terms))
			}
		},
	}.command()
}

// past reads KEY VERSION, where the version is one of a history.
func past(kind, counter string, arguments []string) (int64, error) {
	to, err := strconv.ParseInt(arguments[1], 10, 64)
	if err != nil || to < 1 {
		return 0, usagef("%s %q: a number that `tollgate %s history %s` shows is needed", counter, arguments[1], kind, arguments[0])
	}
	return to, nil
}

func flagDeleteCommand() command {
	return callCommand{
		name: "delete", arguments: "KEY", summary: "delete a flag; its history stays, and revert brings it back", needs: needsFlag,
		setup: func(flags *flag.FlagSet) callFunc {
			terms := termsFlags(flags, "flag", "version")
			return func(ctx context.Context, p *process, client *apiclient.Client, arguments []string) error {
				if err := client.RemoveFlag(ctx, arguments[0], *terms); err != nil {
					return err
				}
				sayf(p.stdout, "%s: deleted\n", arguments[0])
				return nil
			}
		},
	}.command()
}
