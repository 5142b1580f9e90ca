package anomaly

import (
	"net/netip"
	"strings"
	"unicode"
)

// City names the city where an address is, in English; empty where no file says. It is for people to read: nothing is
// judged by it. Safe for concurrent use.
func (p *Places) City(address netip.Addr) string {
	address = address.Unmap().WithZone("")
	for _, d := range p.inUse.Load().files {
		result := d.reader.Load().Lookup(address)
		if result.Err() != nil || !result.Found() {
			continue
		}
		for _, path := range [...][]any{{"city", "names", "en"}, {"city"}} { // MaxMind's layout, and others'
			var name string
			if result.DecodePath(&name, path...) == nil && name != "" && !strings.ContainsFunc(name, unicode.IsControl) {
				return name
			}
		}
	}
	return ""
}
