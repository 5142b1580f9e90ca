package anomaly

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Place is where an address is thought to be. Each part may be unknown.
type Place struct {
	// Country is an ISO 3166-1 alpha-2 code in capitals.
	Country string
	// Network is the number of the autonomous system; 0 where unknown.
	Network uint32
	// Located says whether Latitude and Longitude, in degrees, are known; Radius is their accuracy in kilometres.
	Located             bool
	Latitude, Longitude float64
	Radius              float64
}

// Known says whether anything is known.
func (p Place) Known() bool { return p.Country != "" || p.Network != 0 || p.Located }

// earthRadius is the mean radius in kilometres (IUGG: (2a+b)/3).
const earthRadius = 6371.0088

// Distance is the great-circle distance in kilometres between two points in degrees, on a sphere: within 0.56 % of the
// ellipsoid.
func Distance(latitude1, longitude1, latitude2, longitude2 float64) float64 {
	const degree = math.Pi / 180
	sinLat := math.Sin((latitude2 - latitude1) * degree / 2)
	sinLon := math.Sin((longitude2 - longitude1) * degree / 2)
	h := sinLat*sinLat + math.Cos(latitude1*degree)*math.Cos(latitude2*degree)*sinLon*sinLon
	return 2 * earthRadius * math.Asin(math.Sqrt(min(h, 1)))
}

// Apart is how far two places are apart at least, in kilometres: the distance less both radii. It is 0 where either is
// not located.
func (p Place) Apart(other Place) float64 {
	if !p.Located || !other.Located {
		return 0
	}
	return max(Distance(p.Latitude, p.Longitude, other.Latitude, other.Longitude)-p.Radius-other.Radius, 0)
}

// coarse is the grid, in degrees, that coordinates are kept on, and coarseRadius what that may move a point, in
// kilometres: half the diagonal of a cell at the equator.
const (
	coarse       = 0.1
	coarseRadius = 8
)

// Coarse rounds the place to what is kept: a tenth of a degree and whole kilometres, the radius enlarged by what
// rounding moved.
func (p Place) Coarse() Place {
	if p.Located {
		p.Latitude = math.Round(p.Latitude/coarse) * coarse
		p.Longitude = math.Round(p.Longitude/coarse) * coarse
		p.Radius = math.Ceil(p.Radius) + coarseRadius
	}
	return p
}

// text is the place in the form in which it is kept: country, network, and in tenths of a degree and kilometres where
// it is. The place must be coarse.
func (p Place) text() string {
	where := ",,"
	if p.Located {
		where = fmt.Sprintf("%d,%d,%d", int(math.Round(p.Latitude/coarse)), int(math.Round(p.Longitude/coarse)), int(p.Radius))
	}
	return p.Country + "," + strconv.FormatUint(uint64(p.Network), 10) + "," + where
}

var errPlace = errors.New("not a place")

// readPlace reads what text wrote.
func readPlace(s string) (Place, error) {
	fields := strings.Split(s, ",")
	if len(fields) != 5 {
		return Place{}, errPlace
	}
	network, err := strconv.ParseUint(fields[1], 10, 32)
	if err != nil {
		return Place{}, errPlace
	}
	p := Place{Country: fields[0], Network: uint32(network)}
	if fields[2] == "" {
		return p, nil
	}
	var n [3]int
	for i := range n {
		if n[i], err = strconv.Atoi(fields[2+i]); err != nil {
			return Place{}, errPlace
		}
	}
	p.Located, p.Latitude, p.Longitude, p.Radius = true, float64(n[0])*coarse, float64(n[1])*coarse, float64(n[2])
	return p, nil
}

// label names the place for people.
func (p Place) label() string {
	country := p.Country
	if country == "" {
		country = "an unknown country"
	}
	if p.Network == 0 {
		return country
	}
	return fmt.Sprintf("%s (AS%d)", country, p.Network)
}

// outruns says whether going so far in so long takes more than the speed, in kilometres and kilometres an hour.
func outruns(distance float64, gap time.Duration, speed float64) bool {
	return distance > speed*gap.Hours()
}

// PlaceText is a place as trusted headers give it; each part may be empty. Only a proxy may be able to set them.
type PlaceText struct {
	// Country is an ISO 3166-1 alpha-2 code, Network the number of an autonomous system, with or without AS before it.
	Country, Network string
	// Latitude and Longitude are in degrees, Radius in kilometres.
	Latitude, Longitude, Radius string
}

// defaultRadius is the accuracy of coordinates that come without one, in kilometres: that of a city.
const defaultRadius = 50

// Parse reads the place. A part that cannot be read is left out: headers of a proxy say XX, or nothing, where the proxy
// does not know.
func (t PlaceText) Parse() Place {
	p := Place{Country: country(t.Country)}
	number := t.Network
	if len(number) > 2 && strings.EqualFold(number[:2], "AS") {
		number = number[2:]
	}
	if n, err := strconv.ParseUint(number, 10, 32); err == nil {
		p.Network = uint32(n)
	}
	latitude, err1 := strconv.ParseFloat(t.Latitude, 64)
	longitude, err2 := strconv.ParseFloat(t.Longitude, 64)
	if err1 == nil && err2 == nil {
		p.locate(latitude, longitude, defaultRadius)
		if r, err := strconv.ParseFloat(t.Radius, 64); err == nil && r >= 0 && r < earthRadius {
			p.Radius = r
		}
	}
	return p
}

// locate sets the coordinates where they are some on Earth; the very origin, in the sea, is what databases say for
// unknown.
func (p *Place) locate(latitude, longitude, radius float64) {
	if !(math.Abs(latitude) <= 90 && math.Abs(longitude) <= 180) || latitude == 0 && longitude == 0 {
		return
	}
	p.Located, p.Latitude, p.Longitude, p.Radius = true, latitude, longitude, radius
}

// country returns a code that is one, in capitals, or nothing. XX, ZZ and T1 (Tor) are codes for unknown.
func country(code string) string {
	if len(code) != 2 {
		return ""
	}
	code = strings.ToUpper(code)
	for i := range len(code) {
		if code[i] < 'A' || code[i] > 'Z' {
			return ""
		}
	}
	if code == "XX" || code == "ZZ" {
		return ""
	}
	return code
}
