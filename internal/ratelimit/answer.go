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
	s := d.Status()
	if s == nil {
		if !d.Allowed {
			to = append(to, Header{HeaderRetryAfter, "1"})
		}
		return to
	}
	reset := strconv.FormatInt(seconds(s.Reset), 10)
	remaining := strconv.FormatUint(uint64(s.Remaining), 10)
	to = append(to,
		Header{HeaderPolicy, s.policy()},
		Header{HeaderState, `"` + s.Limit.Name + `";r=` + remaining + ";t=" + reset},
		Header{HeaderLimit, strconv.FormatUint(uint64(s.Limit.Burst), 10)},
		Header{HeaderRemaining, remaining},
		Header{HeaderReset, reset},
	)
	if !d.Allowed {
		to = append(to, Header{HeaderRetryAfter, strconv.FormatInt(max(seconds(s.Reset), 1), 10)})
	}
	return to
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
