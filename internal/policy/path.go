package policy

import (
	"errors"
	"fmt"
	"strings"
)

// segment is one part of a pattern: a text, or a variable that stands for any
// text but the empty one.
type segment struct {
	text     string
	variable bool
}

// pattern is what a rule's path, prefix or template says.
type pattern struct {
	segments []segment
	// open: any number of further segments may follow.
	open bool
}

// pattern reads the one of path, prefix and template that is set; none matches
// everything. fold takes lower case for all letters, strict keeps a slash at
// the end as an empty last segment.
func (c MatchConfig) pattern(fold, strict bool) (pattern, error) {
	text := c.Path + c.Prefix + c.Template
	if text == "" {
		return pattern{open: true}, nil
	}
	if text[0] != '/' {
		return pattern{}, errors.New("a path that begins with /")
	}
	if strings.ContainsAny(text, `?#;\*`) {
		return pattern{}, errors.New(`a path without ? # ; * and \; prefix and template take the place of wildcards`)
	}
	plain, ok := decodeOnce(text)
	if !ok {
		return pattern{}, errors.New("a path with complete escapes and without control characters")
	}
	if strings.Contains(plain, "%") {
		return pattern{}, errors.New("a path without escaped slashes or per cent signs")
	}
	// Where it is open, a slash at the end says nothing.
	plain = trimSlash(plain[1:], strict && c.Prefix == "")
	if fold && c.Template == "" {
		plain = lower(plain)
	}
	p := pattern{open: c.Prefix != ""}
	if plain == "" {
		return p, nil
	}
	parts := strings.Split(plain, "/")
	for i, part := range parts {
		last := i == len(parts)-1
		s := segment{text: part}
		switch {
		case part == "" && !last || part == "." || part == "..":
			return pattern{}, errors.New("a path without //, . and .. segments")
		case c.Template != "" && strings.HasPrefix(part, "{") && strings.HasSuffix(part, "...}") && last:
			if !isName(part[1 : len(part)-4]) {
				return pattern{}, errors.New("variables named by letters, digits, dashes and underscores")
			}
			p.open = true
			return p, nil
		case c.Template != "" && strings.HasPrefix(part, "{") && strings.HasSuffix(part, "}"):
			if !isName(part[1 : len(part)-1]) {
				return pattern{}, errors.New("variables named by letters, digits, dashes and underscores, and {name...} at the end alone")
			}
			s = segment{variable: true}
		case strings.ContainsAny(part, "{}"):
			return pattern{}, errors.New("variables that are a whole segment of a template, such as /users/{id}")
		}
		if fold {
			s.text = lower(s.text)
		}
		p.segments = append(p.segments, s)
	}
	return p, nil
}

// covers reports whether every path that q matches is matched by p.
func (p pattern) covers(q pattern) bool {
	if len(p.segments) > len(q.segments) {
		return false
	}
	for i, s := range p.segments {
		o := q.segments[i]
		if !s.variable && s != o || s.variable && !o.variable && o.text == "" {
			return false
		}
	}
	return p.open || len(p.segments) == len(q.segments) && !q.open
}

// cutSegment takes the first segment off a path without its leading slash.
func cutSegment(path string) (part, rest string, more bool) {
	return strings.Cut(path, "/")
}

// readings returns a request's path as a careful backend reads it, and as the
// most careless one might; neither has a leading slash. The two are mostly the
// same string, and then nothing is allocated. ok is false for what is no path.
//
// The careful reading cuts the query off and decodes escapes once, except the
// slash's. The careless one decodes until nothing is left to decode, takes \
// for /, cuts matrix parameters (;x=1) off each segment and a query that was
// escaped, drops empty and . segments and resolves .. segments.
func readings(target string, fold, strict bool) (careful, careless string, ok bool) {
	if target == "" || target[0] != '/' {
		return "", "", false
	}
	plain := true
	end := len(target)
scan:
	for i := 1; i < len(target); i++ {
		switch c := target[i]; {
		case c == '?':
			end = i
			break scan
		case c == '#' || c < ' ' || c == 0x7f:
			return "", "", false
		case c == '%' || c == ';' || c == '\\' || c >= 0x80 ||
			target[i-1] == '/' && (c == '/' || c == '.') ||
			fold && c >= 'A' && c <= 'Z':
			plain = false
		}
	}
	path := target[:end]
	if plain {
		path = trimSlash(path[1:], strict)
		return path, path, true
	}
	once, ok := decodeOnce(path)
	if !ok {
		return "", "", false
	}
	loose, ok := loosen(once)
	if !ok {
		return "", "", false
	}
	if fold {
		once, loose = lower(once), lower(loose)
	}
	return trimSlash(once[1:], strict), trimSlash(loose, strict), true
}

// maxDecodings is how often a path may have been escaped.
const maxDecodings = 4

// loosen makes the careless reading of a path whose escapes were decoded once.
func loosen(path string) (string, bool) {
	for n := 0; ; n++ {
		next, changed, ok := decode(path, true)
		if !ok || !changed {
			break
		}
		if n == maxDecodings {
			return "", false
		}
		path = next
	}
	if hasControl(path) || hasOverlong(path) {
		return "", false
	}
	if at := strings.IndexAny(path, "?#"); at >= 0 {
		path = path[:at]
	}
	var out []string
	parts := strings.Split(strings.ReplaceAll(path, `\`, "/"), "/")
	trailing := false
	for _, part := range parts {
		part, _, _ = strings.Cut(part, ";")
		trailing = part == "" || part == "." || part == ".."
		switch part {
		case "", ".":
		case "..":
			out = out[:max(0, len(out)-1)]
		default:
			out = append(out, part)
		}
	}
	loose := strings.Join(out, "/")
	if trailing && loose != "" {
		loose += "/"
	}
	return loose, true
}

// decodeOnce decodes escapes, except that of the slash, which becomes %2F, and
// that of the per cent sign, which becomes %25, so that what was escaped twice
// can still be told. ok is false for an escape that is none, and for control
// characters.
func decodeOnce(path string) (string, bool) {
	out, _, ok := decode(path, false)
	return out, ok && !hasControl(out)
}

// decode decodes escapes, and reports whether there were any. ok is false for a
// per cent sign that begins no escape; with all it is kept, and also slashes
// and per cent signs are decoded.
func decode(path string, all bool) (out string, changed, ok bool) {
	if strings.IndexByte(path, '%') < 0 {
		return path, false, true
	}
	b := make([]byte, 0, len(path))
	for i := 0; i < len(path); i++ {
		c := path[i]
		if c != '%' {
			b = append(b, c)
			continue
		}
		if i+2 >= len(path) || unhex(path[i+1]) < 0 || unhex(path[i+2]) < 0 {
			if !all {
				return "", false, false
			}
			b = append(b, c)
			continue
		}
		c = byte(unhex(path[i+1])<<4 | unhex(path[i+2]))
		i += 2
		if !all && (c == '/' || c == '%') {
			b = fmt.Appendf(b, "%%%02X", c)
			continue
		}
		changed = true
		b = append(b, c)
	}
	return string(b), changed, true
}

func unhex(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

func hasControl(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] == 0x7f {
			return true
		}
	}
	return false
}

// hasOverlong reports whether s has a byte that no UTF-8 has, and that old
// decoders took for the start of an ASCII character, such as C0 AE for a dot.
func hasOverlong(s string) bool {
	return strings.IndexByte(s, 0xc0) >= 0 || strings.IndexByte(s, 0xc1) >= 0
}

// trimSlash takes one slash off the end, unless strict.
func trimSlash(path string, strict bool) string {
	if strict {
		return path
	}
	return strings.TrimSuffix(path, "/")
}

// lower folds ASCII letters alone, as routers do.
func lower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}
