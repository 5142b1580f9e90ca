package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/tollgate-proxy/tollgate/internal/envoyconf"
	featureflag "github.com/tollgate-proxy/tollgate/internal/flag"
	"github.com/tollgate-proxy/tollgate/internal/ratelimit"
)

// processes are the kinds whose file their own binary checks.
func processes() []string { return []string{"authz", "ratelimit", "pyproxy"} }

func checkConfigCommand() command {
	return command{
		name:      "check-config",
		arguments: "KIND FILE...",
		summary:   "check configuration files: exit code 0, or 1 with every fault on a line",
		details: "KIND is a process (" + strings.Join(processes(), ", ") + "; its own binary, which lies beside this one, checks the\n" +
			"file, environment included), limits (rate limit rules), flags (feature flags), or envoy (Envoy's own\n" +
			"configuration; `envoy --mode validate -c FILE` says what only Envoy knows).",
		setup: func(flags *flag.FlagSet) runFunc {
			descriptor := flags.String("descriptor", "", "with limits: say which rule `KEY=VALUE,...` meets, such as tier=free,user=ada,endpoint=ml")
			return func(ctx context.Context, p *process, arguments []string) error {
				if err := checkConfig(ctx, p, arguments); err != nil || *descriptor == "" {
					return err
				}
				if arguments[0] != "limits" {
					return usagef("-descriptor is for limits")
				}
				return explainLimits(p, *descriptor, arguments[1:])
			}
		},
	}
}

func checkConfig(ctx context.Context, p *process, arguments []string) error {
	if len(arguments) < 2 {
		return usagef("a kind and at least one file are needed")
	}
	kind, files := arguments[0], arguments[1:]
	check, err := checker(kind, p)
	if err != nil {
		return err
	}
	bad := false
	for _, file := range files {
		if err := check(ctx, file); err != nil {
			bad = true
			if code := exitError(0); !errors.As(err, &code) {
				sayf(p.stderr, "%s\n", strings.TrimRight(err.Error(), "\n"))
			}
		} else if !slices.Contains(processes(), kind) { // whose binaries say so themselves
			sayf(p.stdout, "%s: the configuration is valid\n", file)
		}
	}
	if bad {
		return exitError(exitFailure)
	}
	return nil
}

// checker returns the check of a kind. An exitError has been explained already.
func checker(kind string, p *process) (func(ctx context.Context, file string) error, error) {
	switch {
	case slices.Contains(processes(), kind):
		binary, err := sibling(kind)
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context, file string) error { return execCheck(ctx, p, binary, file) }, nil
	case kind == "limits":
		return func(_ context.Context, file string) error { _, err := ratelimit.LoadRules(file); return err }, nil
	case kind == "flags":
		return func(_ context.Context, file string) error { _, err := featureflag.LoadFile(file); return err }, nil
	case kind == "envoy":
		return func(_ context.Context, file string) error { _, err := envoyconf.Load(file); return err }, nil
	}
	return nil, usagef("unknown kind %q: it is one of %s, limits, flags, envoy", kind, strings.Join(processes(), ", "))
}

// sibling is the path of another of our binaries, in this one's folder.
func sibling(name string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find the folder of this program: %w", err)
	}
	path := filepath.Join(filepath.Dir(self), name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("the binary that checks this kind is not beside this one: %w", err)
	}
	return path, nil
}

// execCheck has a process check its file. What configures this command alone is
// not handed on: the process would refuse a variable that it does not know.
func execCheck(ctx context.Context, p *process, binary, file string) error {
	cmd := exec.CommandContext(ctx, binary, "-config", file, "-check-config")
	cmd.Stdout, cmd.Stderr = p.stdout, p.stderr
	cmd.Env = slices.DeleteFunc(slices.Clone(p.environ), func(variable string) bool {
		return strings.HasPrefix(variable, "TOLLGATE_API_") || strings.HasPrefix(variable, envoyconf.BinaryVariable+"=")
	})
	err := cmd.Run()
	if exit := new(exec.ExitError); errors.As(err, &exit) && exit.ExitCode() == exitFailure {
		return exitError(exitFailure)
	}
	if err != nil {
		return fmt.Errorf("%s -check-config: %w", filepath.Base(binary), err)
	}
	return nil
}
