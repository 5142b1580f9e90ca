package main

import (
	"context"
	"net/http"
	"strings"

	"github.com/tollgate-proxy/tollgate/internal/app"
	"github.com/tollgate-proxy/tollgate/internal/credential"
	"github.com/tollgate-proxy/tollgate/internal/pyproxy"
	"github.com/tollgate-proxy/tollgate/internal/redisconn"
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
	proxy := pyproxy.New(c.Config, pyproxy.Options{
		Log: rt.Log, Metrics: rt.Metrics, Tracer: rt.Tracer, Propagator: rt.Propagator,
	})
	rt.Background("upstreams", proxy.Run)

	return rt.ServeHTTP("http", c.HTTP.Listen, split(proxy, proxy.Management(
		func(h http.Handler) http.Handler { return auth.Require(credential.Service, h) },
		func(h http.Handler) http.Handler { return auth.Require(credential.Operator, h) },
	)))
}

// split sends the management API's paths to it, and the rest to the routes.
func split(routes, management http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/upstreams" || strings.HasPrefix(r.URL.Path, "/v1/upstreams/") {
			management.ServeHTTP(w, r)
			return
		}
		routes.ServeHTTP(w, r)
	})
}
