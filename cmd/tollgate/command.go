package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// command is a leaf, which runs, or a group of commands.
type command struct {
	name string
	// arguments is what follows the flags, for the usage line.
	arguments string
	// summary is one line without a full stop; details are sentences.
	summary, details string
	commands         []command
	// setup registers the flags of a leaf and returns what runs it.
	setup func(flags *flag.FlagSet) runFunc
}

type runFunc func(ctx context.Context, p *process, arguments []string) error

// usageError is a mistake in how the command was called.
type usageError struct{ text string }

func (e usageError) Error() string { return e.text }

func usagef(format string, arguments ...any) error {
	return usageError{fmt.Sprintf(format, arguments...)}
}

// exitError ends the command with a code when everything has been said already.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// Exit codes.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

// run carries out a command line and returns the exit code.
func run(ctx context.Context, p *process, arguments []string) int {
	path, err := dispatch(ctx, p, root(), nil, arguments)
	code, usage := exitError(0), usageError{}
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &code):
		return int(code)
	case errors.As(err, &usage):
		sayf(p.stderr, "%s: %v\nrun `%s -help` for how it is used\n", path, err, path)
		return exitUsage
	default:
		sayf(p.stderr, "%s: %v\n", path, err)
		return exitFailure
	}
}

// dispatch finds the command that the arguments name and runs it. It returns the
// words that name it.
func dispatch(ctx context.Context, p *process, c command, parents, arguments []string) (string, error) {
	words := slices.Concat(parents, []string{c.name})
	path := strings.Join(words, " ")
	if c.setup != nil {
		return path, c.runLeaf(ctx, p, path, arguments)
	}
	if len(arguments) == 0 {
		c.help(p.stderr, path)
		return path, exitError(exitUsage)
	}
	name := arguments[0]
	switch name {
	case "-h", "-help", "--help", "help":
		// "help token mint" is "token mint -help".
		if name == "help" && len(arguments) > 1 {
			return dispatch(ctx, p, c, parents, append(arguments[1:], "-help"))
		}
		c.help(p.stdout, path)
		return path, nil
	case "-version", "--version":
		name = "version"
	}
	for _, sub := range c.commands {
		if sub.name == name {
			return dispatch(ctx, p, sub, words, arguments[1:])
		}
	}
	return path, usagef("unknown command %q: it is one of %s", arguments[0], strings.Join(c.names(), ", "))
}

func (c command) runLeaf(ctx context.Context, p *process, path string, arguments []string) error {
	flags := flag.NewFlagSet(path, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	run := c.setup(flags)
	// Flags and arguments may come in any order; after "--" all are arguments.
	var rest []string
	for {
		err := flags.Parse(arguments)
		if errors.Is(err, flag.ErrHelp) {
			c.leafHelp(p.stdout, path, flags)
			return nil
		}
		if err != nil {
			return usageError{err.Error()}
		}
		taken := len(arguments) - flags.NArg()
		if flags.NArg() == 0 || taken > 0 && arguments[taken-1] == "--" {
			return run(ctx, p, append(rest, flags.Args()...))
		}
		rest, arguments = append(rest, flags.Arg(0)), flags.Args()[1:]
	}
}

func (c command) names() []string {
	var names []string
	for _, sub := range c.commands {
		names = append(names, sub.name)
	}
	return names
}

// help lists a group's commands.
func (c command) help(w io.Writer, path string) {
	sayf(w, "usage: %s COMMAND [flags] [arguments]\n\n", path)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, sub := range c.commands {
		sayf(table, "  %s\t%s\n", sub.name, sub.summary)
	}
	_ = table.Flush()
	sayf(w, "\n`%s help COMMAND` tells more.\n", path)
}

func (c command) leafHelp(w io.Writer, path string, flags *flag.FlagSet) {
	usage := path
	hasFlags := false
	flags.VisitAll(func(*flag.Flag) { hasFlags = true })
	if hasFlags {
		usage += " [flags]"
	}
	if c.arguments != "" {
		usage += " " + c.arguments
	}
	sayf(w, "usage: %s\n\n%s\n", usage, strings.ToUpper(c.summary[:1])+c.summary[1:]+".")
	if c.details != "" {
		sayf(w, "%s\n", c.details)
	}
	if hasFlags {
		sayf(w, "\nflags:\n")
		flags.SetOutput(w)
		flags.PrintDefaults()
	}
}

// sayf writes for people. That nobody reads is no failure of the command.
func sayf(w io.Writer, format string, arguments ...any) {
	_, _ = fmt.Fprintf(w, format, arguments...)
}
