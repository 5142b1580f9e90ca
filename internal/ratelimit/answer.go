package ratelimit

import (
	"strconv"
	"strings"
	"time"
)

// Header is a response header to add.
type Header struct{ Name, Value string }

// Names of the response headers.
const (
	HeaderPolicy     = "ratelimit-policy"
	HeaderState      = "ratelimit"
	HeaderLimit      = "x-ratelimit-limit"
	HeaderRemaining  = "x-ratelimit-remaining"
	HeaderReset      = "x-ratelimit-reset"
	HeaderRetryAfter = "retry-after"
)

// DeniedDetail is the public text of a denial.
const DeniedDetail = "Too many requests. Retry after the time in the Retry-After header."

// DeniedCode is the code of a denial's problem document.
const DeniedCode = "rate_limited"

// AppendHeaders appends the headers that tell the client of its limits: those
// of the IETF draft, the older ones, and Retry-After on a denial. Values hold
// nothing but names from the configuration and numbers.
func (d *Decision) AppendHeaders(to []Header) []Header {
	d.VisitHeaders(nil, func(name string, value []byte) { to = append(to, Header{name, string(value)}) })
	return to
}

// VisitHeaders calls visit with each of the headers that [Decision.AppendHeaders]
// tells of. Values are formatted in buf, which is returned for the next time,
// and hold until visit returns.
func (d *Decision) VisitHeaders(buf []byte, visit func(name string, value []byte)) []byte {
	s := d.Status()
	if s == nil {
		if !d.Allowed {
			buf = append(buf[:0], '1')
			visit(HeaderRetryAfter, buf)
		}
		return buf
	}
	reset := seconds(s.Reset)
	buf = append(buf[:0], s.policy()...)
	visit(HeaderPolicy, buf)
	buf = append(append(append(buf[:0], '"'), s.Limit.Name...), `";r=`...)
	buf = strconv.AppendUint(buf, uint64(s.Remaining), 10)
	buf = strconv.AppendInt(append(buf, ";t="...), reset, 10)
	visit(HeaderState, buf)
	buf = strconv.AppendUint(buf[:0], uint64(s.Limit.Burst), 10)
	visit(HeaderLimit, buf)
	buf = strconv.AppendUint(buf[:0], uint64(s.Remaining), 10)
	visit(HeaderRemaining, buf)
	buf = strconv.AppendInt(buf[:0], reset, 10)
	visit(HeaderReset, buf)
	if !d.Allowed {
		buf = strconv.AppendInt(buf[:0], max(reset, 1), 10)
		visit(HeaderRetryAfter, buf)
	}
	return buf
}

// policy tells all limits of the rule, and the one shown where it is not
// among them, as the system's are.
func (s *Status) policy() string {
	if s.Rule == nil {
		return policyOf([]Limit{*s.Limit})
	}
	for i := range s.Rule.Limits {
		if &s.Rule.Limits[i] == s.Limit {
			return s.Rule.policy
		}
	}
	if s.Rule.policy == "" {
		return policyOf([]Limit{*s.Limit})
	}
	return s.Rule.policy + ", " + policyOf([]Limit{*s.Limit})
}

// policyOf formats limits as the RateLimit-Policy header does.
func policyOf(limits []Limit) string {
	var b strings.Builder
	for i := range limits {
		l := &limits[i]
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(`"` + l.Name + `";q=` + strconv.FormatUint(uint64(l.Tokens), 10))
		b.WriteString(";w=" + strconv.FormatInt(seconds(l.Window()), 10))
	}
	return b.String()
}

// seconds rounds up.
func seconds(d time.Duration) int64 {
	return int64((d + time.Second - 1) / time.Second)
}
