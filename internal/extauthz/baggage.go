package extauthz

import (
	"net/url"
	"strings"

	"github.com/tollgate-proxy/tollgate/internal/config"
)

// What the W3C says every receiver passes on (https://www.w3.org/TR/baggage/):
// more may be lost on the way.
const (
	maxBaggageBytes   = 8192
	maxBaggageMembers = 64
	baggageHeader     = "baggage"
)

// BaggageConfig is the section "baggage": what is handed on in the W3C baggage
// header, which OpenTelemetry carries from service to service.
type BaggageConfig struct {
	Flags       string `yaml:"flags" doc:"Member of the W3C baggage header that carries the packed feature flags from service to service, such as feature-flags; empty adds none."`
	Experiments string `yaml:"experiments" doc:"Member of the W3C baggage header that carries the variants that experiments dealt, such as experiments; empty adds none."`
}

// Validate checks the section.
func (c BaggageConfig) Validate(r *config.Report) {
	for key, name := range map[string]string{"flags": c.Flags, "experiments": c.Experiments} {
		if name != "" && !headerName("x-"+name) {
			r.Fault(key, name, "empty, or 1 to 62 lower-case letters, digits and dashes")
		}
	}
	if c.Flags != "" && c.Flags == c.Experiments {
		r.Fault("experiments", c.Experiments, "a name other than that of flags")
	}
}

func (c BaggageConfig) on() bool { return c != BaggageConfig{} }

// append writes the header: the client's members, but for those under our names,
// and ours. Ours come first, so that it is the client's that do not fit.
func (c BaggageConfig) append(dst []byte, client, flags, experiments string) []byte {
	members := 0
	add := func(size int) bool {
		if members == maxBaggageMembers || len(dst)+1+size > maxBaggageBytes {
			return false
		}
		if members++; members > 1 {
			dst = append(dst, ',')
		}
		return true
	}
	var buf [1024]byte
	for _, m := range [2]struct{ name, value string }{{c.Flags, flags}, {c.Experiments, experiments}} {
		if m.name == "" || m.value == "" {
			continue
		}
		if value := appendBaggageValue(buf[:0], m.value); add(len(m.name) + 1 + len(value)) {
			dst = append(append(append(dst, m.name...), '='), value...)
		}
	}
	for client != "" {
		var member string
		member, client, _ = strings.Cut(client, ",")
		if member = strings.Trim(member, " \t"); c.foreign(member) && add(len(member)) {
			dst = append(dst, member...)
		}
	}
	return dst
}

// foreign reports whether a client's member is one, and none of ours in any
// spelling: some libraries decode names too.
func (c BaggageConfig) foreign(member string) bool {
	name, _, ok := strings.Cut(member, "=")
	if !ok || name == "" {
		return false
	}
	if strings.ContainsAny(name, "%+") {
		decoded, err := url.QueryUnescape(name)
		if err != nil {
			return false
		}
		name = decoded
	}
	name = strings.TrimSpace(name)
	return !strings.EqualFold(name, c.Flags) && !strings.EqualFold(name, c.Experiments)
}

// appendBaggageValue percent-encodes what a member's value may not hold, and
// what some libraries cut at.
func appendBaggageValue(dst []byte, value string) []byte {
	const digits = "0123456789ABCDEF"
	for i := range len(value) {
		switch b := value[i]; {
		case b <= ' ', b >= 0x7f, b == '"', b == ',', b == ';', b == '\\', b == '%', b == '=', b == '+':
			dst = append(dst, '%', digits[b>>4], digits[b&15])
		default:
			dst = append(dst, b)
		}
	}
	return dst
}
