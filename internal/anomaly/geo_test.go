package anomaly

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestDistance(t *testing.T) {
	for name, c := range map[string]struct {
		lat1, lon1, lat2, lon2, want, within float64
	}{
		// The worked example of Rosetta Code's haversine page, for a radius of 6371 km: 2886.444.
		"Nashville to Los Angeles":                      {36.12, -86.67, 33.94, -118.40, 2886.45, 0.01},
		"a quarter of the equator":                      {0, 0, 0, 90, math.Pi / 2 * earthRadius, 1e-6},
		"pole to pole":                                  {90, 0, -90, 0, math.Pi * earthRadius, 1e-6},
		"across the date line":                          {0, 179.5, 0, -179.5, math.Pi / 180 * earthRadius, 1e-6},
		"antipodes, where asin's argument may exceed 1": {12.3, 45.6, -12.3, -134.4, math.Pi * earthRadius, 1e-3},
		"the same point":                                {52, 13, 52, 13, 0, 0},
		"Berlin to New York":                            {52.52, 13.405, 40.7128, -74.006, 6385, 1},
	} {
		if got := Distance(c.lat1, c.lon1, c.lat2, c.lon2); !(math.Abs(got-c.want) <= c.within) {
			t.Errorf("%s: %f km, want %f", name, got, c.want)
		}
	}
}

func drawPlace(t *rapid.T, label string) Place {
	return Place{
		Country:  rapid.SampledFrom([]string{"", "DE", "US"}).Draw(t, label+" country"),
		Network:  rapid.Uint32().Draw(t, label+" network"),
		Located:  rapid.Bool().Draw(t, label+" located"),
		Latitude: rapid.Float64Range(-90, 90).Draw(t, label+" latitude"), Longitude: rapid.Float64Range(-180, 180).Draw(t, label+" longitude"),
		Radius: rapid.Float64Range(0, 2000).Draw(t, label+" radius"),
	}
}

func TestDistanceIsAMetric(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := drawPlace(t, "a"), drawPlace(t, "b"), drawPlace(t, "c")
		d := func(x, y Place) float64 { return Distance(x.Latitude, x.Longitude, y.Latitude, y.Longitude) }
		if ab, ba := d(a, b), d(b, a); math.Abs(ab-ba) > 1e-6 || ab < 0 || ab > math.Pi*earthRadius+1e-6 {
			t.Fatalf("%f there, %f back", ab, ba)
		}
		if d(a, c) > d(a, b)+d(b, c)+1e-6 {
			t.Fatal("a detour is shorter")
		}
	})
}

// What is kept is less exact than what was known, and never in the user's disfavour.
func TestCoarseNeverFarther(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := drawPlace(t, "a"), drawPlace(t, "b")
		if exact, kept := a.Apart(b), a.Coarse().Apart(b.Coarse()); kept > exact+1e-6 {
			t.Fatalf("%f km apart, kept as %f", exact, kept)
		}
		kept := a.Coarse()
		again, err := readPlace(kept.text())
		if err != nil || again.text() != kept.text() || again.Located && math.Abs(again.Latitude-kept.Latitude)+math.Abs(again.Longitude-kept.Longitude) > 1e-9 {
			t.Fatalf("%+v read back as %+v, %v", kept, again, err)
		}
	})
}

func TestPlaceText(t *testing.T) {
	for name, c := range map[string]struct {
		in   PlaceText
		want Place
	}{
		"nothing":          {PlaceText{}, Place{}},
		"all":              {PlaceText{"de", "AS64496", "52.5", "13.4", "5"}, Place{"DE", 64496, true, 52.5, 13.4, 5}},
		"no radius":        {PlaceText{"", "64496", "52.5", "13.4", ""}, Place{"", 64496, true, 52.5, 13.4, defaultRadius}},
		"unknown by code":  {PlaceText{Country: "XX"}, Place{}},
		"Tor by code":      {PlaceText{Country: "T1"}, Place{}},
		"no such place":    {PlaceText{Latitude: "91", Longitude: "0", Network: "AS"}, Place{}},
		"not a number":     {PlaceText{Latitude: "NaN", Longitude: "0", Network: "-1", Country: "DEU"}, Place{}},
		"the origin":       {PlaceText{Latitude: "0", Longitude: "0.0"}, Place{}},
		"half of it":       {PlaceText{Latitude: "52.5"}, Place{}},
		"an absurd radius": {PlaceText{"", "", "1", "1", "1e9"}, Place{"", 0, true, 1, 1, defaultRadius}},
	} {
		if got := c.in.Parse(); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

func FuzzReadPlace(f *testing.F) {
	for _, s := range []string{"DE,64496,525,134,28", ",0,,,", "DE,64496,,,", "x", ",,,,", "DE,1,a,b,c", "DE,-1,1,1,1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := readPlace(s)
		if err != nil {
			return
		}
		again, err := readPlace(p.text())
		if err != nil || again != p {
			t.Errorf("%q is %+v, then %+v, %v", s, p, again, err)
		}
	})
}

func TestOutruns(t *testing.T) {
	for name, c := range map[string]struct {
		distance float64
		gap      time.Duration
		want     bool
	}{
		"just possible": {900, time.Hour, false},
		"just not":      {900.1, time.Hour, true},
		"at once":       {0.1, 0, true},
		"nowhere":       {0, 0, false},
	} {
		if outruns(c.distance, c.gap, 900) != c.want {
			t.Errorf("%s: %v", name, !c.want)
		}
	}
}
