package authn

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4/json"
)

// Bounds of what goes from a token into headers.
const (
	maxValue    = 256  // bytes of a subject, session, id or issuer
	maxElement  = 128  // bytes of a role, scope or purpose
	maxElements = 128  // elements of a list
	maxJoined   = 4096 // bytes of a joined list
)

// requirable are the names that IssuerConfig.Require takes.
var requirable = []string{"iat", "nbf", "jti", "sid", "client_id", "tier", "ver", "device_id"}

// path is where a claim is: one member's name, or the names of a JSON pointer.
type path []string

// parsePointer reads the name of a claim, or a JSON pointer (RFC 6901) where it
// begins with a slash. The empty text gives no path.
func parsePointer(s string) (path, error) {
	if s == "" {
		return nil, nil
	}
	if s[0] != '/' {
		return path{s}, nil
	}
	parts := strings.Split(s[1:], "/")
	for i, p := range parts {
		if p == "" || strings.Contains(strings.NewReplacer("~0", "", "~1", "").Replace(p), "~") {
			return nil, fmt.Errorf("%q is not a JSON pointer to a claim", s)
		}
		parts[i] = strings.NewReplacer("~1", "/", "~0", "~").Replace(p)
	}
	return parts, nil
}

// in returns the claim, nil where it is absent or null.
func (p path) in(claims map[string]any) any {
	for i, name := range p {
		v := claims[name]
		if i == len(p)-1 {
			return v
		}
		next, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		claims = next
	}
	return nil
}

// mapping is a compiled ClaimsConfig.
type mapping struct {
	subject, session, tokenID, tier, roles, scopes, consents, version, device, client path
}

func newMapping(c ClaimsConfig) (mapping, error) {
	var m mapping
	for _, f := range []struct {
		to           *path
		value, usual string
	}{
		{&m.subject, c.Subject, "sub"}, {&m.session, c.Session, "sid"}, {&m.tokenID, c.TokenID, "jti"},
		{&m.tier, c.Tier, "tier"}, {&m.roles, c.Roles, "roles"}, {&m.scopes, c.Scopes, "scope"},
		{&m.consents, c.Consents, "consents"}, {&m.version, c.Version, "ver"}, {&m.device, c.Device, "device_id"},
		{&m.client, c.Client, "client_id"},
	} {
		value := f.value
		if value == "" {
			value = f.usual
		}
		p, err := parsePointer(value)
		if err != nil {
			return m, err
		}
		*f.to = p
	}
	return m, nil
}

// reader takes claims out one by one and remembers the first that is wrong.
type reader struct {
	claims map[string]any
	err    error
}

func (r *reader) fail(what string, p path) {
	if r.err == nil {
		r.err = fmt.Errorf("claim %s %s", strings.Join(p, "/"), what)
	}
}

// text reads a string that is safe in a header; an absent one is "".
func (r *reader) text(p path) string {
	v := p.in(r.claims)
	if v == nil {
		return ""
	}
	s, ok := v.(string)
	switch {
	case !ok:
		r.fail("is not a string", p)
	case len(s) > maxValue:
		r.fail("is too long", p)
	case !headerSafe(s):
		r.fail("is not printable ASCII without surrounding spaces", p)
	default:
		return s
	}
	return ""
}

// list reads a list of strings, or the words of one string, sorted and without
// duplicates; an absent or empty one is nil. joined is the list with commas.
func (r *reader) list(p path) (out []string, joined string) {
	switch v := p.in(r.claims).(type) {
	case nil:
		return nil, ""
	case string:
		out = strings.FieldsFunc(v, func(c rune) bool { return c == ' ' || c == ',' })
	case []any:
		out = make([]string, 0, len(v))
		for _, e := range v {
			s, ok := e.(string)
			if !ok || s == "" || strings.IndexByte(s, ',') >= 0 {
				r.fail("has an element that is no string, empty or has a comma", p)
				return nil, ""
			}
			out = append(out, s)
		}
	default:
		r.fail("is not a list of strings", p)
		return nil, ""
	}
	for _, s := range out {
		if len(s) > maxElement || !headerSafe(s) {
			r.fail("has an element that is too long or not printable ASCII without surrounding spaces", p)
			return nil, ""
		}
	}
	if len(out) > maxElements {
		r.fail("has too many elements", p)
		return nil, ""
	}
	if len(out) == 0 {
		return nil, ""
	}
	slices.Sort(out)
	out = slices.Compact(out)
	if joined = strings.Join(out, ","); len(joined) > maxJoined {
		r.fail("is too long", p)
		return nil, ""
	}
	return out, joined
}

// number reads a whole number that is not negative; an absent one is 0.
func (r *reader) number(p path) int64 {
	v := p.in(r.claims)
	if v == nil {
		return 0
	}
	n, ok := v.(json.Number)
	if !ok {
		r.fail("is not a number", p)
		return 0
	}
	i, err := strconv.ParseInt(n.String(), 10, 64)
	if err != nil || i < 0 {
		r.fail("is not a whole number from 0", p)
		return 0
	}
	return i
}

// latestDate is the last NumericDate whose nanoseconds fit into an int64.
const latestDate = math.MaxInt64 / int64(time.Second)

// date reads a NumericDate in whole seconds; a fraction is cut off, or with up
// carried. An absent one is the zero time.
func (r *reader) date(name string, up bool) time.Time {
	v, ok := r.claims[name]
	if !ok {
		return time.Time{}
	}
	n, ok := v.(json.Number)
	if !ok {
		r.fail("is not a number", path{name})
		return time.Time{}
	}
	f, err := n.Float64()
	if err != nil || math.IsNaN(f) || f < 0 || f >= float64(latestDate) {
		r.fail("is not a time", path{name})
		return time.Time{}
	}
	if up {
		f = math.Ceil(f)
	}
	return time.Unix(int64(f), 0).UTC()
}

// audienceOf reads aud, a string or a list of them.
func audienceOf(v any) ([]string, error) {
	switch v := v.(type) {
	case string:
		return []string{v}, nil
	case []any:
		out := make([]string, 0, len(v))
		for _, e := range v {
			s, ok := e.(string)
			if !ok {
				return nil, errors.New("claim aud has an element that is no string")
			}
			out = append(out, s)
		}
		return out, nil
	case nil:
		return nil, errors.New("claim aud is missing")
	default:
		return nil, errors.New("claim aud is neither a string nor a list")
	}
}

// headerSafe reports whether s may stand in a header as it is: printable ASCII,
// and no space at either end, which a receiver would trim and so take "bob "
// for "bob".
func headerSafe(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return s == "" || s[0] != ' ' && s[len(s)-1] != ' '
}

// tierOf makes the tier of the claim's value.
func (c TiersConfig) tierOf(claim string) (string, error) {
	if claim == "" {
		if c.Missing != "" {
			return c.Missing, nil
		}
		return "free", nil
	}
	for _, m := range c.Mapping {
		if m.Name == claim {
			return m.Tier, nil
		}
	}
	if i := slices.Index(tiers, claim); i >= 0 {
		return tiers[i], nil
	}
	if c.Unknown != "" {
		return c.Unknown, nil
	}
	return "", errors.New("claim tier is none of ours")
}
