package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/apiclient"
	"github.com/tollgate-proxy/tollgate/internal/authn"
)

// defaultKey is where the demo keeps the development signing key.
const defaultKey = "var/dev/signing-key.pem"

func tiers() []string { return []string{"free", "premium", "enterprise", "admin"} }

const maxTokens = 1_000_000

func mintCommand() command {
	return command{
		name:    "mint",
		summary: "print development tokens, one a line",
		details: "The tokens are signed with the development key, which is made where it is missing. An authz trusts\n" +
			"that key in development mode alone (mode: development); in production these tokens are refused.",
		setup: func(flags *flag.FlagSet) runFunc {
			user := flags.String("user", "", "the `subject` of the token (required); with -count it is numbered where it holds %d")
			tier := flags.String("tier", "free", "the user's `tier`: "+strings.Join(tiers(), ", "))
			roles := flags.String("roles", "", "the user's `roles`, separated by commas")
			session := flags.String("session", "", "the `session`; by default none is named")
			count := flags.Int("count", 1, "how many tokens, each with an id of its own")
			ttl := flags.Duration("ttl", time.Hour, "how long a token lasts, 24h at most")
			key := flags.String("key", defaultKey, "PEM `file` of the development signing key")
			return func(_ context.Context, p *process, arguments []string) error {
				switch {
				case len(arguments) > 0:
					return usagef("unexpected argument %q", arguments[0])
				case *user == "":
					return usagef("-user is required")
				case !slices.Contains(tiers(), *tier):
					return usagef("-tier %q: it is one of %s", *tier, strings.Join(tiers(), ", "))
				case *count < 1 || *count > maxTokens:
					return usagef("-count %d: it is 1 to %d", *count, maxTokens)
				case *ttl <= 0 || *ttl > authn.MaxLifetimeLimit:
					return usagef("-ttl %s: it is above 0s and at most %s", *ttl, authn.MaxLifetimeLimit)
				}
				minter, err := authn.NewMinter(*key)
				if err != nil {
					return err
				}
				out := bufio.NewWriter(p.stdout)
				for i := range *count {
					token, err := minter.Mint(authn.MintOptions{
						User: strings.ReplaceAll(*user, "%d", strconv.Itoa(i+1)), Tier: *tier, Roles: list(*roles), Session: *session, TTL: *ttl,
					})
					if err != nil {
						return err
					}
					if _, err := fmt.Fprintln(out, token); err != nil {
						return err
					}
				}
				return out.Flush()
			}
		},
	}
}

// list splits at commas and leaves out what is empty.
func list(text string) []string {
	return slices.DeleteFunc(strings.Split(text, ","), func(s string) bool { return s == "" })
}

func revokeCommand() command {
	return command{
		name:      "revoke",
		arguments: "[TOKEN...]",
		summary:   "refuse tokens from now on, everywhere",
		details: "Without an argument tokens are read from the standard input, one a line. With a flag that names others,\n" +
			"those are refused instead: every token issued until now, and a user's or the named session with them. Tokens of\n" +
			"more than one user take the role admin.\n" + apiDetails,
		setup: func(flags *flag.FlagSet) runFunc {
			api := apiFlags(flags)
			var of apiclient.Revocation
			flags.StringVar(&of.User, "user", "", "all of a `user`'s tokens and sessions")
			flags.StringVar(&of.Session, "session", "", "a `session` with its tokens")
			flags.StringVar(&of.TokenID, "jti", "", "the token with this `id`, with -iss")
			flags.StringVar(&of.Client, "client", "", "all of a `client`'s tokens")
			flags.StringVar(&of.Issuer, "iss", "", "all of an `issuer`'s tokens; or with another flag only those")
			flags.BoolVar(&of.Everything, "everything", false, "all tokens there are")
			reason := flags.String("reason", "", "why, for the audit trail")
			return func(ctx context.Context, p *process, arguments []string) error {
				client, err := api.client(p)
				if err != nil {
					return err
				}
				if of != (apiclient.Revocation{}) {
					of.Reason = *reason
					return revokeMany(ctx, p, client, of, arguments)
				}
				tokens := arguments
				if len(tokens) == 0 {
					if tokens, err = lines(p); err != nil {
						return err
					}
				}
				if len(tokens) == 0 {
					return usagef("no token given")
				}
				for i, token := range tokens {
					if err := client.RevokeToken(ctx, token, *reason); err != nil {
						return fmt.Errorf("token %d of %d: %w", i+1, len(tokens), err)
					}
				}
				sayf(p.stdout, "%d revoked\n", len(tokens))
				return nil
			}
		},
	}
}

func revokeMany(ctx context.Context, p *process, client *apiclient.Client, of apiclient.Revocation, arguments []string) error {
	if len(arguments) > 0 {
		return usagef("either tokens or a flag that names others")
	}
	answer, err := client.Revoke(ctx, of)
	if err != nil {
		return err
	}
	sayf(p.stdout, "%s revoked, %d sessions ended\n", strings.ReplaceAll(answer.Kind, "_", " "), answer.SessionsEnded)
	return nil
}

// lines reads what is not blank from the standard input.
func lines(p *process) ([]string, error) {
	const longest = 1 << 20
	scanner := bufio.NewScanner(p.stdin)
	scanner.Buffer(nil, longest)
	var found []string
	for scanner.Scan() {
		if line := strings.TrimSpace(scanner.Text()); line != "" {
			found = append(found, line)
		}
	}
	if errors.Is(scanner.Err(), bufio.ErrTooLong) {
		return nil, fmt.Errorf("line %d of the standard input is longer than %d bytes", len(found)+1, longest)
	}
	return found, scanner.Err()
}
