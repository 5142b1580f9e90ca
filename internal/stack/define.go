package stack

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/tollgate-proxy/tollgate/internal/supervisor"
)

// define lists the parts in the order of their start.
func (s *Stack) define() ([]*component, error) {
	redis := s.redis()
	configs, err := s.configs()
	if err != nil {
		return nil, err
	}
	all := append([]*component{}, redis...)
	all = append(all, &component{
		name:      Echo,
		endpoints: []Endpoint{EchoBackend},
		start:     func(ctx context.Context) (runner, error) { return startEcho(ctx, s.ports.Address(EchoBackend)) },
		ready:     httpProbe(s.client, s.URL(EchoBackend)+"/", success),
	})
	for _, name := range Services() {
		all = append(all, s.service(name))
	}
	var afterRedis []string
	if len(redis) > 0 {
		afterRedis = []string{Redis}
	}
	var deciders []string
	for _, p := range []struct {
		name, binary string
		operations   Endpoint
		public       []Endpoint
	}{
		{Authz, "authz", AuthzOperations, []Endpoint{AuthzGRPC, AuthzHTTP}},
		{Ratelimit, "ratelimit", RatelimitOps, []Endpoint{RatelimitGRPC, RatelimitHTTP}},
		{Pyproxy1, "pyproxy", Pyproxy1Ops, []Endpoint{Pyproxy1HTTP}},
		{Pyproxy2, "pyproxy", Pyproxy2Ops, []Endpoint{Pyproxy2HTTP}},
	} {
		settings, err := s.settings(p.name)
		if err != nil {
			return nil, err
		}
		c := s.process(p.name, p.binary, configs[p.name], settings, p.operations, p.public)
		c.after = afterRedis
		deciders = append(deciders, c.name)
		all = append(all, c)
	}
	envoy := s.envoy(configs[Envoy])
	envoy.after = slices.Concat(deciders, []string{Echo})
	return append(all, envoy), nil
}

// redis is empty where a Redis outside the stack is used.
func (s *Stack) redis() []*component {
	if s.options.RedisURL != "" {
		return nil
	}
	address := s.ports.Address(RedisServer)
	c := &component{name: Redis, endpoints: []Endpoint{RedisServer}, ready: redisProbe(address)}
	if s.options.Redis == RedisEmbedded {
		c.start = func(context.Context) (runner, error) { return startEmbeddedRedis(address) }
		return []*component{c}
	}
	host, port, _ := strings.Cut(address, ":")
	return []*component{s.child(c, supervisor.Spec{
		Path: "redis-server",
		Args: []string{"--bind", host, "--port", port, "--save", "", "--appendonly", "no", "--dir", s.options.Work},
		Env:  s.environment(Redis),
	})}
}

// service is one of the Python services.
func (s *Stack) service(name string) *component {
	endpoint := Endpoint(name)
	host, port, _ := strings.Cut(s.ports.Address(endpoint), ":")
	args := []string{"-m", "tollgate_examples", name, "--host", host, "--port", port}
	if s.options.Faults {
		args = append(args, "--faults")
	}
	folder := filepath.Join(s.options.Root, "examples", "python-services")
	return s.child(
		&component{name: name, endpoints: []Endpoint{endpoint}, ready: httpProbe(s.client, s.URL(endpoint)+"/health", success)},
		supervisor.Spec{
			Path: s.options.Python,
			Args: args,
			Dir:  folder,
			Env:  s.environment(name, "PYTHONPATH="+filepath.Join(folder, "src"), "PYTHONUNBUFFERED=1"),
		})
}

// process is one of our own binaries.
func (s *Stack) process(name, binary, config string, settings []string, operations Endpoint, public []Endpoint) *component {
	return s.child(
		&component{
			name:      name,
			endpoints: append(public, operations),
			ready:     httpProbe(s.client, s.URL(operations)+"/readyz", success),
		},
		supervisor.Spec{
			Path: s.binary(binary),
			Args: []string{"-config", config},
			Env:  s.environment(name, settings...),
		})
}

func (s *Stack) envoy(config string) *component {
	return s.child(
		&component{
			name:      Envoy,
			endpoints: []Endpoint{EnvoyListener, EnvoyAdmin},
			ready: allProbes(
				httpProbe(s.client, s.URL(EnvoyAdmin)+"/ready", success),
				httpProbe(s.client, s.URL(EnvoyListener)+"/", answered),
			),
		},
		supervisor.Spec{
			Path: s.options.EnvoyPath,
			Args: []string{
				"-c", config,
				"--concurrency", "2",
				"--disable-hot-restart", // two Envoys may run on one machine
				"--log-level", "warning",
			},
			Env: s.environment(Envoy),
		})
}

// child completes a component that is a child process.
func (s *Stack) child(c *component, spec supervisor.Spec) *component {
	spec.Name = c.name
	spec.Log = filepath.Join(s.options.Work, "logs", c.name+".log")
	if spec.Dir == "" {
		spec.Dir = s.options.Root
	}
	c.log = spec.Log
	c.start = func(context.Context) (runner, error) { return supervisor.Start(spec) }
	return c
}

// environment is what a part gets: this process's environment, without what
// configures Tollgate except for logs and traces, then the settings, then what
// Options.Env has for the part.
func (s *Stack) environment(part string, settings ...string) []string {
	env := slices.DeleteFunc(slices.Clone(s.options.Environ), func(variable string) bool {
		return strings.HasPrefix(variable, "TOLLGATE_") && (!ours(part) ||
			!strings.HasPrefix(variable, "TOLLGATE_LOG_") && !strings.HasPrefix(variable, "TOLLGATE_TRACING_"))
	})
	env = append(env, settings...)
	if kind, _, replica := strings.Cut(part, "-"); replica {
		env = append(env, s.options.Env[kind]...)
	}
	return append(env, s.options.Env[part]...)
}

func ours(part string) bool {
	return slices.Contains([]string{Authz, Ratelimit, Pyproxy1, Pyproxy2}, part)
}

// prepare makes the work folder afresh: old logs and derived files go.
func (s *Stack) prepare() error {
	for _, folder := range []string{"logs", "config"} {
		if err := os.RemoveAll(filepath.Join(s.options.Work, folder)); err != nil {
			return fmt.Errorf("work folder: %w", err)
		}
		if err := os.MkdirAll(filepath.Join(s.options.Work, folder), 0o750); err != nil {
			return fmt.Errorf("work folder: %w", err)
		}
	}
	s.operator = newOperator(s.ports)
	return s.operator.save(s.options.Work)
}

// settings are what a process is told through its environment, beside its file.
func (s *Stack) settings(part string) ([]string, error) {
	settings := []string{
		"TOLLGATE_REDIS_URL=" + s.RedisURL(),
		"TOLLGATE_SHUTDOWN_DRAIN_DELAY=0s", // Envoy stops first
	}
	switch part {
	case Authz:
		settings = append(settings, "TOLLGATE_MODE=development", "TOLLGATE_DEVELOPMENT_KEY_FILE="+s.options.KeyFile)
	case Ratelimit: // its management API is off unless it is told to listen
		settings = append(settings, "TOLLGATE_MANAGEMENT_LISTEN="+s.ports.Address(RatelimitHTTP))
	case Pyproxy2:
		settings = append(settings,
			"TOLLGATE_HTTP_LISTEN="+s.ports.Address(Pyproxy2HTTP),
			"TOLLGATE_OPERATIONS_LISTEN="+s.ports.Address(Pyproxy2Ops))
	}
	operator, err := s.operator.setting()
	return append(settings, operator), err
}
