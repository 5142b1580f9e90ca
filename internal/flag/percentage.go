package flag

import (
	"fmt"
	"math"
	"strconv"
)

// Percentage is a share in thousandths of a percent, 0 to 100,000. In JSON and
// YAML it is a number of percent with at most three decimals.
type Percentage int32

const (
	// Percent is one percent.
	Percent Percentage = 1000
	// Everyone is 100 %.
	Everyone Percentage = 100 * Percent
)

// ParsePercentage reads a number of percent, such as "12.5" or "0.001".
func ParsePercentage(text string) (Percentage, error) {
	f, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return 0, fmt.Errorf("percentage %q is not a number", text)
	}
	return PercentageOf(f)
}

// PercentageOf converts a number of percent. It fails outside 0 to 100 and
// for more than three decimals.
func PercentageOf(percent float64) (Percentage, error) {
	scaled := percent * float64(Percent)
	rounded := math.Round(scaled)
	if !(percent >= 0 && percent <= 100) || math.Abs(scaled-rounded) > 1e-6 {
		return 0, fmt.Errorf("percentage %v is not between 0 and 100 in steps of 0.001", percent)
	}
	return Percentage(rounded), nil
}

// String formats the number of percent without a sign.
func (p Percentage) String() string {
	return strconv.FormatFloat(float64(p)/float64(Percent), 'f', -1, 64)
}

// MarshalJSON writes the number of percent.
func (p Percentage) MarshalJSON() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalJSON reads the number of percent.
func (p *Percentage) UnmarshalJSON(data []byte) (err error) {
	*p, err = ParsePercentage(string(data))
	return err
}
