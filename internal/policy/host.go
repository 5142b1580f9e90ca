package policy

import (
	"errors"
	"strings"
)

// maxHost is the longest host name, in bytes.
const maxHost = 255

// hostPattern is a name, or with below all names below it.
type hostPattern struct {
	name  string
	below bool
}

var errHost = errors.New("a lower-case host name without port, such as api.example.com or *.example.com")

// parseHost reads a rule's host.
func parseHost(s string) (hostPattern, error) {
	rest, below := strings.CutPrefix(s, "*.")
	name, ok := plainHost(rest)
	if !ok || name != rest || name == "" {
		return hostPattern{}, errHost
	}
	return hostPattern{name, below}, nil
}

func (h hostPattern) covers(o hostPattern) bool {
	if !h.below {
		return h == o
	}
	return o.below && h.name == o.name || len(o.name) > len(h.name) && strings.HasSuffix(o.name, h.name) && o.name[len(o.name)-len(h.name)-1] == '.'
}

// plainHost is an authority without its port, in lower case and without the
// dot of a full name. ok is false for what is no single host, such as the a,b
// of two Host headers.
func plainHost(authority string) (host string, ok bool) {
	host = authority
	if strings.HasPrefix(host, "[") {
		end := strings.IndexByte(host, ']')
		if end < 0 {
			return "", false
		}
		host = host[:end+1]
	} else if at := strings.IndexByte(host, ':'); at >= 0 {
		host = host[:at]
	}
	host = strings.TrimSuffix(host, ".")
	if len(host) > maxHost {
		return "", false
	}
	fold := false
	for i := range len(host) {
		switch c := host[i]; {
		case c >= 'A' && c <= 'Z':
			fold = true
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '-', c == '.', c == '_', c == ':', c == '[', c == ']':
		default:
			return "", false
		}
	}
	if fold {
		host = lower(host)
	}
	return host, true
}
