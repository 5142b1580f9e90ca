package anomaly

import "math"

// hoursOfDay is a histogram over the hours of the day, in UTC: counts of how often the user was active in each.
type hoursOfDay [24]int

// direction is what circular statistics say of a histogram: hours lie on a circle, so that 23 is next to 0 and the mean
// of 23 and 1 is 0, not 12. Mardia and Jupp, Directional Statistics (2000), chapter 2.
type direction struct {
	n int
	// mean is the mean direction in radians, 0 to 2π; meaningless where length is 0.
	mean float64
	// length is the mean resultant length: 1 where all are at one point, near 0 where they are all around.
	length float64
}

// directionOf takes angles in radians, each weighted.
func directionOf(angles []float64, weights []int) direction {
	var n int
	var sin, cos float64
	for i, a := range angles {
		w := 1
		if weights != nil {
			w = weights[i]
		}
		n += w
		sin += float64(w) * math.Sin(a)
		cos += float64(w) * math.Cos(a)
	}
	if n == 0 {
		return direction{}
	}
	mean := math.Atan2(sin, cos)
	if mean < 0 {
		mean += 2 * math.Pi
	}
	return direction{n: n, mean: mean, length: min(math.Hypot(sin, cos)/float64(n), 1)}
}

// deviation is the circular standard deviation in radians, sqrt(-2 ln length): infinite for a length of 0.
func (d direction) deviation() float64 { return math.Sqrt(-2 * math.Log(d.length)) }

// rayleigh is the p-value of Rayleigh's test: how likely so long a resultant is by chance where no direction is
// preferred. The approximation is Zar's, Biostatistical Analysis (1999), equation 27.4.
func (d direction) rayleigh() float64 {
	if d.n == 0 {
		return 1
	}
	n := float64(d.n)
	r := n * d.length
	return min(math.Exp(math.Sqrt(1+4*n+4*(n*n-r*r))-(1+2*n)), 1)
}

const radiansAnHour = 2 * math.Pi / 24

func (h *hoursOfDay) direction() direction {
	var angles [24]float64
	for i := range angles {
		angles[i] = (float64(i) + 0.5) * radiansAnHour
	}
	return directionOf(angles[:], h[:])
}

// near is the share of the counts within hourWidth of an hour, around the circle.
func (h *hoursOfDay) near(hour int) float64 {
	total, close := 0, 0
	for i, n := range h {
		total += n
		apart := max(i-hour, hour-i)
		if min(apart, 24-apart) <= hourWidth {
			close += n
		}
	}
	if total == 0 {
		return 0
	}
	return float64(close) / float64(total)
}

func (h *hoursOfDay) total() int {
	total := 0
	for _, n := range h {
		total += n
	}
	return total
}

// hourWidth is how many hours to either side count as the same time of day: a change of daylight saving time, and
// somebody who is late, are nothing unusual.
const hourWidth = 2

// habitual is the p-value of Rayleigh's test below which a user has hours at all.
const habitual = 0.01

// unusual says whether an hour is unusual for who has this histogram: there is a preferred time of day, and the share
// of the counts around the hour is below rare. A user who is active around the clock has no unusual hours.
func (h *hoursOfDay) unusual(hour int, rare float64) bool {
	return h.direction().rayleigh() < habitual && h.near(hour) < rare
}
