package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/tollgate-proxy/tollgate/internal/apiclient"
	"github.com/tollgate-proxy/tollgate/internal/experiment"
)

const (
	needsExperiment = "an experiment's key is"
	experimentFile  = "The file is what `show` calls the definition; docs/guide/experiments.md explains it."
)

func experimentCommand() command {
	return command{
		name: "experiment", summary: "run experiments and see their results",
		commands: []command{
			experimentListCommand(),
			experimentShowCommand(),
			experimentHistoryCommand(),
			experimentCreateCommand(),
			experimentUpdateCommand(),
			experimentTurnCommand("start", "assign users from now on", (*apiclient.Client).StartExperiment),
			experimentTurnCommand("stop", "assign no users any more; the results stay", (*apiclient.Client).StopExperiment),
			experimentResultsCommand(),
			experimentRevertCommand(),
			experimentDeleteCommand(),
		},
	}
}

func experimentListCommand() command {
	return callCommand{
		name: "list", summary: "list the experiments",
		setup: always(func(ctx context.Context, p *process, client *apiclient.Client, _ []string) error {
			all, err := client.Experiments(ctx)
			if err != nil {
				return err
			}
			const heading = "EXPERIMENT\tSTATE\tFLAG\tVARIANTS\tTRAFFIC\tPRIMARY\tVERSION\tREVISION\tCHANGED\tBY"
			err = sayTable(p.stdout, heading, all.Experiments, func(r *apiclient.Experiment) []any {
				d := &r.Definition
				return []any{
					d.Key, r.State, d.FlagKey(), weights(d), fmt.Sprintf("%g%%", 100*d.Traffic),
					d.Primary.Name, d.Version, r.Revision, r.Updated, r.UpdatedBy,
				}
			})
			sayBroken(p, "experiment", all.Broken)
			return err
		}),
	}.command()
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
	return callCommand{
		name: "show", arguments: "KEY", summary: "show an experiment's definition, as JSON", needs: needsExperiment,
		setup: always(func(ctx context.Context, p *process, client *apiclient.Client, arguments []string) error {
			record, err := client.ExperimentJSON(ctx, arguments[0])
			if err != nil {
				return err
			}
			return sayJSON(p.stdout, record)
		}),
	}.command()
}

func experimentHistoryCommand() command {
	return callCommand{
		name: "history", arguments: "KEY", summary: "list an experiment's changes, the newest first; those of a deleted one too", needs: needsExperiment,
		setup: always(func(ctx context.Context, p *process, client *apiclient.Client, arguments []string) error {
			all, err := client.ExperimentHistory(ctx, arguments[0])
			if err != nil {
				return err
			}
			return sayTable(p.stdout, "REVISION\tCHANGED\tBY\tACTION\tVERSION\tREASON", all, func(e *experiment.Entry) []any {
				version := ""
				if e.Definition != nil {
					version = strconv.Itoa(e.Definition.Version)
				}
				return []any{e.Revision, e.At, e.Actor, e.Action, version, e.Reason}
			})
		}),
	}.command()
}

func experimentCreateCommand() command {
	return callCommand{
		name: "create", arguments: "FILE", summary: "create an experiment, as a draft, from a JSON file",
		details: experimentFile, needs: "a file with a definition is",
		setup: func(flags *flag.FlagSet) callFunc {
			reason := flags.String("reason", "", "why, for the experiment's history")
			start := flags.Bool("start", false, "start it at once")
			return func(ctx context.Context, p *process, client *apiclient.Client, arguments []string) error {
				d, err := readExperiment(arguments[0])
				if err != nil {
					return err
				}
				record, err := client.CreateExperiment(ctx, d, *reason)
				if err == nil && *start {
					record, err = client.StartExperiment(ctx, d.Key, apiclient.Terms{Reason: *reason, At: &record.Revision})
				}
				return sayState(p)(record, err)
			}
		},
	}.command()
}

func experimentUpdateCommand() command {
	return callCommand{
		name: "update", arguments: "FILE", summary: "write the whole definition of an experiment that exists, from a JSON file",
		details: experimentFile + " Its state stays.", needs: "a file with a definition is",
		setup: func(flags *flag.FlagSet) callFunc {
			terms := termsFlags(flags, "experiment", "revision")
			return func(ctx context.Context, p *process, client *apiclient.Client, arguments []string) error {
				d, err := readExperiment(arguments[0])
				if err != nil {
					return err
				}
				was, err := client.Experiment(ctx, d.Key)
				if err != nil {
					return err
				}
				if terms.At == nil {
					terms.At = &was.Revision
				}
				now, err := client.PutExperiment(ctx, d, *terms)
				if err := sayState(p)(now, err); err != nil {
					return err
				}
				if now.Definition.Version != was.Definition.Version {
					sayf(p.stdout, "This is a new version: users are dealt anew, and measured from nothing.\n")
				}
				return nil
			}
		},
	}.command()
}

func experimentRevertCommand() command {
	return callCommand{
		name: "revert", arguments: "KEY REVISION", summary: "bring back the definition that an experiment had at a revision of its history",
		details: "It becomes a new revision, and a new version where users see or are measured something else: they are dealt\n" +
			"anew, and measured from nothing. The state stays; an experiment that was deleted comes back as a draft.",
		needs: "an experiment's key and a revision of its history are",
		setup: func(flags *flag.FlagSet) callFunc {
			terms := termsFlags(flags, "experiment", "revision")
			return func(ctx context.Context, p *process, client *apiclient.Client, arguments []string) error {
				to, err := past("experiment", "revision", arguments)
				if err != nil {
					return err
				}
				return sayState(p)(client.RevertExperiment(ctx, arguments[0], to, *terms))
			}
		},
	}.command()
}

func experimentDeleteCommand() command {
	return callCommand{
		name: "delete", arguments: "KEY", summary: "delete an experiment that is not running, and all that was measured; revert brings its definition back",
		needs: needsExperiment,
		setup: func(flags *flag.FlagSet) callFunc {
			terms := termsFlags(flags, "experiment", "revision")
			return func(ctx context.Context, p *process, client *apiclient.Client, arguments []string) error {
				if err := client.DeleteExperiment(ctx, arguments[0], *terms); err != nil {
					return err
				}
				sayf(p.stdout, "%s: deleted\n", arguments[0])
				return nil
			}
		},
	}.command()
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

// sayState says what a change has made of an experiment.
func sayState(p *process) func(now apiclient.Experiment, err error) error {
	return func(now apiclient.Experiment, err error) error {
		if err == nil {
			sayf(p.stdout, "%s: %s (version %d, revision %d)\n", now.Definition.Key, now.State, now.Definition.Version, now.Revision)
		}
		return err
	}
}

func experimentTurnCommand(name, summary string,
	turn func(c *apiclient.Client, ctx context.Context, key string, t apiclient.Terms) (apiclient.Experiment, error),
) command {
	return callCommand{
		name: name, arguments: "KEY", summary: summary, needs: needsExperiment,
		setup: func(flags *flag.FlagSet) callFunc {
			terms := termsFlags(flags, "experiment", "revision")
			return func(ctx context.Context, p *process, client *apiclient.Client, arguments []string) error {
				return sayState(p)(turn(client, ctx, arguments[0], *terms))
			}
		},
	}.command()
}

func experimentResultsCommand() command {
	return callCommand{
		name: "results", arguments: "KEY", summary: "show what an experiment has come to", needs: needsExperiment,
		setup: func(flags *flag.FlagSet) callFunc {
			page := flags.String("html", "", "write a page with plots to this `file` too")
			return func(ctx context.Context, p *process, client *apiclient.Client, arguments []string) error {
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
	}.command()
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
