package experiment

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/redisconn"
)

const (
	guardActor = "guardrail"
	keyLease   = catalogRoot + "guard"
)

// GuardOptions configure a Guard.
type GuardOptions struct {
	Catalog *Catalog
	Store   *Store
	Watcher *Watcher
	// Every is how often experiments are judged, by one replica of all; 1 min if 0.
	Every time.Duration
	// Stopped is told of each experiment that was stopped, with the verdict; may
	// be nil.
	Stopped func(ctx context.Context, key, verdict string)
	Log     *slog.Logger
}

// Guard stops experiments that ask for it (AutoStop) when a guardrail is
// breached. The test behind it is sequential: looking often does not raise the
// rate of false alarms.
type Guard struct{ o GuardOptions }

// NewGuard makes a guard.
func NewGuard(o GuardOptions) *Guard {
	if o.Every <= 0 {
		o.Every = time.Minute
	}
	if o.Stopped == nil {
		o.Stopped = func(context.Context, string, string) {}
	}
	return &Guard{o}
}

// Run judges until the context ends.
func (g *Guard) Run(ctx context.Context) error {
	tick := time.NewTicker(g.o.Every)
	defer tick.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		limited, cancel := context.WithTimeout(ctx, g.o.Every)
		err := g.round(limited)
		cancel()
		if err != nil && !failing && ctx.Err() == nil {
			g.o.Log.Warn("guardrails of experiments are not judged", "error", err)
		}
		failing = err != nil
	}
}

// round judges once, if no other replica has done so in this period.
func (g *Guard) round(ctx context.Context) error {
	lease := redis.NewBoolCmd(ctx, "set", keyLease, "1", "px", (g.o.Every * 9 / 10).Milliseconds(), "nx")
	if err := redisconn.Once(ctx, g.o.Catalog.rdb, lease); err != nil || !lease.Val() {
		return err
	}
	var errs []error
	for _, x := range g.o.Watcher.Current().Live() {
		if x.AutoStop {
			errs = append(errs, g.judge(ctx, x.Definition))
		}
	}
	return errors.Join(errs...)
}

func (g *Guard) judge(ctx context.Context, d *Definition) error {
	data, err := g.o.Store.Read(ctx, d)
	if err != nil {
		return err
	}
	report, err := Analyse(d, data)
	if err != nil || report.Status != Harmful {
		return err
	}
	// Only what was judged is stopped, and not what somebody has changed since.
	record := g.o.Watcher.Current().Find(d.Key)
	if record == nil || record.Definition.Version != d.Version {
		return nil
	}
	_, err = g.o.Catalog.Stop(ctx, d.Key, Change{Actor: guardActor, Reason: report.Verdict, Expect: record.Revision})
	if errors.Is(err, ErrConflict) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("stop experiment %s: %w", d.Key, err)
	}
	g.o.Watcher.Wake()
	g.o.Log.Warn("experiment stopped by itself", "experiment", d.Key, "verdict", report.Verdict)
	g.o.Stopped(ctx, d.Key, report.Verdict)
	return nil
}
