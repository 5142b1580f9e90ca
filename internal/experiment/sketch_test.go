package experiment

import (
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func sketchOf(t interface{ Fatal(args ...any) }, values ...float64) *Sketch {
	s, err := NewSketch()
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range values {
		if err := s.Add(v); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// A quantile is within the stated error of the observation at its rank, also
// after merging.
func TestSketchKeepsItsError(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOfN(rapid.Float64Range(1e-6, 1e6), 1, 300).Draw(t, "values")
		cut := rapid.IntRange(0, len(values)).Draw(t, "cut")
		s := sketchOf(t, values[:cut]...)
		if err := s.Merge(sketchOf(t, values[cut:]...)); err != nil {
			t.Fatal(err)
		}
		if s.Count() != int64(len(values)) {
			t.Fatalf("count %d", s.Count())
		}
		slices.Sort(values)
		at := []float64{0, 0.5, 0.95, 0.99, 1}
		got, err := s.Quantiles(at...)
		if err != nil {
			t.Fatal(err)
		}
		for i, q := range at {
			want := values[int(q*float64(len(values)-1))]
			if math.Abs(got[i]-want) > SketchError*want*1.0000001 {
				t.Fatalf("quantile %v: got %v, want %v", q, got[i], want)
			}
		}
	})
}

func TestSketchIsBounded(t *testing.T) {
	s := sketchOf(t)
	for exponent := -300.0; exponent < 300; exponent += 0.005 {
		if err := s.Add(math.Pow(10, exponent)); err != nil {
			t.Fatal(err)
		}
	}
	bins := 0
	s.inner.ForEach(func(float64, float64) bool { bins++; return false })
	if bins > maxBins {
		t.Errorf("%d bins", bins)
	}
	if got, err := s.Quantiles(0.99); err != nil || math.Abs(math.Log10(got[0])-294) > 0.1 {
		t.Errorf("the largest values lost their precision: %v, %v", got, err)
	}
}

func TestEmptySketch(t *testing.T) {
	s := sketchOf(t)
	if q, err := s.Quantiles(0.5); err != nil || q != nil || s.Count() != 0 {
		t.Errorf("got %v, %v", q, err)
	}
	if err := s.Add(math.NaN()); err == nil {
		t.Error("NaN was added")
	}
}

// Whatever stands in Redis is read or refused.
func FuzzReadSketches(f *testing.F) {
	f.Add("latency 0 +12", "3")
	f.Add("latency 0 -2147483648", "1")
	f.Add("latency 0 +9223372036854775807", "9223372036854775807")
	f.Add("z", "")
	f.Fuzz(func(t *testing.T, field, count string) {
		sketches, err := readSketches(map[string]string{field: count})
		if err != nil {
			return
		}
		for _, s := range sketches {
			if _, err := s.Quantiles(0, 0.5, 1); err != nil {
				t.Fatal(err)
			}
		}
	})
}
