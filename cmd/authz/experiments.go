package main

import (
	"cmp"
	"context"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/accesslog"
	"github.com/tollgate-proxy/tollgate/internal/account"
	"github.com/tollgate-proxy/tollgate/internal/app"
	"github.com/tollgate-proxy/tollgate/internal/config"
	"github.com/tollgate-proxy/tollgate/internal/experiment"
	"github.com/tollgate-proxy/tollgate/internal/flag"
	"github.com/tollgate-proxy/tollgate/internal/redisconn"
)

// ExperimentsConfig is the section "experiments".
type ExperimentsConfig struct {
	Poll      time.Duration `yaml:"poll" doc:"How often the version of the experiments in Redis is read, beside the notices of changes."`
	Flush     time.Duration `yaml:"flush" doc:"How often what was measured is written to Redis."`
	Guardrail time.Duration `yaml:"guardrail" doc:"How often one of all replicas judges the guardrails of experiments that stop by themselves."`
}

// Validate checks the section.
func (c ExperimentsConfig) Validate(r *config.Report) {
	if c.Poll < 10*time.Millisecond || c.Poll > time.Minute {
		r.Fault("poll", c.Poll, "10ms to 1m")
	}
	if c.Flush < 10*time.Millisecond || c.Flush > time.Minute {
		r.Fault("flush", c.Flush, "10ms to 1m")
	}
	if c.Guardrail < time.Second || c.Guardrail > 24*time.Hour {
		r.Fault("guardrail", c.Guardrail, "1s to 24h")
	}
}

func defaultExperiments() ExperimentsConfig {
	return ExperimentsConfig{Poll: 500 * time.Millisecond, Flush: time.Second, Guardrail: time.Minute}
}

// newExperiments builds what assigns, measures and judges experiments: a sink of
// the access log and, once the audit trail is there, a part of the API.
// Experiments are laid over the flags.
func newExperiments(c Config, rt *app.Runtime, conn *redisconn.Conn, flags *flag.Watcher) (*measure, func(account.Auditor) account.Part, error) {
	catalog, store := experiment.NewCatalog(conn, time.Now), experiment.NewStore(conn)
	recorder, err := experiment.NewRecorder(experiment.RecorderOptions{Store: store, Flush: c.Experiments.Flush, Log: rt.Log, Metrics: rt.Metrics})
	if err != nil {
		return nil, nil, err
	}
	watcher, err := experiment.NewWatcher(experiment.WatcherOptions{
		Catalog: catalog, Poll: c.Experiments.Poll, Log: rt.Log, Metrics: rt.Metrics, Now: time.Now,
		Changed: func(s *experiment.Set) {
			if err := flags.Experiments(overlay(s, recorder)); err != nil {
				rt.Log.Error("experiments do not fit the flags; they do not run", "error", err)
			}
		},
	})
	if err != nil {
		return nil, nil, err
	}
	meter, err := experiment.NewMeter(watcher, recorder, rt.Metrics, time.Now)
	if err != nil {
		return nil, nil, err
	}
	rt.Background("experiments", watcher.Run)
	rt.Background("experiment measurements", recorder.Run)
	api := func(auditor account.Auditor) account.Part {
		guard := experiment.NewGuard(experiment.GuardOptions{
			Catalog: catalog, Store: store, Watcher: watcher, Every: c.Experiments.Guardrail, Log: rt.Log,
			Stopped: func(ctx context.Context, key, verdict string) {
				auditor.Audit(ctx, account.Event{Actor: "guardrail", Action: "experiment.stop", Target: key, Reason: verdict, Outcome: "done", At: time.Now()})
			},
		})
		rt.Background("experiment guardrails", guard.Run)
		return account.NewExperiments(account.ExperimentsOptions{
			Catalog: catalog, Store: store, Watcher: watcher, Recorder: recorder, Audit: auditor, Now: time.Now,
			Fits: func(d *experiment.Definition) error {
				_, err := flags.Flags().With([]flag.Experiment{laid(d, experiment.NewAssigner(d))})
				return err
			},
		})
	}
	return &measure{meter, watcher}, api, nil
}

// overlay is the experiments as flags know them.
func overlay(s *experiment.Set, recorder *experiment.Recorder) []flag.Experiment {
	var out []flag.Experiment
	for _, x := range s.Live() {
		e := laid(x.Definition, x.Assigner)
		e.Dealt = recorder.Dealt(x.Definition)
		out = append(out, e)
	}
	return out
}

func laid(d *experiment.Definition, a *experiment.Assigner) flag.Experiment {
	e := flag.Experiment{Name: d.ID(), Flag: d.FlagKey(), Assign: a.At, Visitors: d.Anonymous}
	for i, v := range d.Variants {
		e.Variants, e.Marks = append(e.Variants, v.Name), append(e.Marks, d.Mark(i))
	}
	return e
}

// measure hands finished requests to the experiments. Those that the gateway
// itself refused say nothing about a variant.
type measure struct {
	meter       *experiment.Meter
	experiments *experiment.Watcher
}

// all says whether requests are measured that no experiment deals a variant:
// those of users who are measured before an experiment begins.
func (m *measure) all() bool { return m.experiments.Current().MeasuresBefore(time.Now()) }

// Take implements accesslog.Sink.
func (m *measure) Take(o *accesslog.Outcome) {
	m.meter.Measure(&experiment.Request{
		User: cmp.Or(o.User, o.Visitor), Visitor: o.User == "", Tier: o.Tier, Assignments: o.Experiments, Duration: o.Duration, Status: o.Status,
		Refused:      o.Code != "" || o.Details == "request_rate_limited" || o.Details == "rate_limited_by_quota",
		RequestBytes: o.RequestBytes, ResponseBytes: o.ResponseBytes,
	})
}
