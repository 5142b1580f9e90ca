package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/tollgate-proxy/tollgate/internal/health"
)

// Runtime is what a process is built with and registers its parts at. Its
// registering methods are for Wire; they are not safe for concurrent use.
type Runtime struct {
	Name    string
	Version string
	// ConfigFile and Environ are what the configuration was loaded from. Parts
	// reload their share of it with [OnConfig].
	ConfigFile string
	Environ    []string

	Log        *slog.Logger
	Metrics    *prometheus.Registry
	Tracer     trace.TracerProvider
	Tracing    bool // whether spans are exported at all
	Propagator propagation.TextMapPropagator
	Health     *health.Registry

	shutdown   ShutdownConfig
	metrics    *runtimeMetrics
	servers    []server
	background []background
	cleanups   []cleanup
	onStop     []func()
	reloads    []reload
	watched    []string
	addrs      map[string]string

	failed    chan error
	running   sync.WaitGroup
	cancel    context.CancelFunc
	reloading sync.Mutex
	next      any // the configuration that is being reloaded; reloading guards it
}

type server struct {
	name  string
	serve func() error
	// shutdown stops gracefully; when its context ends it closes what is left.
	shutdown func(context.Context) error
}

type background struct {
	name string
	run  func(context.Context) error
}

type cleanup struct {
	name string
	do   func(context.Context) error
}

type reload struct {
	name    string
	prepare func(context.Context) (func(), error)
}

// Background registers work that runs from the start until its context ends.
// An error ends the process; nil does not.
func (rt *Runtime) Background(name string, run func(ctx context.Context) error) {
	rt.background = append(rt.background, background{name, run})
}

// Cleanup registers what is done at the end, last in first out, after the
// servers and the background work have stopped.
func (rt *Runtime) Cleanup(name string, do func(ctx context.Context) error) {
	rt.cleanups = append(rt.cleanups, cleanup{name, do})
}

// OnStop registers what ends long streams. It is called after the drain delay,
// just before the servers stop gracefully, which waits for every call under way:
// a stream that only its client ends would hold it until the timeout.
func (rt *Runtime) OnStop(end func()) { rt.onStop = append(rt.onStop, end) }

// OnReload registers something that can be loaded afresh while the process
// runs. prepare does all that can fail and changes nothing; commit cannot fail.
// A reload prepares everything, then commits everything, or, where one part
// fails, changes nothing and logs why.
func (rt *Runtime) OnReload(name string, prepare func(ctx context.Context) (commit func(), err error)) {
	rt.reloads = append(rt.reloads, reload{name, prepare})
}

// WatchFile reloads the process when the content of a file changes, however it
// is replaced (written, renamed over, or a Kubernetes volume's links swapped).
func (rt *Runtime) WatchFile(path string) { rt.watched = append(rt.watched, path) }

// Addr returns the address that the named server listens on.
func (rt *Runtime) Addr(name string) string { return rt.addrs[name] }

// serve registers a server.
func (rt *Runtime) serve(name string, serve func() error, shutdown func(context.Context) error) {
	rt.servers = append(rt.servers, server{name, serve, shutdown})
}

// start starts all that was registered.
func (rt *Runtime) start(ctx context.Context) {
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	rt.cancel = cancel
	if len(rt.watched) > 0 {
		w := newFileWatch(rt.watched, os.ReadFile)
		rt.Background("file watch", func(ctx context.Context) error { return w.run(ctx, time.Second, rt.Reload) })
	}
	// Always, and from now on: an unhandled SIGHUP would end the process.
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	rt.Background("reload signal", func(ctx context.Context) error { return rt.reloadOnSignal(ctx, hup) })
	for _, b := range rt.background {
		rt.running.Go(func() {
			if err := b.run(work); err != nil && work.Err() == nil {
				rt.fail(fmt.Errorf("%s: %w", b.name, err))
			}
		})
	}
	for _, s := range rt.servers {
		rt.running.Go(func() {
			if err := s.serve(); err != nil {
				rt.fail(fmt.Errorf("server %s: %w", s.name, err))
			}
		})
	}
	rt.Health.Start()
}

func (rt *Runtime) fail(err error) {
	select {
	case rt.failed <- err:
	default: // one failure is enough to stop
		rt.Log.Error("another failure", "error", err)
	}
}

// wait blocks until ctx ends or a part fails, and returns the failure.
func (rt *Runtime) wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		rt.Log.Info("stopping", "drain_delay", rt.shutdown.DrainDelay.String())
		rt.Health.Drain()
		delay := time.NewTimer(rt.shutdown.DrainDelay)
		defer delay.Stop()
		select {
		case <-delay.C:
			return nil
		case err := <-rt.failed:
			return err
		}
	case err := <-rt.failed:
		rt.Health.Drain()
		return err
	}
}

// endWithin is how long background work, and each clean-up, has to end.
const endWithin = 5 * time.Second

// stop ends the servers within the shutdown timeout, and then everything else.
func (rt *Runtime) stop() error {
	ctx, done := context.WithTimeout(context.Background(), rt.shutdown.Timeout)
	defer done()
	var errs []error
	var mu sync.Mutex
	for _, end := range rt.onStop {
		end()
	}
	var stopping sync.WaitGroup
	for _, s := range rt.servers {
		stopping.Go(func() {
			if err := s.shutdown(ctx); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, fmt.Errorf("stop server %s: %w", s.name, err))
			}
		})
	}
	stopping.Wait()
	rt.cancel()
	ended := make(chan struct{})
	go func() {
		rt.running.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(endWithin): // its own: a client's long stream may have taken all of the timeout
		errs = append(errs, errors.New("background work did not end in time"))
	}
	return errors.Join(append(errs, rt.clean()...)...)
}

// abandon undoes what Wire did before it failed.
func (rt *Runtime) abandon() {
	ctx, done := context.WithTimeout(context.Background(), rt.shutdown.Timeout)
	defer done()
	for _, s := range rt.servers {
		if err := s.shutdown(ctx); err != nil {
			rt.Log.Warn("cleaning up", "server", s.name, "error", err)
		}
	}
	for _, err := range rt.clean() {
		rt.Log.Warn("cleaning up", "error", err)
	}
}

// clean runs the clean-ups, each with a few seconds of its own.
func (rt *Runtime) clean() []error {
	var errs []error
	for i := len(rt.cleanups) - 1; i >= 0; i-- {
		c := rt.cleanups[i]
		ctx, done := context.WithTimeout(context.Background(), endWithin)
		if err := c.do(ctx); err != nil {
			// A collector that is away must not make a clean stop look failed.
			if c.name == "traces" {
				rt.Log.Warn("spans were lost at the end", "error", err)
			} else {
				errs = append(errs, fmt.Errorf("clean up %s: %w", c.name, err))
			}
		}
		done()
	}
	return errs
}

// Reload loads everything registered afresh: all of it, or nothing.
func (rt *Runtime) Reload(ctx context.Context) error {
	rt.reloading.Lock()
	defer rt.reloading.Unlock()
	commits := make([]func(), 0, len(rt.reloads))
	for _, r := range rt.reloads {
		commit, err := r.prepare(ctx)
		if err != nil {
			rt.metrics.reloads.WithLabelValues("refused").Inc()
			rt.Log.Error("reload refused, nothing changed", "part", r.name, "error", err)
			return fmt.Errorf("reload %s: %w", r.name, err)
		}
		commits = append(commits, commit)
	}
	for _, commit := range commits {
		commit()
	}
	rt.metrics.reloads.WithLabelValues("done").Inc()
	rt.metrics.reloaded.SetToCurrentTime()
	rt.Log.Info("reloaded")
	return nil
}

// reloadOnSignal reloads at each SIGHUP.
func (rt *Runtime) reloadOnSignal(ctx context.Context, hup chan os.Signal) error {
	defer signal.Stop(hup)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hup:
			_ = rt.Reload(ctx) // logged and counted there
		}
	}
}

type runtimeMetrics struct {
	panics   prometheus.Counter
	reloads  *prometheus.CounterVec
	reloaded prometheus.Gauge
}

func newRuntimeMetrics(r prometheus.Registerer) *runtimeMetrics {
	m := &runtimeMetrics{
		panics:   prometheus.NewCounter(prometheus.CounterOpts{Name: "tollgate_panics_total", Help: "Requests that ended in a panic, a fault of this program."}),
		reloads:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tollgate_reloads_total", Help: "Reloads by result: done, or refused because something was wrong."}, []string{"result"}),
		reloaded: prometheus.NewGauge(prometheus.GaugeOpts{Name: "tollgate_reload_timestamp_seconds", Help: "When the last reload was done, as Unix time; 0 where there was none."}),
	}
	m.reloads.WithLabelValues("done")
	m.reloads.WithLabelValues("refused")
	r.MustRegister(m.panics, m.reloads, m.reloaded)
	return m
}
