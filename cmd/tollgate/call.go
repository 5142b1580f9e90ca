package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/tollgate-proxy/tollgate/internal/apiclient"
)

// callCommand is a leaf that calls authz's API. Each word of arguments is one
// that must be there.
type callCommand struct {
	name, arguments, summary string
	// details come before those that all these commands have.
	details string
	// needs is what to say where the number of arguments is another.
	needs string
	setup func(flags *flag.FlagSet) callFunc
}

type callFunc func(ctx context.Context, p *process, client *apiclient.Client, arguments []string) error

// always is the setup of a command without flags of its own.
func always(call callFunc) func(*flag.FlagSet) callFunc {
	return func(*flag.FlagSet) callFunc { return call }
}

func (c callCommand) command() command {
	return command{
		name: c.name, arguments: c.arguments, summary: c.summary, details: strings.TrimPrefix(c.details+"\n"+apiDetails, "\n"),
		setup: func(flags *flag.FlagSet) runFunc {
			api, call := apiFlags(flags), c.setup(flags)
			want := len(strings.Fields(c.arguments))
			return func(ctx context.Context, p *process, arguments []string) error {
				switch {
				case want == 0 && len(arguments) > 0:
					return usagef("unexpected argument %q", arguments[0])
				case want != len(arguments):
					return usagef("%s needed", c.needs)
				}
				client, err := api.client(p)
				if err != nil {
					return err
				}
				return call(ctx, p, client, arguments)
			}
		},
	}
}

// termsFlags registers what goes with a change of a flag or an experiment;
// version is what the API calls its version.
func termsFlags(flags *flag.FlagSet, of, version string) *apiclient.Terms {
	t := &apiclient.Terms{}
	flags.StringVar(&t.Reason, "reason", "", "why, for the "+of+"'s history")
	flags.Func(version, "change the "+of+" only if it is at this `"+version+"`", func(text string) error {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n < 0 {
			return errors.New("a whole number from 0 is needed")
		}
		t.At = &n
		return nil
	})
	return t
}

// sayTable writes one row for each of all beneath a heading. Cells are shown as
// they print, times in UTC; what is empty is a hyphen.
func sayTable[T any](w io.Writer, heading string, all []T, row func(*T) []any) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	sayf(table, "%s\n", heading)
	for i := range all {
		var cells []string
		for _, value := range row(&all[i]) {
			cells = append(cells, cell(value))
		}
		sayf(table, "%s\n", strings.Join(cells, "\t"))
	}
	return table.Flush()
}

// cell shows a value without what would break the table or steer a terminal.
func cell(value any) string {
	if at, ok := value.(time.Time); ok {
		return at.UTC().Format(time.DateTime)
	}
	return dash(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.TrimSpace(fmt.Sprint(value))))
}

func dash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// sayJSON writes a value as indented JSON.
func sayJSON(w io.Writer, value any) error {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	sayf(w, "%s\n", text)
	return nil
}
