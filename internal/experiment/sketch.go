package experiment

import (
	"fmt"

	"github.com/DataDog/sketches-go/ddsketch"
)

const (
	// SketchError is the relative error of a sketch's quantiles.
	SketchError = 0.01
	// maxBins bounds a sketch's memory. At 1 % a bin is 2 % wide, so 2,048
	// cover values that differ by a factor of 10^17; below that, the smallest
	// values lose precision and not the largest.
	maxBins = 2048
)

// Sketch holds the distribution of single observations, for quantiles
// (DDSketch, Masson, Rim and Lee 2019). Sketches of several replicas merge
// without loss. In Redis its bins are the fields of a hash, which replicas add
// to; the library's own binary format is not used, since its decoder panics on
// damaged data. It is not safe for concurrent use.
type Sketch struct {
	inner *ddsketch.DDSketch
}

// NewSketch returns an empty sketch.
func NewSketch() (*Sketch, error) {
	inner, err := ddsketch.LogCollapsingLowestDenseDDSketch(SketchError, maxBins)
	if err != nil {
		return nil, fmt.Errorf("sketch: %w", err)
	}
	return &Sketch{inner: inner}, nil
}

// Add adds one observation, which must be finite.
func (s *Sketch) Add(value float64) error { return s.inner.Add(value) }

// Merge adds another sketch's observations.
func (s *Sketch) Merge(o *Sketch) error { return s.inner.MergeWith(o.inner) }

// Count is the number of observations.
func (s *Sketch) Count() int64 { return int64(s.inner.GetCount()) }

// Quantiles are the values at the quantiles, each from 0 to 1, within
// SketchError of an observation there; nil for an empty sketch.
func (s *Sketch) Quantiles(at ...float64) ([]float64, error) {
	if s.inner.IsEmpty() {
		return nil, nil
	}
	return s.inner.GetValuesAtQuantiles(at)
}
