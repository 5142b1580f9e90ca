package experiment

import (
	"math"
	"math/rand/v2"
	"testing"

	"gonum.org/v1/gonum/stat"
	"pgregory.net/rapid"
)

func near(got, want, tolerance float64) bool {
	return math.Abs(got-want) <= tolerance*math.Max(1, math.Abs(want))
}

func momentsOf(values ...float64) Moments {
	var m Moments
	for _, v := range values {
		m.Add(v)
	}
	return m
}

func TestUser(t *testing.T) {
	var u User
	for k, want := range map[Kind]float64{Sum: 0, Rate: 0} {
		if v, ok := u.Value(k); !ok || v != want {
			t.Errorf("%s of nothing: %v, %v", k, v, ok)
		}
	}
	if _, ok := u.Value(Mean); ok {
		t.Error("nothing has a mean")
	}
	for _, v := range []float64{0, 2, 4} {
		if err := u.Observe(v); err != nil {
			t.Fatal(err)
		}
	}
	for _, v := range []float64{math.NaN(), math.Inf(1)} {
		if err := u.Observe(v); err == nil {
			t.Errorf("%v was observed", v)
		}
	}
	var other User
	if err := other.Observe(6); err != nil {
		t.Fatal(err)
	}
	u.Merge(other)
	for k, want := range map[Kind]float64{Mean: 3, Sum: 12, Rate: 1} {
		if v, ok := u.Value(k); !ok || v != want {
			t.Errorf("%s: %v, %v", k, v, ok)
		}
	}
}

// However values arrive, moments are those of gonum over all of them.
func TestMomentsAgainstOracle(t *testing.T) {
	value := rapid.Float64Range(-1e6, 1e6)
	rapid.Check(t, func(t *rapid.T) {
		a := rapid.SliceOfN(value, 2, 50).Draw(t, "a")
		b := rapid.SliceOfN(value, 0, 50).Draw(t, "b")
		merged, other := momentsOf(a...), momentsOf(b...)
		merged.Merge(other)
		mean, variance := stat.MeanVariance(append(append([]float64{}, a...), b...), nil)
		if merged.N != int64(len(a)+len(b)) || !near(merged.Mean, mean, 1e-9) || !near(merged.Variance(), variance, 1e-9) {
			t.Fatalf("merged %+v, want mean %v, variance %v", merged, mean, variance)
		}
		next := value.Draw(t, "next")
		replaced := momentsOf(a...)
		replaced.Replace(a[0], next)
		mean, variance = stat.MeanVariance(append([]float64{next}, a[1:]...), nil)
		if !near(replaced.Mean, mean, 1e-6) || !near(replaced.Variance(), variance, 1e-3) {
			t.Fatalf("replaced %+v, want mean %v, variance %v", replaced, mean, variance)
		}
	})
	var m Moments
	if m.Variance() != 0 || m.meanVariance() != 0 {
		t.Error("nothing varies")
	}
	m.Add(3)
	m.Remove(3)
	if m != (Moments{}) {
		t.Errorf("got %+v", m)
	}
	m.Merge(Moments{})
	if m != (Moments{}) {
		t.Errorf("got %+v", m)
	}
}

func TestPairAgainstOracle(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var xs, ys []float64
	parts := make([]Pair, 3)
	for i := range 300 {
		x := random.NormFloat64()
		y := 2*x + random.NormFloat64()
		xs, ys = append(xs, x), append(ys, y)
		parts[i%3].Add(y, x)
	}
	var all Pair
	for _, p := range parts {
		all.Merge(p)
	}
	all.Merge(Pair{})
	if got, want := all.Co/float64(len(xs)-1), stat.Covariance(xs, ys, nil); !near(got, want, 1e-9) {
		t.Errorf("covariance %v, want %v", got, want)
	}
}
