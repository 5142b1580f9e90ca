package account

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/experiment"
)

//go:embed experimentpage.html
var resultsPage string

// The plot of differences, in pixels: its middle is no difference.
const (
	plotMiddle = 160
	plotReach  = 150
)

// resultsRow is one variant's line under a metric.
type resultsRow struct {
	Variant                               string
	Users                                 int64
	Mean, Median, P95, P99, Change, Range string
	P, Planned, Judgement                 string
	Control, Drawn                        bool
	// Point, From and Width are places in the plot.
	Point, From, Width float64
}

// writeResultsPage shows results to people.
func writeResultsPage(w http.ResponseWriter, r *Results) error {
	page, err := template.New("results").Parse(resultsPage)
	if err != nil {
		return fmt.Errorf("results page: %w", err)
	}
	type metric struct {
		Name, Note string
		Rows       []resultsRow
	}
	view := struct {
		*Results
		Metrics []metric
		When    string
		Ratio   string
		Broken  bool
		Harmful bool
		Shares  []string
	}{
		Results: r, When: r.At.Format(time.RFC1123), Ratio: number(r.Report.SampleRatioSequentialP),
		Broken: r.Report.Status == experiment.Broken, Harmful: r.Report.Status == experiment.Harmful,
	}
	total := int64(0)
	for _, v := range r.Report.Variants {
		total += v.Users
	}
	for _, v := range r.Report.Variants {
		view.Shares = append(view.Shares, fmt.Sprintf("%s %d (%.1f %%)", v.Name, v.Users, 100*float64(v.Users)/math.Max(1, float64(total))))
	}
	for i, m := range r.Definition.Metrics() {
		view.Metrics = append(view.Metrics, metric{m.Name, noteOf(i, m) + beforeOf(&r.Report, i), metricRows(&r.Report, i)})
	}
	var body bytes.Buffer
	if err := page.Execute(&body, view); err != nil {
		return fmt.Errorf("results page: %w", err)
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write(body.Bytes()) // the client is gone; nobody is left to tell
	return nil
}

func noteOf(i int, m experiment.Metric) string {
	role := "guardrail"
	if i == 0 {
		role = "primary metric"
	}
	better := "higher is better"
	if m.LowerIsBetter {
		better = "lower is better"
	}
	by := "reported by services"
	if m.Source != experiment.Reported {
		by = "measured by the gateway"
	}
	return fmt.Sprintf("%s, %s per user, %s, %s", role, m.Kind, better, by)
}

// beforeOf says how much of the i-th metric the time before explains.
func beforeOf(r *experiment.Report, i int) string {
	known, explained := int64(0), 0.0
	for _, v := range r.Variants {
		known += v.Metrics[i].KnownBefore
		if a := v.Metrics[i].Against; a != nil {
			explained = math.Max(explained, a.Explained)
		}
	}
	if known == 0 {
		return ""
	}
	return fmt.Sprintf("; the time before, known of %d users, explains %.0f %% of the variance, which the tests leave out (CUPED)", known, 100*explained)
}

// metricRows are the variants' lines for the i-th metric. All share one scale.
func metricRows(r *experiment.Report, i int) []resultsRow {
	scale := 0.0
	for _, v := range r.Variants {
		if a := v.Metrics[i].Against; a != nil && a.Sequential.Low != nil {
			scale = math.Max(scale, math.Max(math.Abs(*a.Sequential.Low), math.Abs(*a.Sequential.High)))
		}
	}
	rows := make([]resultsRow, 0, len(r.Variants))
	for _, v := range r.Variants {
		m := v.Metrics[i]
		row := resultsRow{
			Variant: v.Name, Users: m.Users, Mean: number(m.Mean), Control: m.Against == nil,
			Median: number(m.Median), P95: number(m.P95), P99: number(m.P99),
		}
		if a := m.Against; a != nil {
			row.Change = fmt.Sprintf("%+.2f %%", 100*a.Relative)
			row.P, row.Planned = number(a.AdjustedP), number(a.Planned.P)
			row.Range = "not known yet"
			if s := a.Sequential; s.Low != nil {
				row.Range = number(*s.Low) + " to " + number(*s.High)
				if scale > 0 {
					row.Drawn = true
					row.Point = plotMiddle + plotReach*s.Difference/scale
					row.From = plotMiddle + plotReach**s.Low/scale
					row.Width = plotReach * (*s.High - *s.Low) / scale
				}
			}
			switch {
			case a.Better:
				row.Judgement = "better"
			case a.Worse:
				row.Judgement = "worse"
			default:
				row.Judgement = "undecided"
			}
		}
		rows = append(rows, row)
	}
	return rows
}

// number is short and exact enough to read.
func number(v float64) string { return strconv.FormatFloat(v, 'g', 4, 64) }

// PercentError is the relative error of quantiles in percent.
func (r *Results) PercentError() float64 { return 100 * r.QuantileError }
