package experiment

import (
	"fmt"
	"math"
	"strings"
)

// brokenRatio is the sequential sample-ratio p-value below which an assignment
// counts as broken.
const brokenRatio = 0.01

// VariantData is what was measured of one variant.
type VariantData struct {
	// Users were assigned and seen.
	Users int64
	// Dealt are requests that were given the variant, Seen those of them of which
	// the access log told.
	Dealt, Seen int64
	// Metrics by name; a missing one has no observations.
	Metrics map[string]MetricData
}

// MetricData is what was measured of one metric in one variant.
type MetricData struct {
	// Users are the moments of the users' values.
	Users Moments
	// Known pairs the values of users of whom something is known from before the
	// experiment with that; the others are in Users alone.
	Known Pair
	// Observations is the distribution of single observations; nil for none.
	Observations *Sketch
}

// Status is what a report comes to.
type Status string

const (
	// Broken: users did not fall to variants as they should have.
	Broken Status = "broken_assignment"
	// Harmful: a guardrail got worse in some variant.
	Harmful Status = "guardrail_breached"
	// Decided: some variant is better or worse on the primary metric.
	Decided Status = "decided"
	// Undecided: keep running.
	Undecided Status = "keep_running"
)

// Report is the state of an experiment.
type Report struct {
	Experiment string          `json:"experiment"`
	Version    int             `json:"version"`
	Status     Status          `json:"status"`
	Verdict    string          `json:"verdict"`
	Variants   []VariantReport `json:"variants"`
	// SampleRatioP is the chi-square p-value of the users' split;
	// SampleRatioSequentialP holds at any time.
	SampleRatioP           float64 `json:"sample_ratio_p"`
	SampleRatioSequentialP float64 `json:"sample_ratio_sequential_p"`
	// Warnings, in plain words, say what may be wrong with the measurement.
	Warnings []string `json:"warnings"`
}

// VariantReport is one variant's part of a report.
type VariantReport struct {
	Name  string `json:"name"`
	Users int64  `json:"users"`
	// Dealt are requests that were given the variant, Seen those of them of which
	// the access log told: the difference is lost, or on its way.
	Dealt   int64          `json:"requests_dealt"`
	Seen    int64          `json:"requests_seen"`
	Metrics []MetricReport `json:"metrics"`
}

// MetricReport is one metric of one variant.
type MetricReport struct {
	Metric Metric `json:"metric"`
	// Users have a value; Mean is the mean over them.
	Users int64   `json:"users"`
	Mean  float64 `json:"mean"`
	// KnownBefore are those of the users who were measured before.
	KnownBefore int64 `json:"users_known_before"`
	// Median, P95 and P99 are of single observations, within SketchError; all
	// 0 without observations.
	Median float64 `json:"median"`
	P95    float64 `json:"p95"`
	P99    float64 `json:"p99"`
	// Against compares with the control; nil for the control itself.
	Against *Against `json:"against,omitempty"`
}

// Against is a variant compared with the control.
type Against struct {
	// Planned is Welch's test, valid once, at the planned end; a rate has
	// Newcombe's interval, which stays between -1 and 1 and holds for few hits,
	// and Pearson's test.
	Planned Finding `json:"planned"`
	// Sequential may be read at any time; verdicts rest on it.
	Sequential Finding `json:"sequential"`
	// AdjustedP is the sequential p-value, by Holm's method over all metrics
	// and variants of the experiment.
	AdjustedP float64 `json:"adjusted_p"`
	// Relative is the difference as a share of the control's mean; 0 where
	// that is 0.
	Relative float64 `json:"relative"`
	// Adjusted is true where the time before was taken out (CUPED), of which
	// Explained is the share of the variance that went with it, 0 to 1.
	Adjusted  bool    `json:"adjusted_for_before"`
	Explained float64 `json:"explained_by_before"`
	// Better and Worse: the adjusted p-value is below alpha.
	Better bool `json:"better"`
	Worse  bool `json:"worse"`
}

// Finding is a Comparison whose bounds are absent where it is endless, which
// JSON cannot say.
type Finding struct {
	Difference float64  `json:"difference"`
	Low        *float64 `json:"low"`
	High       *float64 `json:"high"`
	P          float64  `json:"p"`
}

func finding(c Comparison) Finding {
	f := Finding{Difference: c.Difference, P: c.P}
	if !math.IsInf(c.Low, 0) && !math.IsInf(c.High, 0) {
		f.Low, f.High = &c.Low, &c.High
	}
	return f
}

// Analyse judges a valid definition's data, one entry a variant in the
// definition's order.
func Analyse(d *Definition, data []VariantData) (Report, error) {
	if len(data) != len(d.Variants) {
		return Report{}, fmt.Errorf("experiment %s: data of %d variants, not %d", d.Key, len(data), len(d.Variants))
	}
	r := Report{Experiment: d.Key, Version: d.Version, Warnings: warnings(d, data)}
	counts, weights := make([]int64, len(data)), make([]uint32, len(data))
	for i, v := range d.Variants {
		counts[i], weights[i] = data[i].Users, v.Weight
	}
	r.SampleRatioP = SampleRatio(counts, weights)
	r.SampleRatioSequentialP = SampleRatioSequential(counts, weights)
	metrics := d.Metrics()
	pairs := make([][]Pair, len(metrics)) // of metrics, by variant
	var findings []*Against
	for j, m := range metrics {
		pairs[j] = paired(m, data)
	}
	for i, v := range d.Variants {
		variant := VariantReport{Name: v.Name, Users: data[i].Users, Dealt: data[i].Dealt, Seen: data[i].Seen}
		for j, m := range metrics {
			report, err := describe(m, data[i].Metrics[m.Name])
			if err != nil {
				return Report{}, fmt.Errorf("experiment %s, variant %s, metric %s: %w", d.Key, v.Name, m.Name, err)
			}
			if i > 0 {
				report.Against = compare(d, m, data[0].Metrics[m.Name].Users, data[i].Metrics[m.Name].Users, pairs[j], i)
				findings = append(findings, report.Against)
			}
			variant.Metrics = append(variant.Metrics, report)
		}
		r.Variants = append(r.Variants, variant)
	}
	correct(findings)
	judge(d, &r, counts)
	return r, nil
}

func describe(m Metric, data MetricData) (MetricReport, error) {
	r := MetricReport{Metric: m, Users: data.Users.N, Mean: data.Users.Mean, KnownBefore: data.Known.Value.N}
	if data.Observations == nil {
		return r, nil
	}
	q, err := data.Observations.Quantiles(0.5, 0.95, 0.99)
	if err != nil || q == nil {
		return r, err
	}
	r.Median, r.P95, r.P99 = q[0], q[1], q[2]
	return r, nil
}

// compare compares a metric of control and treatment, which is the variant at a place;
// pairs are nil where there is nothing from before.
func compare(d *Definition, m Metric, c, t Moments, pairs []Pair, at int) *Against {
	a := &Against{Adjusted: pairs != nil}
	if a.Adjusted {
		raw := c.Variance() + t.Variance()
		if c, t = Cuped(pairs[0], pairs[at]); raw > 0 {
			a.Explained = math.Max(0, 1-(c.Variance()+t.Variance())/raw)
		}
	}
	planned := Welch(c, t, d.alpha())
	if m.Kind == Rate && !a.Adjusted && c.N > 1 && t.N > 1 {
		planned.Low, planned.High = RateDifference(hits(c), c.N, hits(t), t.N, d.alpha())
		planned.P = RateTest(hits(c), c.N, hits(t), t.N)
	}
	a.Planned = finding(planned)
	a.Sequential = finding(Sequential(c, t, 2*d.MinimumUsers, d.alpha()))
	if c.Mean != 0 {
		a.Relative = (t.Mean - c.Mean) / math.Abs(c.Mean)
	}
	return a
}

// hits are the users of a rate whose value is 1.
func hits(m Moments) int64 { return int64(math.Round(m.Mean * float64(m.N))) }

// correct adjusts the sequential p-values for their number.
func correct(findings []*Against) {
	p := make([]float64, len(findings))
	for i, a := range findings {
		p[i] = a.Sequential.P
	}
	for i, adjusted := range Holm(p) {
		findings[i].AdjustedP = adjusted
	}
}

// judge sets what is better and worse, the status and the verdict. Below the
// minimum of users nothing is better or worse.
func judge(d *Definition, r *Report, counts []int64) {
	enough := true
	for _, n := range counts {
		enough = enough && n >= d.MinimumUsers
	}
	var harm, decisions []string
	for i := range r.Variants {
		v := &r.Variants[i]
		for j := range v.Metrics {
			m := &v.Metrics[j]
			if m.Against == nil || !enough || !(m.Against.AdjustedP < d.alpha()) || m.Against.Sequential.Difference == 0 {
				continue
			}
			m.Against.Better = m.Against.Sequential.Difference < 0 == m.Metric.LowerIsBetter
			m.Against.Worse = !m.Against.Better
			text := fmt.Sprintf("%s %s on %s", v.Name, betterOrWorse(m.Against.Better), m.Metric.Name)
			switch {
			case j == 0:
				decisions = append(decisions, text)
			case m.Against.Worse:
				harm = append(harm, text)
			}
		}
	}
	switch {
	case r.SampleRatioSequentialP < brokenRatio:
		r.Status = Broken
		r.Verdict = "broken assignment: users did not fall to the variants as the weights say, so nothing here may be believed"
	case len(harm) > 0:
		r.Status = Harmful
		r.Verdict = "guardrail breached: " + strings.Join(append(harm, decisions...), "; ")
	case len(decisions) > 0:
		r.Status = Decided
		r.Verdict = strings.Join(decisions, "; ")
	case !enough:
		r.Status = Undecided
		r.Verdict = fmt.Sprintf("keep running: each variant needs %d users", d.MinimumUsers)
	default:
		r.Status = Undecided
		r.Verdict = "keep running: no difference on " + d.Primary.Name + " so far"
	}
}

func betterOrWorse(better bool) string {
	if better {
		return "better"
	}
	return "worse"
}
