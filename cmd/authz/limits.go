package main

import (
	"context"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/app"
	"github.com/tollgate-proxy/tollgate/internal/gate"
	"github.com/tollgate-proxy/tollgate/internal/ratelimit"
	"github.com/tollgate-proxy/tollgate/internal/redisconn"
)

// newLimits makes what decides rate limits in the authorisation call: the same
// rules and buckets as ratelimit's. Nil leaves them to Envoy's ratelimit filter.
func newLimits(c Config, rt *app.Runtime, conn *redisconn.Conn) (gate.Limits, error) {
	if !c.Limits.InAuthz {
		return nil, nil //nolint:nilnil // Nothing is decided here.
	}
	rules, err := ratelimit.LoadPaths(c.Limits.Files)
	if err != nil {
		return nil, err
	}
	overrides := ratelimit.NewOverrides(conn.UniversalClient, c.Limits.OverridesPoll, time.Now, rt.Log)
	rt.Background("tier overrides", overrides.Run)
	o := c.Limits.Store.Options()
	o.Rules, o.Overrides = rules, overrides
	o.Store = ratelimit.NewRedis(conn.UniversalClient, c.Redis.Mode == redisconn.Cluster)
	o.Now, o.Log, o.Metrics = time.Now, rt.Log, rt.Metrics
	limiter, err := ratelimit.NewLimiter(o)
	if err != nil {
		return nil, err
	}
	rt.Background("rate limit store", limiter.Run)
	rt.OnReload("rate limit rules", func(context.Context) (func(), error) {
		next, err := ratelimit.LoadPaths(c.Limits.Files)
		if err != nil {
			limiter.RulesRefused()
			return nil, err
		}
		return func() { limiter.SetRules(next) }, nil
	})
	for _, file := range rules.Files() {
		rt.WatchFile(file)
	}
	return limiter, nil
}
