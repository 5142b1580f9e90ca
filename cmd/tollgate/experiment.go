package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/apiclient"
	"github.com/tollgate-proxy/tollgate/internal/experiment"
)

func experimentCommand() command {
	return command{
		name: "experiment", summary: "run experiments and see their results",
		commands: []command{
			experimentListCommand(),
			experimentShowCommand(),
			experimentCreateCommand(),
			experimentTurnCommand("start", "assign users from now on", (*apiclient.Client).StartExperiment),
			experimentTurnCommand("stop", "assign no users any more; the results stay", (*apiclient.Client).StopExperiment),
			experimentResultsCommand(),
		},
	}
}

func experimentListCommand() command {
	return command{
		name:    "list",
		summary: "list the experiments",
		details: apiDetails,
		setup: func(flags *flag.FlagSet) runFunc {
			api := apiFlags(flags)
			return func(ctx context.Context, p *process, arguments []string) error {
				if len(arguments) > 0 {
					return usagef("unexpected argument %q", arguments[0])
				}
				client, err := api.client(p)
				if err != nil {
					return err
				}
				all, err := client.Experiments(ctx)
				if err != nil {
					return err
				}
				table := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
				sayf(table, "EXPERIMENT\tSTATE\tFLAG\tVARIANTS\tTRAFFIC\tPRIMARY\tVERSION\tCHANGED\tBY\n")
				for i := range all {
					d := &all[i].Definition
					sayf(table, "%s\t%s\t%s\t%s\t%g%%\t%s\t%d\t%s\t%s\n", d.Key, all[i].State, d.FlagKey(), weights(d), 100*d.Traffic,
						d.Primary.Name, d.Version, all[i].Updated.UTC().Format(time.DateTime), dash(all[i].UpdatedBy))
				}
				return table.Flush()
			}
		},
	}
}

// weights shows variants as control:1 blue:1.
func weights(d *experiment.Definition) string {
	parts := make([]string, len(d.Variants))
	for i, v := range d.Variants {
		parts[i] = fmt.Sprintf("%s:%d", v.Name, v.Weight)
	}
	return strings.Join(parts, " ")
}

func experimentShowCommand() command {
	return experimentKeyCommand("show", "show an experiment's definition, as JSON", func(ctx context.Context, p *process, client *apiclient.Client, key string) error {
		record, err := client.Experiment(ctx, key)
		if err != nil {
			return err
		}
		text, err := json.MarshalIndent(record, "", "  ")
		if err != nil {
			return err
		}
		sayf(p.stdout, "%s\n", text)
		return nil
	})
}

// experimentKeyCommand is a command with one argument, the key.
func experimentKeyCommand(name, summary string, run func(ctx context.Context, p *process, client *apiclient.Client, key string) error) command {
	return command{
		name: name, arguments: "KEY", summary: summary, details: apiDetails,
		setup: func(flags *flag.FlagSet) runFunc {
			api := apiFlags(flags)
			return func(ctx context.Context, p *process, arguments []string) error {
				if len(arguments) != 1 {
					return usagef("an experiment's key is needed")
				}
				client, err := api.client(p)
				if err != nil {
					return err
				}
				return run(ctx, p, client, arguments[0])
			}
		},
	}
}

func experimentCreateCommand() command {
	return command{
		name: "create", arguments: "FILE",
		summary: "create an experiment, as a draft, from a JSON file",
		details: "The file is what `show` calls the definition; docs/guide/experiments.md explains it.\n" + apiDetails,
		setup: func(flags *flag.FlagSet) runFunc {
			api := apiFlags(flags)
			reason := flags.String("reason", "", "why, for the experiment's history")
			start := flags.Bool("start", false, "start it at once")
			return func(ctx context.Context, p *process, arguments []string) error {
				if len(arguments) != 1 {
					return usagef("a file with a definition is needed")
				}
				d, err := readExperiment(arguments[0])
				if err != nil {
					return err
				}
				client, err := api.client(p)
				if err != nil {
					return err
				}
				record, err := client.CreateExperiment(ctx, d, *reason)
				if err == nil && *start {
					record, err = client.StartExperiment(ctx, d.Key, *reason)
				}
				if err != nil {
					return err
				}
				sayState(p, &record)
				return nil
			}
		},
	}
}

// readExperiment reads and checks a definition.
func readExperiment(file string) (experiment.Definition, error) {
	var d experiment.Definition
	data, err := os.ReadFile(file)
	if err != nil {
		return d, err
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&d); err != nil {
		return d, fmt.Errorf("%s: %w", file, err)
	}
	if err := d.Validate(); err != nil {
		return d, fmt.Errorf("%s: %w", file, err)
	}
	return d, nil
}

func sayState(p *process, r *apiclient.Experiment) {
	sayf(p.stdout, "%s: %s (version %d)\n", r.Definition.Key, r.State, r.Definition.Version)
}

func experimentTurnCommand(name, summary string, turn func(c *apiclient.Client, ctx context.Context, key, reason string) (apiclient.Experiment, error)) command {
	return command{
		name: name, arguments: "KEY", summary: summary, details: apiDetails,
		setup: func(flags *flag.FlagSet) runFunc {
			api := apiFlags(flags)
			reason := flags.String("reason", "", "why, for the experiment's history")
			return func(ctx context.Context, p *process, arguments []string) error {
				if len(arguments) != 1 {
					return usagef("an experiment's key is needed")
				}
				client, err := api.client(p)
				if err != nil {
					return err
				}
				record, err := turn(client, ctx, arguments[0], *reason)
				if err != nil {
					return err
				}
				sayState(p, &record)
				return nil
			}
		},
	}
}

func experimentResultsCommand() command {
	return command{
		name: "results", arguments: "KEY",
		summary: "show what an experiment has come to",
		details: apiDetails,
		setup: func(flags *flag.FlagSet) runFunc {
			api := apiFlags(flags)
			page := flags.String("html", "", "write a page with plots to this `file` too")
			return func(ctx context.Context, p *process, arguments []string) error {
				if len(arguments) != 1 {
					return usagef("an experiment's key is needed")
				}
				client, err := api.client(p)
				if err != nil {
					return err
				}
				results, err := client.ExperimentResults(ctx, arguments[0])
				if err != nil {
					return err
				}
				if err := sayResults(p, &results); err != nil || *page == "" {
					return err
				}
				html, err := client.ExperimentPage(ctx, arguments[0])
				if err != nil {
					return err
				}
				return os.WriteFile(*page, html, 0o600)
			}
		},
	}
}

func sayResults(p *process, r *apiclient.ExperimentResults) error {
	sayf(p.stdout, "%s, %s, version %d: %s\n\n", r.Definition.Key, r.State, r.Report.Version, r.Report.Verdict)
	table := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	sayf(table, "METRIC\tVARIANT\tUSERS\tMEAN\tMEDIAN\tP95\tP99\tCHANGE\tDIFFERENCE\tP\tSO FAR\n")
	for i, m := range r.Definition.Metrics() {
		for _, v := range r.Report.Variants {
			if i >= len(v.Metrics) {
				continue
			}
			x := v.Metrics[i]
			sayf(table, "%s\t%s\t%d\t%.4g\t%.4g\t%.4g\t%.4g", m.Name, v.Name, x.Users, x.Mean, x.Median, x.P95, x.P99)
			if a := x.Against; a != nil {
				sayf(table, "\t%+.2f%%\t%s\t%.4g\t%s\n", 100*a.Relative, interval(&a.Sequential), a.AdjustedP, soFar(a))
			} else {
				sayf(table, "\t-\t-\t-\tcontrol\n")
			}
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, warning := range r.Report.Warnings {
		sayf(p.stdout, "\nWarning: %s.\n", warning)
	}
	sayf(p.stdout, "\nSample ratio: p = %.4g. Differences and p-values hold however often they are read.\n", r.Report.SampleRatioSequentialP)
	if adjusted(&r.Report) {
		sayf(p.stdout, "What users are used to from the time before is taken out of them (CUPED).\n")
	}
	return nil
}

func adjusted(r *experiment.Report) bool {
	for _, v := range r.Variants {
		for _, m := range v.Metrics {
			if m.Against != nil && m.Against.Adjusted {
				return true
			}
		}
	}
	return false
}

func interval(f *experiment.Finding) string {
	if f.Low == nil || f.High == nil {
		return "not known yet"
	}
	return fmt.Sprintf("%.4g to %.4g", *f.Low, *f.High)
}

func soFar(a *experiment.Against) string {
	switch {
	case a.Better:
		return "better"
	case a.Worse:
		return "worse"
	default:
		return "undecided"
	}
}
