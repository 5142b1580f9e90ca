package experiment

import (
	"fmt"
	"math"
)

// User sums one user's observations of one metric.
type User struct {
	Count   int64   `json:"count"`
	Sum     float64 `json:"sum"`
	NonZero int64   `json:"non_zero"`
}

// Observe adds one observation. What is not a finite number is refused.
func (u *User) Observe(value float64) error {
	if math.IsNaN(value) || math.IsInf(value, 0) {
		return fmt.Errorf("observation %v is not a finite number", value)
	}
	u.Count++
	u.Sum += value
	if value != 0 {
		u.NonZero++
	}
	return nil
}

// Merge adds what another replica saw of the same user.
func (u *User) Merge(o User) {
	u.Count += o.Count
	u.Sum += o.Sum
	u.NonZero += o.NonZero
}

// Value is the user's value under a kind of metric. A user without an
// observation has none under Mean; under Sum and Rate it is 0, since being
// exposed and doing nothing is an outcome.
func (u *User) Value(k Kind) (float64, bool) {
	switch k {
	case Mean:
		if u.Count == 0 {
			return 0, false
		}
		return u.Sum / float64(u.Count), true
	case Rate:
		if u.NonZero > 0 {
			return 1, true
		}
		return 0, true
	default:
		return u.Sum, true
	}
}

// Moments are count, mean and variance of values over users, kept so that
// adding, replacing and merging lose no precision (Welford 1962, Chan, Golub
// and LeVeque 1983). The zero value is empty.
type Moments struct {
	N    int64   `json:"n"`
	Mean float64 `json:"mean"`
	// M2 is the sum of squared deviations from the mean.
	M2 float64 `json:"m2"`
}

// Add adds one user's value.
func (m *Moments) Add(x float64) {
	m.N++
	delta := x - m.Mean
	m.Mean += delta / float64(m.N)
	m.M2 += delta * (x - m.Mean)
}

// Remove takes back a value that was added.
func (m *Moments) Remove(x float64) {
	if m.N <= 1 {
		*m = Moments{}
		return
	}
	before := (float64(m.N)*m.Mean - x) / float64(m.N-1)
	m.M2 = math.Max(0, m.M2-(x-before)*(x-m.Mean))
	m.Mean = before
	m.N--
}

// Replace changes one user's value, as when the user is observed again.
func (m *Moments) Replace(old, next float64) {
	m.Remove(old)
	m.Add(next)
}

// Merge adds the values of other users.
func (m *Moments) Merge(o Moments) {
	if o.N == 0 {
		return
	}
	n := float64(m.N + o.N)
	delta := o.Mean - m.Mean
	m.M2 += o.M2 + delta*delta*float64(m.N)*float64(o.N)/n
	m.Mean += delta * float64(o.N) / n
	m.N += o.N
}

// without takes back a Merge: what m was before o was merged into it.
func (m *Moments) without(o Moments) Moments {
	n := m.N - o.N
	switch {
	case o.N == 0:
		return *m
	case n <= 0:
		return Moments{}
	}
	mean := (float64(m.N)*m.Mean - float64(o.N)*o.Mean) / float64(n)
	delta := o.Mean - mean
	return Moments{N: n, Mean: mean, M2: math.Max(0, m.M2-o.M2-delta*delta*float64(n)*float64(o.N)/float64(m.N))}
}

// Variance is the unbiased sample variance; 0 below two values.
func (m *Moments) Variance() float64 {
	if m.N < 2 {
		return 0
	}
	return m.M2 / float64(m.N-1)
}

// variance of the mean.
func (m *Moments) meanVariance() float64 {
	if m.N == 0 {
		return 0
	}
	return m.Variance() / float64(m.N)
}

// Pair are moments of a value together with the same user's value in the time
// before the experiment, for CUPED.
type Pair struct {
	Value  Moments `json:"value"`
	Before Moments `json:"before"`
	// Co is the sum of products of the two deviations.
	Co float64 `json:"co"`
}

// Add adds one user.
func (p *Pair) Add(value, before float64) {
	delta := value - p.Value.Mean
	p.Value.Add(value)
	p.Before.Add(before)
	p.Co += delta * (before - p.Before.Mean)
}

// Merge adds other users.
func (p *Pair) Merge(o Pair) {
	if n := p.Value.N + o.Value.N; n > 0 {
		p.Co += o.Co + (o.Value.Mean-p.Value.Mean)*(o.Before.Mean-p.Before.Mean)*
			float64(p.Value.N)*float64(o.Value.N)/float64(n)
	}
	p.Value.Merge(o.Value)
	p.Before.Merge(o.Before)
}
