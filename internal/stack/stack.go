// Package stack runs the whole system on the loopback of one machine: the real
// Envoy, authz, ratelimit, two pyproxy, the five Python services, an echo
// backend and Redis, as child processes with the configuration that is shipped.
// The demo and the end-to-end tests use it; both can kill and restart any part.
package stack

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/envoyconf"
	"github.com/tollgate-proxy/tollgate/internal/supervisor"
)

// The names of the parts.
const (
	Envoy     = "envoy"
	Authz     = "authz"
	Ratelimit = "ratelimit"
	Pyproxy1  = "pyproxy-1"
	Pyproxy2  = "pyproxy-2"
	Redis     = "redis"
	Echo      = "echo"
)

// Services returns the names of the Python services' parts.
func Services() []string { return []string{"ml", "nlp", "fraud", "data", "blockchain"} }

// RedisKind chooses the Redis that the stack starts.
type RedisKind string

const (
	// RedisEmbedded is a Redis-compatible server within this process.
	RedisEmbedded RedisKind = "embedded"
	// RedisProcess is a real redis-server, from PATH.
	RedisProcess RedisKind = "server"
)

// Options say what to start. Root and Environ are required; the rest has
// defaults.
type Options struct {
	// Root is the folder that holds config/, envoy/ and examples/.
	Root string
	// Bin is the folder of our binaries; default Root/bin.
	Bin string
	// EnvoyPath is the Envoy program; default Root/.venv/envoy/bin/envoy.
	EnvoyPath string
	// Python is the interpreter that has the services' requirements; default
	// Root/.venv/services/bin/python.
	Python string
	// Work is where logs, derived configuration and the operator's credential go;
	// default Root/var/demo.
	Work string
	// KeyFile is the development signing key, made where it is missing; default
	// Work/signing-key.pem.
	KeyFile string
	// Ports are the ports to use; the contract's where one is not named.
	Ports Ports
	// Redis is the kind of Redis to start; default RedisEmbedded. With RedisURL
	// set none is started and that one is used.
	Redis    RedisKind
	RedisURL string
	// Faults switches the Python services' fault switch on.
	Faults bool
	// Env holds more environment ("KEY=VALUE") for a part, by its name ("pyproxy"
	// for both); it wins over what the stack sets.
	Env map[string][]string
	// Environ is this process's environment, as os.Environ gives it, which the
	// parts inherit; required. What begins with TOLLGATE_ is not handed on, except
	// for logging and tracing.
	Environ []string
	// EditConfig, when set, may change the YAML of a process ("authz",
	// "ratelimit", "pyproxy-1", "pyproxy-2") before the start; EditEnvoy may change
	// the addresses in Envoy's.
	EditConfig func(part string, yaml []byte) []byte
	EditEnvoy  func(*envoyconf.Options)
	// ReadyWithin bounds the wait for each part; default 60 s. Grace bounds how
	// long a part may take to stop before it is killed; default 10 s.
	ReadyWithin, Grace time.Duration
	// Progress, when set, hears of each part. OnExit, when set, hears of a part that ended by
	// itself. Both are called from several goroutines, one call at a time.
	Progress func(Progress)
	OnExit   func(*ExitError)
}

// The steps of a Progress.
const (
	StepStart   = "start"
	StepReady   = "ready"
	StepStopped = "stopped"
)

// Progress is one step of a start or a stop.
type Progress struct {
	Part, Step string
	// Took is zero for StepStart.
	Took time.Duration
}

// Status is what is known of a part.
type Status struct {
	Name string
	// Endpoints are what it listens on.
	Endpoints []Endpoint
	// PID is 0 for a part within this process.
	PID     int
	Running bool
	// Log is the path of its log, empty for a part within this process.
	Log string
}

// Stack is a running system. Its methods may be called from several goroutines.
type Stack struct {
	options    Options
	ports      Ports
	operator   Operator
	components []*component
	client     *http.Client
	report     sync.Mutex
}

// Start starts everything and returns when all of it is ready. When it cannot,
// or ctx ends, what had been started is stopped again. It first makes sure that
// the tools are there and that no port is in use: the error names every one that
// is.
func Start(ctx context.Context, o Options) (*Stack, error) {
	o, err := o.complete()
	if err != nil {
		return nil, err
	}
	s := &Stack{
		options: o,
		ports:   o.Ports,
		client:  &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
	}
	if err := s.check(); err != nil {
		return nil, err
	}
	if err := s.prepare(); err != nil {
		return nil, err
	}
	if s.components, err = s.define(); err != nil {
		return nil, err
	}
	if err := s.startAll(ctx); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

func (o Options) complete() (Options, error) {
	if o.Root == "" {
		return o, errors.New("the stack needs the repository's root folder")
	}
	root, err := filepath.Abs(o.Root)
	if err != nil {
		return o, fmt.Errorf("root folder %q: %w", o.Root, err)
	}
	o.Root = root
	o.Bin = cmp.Or(o.Bin, filepath.Join(root, "bin"))
	o.EnvoyPath = cmp.Or(o.EnvoyPath, filepath.Join(root, ".venv", "envoy", "bin", "envoy"))
	o.Python = cmp.Or(o.Python, filepath.Join(root, ".venv", "services", "bin", "python"))
	o.Work = cmp.Or(o.Work, filepath.Join(root, "var", "demo"))
	o.KeyFile = cmp.Or(o.KeyFile, filepath.Join(o.Work, "signing-key.pem"))
	for _, path := range []*string{&o.Bin, &o.EnvoyPath, &o.Python, &o.Work, &o.KeyFile} {
		if *path, err = filepath.Abs(*path); err != nil {
			return o, err
		}
	}
	o.Redis = cmp.Or(o.Redis, RedisEmbedded)
	if o.Redis != RedisEmbedded && o.Redis != RedisProcess {
		return o, fmt.Errorf("redis %q: must be %s or %s", o.Redis, RedisEmbedded, RedisProcess)
	}
	if o.Environ == nil {
		return o, errors.New("the stack needs the environment that its parts inherit")
	}
	o.ReadyWithin = cmp.Or(o.ReadyWithin, time.Minute)
	o.Grace = cmp.Or(o.Grace, 10*time.Second)
	o.Ports, err = o.Ports.complete()
	return o, err
}

// startAll starts every component as soon as those it comes after are ready.
func (s *Stack) startAll(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ready := map[string]chan struct{}{}
	for _, c := range s.components {
		ready[c.name] = make(chan struct{})
	}
	failures := make(chan error, len(s.components))
	for _, c := range s.components {
		go func() {
			for _, earlier := range c.after {
				select {
				case <-ready[earlier]:
				case <-ctx.Done():
					failures <- nil // whoever ended ctx says why
					return
				}
			}
			err := s.launch(ctx, c)
			if err != nil {
				// What fails after the first failure fails because of it.
				if ctx.Err() != nil {
					err = nil
				}
				cancel(err)
			} else {
				close(ready[c.name])
			}
			failures <- err
		}()
	}
	var err error
	for range s.components {
		err = errors.Join(err, <-failures)
	}
	if err == nil && ctx.Err() != nil {
		err = fmt.Errorf("start interrupted: %w", context.Cause(ctx))
	}
	return err
}

func (s *Stack) launch(ctx context.Context, c *component) error {
	ctx, cancel := context.WithTimeout(ctx, s.options.ReadyWithin)
	defer cancel()
	begin := time.Now()
	s.progress(Progress{Part: c.name, Step: StepStart})
	if err := c.launch(ctx, s.exited); err != nil {
		return err
	}
	s.progress(Progress{Part: c.name, Step: StepReady, Took: time.Since(begin)})
	return nil
}

func (s *Stack) progress(p Progress) {
	if s.options.Progress == nil {
		return
	}
	s.report.Lock()
	defer s.report.Unlock()
	s.options.Progress(p)
}

func (s *Stack) exited(e *ExitError) {
	if s.options.OnExit == nil {
		return
	}
	s.report.Lock()
	defer s.report.Unlock()
	s.options.OnExit(e)
}

// Stop stops every part, the last started first, and returns what went wrong. It
// may be called again.
func (s *Stack) Stop() error {
	var errs []error
	for _, c := range slices.Backward(s.components) {
		if _, running := c.state(); !running {
			continue
		}
		begin := time.Now()
		if err := c.end(func(r runner) error { return r.Stop(s.options.Grace) }); err != nil {
			errs = append(errs, err)
			continue
		}
		s.progress(Progress{Part: c.name, Step: StepStopped, Took: time.Since(begin)})
	}
	s.client.CloseIdleConnections()
	return errors.Join(errs...)
}

// StopPart stops one part in good order.
func (s *Stack) StopPart(name string) error {
	c, err := s.component(name)
	if err != nil {
		return err
	}
	return c.end(func(r runner) error { return r.Stop(s.options.Grace) })
}

// KillPart ends one part at once, as a crash would.
func (s *Stack) KillPart(name string) error {
	c, err := s.component(name)
	if err != nil {
		return err
	}
	return c.end(runner.Kill)
}

// StartPart starts a part that was stopped or killed, or that ended by itself,
// and returns when it is ready.
func (s *Stack) StartPart(ctx context.Context, name string) error {
	c, err := s.component(name)
	if err != nil {
		return err
	}
	return s.launch(ctx, c)
}

// Status returns the parts in the order of their start.
func (s *Stack) Status() []Status {
	var all []Status
	for _, c := range s.components {
		pid, running := c.state()
		all = append(all, Status{Name: c.name, Endpoints: c.endpoints, PID: pid, Running: running, Log: c.log})
	}
	return all
}

// Tail returns the last lines, at most n, that a part's current or last run wrote;
// none for a part within this process.
func (s *Stack) Tail(name string, n int) ([]string, error) {
	c, err := s.component(name)
	if err != nil {
		return nil, err
	}
	return c.tail(n), nil
}

func (s *Stack) component(name string) (*component, error) {
	for _, c := range s.components {
		if c.name == name {
			return c, nil
		}
	}
	return nil, fmt.Errorf("no part of the stack is named %q", name)
}

// Ports returns the ports in use.
func (s *Stack) Ports() Ports { return maps.Clone(s.ports) }

// URL returns the base URL of an HTTP endpoint, without a slash at its end.
func (s *Stack) URL(e Endpoint) string { return s.ports.URL(e) }

// Operator returns the credential of the management API.
func (s *Stack) Operator() Operator { return s.operator }

// KeyFile returns the path of the development signing key.
func (s *Stack) KeyFile() string { return s.options.KeyFile }

// LogFolder returns the folder of the parts' logs.
func (s *Stack) LogFolder() string { return filepath.Join(s.options.Work, "logs") }

// RedisURL returns the Redis that all processes use.
func (s *Stack) RedisURL() string {
	return cmp.Or(s.options.RedisURL, "redis://"+s.ports.Address(RedisServer)+"/0")
}

// check makes sure that the tools are there and the ports free.
func (s *Stack) check() error {
	var faults []error
	for _, tool := range s.tools() {
		if err := tool.check(); err != nil {
			faults = append(faults, err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the name of this program: %w", err)
	}
	for _, e := range slices.Sorted(maps.Keys(s.ports)) {
		if e == RedisServer && s.options.RedisURL != "" {
			continue
		}
		err := supervisor.CheckPort(string(e), s.ports.Address(e))
		if err == nil {
			continue
		}
		// One sentence instead of one for each port.
		if use := new(supervisor.PortInUseError); errors.As(err, &use) && use.PID != 0 && use.PID != os.Getpid() && use.Command == filepath.Base(self) {
			return fmt.Errorf("another %s (pid %d) runs on these ports already: stop it first", use.Command, use.PID)
		}
		faults = append(faults, err)
	}
	return errors.Join(faults...)
}
