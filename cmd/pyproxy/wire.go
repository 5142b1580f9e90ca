package main

import (
	"context"
	"net"
	"net/http"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/app"
	"github.com/tollgate-proxy/tollgate/internal/credential"
	"github.com/tollgate-proxy/tollgate/internal/httpcache"
	"github.com/tollgate-proxy/tollgate/internal/idleconn"
	"github.com/tollgate-proxy/tollgate/internal/pyproxy"
	"github.com/tollgate-proxy/tollgate/internal/redisconn"
	"github.com/tollgate-proxy/tollgate/internal/replica"
)

// wire builds the process.
func wire(_ context.Context, c Config, rt *app.Runtime) error {
	options := redisconn.Options{Log: rt.Log, Metrics: rt.Metrics, Health: rt.Health}
	if rt.Tracing {
		options.Tracer = rt.Tracer
	}
	conn, err := redisconn.Open(c.Redis, options)
	if err != nil {
		return err
	}
	rt.Cleanup("redis", func(context.Context) error { return conn.Close() })
	rt.Background("redis watch", conn.Monitor)

	auth, err := credential.New(c.Management.Clients)
	if err != nil {
		return err
	}
	hints := replica.NewHints(conn, rt.Log)
	o := pyproxy.Options{
		Log: rt.Log, Metrics: rt.Metrics, Tracer: rt.Tracer, Propagator: rt.Propagator,
		Now: time.Now, OnOpen: hints.Opened, Panicked: rt.Panicked,
	}
	var store httpcache.Store
	if c.Cache.Redis {
		store = replica.NewCache(conn)
	}
	o.Cache = pyproxy.NewCache(c.Cache, store, o)
	proxy := pyproxy.New(c.Config, o)
	rt.Background("upstreams", proxy.Run)
	rt.OnStop(proxy.EndStreams)
	rt.WatchFile(rt.ConfigFile)
	app.OnConfig(rt, "routes, upstreams and clients", func(next Config) (func(), error) {
		clients, err := auth.Prepare(next.Management.Clients)
		if err != nil {
			return nil, err
		}
		commit := proxy.Prepare(next.Config)
		return func() { clients(); commit() }, nil // whoever lost the right to switch circuits has lost it before the new ones are there
	})
	rt.Background("hints", func(ctx context.Context) error { return hints.Run(ctx, proxy.ProbeSoon) })

	return rt.ServeHTTP("http", c.HTTP.Listen, split(proxy, proxy.Management(
		func(h http.Handler) http.Handler {
			return auth.RequireAny([]string{credential.Service, credential.Operator}, h)
		},
		func(h http.Handler) http.Handler { return auth.Require(credential.Operator, h) },
	)), park)
}

// parkAfter is longer than the pauses of a connection that is in use.
const parkAfter = 5 * time.Second

// park keeps idle connections cheaply.
func park(l net.Listener, s *http.Server) net.Listener {
	parked := idleconn.Wrap(l, idleconn.Options{After: parkAfter, Timeout: s.IdleTimeout, Released: func() {
		runtime.GC() // what connections used is in pools, which two collections empty
		debug.FreeOSMemory()
	}})
	s.ConnState = parked.State
	return parked
}

// split sends the management API's paths to it, and the rest to the routes.
func split(routes, management http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/v1/") {
			management.ServeHTTP(w, r)
			return
		}
		routes.ServeHTTP(w, r)
	})
}
