package httpcache

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// maxAge bounds what an age or lifetime can be (RFC 9111, section 1.2.2).
const maxAge = (1 << 31) * time.Second

// directives is a parsed Cache-Control: names in lower case, arguments without
// quotes. A name that stands twice keeps its first argument.
type directives map[string]string

func parseDirectives(values []string) directives {
	var d directives
	for _, v := range values {
		for v != "" {
			var part string
			part, v = nextPart(v)
			name, arg, _ := strings.Cut(strings.TrimSpace(part), "=")
			name = strings.ToLower(strings.TrimSpace(name))
			if name == "" {
				continue
			}
			if d == nil {
				d = directives{}
			}
			if _, twice := d[name]; !twice {
				d[name] = strings.Trim(strings.TrimSpace(arg), `"`)
			}
		}
	}
	return d
}

// nextPart cuts at the first comma outside quotes.
func nextPart(v string) (part, rest string) {
	quoted := false
	for i := range len(v) {
		switch {
		case v[i] == '"' && (i == 0 || v[i-1] != '\\'):
			quoted = !quoted
		case v[i] == ',' && !quoted:
			return v[:i], v[i+1:]
		}
	}
	return v, ""
}

func (d directives) has(name string) bool {
	_, ok := d[name]
	return ok
}

// seconds is the argument of a directive as a time; one that is no number is
// taken for 0, which is the safe side: stale.
func (d directives) seconds(name string) (time.Duration, bool) {
	arg, ok := d[name]
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(arg, 10, 64)
	if err != nil {
		return 0, true
	}
	if n >= uint64(maxAge/time.Second) {
		return maxAge, true
	}
	return time.Duration(n) * time.Second, true
}

// age is how old an answer was when it arrived (RFC 9111, section 4.2.3,
// without the correction for the time of the transfer).
func age(h http.Header, now time.Time) time.Duration {
	var a time.Duration
	if n, err := strconv.ParseUint(h.Get("Age"), 10, 31); err == nil {
		a = time.Duration(n) * time.Second
	}
	if date, err := http.ParseTime(h.Get("Date")); err == nil {
		a = max(a, now.Sub(date))
	}
	return a
}
