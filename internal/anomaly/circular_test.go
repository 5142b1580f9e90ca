package anomaly

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

func degrees(values ...float64) []float64 {
	for i := range values {
		values[i] *= math.Pi / 180
	}
	return values
}

func TestAgainstPublishedValues(t *testing.T) {
	almost := func(name string, got, want, within float64) {
		t.Helper()
		if !(math.Abs(got-want) <= within) {
			t.Errorf("%s: %v, published %v", name, got, want)
		}
	}
	// Zar, Biostatistical Analysis, examples 26.4 and 27.1: directions of eight trees.
	d := directionOf(degrees(45, 55, 81, 96, 110, 117, 132, 154), nil)
	almost("Zar: mean", d.mean*180/math.Pi, 99, 0.5)
	almost("Zar: r", d.length, 0.82522, 5e-5)
	almost("Zar: Rayleigh's R", 8*d.length, 6.60176, 1e-4)
	almost("Zar: Rayleigh's z", 8*d.length*d.length, 5.448, 5e-4)
	if p := d.rayleigh(); p < 0.001 || p > 0.002 {
		t.Errorf("Zar: p = %v, published between 0.001 and 0.002", p)
	}

	// The documentation of astropy.stats: circmean, circvar.
	d = directionOf(degrees(51, 67, 40, 109, 31, 358), nil)
	almost("astropy: circmean", d.mean*180/math.Pi, 48.62718088722989, 1e-9)
	almost("astropy: circvar", 1-d.length, 0.16356352748437508, 1e-12)

	// The documentation of scipy.stats.circstd.
	d = directionOf([]float64{0, 0.1 * math.Pi / 2, 0.001 * math.Pi, 0.03 * math.Pi / 2}, nil)
	almost("scipy: circstd", d.deviation(), 0.063564063306, 5e-13)

	// The documentation of pingouin.circ_rayleigh, which uses the same approximation.
	d = directionOf([]float64{0.785, 1.570, 3.141, 0.839, 5.934}, nil)
	almost("pingouin: z", 5*d.length*d.length, 1.236, 5e-4)
	almost("pingouin: p", d.rayleigh(), 0.304844, 5e-7)
}

func TestDirectionBorders(t *testing.T) {
	if d := directionOf(nil, nil); d.rayleigh() != 1 || d.length != 0 {
		t.Errorf("nothing: %+v", d)
	}
	if d := directionOf(degrees(0, 180), nil); d.length > 1e-12 || d.rayleigh() < 0.99 {
		t.Errorf("opposites: %+v", d)
	}
	// 23 h and 1 h are around midnight, not noon.
	var h hoursOfDay
	h[23], h[0] = 10, 10
	if d := h.direction(); math.Min(d.mean, 2*math.Pi-d.mean) > 1e-9 {
		t.Errorf("mean at %v", d.mean/radiansAnHour)
	}
}

func drawHours(t *rapid.T) (h hoursOfDay) {
	for i := range h {
		h[i] = rapid.IntRange(0, 20).Draw(t, "count")
	}
	return h
}

// Turning the clock turns the mean and changes nothing else.
func TestHoursTurn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h, by := drawHours(t), rapid.IntRange(0, 23).Draw(t, "by")
		var turned hoursOfDay
		for i := range h {
			turned[(i+by)%24] = h[i]
		}
		a, b := h.direction(), turned.direction()
		if math.Abs(a.length-b.length) > 1e-9 || math.Abs(a.rayleigh()-b.rayleigh()) > 1e-6 {
			t.Fatalf("%+v became %+v", a, b)
		}
		if a.length > 1e-6 {
			if moved := math.Mod(b.mean-a.mean+4*math.Pi, 2*math.Pi) / radiansAnHour; math.Abs(moved-float64(by)) > 1e-4 && math.Abs(moved-float64(by)-24) > 1e-4 && math.Abs(moved-float64(by)+24) > 1e-4 {
				t.Fatalf("turned by %d h, the mean by %v", by, moved)
			}
		}
		hour := rapid.IntRange(0, 23).Draw(t, "hour")
		if h.near(hour) != turned.near((hour+by)%24) {
			t.Fatal("near is not where it was")
		}
	})
}

func TestUnusualHour(t *testing.T) {
	office, nights, always, split := hoursOfDay{}, hoursOfDay{}, hoursOfDay{}, hoursOfDay{}
	for h := 8; h < 18; h++ {
		office[h] = 20
	}
	for _, h := range []int{21, 22, 23, 0, 1, 2} {
		nights[h] = 20
	}
	for h := range always {
		always[h] = 10
	}
	for _, h := range []int{7, 8, 19, 20} {
		split[h] = 20
	}
	for name, c := range map[string]struct {
		hours hoursOfDay
		hour  int
		want  bool
	}{
		"office, at noon":               {office, 12, false},
		"office, at three":              {office, 3, true},
		"office, an hour early":         {office, 7, false},
		"office, within two hours":      {office, 6, false},
		"nights, over midnight":         {nights, 0, false},
		"nights, at noon":               {nights, 12, true},
		"nobody sleeps":                 {always, 3, false},
		"opposite hours are no habit":   {split, 13, false},
		"nothing is known":              {hoursOfDay{}, 3, false},
		"twice is no habit":             {hoursOfDay{12: 2}, 3, false},
		"one visit at night is no rule": {hoursOfDay{10: 50, 11: 50, 12: 50, 3: 1}, 3, true},
	} {
		if c.hours.unusual(c.hour, 0.02) != c.want {
			t.Errorf("%s: %v", name, !c.want)
		}
	}
}
