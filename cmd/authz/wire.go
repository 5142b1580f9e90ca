package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	alsv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	"google.golang.org/grpc"

	"github.com/tollgate-proxy/tollgate/internal/accesslog"
	"github.com/tollgate-proxy/tollgate/internal/account"
	"github.com/tollgate-proxy/tollgate/internal/anomaly"
	"github.com/tollgate-proxy/tollgate/internal/app"
	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/extauthz"
	"github.com/tollgate-proxy/tollgate/internal/flag"
	"github.com/tollgate-proxy/tollgate/internal/gate"
	"github.com/tollgate-proxy/tollgate/internal/policy"
	"github.com/tollgate-proxy/tollgate/internal/ratelimit"
	"github.com/tollgate-proxy/tollgate/internal/redisconn"
	"github.com/tollgate-proxy/tollgate/internal/revocation"
	"github.com/tollgate-proxy/tollgate/internal/session"
)

// check finds what is wrong beyond the configuration file itself.
func check(c Config) error {
	if _, err := policy.Compile(c.Policy); err != nil {
		return fmt.Errorf("policy: %w", err)
	}
	if c.Limits.InAuthz {
		if _, err := ratelimit.LoadPaths(c.Limits.Files); err != nil {
			return err
		}
	}
	_, err := bootstrap(c)
	return err
}

func bootstrap(c Config) (*flag.Definitions, error) {
	if c.Flags.File == "" {
		return nil, nil
	}
	return flag.LoadFile(string(c.Flags.File))
}

// wire builds the process.
func wire(_ context.Context, c Config, rt *app.Runtime) error {
	conn, err := redisconn.Open(c.Redis, redisconn.Options{Log: rt.Log, Metrics: rt.Metrics, Tracer: rt.Tracer, Health: rt.Health})
	if err != nil {
		return err
	}
	rt.Cleanup("redis", func(context.Context) error { return conn.Close() })
	rt.Background("redis watch", conn.Monitor)

	verifier, err := newVerifier(c, rt, conn)
	if err != nil {
		return err
	}
	store, guard, err := newRevocation(c, rt, conn, verifier)
	if err != nil {
		return err
	}
	places, err := anomaly.OpenPlaces(c.Anomaly.Places, rt.Log, rt.Metrics)
	if err != nil {
		return err
	}
	rt.Background("places", places.Run)
	sessions, tracker, err := newSessions(c, rt, conn, verifier, store, places)
	if err != nil {
		return err
	}
	flagStore, watcher, err := newFlags(c, rt, conn)
	if err != nil {
		return err
	}
	routes, err := policy.Compile(c.Policy)
	if err != nil {
		return fmt.Errorf("policy: %w", err)
	}
	limits, err := newLimits(c, rt, conn)
	if err != nil {
		return err
	}
	watch, err := newWatch(c, rt, conn, sessions, places)
	if err != nil {
		return err
	}
	g := gate.New(gate.Options{
		Verifier: verifier, Denylist: guard, Flags: watcher, Sessions: tracker, Suspicions: watch, Limits: limits, Domain: c.Limits.Domain, Routes: routes,
		Log: rt.Log, Metrics: gate.NewMetrics(rt.Metrics), Now: time.Now,
	})
	rt.WatchFile(rt.ConfigFile)
	app.OnConfig(rt, "route rules", func(next Config) (func(), error) {
		routes, err := policy.Compile(next.Policy)
		if err != nil {
			return nil, fmt.Errorf("policy: %w", err)
		}
		return func() { g.SetRoutes(routes) }, nil
	})

	measure, experiments, err := newExperiments(c, rt, conn, watcher)
	if err != nil {
		return err
	}
	server := extauthz.New(extauthz.Options{
		Decider: g, Headers: c.Headers, TokenHeader: c.Tokens.Sources.Header, PayloadKey: c.JWTAuthn.PayloadKey, PlaceHeaders: c.Anomaly.Headers,
		LimitHeaders: c.Limits.Headers, MeasureAll: measure.all,
	})
	app.OnConfig(rt, "headers that say where clients are", func(next Config) (func(), error) {
		return func() { server.UsePlaceHeaders(next.Anomaly.Headers) }, nil
	})
	outcomes := accesslog.New(rt.Metrics, measure)
	rt.OnStop(outcomes.Stop)
	err = rt.ServeGRPC("grpc", c.GRPC.Listen, func(g *grpc.Server) {
		server.Register(g)
		alsv3.RegisterAccessLogServiceServer(g, outcomes)
	}, extauthz.ServerOptions()...)
	if err != nil {
		return err
	}
	management := &api{
		conn: conn, gate: g, reader: server, watch: watch, verifier: verifier, revocations: store, sessions: sessions,
		flags: flagStore, watcher: watcher, experiments: experiments,
	}
	handler, err := management.handler(c, rt)
	if err != nil {
		return err
	}
	return rt.ServeHTTPS("http", c.HTTP.Listen, c.HTTP.TLS, handler)
}

func newVerifier(c Config, rt *app.Runtime, conn *redisconn.Conn) (*authn.Verifier, error) {
	tokens := c.Tokens
	if c.Mode == development {
		tokens.Development = c.Development
		rt.Log.Warn("development mode: tokens signed with the development key are accepted", "key_file", string(c.Development.KeyFile))
	}
	keys := rt.Health.Component("token keys", true)
	verifier, err := authn.New(tokens, authn.Options{
		Development: c.Mode == development, Log: rt.Log, Metrics: rt.Metrics, Now: time.Now,
		Ready: keys.Set, Annotate: gate.Annotate, Replays: account.NewRedisReplays(conn),
	})
	if err != nil {
		return nil, err
	}
	rt.Background("token keys", verifier.Run)
	rt.OnReload("token keys", verifier.PrepareReload)
	for _, file := range verifier.Files() {
		rt.WatchFile(file)
	}
	return verifier, nil
}

func newRevocation(c Config, rt *app.Runtime, conn *redisconn.Conn, verifier *authn.Verifier) (*revocation.Store, *revocation.Guard, error) {
	o := revocation.Options{
		MaxStaleness: c.Revocation.MaxStaleness, Heartbeat: c.Revocation.Heartbeat, MaxEntries: c.Revocation.MaxEntries,
		MaxLifetime: verifier.MaxLifetime(), Leeway: verifier.Leeway(),
		Log: rt.Log, Metrics: rt.Metrics, Now: time.Now,
	}
	replica, err := revocation.NewReplica(conn, o)
	if err != nil {
		return nil, nil, err
	}
	store, err := revocation.NewStore(conn, replica, o)
	if err != nil {
		return nil, nil, err
	}
	rt.Background("revocation feed", replica.Run)
	rt.Background("revocation readiness", watchReadiness(rt, replica))
	return store, revocation.NewGuard(store, replica, c.Revocation.Mode == strict), nil
}

// watchReadiness makes the process ready once the revocations are known for the
// first time. Later staleness is each route's to answer.
func watchReadiness(rt *app.Runtime, replica *revocation.Replica) func(context.Context) error {
	component := rt.Health.Component("revocations", true)
	component.Set(false, "not synchronised yet")
	return func(ctx context.Context) error {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for !replica.Ready() {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		}
		component.Set(true, "")
		return nil
	}
}

// sessionPlaces tells sessions where addresses are.
type sessionPlaces struct{ places *anomaly.Places }

func (p sessionPlaces) Place(address netip.Addr) session.Place {
	return session.Place{Country: p.places.Place(address).Country, City: p.places.City(address)}
}

func newSessions(c Config, rt *app.Runtime, conn *redisconn.Conn, verifier *authn.Verifier, store *revocation.Store, places *anomaly.Places) (*session.Manager, *session.Tracker, error) {
	devices, err := session.NewDevices()
	if err != nil {
		return nil, nil, err
	}
	manager, err := session.NewManager(session.NewRedis(conn), c.Sessions, session.Options{
		Tombstone: verifier.MaxLifetime() + verifier.Leeway(), Devices: devices, Places: sessionPlaces{places}, Log: rt.Log, Metrics: rt.Metrics, Now: time.Now,
		Killer: session.KillerFunc(func(ctx context.Context, refs []session.Ref) error {
			all := make([]revocation.Revocation, len(refs))
			for i, r := range refs {
				all[i] = revocation.Revocation{Kind: revocation.KindSession, ID: r.ID, Issuer: r.Issuer}
			}
			_, err := store.Revoke(ctx, all...)
			return err
		}),
	})
	if err != nil {
		return nil, nil, err
	}
	tracker, err := session.NewTracker(manager)
	if err != nil {
		return nil, nil, err
	}
	rt.Background("sessions", tracker.Run)
	return manager, tracker, nil
}

func newWatch(c Config, rt *app.Runtime, conn *redisconn.Conn, sessions *session.Manager, places *anomaly.Places) (*anomaly.Watch, error) {
	watch, err := anomaly.NewWatch(c.Anomaly, anomaly.Options{
		Store: anomaly.NewRedis(conn), Places: places, Log: rt.Log, Metrics: rt.Metrics, Now: time.Now,
		EndSession: func(ctx context.Context, user, id, issuer string) error {
			err := sessions.End(ctx, user, session.Ref{Issuer: issuer, ID: id})
			if errors.Is(err, session.ErrNotFound) {
				return nil // not registered, and killed all the same
			}
			return err
		},
	})
	if err != nil {
		return nil, err
	}
	rt.Background("suspicious activity", watch.Run)
	app.OnConfig(rt, "suspicious activity", func(next Config) (func(), error) {
		usePlaces, err := places.Prepare(next.Anomaly.Places)
		if err != nil {
			return nil, err
		}
		useRules, err := watch.Prepare(next.Anomaly)
		if err != nil {
			return nil, err
		}
		return func() { usePlaces(); useRules() }, nil
	})
	return watch, nil
}

func newFlags(c Config, rt *app.Runtime, conn *redisconn.Conn) (*flag.Store, *flag.Watcher, error) {
	definitions, err := bootstrap(c)
	if err != nil {
		return nil, nil, err
	}
	store := flag.NewStore(conn, time.Now)
	watcher, err := flag.NewWatcher(flag.WatcherOptions{
		Store: store, Bootstrap: definitions, Poll: c.Flags.Poll, Log: rt.Log, Metrics: rt.Metrics, Now: time.Now,
	})
	if err != nil {
		return nil, nil, err
	}
	rt.Background("flags", watcher.Run)
	return store, watcher, nil
}
