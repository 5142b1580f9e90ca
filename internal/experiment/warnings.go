package experiment

import (
	"fmt"
	"math"
)

// When gaps are worth a warning. Requests that are on their way look like gaps:
// few requests say nothing.
const (
	leastDealt = 1000
	// gapWorth is a share of the requests, gapDifference one between variants.
	gapWorth      = 0.02
	gapDifference = 0.01
	gapP          = 0.001
)

// warnings says what may be wrong with the measurement, other than the sample
// ratio.
func warnings(d *Definition, data []VariantData) []string {
	out := []string{}
	users, dealt, lost := int64(0), int64(0), make([]int64, len(data))
	shares, least, most, lostAll := make([]float64, len(data)), math.Inf(1), 0.0, int64(0)
	for i := range data {
		users += data[i].Users
		dealt += data[i].Dealt
		lost[i] = max(0, data[i].Dealt-data[i].Seen)
		lostAll += lost[i]
		shares[i] = float64(data[i].Dealt)
		gap := float64(lost[i]) / math.Max(1, shares[i])
		least, most = math.Min(least, gap), math.Max(most, gap)
	}
	if dealt >= leastDealt {
		if share := float64(lostAll) / float64(dealt); share > gapWorth {
			out = append(out, fmt.Sprintf("%.1f %% of the requests are missing in the access log: results rest on the others", 100*share))
		}
		if most-least > gapDifference && chiSquare(lost, shares) < gapP {
			out = append(out, fmt.Sprintf("requests are missing more often from one variant (%.1f %%) than from another (%.1f %%): results may be biased", 100*most, 100*least))
		}
	}
	if most := d.maximumUsers(); users >= most {
		out = append(out, fmt.Sprintf("there are %d users, as many as are measured at most: further ones are left out", users))
	}
	return out
}
