package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/tollgate-proxy/tollgate/internal/demo"
	"github.com/tollgate-proxy/tollgate/internal/envoyconf"
	"github.com/tollgate-proxy/tollgate/internal/stack"
)

// redisVariable names a Redis to use instead of starting one.
const redisVariable = "TOLLGATE_REDIS_URL"

func demoCommand() command {
	return command{
		name:    "demo",
		summary: "start the whole system on the loopback, take the tour, and stay up until Ctrl-C",
		details: "`make demo` installs and builds what it needs first. With " + redisVariable + " set, that Redis is used\n" +
			"and none is started. " + envoyconf.BinaryVariable + " names another Envoy than the one that the Makefile installs.",
		setup: func(flags *flag.FlagSet) runFunc {
			tour := flags.String("tour", string(demo.TourThenStay), "`yes`, only (take the tour and stop; the exit code tells) or none")
			redis := flags.String("redis", string(stack.RedisEmbedded), "the Redis to start: `embedded` or server (a real redis-server)")
			root := flags.String("root", ".", "the `folder` that holds config/, envoy/ and examples/")
			free := flags.Bool("free-ports", false, "use free ports instead of the documented ones")
			return func(ctx context.Context, p *process, arguments []string) error {
				if len(arguments) > 0 {
					return usagef("unexpected argument %q", arguments[0])
				}
				options := demo.Options{
					Stack: stack.Options{
						Root: *root, Redis: stack.RedisKind(*redis), RedisURL: p.getenv(redisVariable),
						EnvoyPath: p.getenv(envoyconf.BinaryVariable), Environ: p.environ, Faults: true,
					},
					Tour: demo.TourMode(*tour), Page: demo.PageAddress, Out: p.stdout, Colour: p.colour,
				}
				switch options.Tour {
				case demo.TourThenStay, demo.TourOnly, demo.TourNone:
				default:
					return usagef("-tour %q: it is yes, only or none", *tour)
				}
				switch options.Stack.Redis {
				case stack.RedisEmbedded, stack.RedisProcess:
				default:
					return usagef("-redis %q: it is embedded or server", *redis)
				}
				if _, err := os.Stat(filepath.Join(*root, "envoy", "envoy.yaml")); errors.Is(err, os.ErrNotExist) {
					return fmt.Errorf("%s holds no envoy/envoy.yaml: run this in the project's folder, or name it with -root", cmp.Or(*root, "."))
				}
				self, err := os.Executable()
				if err != nil {
					return fmt.Errorf("find the folder of this program: %w", err)
				}
				options.Stack.Bin = filepath.Dir(self)
				if *free {
					options.Page = "127.0.0.1:0"
					if options.Stack.Ports, err = stack.FreePorts(); err != nil {
						return err
					}
				}
				return demo.Run(ctx, options)
			}
		},
	}
}
