package main

import (
	"context"
	"time"

	"google.golang.org/grpc"

	"github.com/tollgate-proxy/tollgate/internal/account"
	"github.com/tollgate-proxy/tollgate/internal/app"
	"github.com/tollgate-proxy/tollgate/internal/credential"
	"github.com/tollgate-proxy/tollgate/internal/ratelimit"
	"github.com/tollgate-proxy/tollgate/internal/redisconn"
	"github.com/tollgate-proxy/tollgate/internal/rlqs"
	"github.com/tollgate-proxy/tollgate/internal/rls"
	"github.com/tollgate-proxy/tollgate/internal/rls/xds"
)

// quotaTimeout bounds the work of Redis on a thousand buckets of a report: no request
// waits for it.
const quotaTimeout = time.Second

// wire builds the process.
func wire(ctx context.Context, c Config, rt *app.Runtime) error {
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

	rules, err := ratelimit.LoadPaths(c.Limits.Files)
	if err != nil {
		return err
	}
	store := ratelimit.NewRedis(conn.UniversalClient, c.Redis.Mode == redisconn.Cluster)
	overrides := ratelimit.NewOverrides(conn.UniversalClient, c.Limits.OverridesPoll, time.Now, rt.Log)
	rt.Background("tier overrides", overrides.Run)
	decide := c.Store.Options()
	decide.Rules, decide.Store, decide.Overrides = rules, store, overrides
	decide.Now, decide.Log, decide.Metrics = time.Now, rt.Log, rt.Metrics
	limiter, err := ratelimit.NewLimiter(decide)
	if err != nil {
		return err
	}
	rt.Background("rate limit store", limiter.Run)
	prepare := func(next *ratelimit.Rules) (func(), error) { //nolint:unparam // the remote's may fail
		return func() { limiter.SetRules(next) }, nil
	}
	if c.Limits.XDS.Server != "" {
		remote, err := xds.New(xds.Options{
			Config: c.Limits.XDS, Files: rules, Apply: limiter.SetRules, Refused: limiter.RulesRefused, Log: rt.Log,
		})
		if err != nil {
			return err
		}
		rt.Background("rate limit rules of the xds server", remote.Run)
		prepare = remote.Reload
	}
	rt.OnReload("rate limit rules", func(context.Context) (func(), error) {
		next, err := ratelimit.LoadPaths(c.Limits.Files)
		if err == nil {
			var commit func()
			if commit, err = prepare(next); err == nil {
				return commit, nil
			}
		}
		limiter.RulesRefused()
		return nil, err
	})
	rt.WatchFile(rt.ConfigFile)
	for _, file := range rules.Files() {
		rt.WatchFile(file)
	}
	if c.Management.Listen != "" {
		auth, err := credential.New(c.Management.Clients)
		if err != nil {
			return err
		}
		app.OnConfig(rt, "management clients", func(next Config) (func(), error) { return auth.Prepare(next.Management.Clients) })
		api := &limitsAPI{limiter: limiter, overrides: overrides, domain: c.Management.Domain, audit: account.LogAuditor{Log: rt.Log}, now: time.Now}
		if err := rt.ServeHTTP("management", c.Management.Listen, api.handler(auth)); err != nil {
			return err
		}
	}
	server := rls.New(rls.Options{Decider: limiter, Headers: c.Limits.Headers})
	quotas, err := rlqs.New(rlqs.Options{
		Limiter: limiter, Sharers: ratelimit.NewSharers(conn.UniversalClient, time.Now),
		Life: c.Quotas.TimeToLive, Idle: c.Quotas.Idle, Buckets: c.Quotas.MaxBuckets, Timeout: quotaTimeout,
		Done: ctx.Done(), Now: time.Now, Log: rt.Log, Metrics: rt.Metrics,
	})
	if err != nil {
		return err
	}
	return rt.ServeGRPC("grpc", c.GRPC.Listen, func(s *grpc.Server) {
		server.Register(s)
		quotas.Register(s)
	}, server.Options()...)
}
