package main

import (
	"context"
	"errors"
	"flag"

	"github.com/tollgate-proxy/tollgate/internal/apiclient"
	featureflag "github.com/tollgate-proxy/tollgate/internal/flag"
)

func flagTargetCommand() command {
	return callCommand{
		name: "target", arguments: "KEY", summary: "change the users, tiers and roles that a flag means",
		details: "A user gets the variant that -variant names (by default the on variant), before audience and roll-out. Tiers and\n" +
			"roles are the audience of targeting and roll-out: the first one shuts out all others. -add-… and -remove-… may be\n" +
			"given more than once. What `show` has besides is left as it is.",
		needs: needsFlag,
		setup: func(flags *flag.FlagSet) callFunc {
			var t featureflag.Targets
			terms := termsFlags(flags, "flag", "version")
			flags.StringVar(&t.Users.Variant, "variant", "", "`variant` for the users that are added")
			flags.BoolVar(&t.Everyone, "everyone", false, "allow removing the last tier or role, which lets those of all others in")
			for _, list := range []struct {
				of string
				to *featureflag.Edits
			}{{"user", &t.Users.Edits}, {"tier", &t.Tiers}, {"role", &t.Roles}} {
				flags.Func("add-"+list.of, "add a `"+list.of+"`", appendTo(&list.to.Add))
				flags.Func("remove-"+list.of, "remove a `"+list.of+"`", appendTo(&list.to.Remove))
			}
			return func(ctx context.Context, p *process, client *apiclient.Client, arguments []string) error {
				if t.Users.IsZero() && t.Tiers.IsZero() && t.Roles.IsZero() {
					return usagef("nothing to change: -add-user, -remove-user, -add-tier, -remove-tier, -add-role or -remove-role is needed")
				}
				return changeFlag(ctx, p, client, arguments[0], apiclient.FlagChange{Targets: t}, terms)
			}
		},
	}.command()
}

func appendTo(all *[]string) func(string) error {
	return func(text string) error {
		if text == "" {
			return errors.New("it is empty")
		}
		*all = append(*all, text)
		return nil
	}
}
