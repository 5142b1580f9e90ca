package experiment

import (
	"math"
	"slices"

	"gonum.org/v1/gonum/stat/distuv"
)

// normal is the standard normal distribution.
func normal() distuv.Normal { return distuv.Normal{Mu: 0, Sigma: 1} }

// Comparison is a difference of two means, treatment minus control.
type Comparison struct {
	Difference float64 `json:"difference"`
	// Low and High bound the difference with confidence 1 - alpha.
	Low  float64 `json:"low"`
	High float64 `json:"high"`
	// P is the two-sided p-value.
	P float64 `json:"p"`
}

// Welch is Welch's t-test (1947) for means of groups whose variances may
// differ, with the Welch-Satterthwaite degrees of freedom. It is valid once,
// at a time that was chosen beforehand. Below two values in a group it says
// nothing: p is 1 and the interval endless.
func Welch(control, treatment Moments, alpha float64) Comparison {
	c := Comparison{Difference: treatment.Mean - control.Mean, Low: math.Inf(-1), High: math.Inf(1), P: 1}
	if control.N < 2 || treatment.N < 2 {
		return c
	}
	a, b := control.meanVariance(), treatment.meanVariance()
	if a+b == 0 {
		return certain(c)
	}
	degrees := (a + b) * (a + b) / (a*a/float64(control.N-1) + b*b/float64(treatment.N-1))
	student := distuv.StudentsT{Mu: 0, Sigma: 1, Nu: degrees}
	deviation := math.Sqrt(a + b)
	c.P = 2 * student.CDF(-math.Abs(c.Difference)/deviation)
	width := student.Quantile(1-alpha/2) * deviation
	c.Low, c.High = c.Difference-width, c.Difference+width
	return c
}

// certain is a comparison of groups without any variance.
func certain(c Comparison) Comparison {
	c.Low, c.High = c.Difference, c.Difference
	if c.Difference != 0 {
		c.P = 0
	}
	return c
}

// Sequential compares means so that looking at any time, and stopping when it
// looks good, keeps the rate of false alarms at alpha: the mixture sequential
// probability ratio test (Robbins 1970; Johari, Koomen, Pekelis and Walsh 2017)
// with a normal mixture, and its confidence sequence. expected is the number of
// users, both groups together, at which the interval is to be tightest; any
// number is valid. It rests on the means being about normal, so it needs some
// hundred users before it is asked.
//
// The variance is the larger one of Welch's and of that of all users together,
// which is the right one where nothing differs. Between groups of one size they
// are about the same. A small group beside a large one has often not seen yet
// what is rare, such as an error, and takes its own variance for too small: with
// Welch's alone, a tenth of the users beside nine raised false alarms in a third
// of all A/A tests.
func Sequential(control, treatment Moments, expected int64, alpha float64) Comparison {
	c := Comparison{Difference: treatment.Mean - control.Mean, Low: math.Inf(-1), High: math.Inf(1), P: 1}
	if control.N < 2 || treatment.N < 2 {
		return c
	}
	a, b, all := float64(control.N), float64(treatment.N), control
	all.Merge(treatment)
	v := math.Max(control.meanVariance()+treatment.meanVariance(), all.Variance()*(1/a+1/b))
	if v == 0 {
		return certain(c)
	}
	// The mixture's variance relative to that of the difference at the expected
	// size minimises the width there (Waudby-Smith, Arbour, Sinha, Kennedy and
	// Ramdas 2024, appendix B.2).
	logAlpha := -2 * math.Log(alpha)
	ratio := (logAlpha + math.Log(logAlpha+1)) / float64(max(2, expected))
	mixture := v * (a + b) * ratio // tau^2
	z := c.Difference * c.Difference
	logLikelihood := 0.5*math.Log(v/(v+mixture)) + z*mixture/(2*v*(v+mixture))
	c.P = math.Min(1, math.Exp(-logLikelihood))
	width := math.Sqrt(2 * v * (v + mixture) / mixture * (math.Log(1/alpha) + 0.5*math.Log((v+mixture)/v)))
	c.Low, c.High = c.Difference-width, c.Difference+width
	return c
}

// SampleRatio is the p-value of Pearson's chi-square test that users fell to
// variants as the weights say. A small one means that the assignment or the
// recording is broken and that no result may be believed.
func SampleRatio(counts []int64, weights []uint32) float64 {
	shares := make([]float64, len(weights))
	for i, w := range weights {
		shares[i] = float64(w)
	}
	return chiSquare(counts, shares)
}

// chiSquare is the p-value of Pearson's test that counts fall as the shares say,
// apart from shares of 0.
func chiSquare(counts []int64, shares []float64) float64 {
	total, sum := int64(0), 0.0
	for i, n := range counts {
		total += n
		sum += shares[i]
	}
	if total == 0 {
		return 1
	}
	statistic, degrees := 0.0, -1.0
	for i, n := range counts {
		if shares[i] == 0 {
			continue
		}
		expected := float64(total) * shares[i] / sum
		statistic += (float64(n) - expected) * (float64(n) - expected) / expected
		degrees++
	}
	return distuv.ChiSquared{K: math.Max(1, degrees)}.Survival(statistic)
}

// Holm adjusts p-values so that the chance of any false alarm among them stays
// at alpha (Holm 1979).
func Holm(p []float64) []float64 {
	order := ascending(p)
	out, running := make([]float64, len(p)), 0.0
	for rank, i := range order {
		running = math.Max(running, math.Min(1, float64(len(p)-rank)*p[i]))
		out[i] = running
	}
	return out
}

// ascending are the indexes of p in rising order.
func ascending(p []float64) []int {
	order := make([]int, len(p))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		switch {
		case p[a] < p[b]:
			return -1
		case p[a] > p[b]:
			return 1
		}
		return 0
	})
	return order
}

// Wilson is the confidence interval of a rate of hits among n (Wilson 1927).
func Wilson(hits, n int64, alpha float64) (low, high float64) {
	if n == 0 {
		return 0, 1
	}
	z := normal().Quantile(1 - alpha/2)
	p, size := float64(hits)/float64(n), float64(n)
	centre := (p + z*z/(2*size)) / (1 + z*z/size)
	width := z / (1 + z*z/size) * math.Sqrt(p*(1-p)/size+z*z/(4*size*size))
	return math.Max(0, centre-width), math.Min(1, centre+width)
}

// RateDifference is the confidence interval of a difference of two rates, by
// Newcombe's hybrid score (1998, method 10); it stays within -1 and 1 and holds
// for rates near 0.
func RateDifference(controlHits, controlN, treatmentHits, treatmentN int64, alpha float64) (low, high float64) {
	if controlN == 0 || treatmentN == 0 {
		return -1, 1
	}
	c, t := float64(controlHits)/float64(controlN), float64(treatmentHits)/float64(treatmentN)
	cLow, cHigh := Wilson(controlHits, controlN, alpha)
	tLow, tHigh := Wilson(treatmentHits, treatmentN, alpha)
	return t - c - math.Hypot(t-tLow, cHigh-c), t - c + math.Hypot(tHigh-t, c-cLow)
}

// RateTest is the two-sided p-value of Pearson's chi-square test, without
// correction, that two rates are the same; 1 where all or none are hits.
func RateTest(controlHits, controlN, treatmentHits, treatmentN int64) float64 {
	c, t := float64(controlN), float64(treatmentN)
	rate := float64(controlHits+treatmentHits) / (c + t)
	variance := rate * (1 - rate) * (1/c + 1/t)
	if !(variance > 0) {
		return 1
	}
	difference := float64(treatmentHits)/t - float64(controlHits)/c
	return 2 * normal().CDF(-math.Abs(difference)/math.Sqrt(variance))
}

// Cuped takes out of each group's values what the time before the experiment
// explains (Deng, Xu, Kohavi and Walker 2013). The means keep their expected
// difference, and the variances shrink by the square of the correlation.
func Cuped(control, treatment Pair) (Moments, Moments) {
	spread := control.Before.M2 + treatment.Before.M2
	if spread == 0 {
		return control.Value, treatment.Value
	}
	theta := (control.Co + treatment.Co) / spread
	all := control.Before
	all.Merge(treatment.Before)
	adjust := func(p Pair) Moments {
		return Moments{
			N:    p.Value.N,
			Mean: p.Value.Mean - theta*(p.Before.Mean-all.Mean),
			M2:   math.Max(0, p.Value.M2-2*theta*p.Co+theta*theta*p.Before.M2),
		}
	}
	return adjust(control), adjust(treatment)
}

// ratioConcentration is how closely the alternative of SampleRatioSequential
// lies around the weights. Any value is valid; a large one finds small
// imbalances in large experiments.
const ratioConcentration = 10000

// SampleRatioSequential is SampleRatio for looking at any time: the reciprocal
// of the Bayes factor of a Dirichlet mixture against the weights (Lindon and
// Malek 2022), a p-value that is valid whenever it is read.
func SampleRatioSequential(counts []int64, weights []uint32) float64 {
	sum, total := 0.0, int64(0)
	for i, n := range counts {
		sum += float64(weights[i])
		total += n
	}
	logFactor := logGamma(ratioConcentration) - logGamma(ratioConcentration+float64(total))
	for i, n := range counts {
		share := float64(weights[i]) / sum
		prior := ratioConcentration * share
		logFactor += logGamma(prior+float64(n)) - logGamma(prior) - float64(n)*math.Log(share)
	}
	return math.Min(1, math.Exp(-logFactor))
}

func logGamma(x float64) float64 {
	v, _ := math.Lgamma(x)
	return v
}
