package ratelimit

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/tollgate-proxy/tollgate/internal/config"
)

// Text is any single value of a rule file taken as text, such as an unquoted
// number: existing files write values both ways.
type Text string

// UnmarshalText implements encoding.TextUnmarshaler.
func (t *Text) UnmarshalText(b []byte) error {
	*t = Text(b)
	return nil
}

// Allowed says what a faulty value should be.
func (Text) Allowed() string { return "a single value" }

// Switch is true or false in any of the words that YAML 1.1 has for them:
// existing files say yes and on too.
type Switch bool

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Switch) UnmarshalText(b []byte) error {
	switch strings.ToLower(string(b)) {
	case "true", "yes", "on", "y":
		*s = true
	case "false", "no", "off", "n":
		*s = false
	default:
		return errors.New("neither")
	}
	return nil
}

// Allowed says what a faulty value should be.
func (Switch) Allowed() string { return "true or false" }

// RuleFile is a rule file: the limits of one domain, in the grammar of
// envoyproxy/ratelimit with tiers, costs, system, limits, burst, algorithm
// and cost added.
type RuleFile struct {
	Domain      Text             `yaml:"domain" doc:"Name that requests carry; one domain may be spread over several files."`
	Tiers       *TierTable       `yaml:"tiers" doc:"Limits of each user by tier."`
	Costs       *CostTable       `yaml:"costs" doc:"What a request costs by its kind."`
	System      []LimitRule      `yaml:"system" doc:"Limits that all requests of the domain share."`
	Descriptors []DescriptorRule `yaml:"descriptors" doc:"Tree of rules, matched entry by entry."`
}

// TierTable gives every user one bucket for each limit of the user's tier.
type TierTable struct {
	Entry    string   `yaml:"entry" doc:"Key of the descriptor entry that names the tier."`
	Subjects []string `yaml:"subjects" doc:"Keys of the entries that name whose buckets they are; the first one present counts."`
	Default  string   `yaml:"default" doc:"Tier of requests that name none, or one that is not in the table."`
	Table    []Tier   `yaml:"table" doc:"The tiers."`
}

// Tier is a row of the tier table.
type Tier struct {
	Name      string      `yaml:"name" doc:"Value of the tier entry."`
	Unlimited bool        `yaml:"unlimited" doc:"No limit but the system's."`
	Limits    []LimitRule `yaml:"limits" doc:"All must hold."`
	OnFailure string      `yaml:"on_failure" doc:"While the shared store is gone: local, allow or deny; the process's own setting where it is not set."`
}

// CostTable says what a request costs.
type CostTable struct {
	Entry   string `yaml:"entry" doc:"Key of the descriptor entry that names the kind of request."`
	Default uint32 `yaml:"default" doc:"Cost of a kind that is not in the table; 1 where it is not set."`
	Table   []Cost `yaml:"table" doc:"The costs."`
}

// Cost is a row of the cost table.
type Cost struct {
	Value Text   `yaml:"value" doc:"Value of the entry."`
	Cost  uint32 `yaml:"cost" doc:"Tokens, at least 1."`
}

// LimitRule is one limit.
type LimitRule struct {
	Name            Text       `yaml:"name" doc:"Identifies the limit to clients and to replaces; the unit where it is not set."`
	Replaces        []Replaces `yaml:"replaces" doc:"Limits, by name, that do not count where this one applies."`
	Unit            string     `yaml:"unit" doc:"second, minute, hour, day, week, month (30 days) or year (365 days)."`
	UnitMultiplier  uint32     `yaml:"unit_multiplier" doc:"The window is this many units; 1 where it is not set."`
	RequestsPerUnit uint32     `yaml:"requests_per_unit" doc:"Tokens in a window; 0 denies everything."`
	Burst           uint32     `yaml:"burst" doc:"Size of the bucket in tokens; requests_per_unit where it is not set."`
	Algorithm       string     `yaml:"algorithm" doc:"token_bucket (default), fixed_window or sliding_window."`
	Path            string     `yaml:"path" doc:"exact: every request is decided by the shared store; leased: tokens may be taken in advance; by the bucket's size where it is not set."`
	Unlimited       Switch     `yaml:"unlimited" doc:"No limit; excludes unit, burst and algorithm."`
}

// Replaces names a limit.
type Replaces struct {
	Name Text `yaml:"name" doc:"Name of the limit that does not count."`
}

// DescriptorRule is a node of the rule tree.
type DescriptorRule struct {
	Key            Text             `yaml:"key" doc:"Key of the entry."`
	Value          Text             `yaml:"value" doc:"Value of the entry; any where it is not set; each * in it stands for any text."`
	RateLimit      *LimitRule       `yaml:"rate_limit" doc:"Limit of descriptors that end here."`
	Limits         []LimitRule      `yaml:"limits" doc:"Several limits, all of which must hold; instead of rate_limit."`
	OnFailure      string           `yaml:"on_failure" doc:"While the shared store is gone: local, allow or deny; the process's own setting where it is not set."`
	Cost           uint32           `yaml:"cost" doc:"Cost of a request here; the cost table's where it is not set."`
	ShadowMode     Switch           `yaml:"shadow_mode" doc:"Count, but allow what is over the limit."`
	QuotaMode      Switch           `yaml:"quota_mode" doc:"Allow what is over the limit, and name the descriptor in the answer's metadata."`
	DetailedMetric Switch           `yaml:"detailed_metric" doc:"Put the values of entries into the metric's rule label, up to a bound."`
	ValueToMetric  Switch           `yaml:"value_to_metric" doc:"Put this entry's value into the metric's rule label, up to a bound."`
	ShareThreshold Switch           `yaml:"share_threshold" doc:"With a * in the value: all that match share one bucket."`
	Metadata       map[string]any   `yaml:"metadata" doc:"Anything; it is in the answer's metadata where a limit in quota_mode is exceeded."`
	Descriptors    []DescriptorRule `yaml:"descriptors" doc:"Rules for the next entry."`
}

// Validate implements config.Validator.
func (f RuleFile) Validate(r *config.Report) {
	if f.Domain == "" {
		r.Fault("domain", nil, "the name of a domain; it must not be empty")
	}
	checkLimits(r, "system", f.System)
	checkSiblings(r, f.Descriptors)
}

// Validate implements config.Validator.
func (t TierTable) Validate(r *config.Report) {
	if t.Entry == "" {
		r.Fault("entry", nil, "the key of the entry that names the tier")
	}
	if len(t.Subjects) == 0 {
		r.Fault("subjects", nil, "at least one key of an entry that names whose buckets they are")
	}
	for i, s := range t.Subjects {
		if s == "" {
			r.Fault(fmt.Sprintf("subjects[%d]", i), nil, "the key of an entry")
		}
	}
	names := map[string]bool{}
	for i, tier := range t.Table {
		key := fmt.Sprintf("table[%d]", i)
		if tier.Name == "" || names[tier.Name] {
			r.Fault(key+".name", tier.Name, "a name that no other tier has")
		}
		names[tier.Name] = true
		if tier.Unlimited == (len(tier.Limits) > 0) {
			r.Fault(key+".limits", nil, "at least one limit, or unlimited: true and none")
		}
		checkLimits(r, key+".limits", tier.Limits)
		checkFailure(r, key+".on_failure", tier.OnFailure)
	}
	if !names[t.Default] {
		r.Fault("default", t.Default, "the name of a tier in the table")
	}
}

// Validate implements config.Validator.
func (t CostTable) Validate(r *config.Report) {
	if t.Entry == "" {
		r.Fault("entry", nil, "the key of the entry that names the kind of request")
	}
	seen := map[Text]bool{}
	for i, c := range t.Table {
		key := fmt.Sprintf("table[%d]", i)
		if seen[c.Value] {
			r.Fault(key+".value", c.Value, "a value that no other row has")
		}
		seen[c.Value] = true
		if c.Cost == 0 {
			r.Fault(key+".cost", c.Cost, "at least 1")
		}
	}
}

// Validate implements config.Validator.
func (l LimitRule) Validate(r *config.Report) {
	for i, other := range l.Replaces {
		if other.Name == "" || other.Name == l.Name {
			r.Fault(fmt.Sprintf("replaces[%d].name", i), other.Name, "the name of another limit")
		}
	}
	if !quotable(string(l.Name)) {
		r.Fault("name", l.Name, "printable ASCII without quotes and backslashes, at most 64 bytes: it stands in a header")
	}
	if l.Unlimited {
		if l.Unit != "" || l.Burst != 0 || l.Algorithm != "" || l.UnitMultiplier != 0 {
			r.Fault("unlimited", true, "no unit, burst, algorithm or unit_multiplier beside it")
		}
		return
	}
	if _, ok := ParseUnit(strings.ToLower(l.Unit)); !ok {
		r.Fault("unit", l.Unit, "one of second, minute, hour, day, week, month, year")
		return
	}
	if _, ok := ParseAlgorithm(l.Algorithm); !ok {
		r.Fault("algorithm", l.Algorithm, "one of "+strings.Join(algorithmNames[:], ", "))
		return
	}
	if l.Path != "" && l.Path != "exact" && l.Path != "leased" {
		r.Fault("path", l.Path, "exact or leased")
	}
	if _, err := l.limit(); err != nil {
		r.Fault("", nil, "a limit that can be kept: "+err.Error())
	}
}

// Validate implements config.Validator.
func (d DescriptorRule) Validate(r *config.Report) {
	if d.Key == "" {
		r.Fault("key", nil, "the key of an entry; it must not be empty")
	}
	if d.RateLimit != nil && len(d.Limits) > 0 {
		r.Fault("limits", nil, "either rate_limit or limits")
	}
	checkLimits(r, "limits", d.Limits)
	for i, l := range d.Limits {
		if l.Unlimited {
			r.Fault(fmt.Sprintf("limits[%d].unlimited", i), true, "unlimited only in rate_limit")
		}
	}
	checkFailure(r, "on_failure", d.OnFailure)
	if bool(d.ShareThreshold) && !strings.Contains(string(d.Value), "*") {
		r.Fault("share_threshold", true, "only beside a value with a *")
	}
	if !plainValue(d.Metadata) {
		r.Fault("metadata", nil, "text, numbers, true, false, null, lists and mappings of these")
	}
	checkSiblings(r, d.Descriptors)
}

// plainValue says whether v can stand in a JSON document as it is.
func plainValue(v any) bool {
	switch v := v.(type) {
	case nil, bool, string, int, int64, uint64, float64:
		return true
	case []any:
		return !slices.ContainsFunc(v, func(e any) bool { return !plainValue(e) })
	case map[string]any:
		for _, e := range v {
			if !plainValue(e) {
				return false
			}
		}
		return true
	default:
		return false
	}
}

// checkLimits finds limits that would meet in one bucket.
func checkLimits(r *config.Report, key string, limits []LimitRule) {
	if len(limits) > maxLimits {
		r.Fault(key, len(limits), fmt.Sprintf("at most %d limits", maxLimits))
	}
	seen := map[string]bool{}
	for i, l := range limits {
		limit, err := l.limit()
		if err != nil {
			continue // LimitRule.Validate says so.
		}
		if seen[limit.suffix] {
			r.Fault(fmt.Sprintf("%s[%d].unit", key, i), l.Unit, "a window that no other limit of the list has")
		}
		seen[limit.suffix] = true
	}
}

// checkFailure finds what is no failure mode; none is one.
func checkFailure(r *config.Report, key, mode string) {
	switch FailureMode(mode) {
	case "", FailLocal, FailAllow, FailDeny:
	default:
		r.Fault(key, mode, "local, allow or deny")
	}
}

// maxLimits is the largest number of limits of one rule.
const maxLimits = 16

// checkSiblings finds descriptors that could never be met.
func checkSiblings(r *config.Report, rules []DescriptorRule) {
	seen := map[Entry]bool{}
	for i, d := range rules {
		e := Entry{string(d.Key), string(d.Value)}
		if seen[e] {
			r.Fault(fmt.Sprintf("descriptors[%d]", i), strings.TrimSuffix(e.Key+"="+e.Value, "="), "a key and value that stand once in a list")
		}
		seen[e] = true
	}
}

// limit compiles the rule.
func (l LimitRule) limit() (Limit, error) {
	unit, _ := ParseUnit(strings.ToLower(l.Unit))
	algorithm, _ := ParseAlgorithm(l.Algorithm)
	limit, err := NewLimit(string(l.Name), l.RequestsPerUnit, unit, l.UnitMultiplier, l.Burst, algorithm)
	limit.Exact, limit.Leased = l.Path == "exact", l.Path == "leased"
	return limit, err
}

// quotable says whether s may stand between quotes in a structured header.
func quotable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' || s[i] == '"' || s[i] == '\\' {
			return false
		}
	}
	return len(s) <= 64
}
