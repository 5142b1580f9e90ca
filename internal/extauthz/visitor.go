package extauthz

import (
	"strings"

	"github.com/tollgate-proxy/tollgate/internal/config"
)

// VisitorConfig is the section "visitor": where anonymous clients bring a stable
// key of their own. Nothing proves that it is theirs.
type VisitorConfig struct {
	Header string `yaml:"header" doc:"Header that holds an anonymous visitor's stable key, such as x-device-id, so that roll-outs are stable for the visitor and experiments with anonymous: true count it; empty for none. Envoy must send the header to authz (allowed_headers)."`
	Cookie string `yaml:"cookie" doc:"Cookie that holds an anonymous visitor's stable key where the header does not; empty for none."`
}

// Validate checks the section.
func (c VisitorConfig) Validate(r *config.Report) {
	if c.Header != "" && !headerName(c.Header) {
		r.Fault("header", c.Header, "empty, or a header name of lower-case letters, digits and dashes that begins with x-")
	}
	if c.Cookie != "" && strings.Trim(c.Cookie, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") != "" {
		r.Fault("cookie", c.Cookie, "empty, or a cookie name of letters, digits, dashes, underscores and dots")
	}
}

// maxVisitor bounds a key, in bytes.
const maxVisitor = 128

// key is the key that the client brings; empty where it brings none that is
// usable.
func (c *VisitorConfig) key(a *attributes) string {
	header := a.visitorHeader
	if c.Header == deviceHeader {
		header = a.deviceID
	}
	if usableVisitor(header) {
		return header
	}
	for rest := a.cookie; c.Cookie != "" && rest != ""; {
		var pair string
		pair, rest, _ = strings.Cut(rest, ";")
		name, value, _ := strings.Cut(strings.TrimLeft(pair, " "), "=")
		if name == c.Cookie && usableVisitor(value) {
			return value
		}
	}
	return ""
}

func usableVisitor(key string) bool {
	if key == "" || len(key) > maxVisitor {
		return false
	}
	for i := range len(key) {
		c := key[i]
		if letter := c|0x20 >= 'a' && c|0x20 <= 'z'; !letter && (c < '0' || c > '9') && strings.IndexByte("-._~+/=:", c) < 0 {
			return false
		}
	}
	return true
}
