// Package app is the skeleton of a process: flags, configuration, signals,
// start, reload, drain and clean-up, the same for every process.
//
// A process's main calls Main, which loads the configuration and calls the
// process's Wire function. Wire builds everything explicitly and registers
// servers, background work, clean-ups and reloads with the Runtime; it neither
// blocks nor serves. Then the skeleton starts all of it, waits for SIGINT,
// SIGTERM or the first failure, and stops in this order: not ready, drain delay,
// servers stop gracefully, background work ends, clean-ups run last in first
// out, traces are flushed. The exit code is 0 after a signal, 1 after a failure,
// and 2 where the command line is wrong.
package app

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"go.opentelemetry.io/otel"

	"github.com/tollgate-proxy/tollgate/internal/config"
	"github.com/tollgate-proxy/tollgate/internal/health"
	"github.com/tollgate-proxy/tollgate/internal/telemetry"
)

// version is set at link time.
var version string

// Version returns the version of this build.
func Version() string { return telemetry.Version(version) }

// Base holds the sections that every process has. A root configuration embeds
// it with yaml:",inline".
type Base struct {
	Log        telemetry.LogConfig     `yaml:"log"`
	Tracing    telemetry.TracingConfig `yaml:"tracing"`
	Operations OperationsConfig        `yaml:"operations"`
	Shutdown   ShutdownConfig          `yaml:"shutdown"`
	Memory     MemoryConfig            `yaml:"memory"`
}

// MemoryConfig is the section "memory". Go's own variables GOGC and GOMEMLIMIT,
// where they are set, have the last word.
type MemoryConfig struct {
	GCPercent int          `yaml:"gc_percent" doc:"Garbage is collected when the heap has grown by this percentage since the last collection: more takes memory and saves processor time."`
	Limit     config.Bytes `yaml:"limit" doc:"Soft limit of memory, near which garbage is collected whatever gc_percent says; 0 is none. Set it to nine tenths of a container's limit."`
}

// Validate checks the section.
func (c MemoryConfig) Validate(r *config.Report) {
	if c.GCPercent < 10 || c.GCPercent > 10_000 {
		r.Fault("gc_percent", c.GCPercent, "10 to 10000")
	}
	if c.Limit != 0 && c.Limit < 16<<20 {
		r.Fault("limit", c.Limit, "0, or at least 16MiB")
	}
}

// apply sets the collector, where the environment has not.
func (c MemoryConfig) apply(environ []string) {
	set := func(name string) bool {
		return slices.ContainsFunc(environ, func(e string) bool { return strings.HasPrefix(e, name+"=") })
	}
	if !set("GOGC") {
		debug.SetGCPercent(c.GCPercent)
	}
	if !set("GOMEMLIMIT") && c.Limit != 0 {
		debug.SetMemoryLimit(int64(c.Limit))
	}
}

// ShutdownConfig is the section "shutdown".
type ShutdownConfig struct {
	DrainDelay time.Duration `yaml:"drain_delay" doc:"How long the process still serves after it said that it is not ready, so that load balancers notice; longer than their health check interval."`
	Timeout    time.Duration `yaml:"timeout" doc:"Longest wait for requests under way; then connections are closed."`
}

// Validate checks the section.
func (c ShutdownConfig) Validate(r *config.Report) {
	if c.DrainDelay < 0 || c.DrainDelay > 10*time.Minute {
		r.Fault("drain_delay", c.DrainDelay, "0s to 10m")
	}
	if c.Timeout <= 0 || c.Timeout > 10*time.Minute {
		r.Fault("timeout", c.Timeout, "above 0s, up to 10m")
	}
}

// DefaultBase returns the defaults, with the operations side at an address.
func DefaultBase(operationsListen string) Base {
	return Base{
		Log:        telemetry.DefaultLog(),
		Tracing:    telemetry.DefaultTracing(),
		Operations: OperationsConfig{Listen: operationsListen},
		Shutdown:   ShutdownConfig{DrainDelay: 2 * time.Second, Timeout: 15 * time.Second},
		Memory:     MemoryConfig{GCPercent: 400},
	}
}

// Process describes a process to Main. C is its root configuration.
type Process[C any] struct {
	// Name is the process's name, such as authz; its configuration is
	// config/NAME.yaml unless the command line says otherwise.
	Name string
	// Defaults returns the configuration that an empty file gives.
	Defaults func() C
	// Base finds the shared sections.
	Base func(*C) *Base
	// Check looks for faults that need more than the configuration itself, such
	// as a rule file that it names. It changes nothing. It may be nil.
	Check func(C) error
	// Wire builds the process. An error keeps it from starting.
	Wire func(ctx context.Context, cfg C, rt *Runtime) error
}

// Main runs a process and returns its exit code. environ is as os.Environ gives
// it; logs go to stderr.
func Main[C any](p Process[C], args, environ []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	return run(ctx, p, args, environ, stdout, stderr, nil)
}

// run is Main under a context whose end means stop. started, where not nil, is
// called once everything serves.
func run[C any](ctx context.Context, p Process[C], args, environ []string, stdout, stderr io.Writer, started func(*Runtime)) int {
	flags := flag.NewFlagSet(p.Name, flag.ContinueOnError)
	flags.SetOutput(stderr)
	file := flags.String("config", "config/"+p.Name+".yaml", "configuration `FILE`")
	check := flags.Bool("check-config", false, "check the configuration, say every fault on a line, and exit 0 or 1")
	reference := flags.Bool("config-reference", false, "print the reference of every configuration key in Markdown, and exit")
	showVersion := flags.Bool("version", false, "print the version, and exit")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(stderr, "%s: unexpected argument %q; see -help\n", p.Name, flags.Arg(0))
		return 2
	}
	switch {
	case *showVersion:
		fmt.Fprintf(stdout, "tollgate %s %s\n", p.Name, Version())
		return 0
	case *reference:
		if err := config.WriteReference(stdout, "Configuration of "+p.Name, p.Defaults()); err != nil {
			fmt.Fprintln(stderr, err)
			return 1
		}
		return 0
	}
	load := func() (C, error) {
		cfg, err := config.Load(*file, environ, p.Defaults())
		if err == nil && p.Check != nil {
			err = p.Check(cfg)
		}
		return cfg, err
	}
	cfg, err := load()
	if err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	if *check {
		fmt.Fprintf(stdout, "%s: the configuration is valid\n", *file)
		return 0
	}
	return serve(ctx, p, cfg, *file, environ, stderr, started)
}

// serve builds, starts and stops the process.
func serve[C any](ctx context.Context, p Process[C], cfg C, file string, environ []string, stderr io.Writer, started func(*Runtime)) int {
	base := p.Base(&cfg)
	base.Memory.apply(environ)
	log := telemetry.NewLogger(base.Log, stderr, p.Name)
	metrics := telemetry.NewMetrics(p.Name, Version())
	tracer, flush, err := telemetry.NewTracing(ctx, base.Tracing, p.Name, Version())
	if err != nil {
		log.Error("cannot start", "error", err)
		return 1
	}
	// What libraries say to the standard logger is about single broken connections.
	slog.SetLogLoggerLevel(slog.LevelDebug)
	slog.SetDefault(log)
	otel.SetErrorHandler(newExportErrors(log, time.Now))
	rt := &Runtime{
		Name: p.Name, Version: Version(), ConfigFile: file, Environ: environ,
		Log: log, Metrics: metrics, Tracer: tracer, Tracing: base.Tracing.Enabled(), Propagator: telemetry.Propagator(),
		Health:   health.New(log, metrics),
		shutdown: base.Shutdown,
		failed:   make(chan error, 1),
		addrs:    map[string]string{},
	}
	rt.metrics = newRuntimeMetrics(metrics)
	rt.Cleanup("traces", flush)
	rt.OnReload("configuration", reloadConfig(p, cfg, rt)) // first: others take their share of it
	err = p.Wire(ctx, cfg, rt)
	if err == nil {
		err = rt.serveOperations(base.Operations)
	}
	if err != nil {
		log.Error("cannot start", "error", err)
		rt.abandon()
		return 1
	}
	rt.start(ctx)
	log.Info("started", "version", rt.Version, "config", file)
	if started != nil {
		started(rt)
	}
	err = rt.wait(ctx)
	if stopErr := rt.stop(); err == nil {
		err = stopErr
	}
	if err != nil {
		log.Error("stopped", "error", err)
		return 1
	}
	log.Info("stopped")
	return 0
}

// OnConfig is [Runtime.OnReload] for what the configuration file itself says, as
// the process's C. The file is loaded once for each reload; where it is faulty,
// prepare is not called.
func OnConfig[C any](rt *Runtime, name string, prepare func(next C) (commit func(), err error)) {
	rt.OnReload(name, func(context.Context) (func(), error) {
		next, ok := rt.next.(C)
		if !ok {
			return nil, fmt.Errorf("the configuration is a %T", rt.next)
		}
		return prepare(next)
	})
}

// reloadConfig loads the configuration for all parts of a reload. It says in the
// log, once for each change, which keys now differ from what the process runs
// with and are read at its start only.
func reloadConfig[C any](p Process[C], running C, rt *Runtime) func(context.Context) (func(), error) {
	var told []string
	return func(ctx context.Context) (func(), error) {
		next, err := config.Load(rt.ConfigFile, rt.Environ, p.Defaults())
		if err != nil {
			return nil, err
		}
		rt.next = next
		return func() {
			keys := config.NeedRestart(running, next)
			if len(keys) > 0 && !slices.Equal(keys, told) {
				rt.Log.WarnContext(ctx, "some changes take effect with a restart only", "keys", keys)
			}
			told = keys
		}, nil
	}
}
