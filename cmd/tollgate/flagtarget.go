package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"

	"github.com/tollgate-proxy/tollgate/internal/apiclient"
	featureflag "github.com/tollgate-proxy/tollgate/internal/flag"
)

// targets is what to change about whom a flag means.
type targets struct {
	variant             string // for added users; the on variant if empty
	users, tiers, roles edits
	everyone            bool // an audience's list may become empty
}

// edits are the members to add to a list, and to remove.
type edits struct{ add, remove []string }

func (e edits) none() bool { return len(e.add)+len(e.remove) == 0 }

func flagTargetCommand() command {
	return callCommand{
		name: "target", arguments: "KEY", summary: "change the users, tiers and roles that a flag means",
		details: "A user gets the variant that -variant names (by default the on variant), before audience and roll-out. Tiers and\n" +
			"roles are the audience of targeting and roll-out: the first one shuts out all others. -add-… and -remove-… may be\n" +
			"given more than once. What `show` has besides is left as it is.",
		needs: needsFlag,
		setup: func(flags *flag.FlagSet) callFunc {
			var t targets
			terms := termsFlags(flags, "flag", "version")
			flags.StringVar(&t.variant, "variant", "", "`variant` for the users that are added")
			flags.BoolVar(&t.everyone, "everyone", false, "allow removing the last tier or role, which lets those of all others in")
			for _, list := range []struct {
				of string
				to *edits
			}{{"user", &t.users}, {"tier", &t.tiers}, {"role", &t.roles}} {
				flags.Func("add-"+list.of, "add a `"+list.of+"`", appendTo(&list.to.add))
				flags.Func("remove-"+list.of, "remove a `"+list.of+"`", appendTo(&list.to.remove))
			}
			return func(ctx context.Context, p *process, client *apiclient.Client, arguments []string) error {
				if t.users.none() && t.tiers.none() && t.roles.none() {
					return usagef("nothing to change: -add-user, -remove-user, -add-tier, -remove-tier, -add-role or -remove-role is needed")
				}
				was, err := client.Flag(ctx, arguments[0])
				if err != nil {
					return err
				}
				if err := t.apply(&was.Definition); err != nil {
					return fmt.Errorf("flag %s: %w", was.Key, err)
				}
				// What was read is what is changed, or nothing is.
				if terms.At == nil {
					terms.At = &was.Version
				}
				now, err := client.WriteFlag(ctx, arguments[0], was.Definition, *terms)
				if err != nil {
					return err
				}
				sayFlag(p, &now)
				return nil
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

// apply changes a definition.
func (t *targets) apply(d *featureflag.Definition) error {
	x := &d.Extension
	for _, list := range []struct {
		of   string
		make edits
		in   *[]string
	}{{"tier", t.tiers, &x.Audience.Tiers}, {"role", t.roles, &x.Audience.Roles}} {
		had := len(*list.in) > 0
		for _, name := range list.make.remove {
			i := slices.Index(*list.in, name)
			if i < 0 {
				return fmt.Errorf("the audience has no %s %q", list.of, name)
			}
			*list.in = slices.Delete(*list.in, i, i+1)
		}
		*list.in = addMissing(*list.in, list.make.add)
		if had && len(*list.in) == 0 && !t.everyone {
			return fmt.Errorf("without its last %s the audience would take any; -everyone allows that, and `tollgate flag kill` turns the flag off", list.of)
		}
	}
	for _, user := range t.users.remove {
		if !removeUser(x, user) {
			return fmt.Errorf("no variant has user %q by name", user)
		}
	}
	if len(t.users.add) == 0 {
		return nil
	}
	variant := cmp.Or(t.variant, d.OnVariant())
	if _, ok := d.Variants[variant]; !ok {
		return fmt.Errorf("-variant %q: it is none of the flag's variants", variant)
	}
	for _, user := range t.users.add {
		removeUser(x, user) // from another variant's list
	}
	i := slices.IndexFunc(x.Users, func(l featureflag.UserList) bool { return l.Variant == variant })
	if i < 0 {
		i, x.Users = len(x.Users), append(x.Users, featureflag.UserList{Variant: variant})
	}
	x.Users[i].Keys = addMissing(x.Users[i].Keys, t.users.add)
	return nil
}

func addMissing(all, more []string) []string {
	for _, name := range more {
		if !slices.Contains(all, name) {
			all = append(all, name)
		}
	}
	return all
}

// removeUser takes a user off every variant's list, and lists that are empty
// then away.
func removeUser(x *featureflag.Extension, user string) bool {
	found := false
	for i := range x.Users {
		l := &x.Users[i]
		before := len(l.Keys)
		l.Keys = slices.DeleteFunc(l.Keys, func(key string) bool { return key == user })
		found = found || len(l.Keys) < before
	}
	x.Users = slices.DeleteFunc(x.Users, func(l featureflag.UserList) bool { return len(l.Keys) == 0 })
	return found
}
