package ratelimit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/tollgate-proxy/tollgate/internal/config"
)

// Rules are the compiled rule files. They do not change; a reload makes new
// ones.
type Rules struct {
	domains map[string]*domain
	files   []string
	parsed  []RuleFile
}

// Rule says what a descriptor counts against.
type Rule struct {
	// Name identifies the rule in metrics and logs: the keys and values of
	// the configuration that lead to it, such as tier.premium.
	Name string
	// Limits are all that apply; none where Unlimited is set.
	Limits []Limit
	// Unlimited allows everything.
	Unlimited bool
	// Shadow counts but allows what is over the limit.
	Shadow bool
	// Quota does the same, and the answer says so, with Metadata.
	Quota    bool
	Metadata map[string]any
	// OnFailure is what happens while the shared store is gone; the limiter's
	// own where it is empty.
	OnFailure FailureMode

	cost     uint64 // 0: as the cost table says
	names    []string
	replaces []string
	detailed bool
	valued   []bool // by depth: the value belongs into the metric's label
	policy   string // the RateLimit-Policy header
	counters *counters
}

// domain holds the rules of one domain.
type domain struct {
	name        string
	root        node
	tiers       map[string]*Rule
	tierEntry   string
	subjects    []string
	defaultTier *Rule
	costEntry   string
	costs       map[string]uint64
	defaultCost uint64
	system      []Limit
	systemKeys  []string
	unmatched   *Rule
	overridden  *Rule
}

// node is a place in the tree of descriptor rules.
type node struct {
	rule      *Rule
	exact     map[Entry]*node // Value "" is the rule for any value
	wildcards []wildcard
}

type wildcard struct {
	key    string
	parts  []string // of the value, between the asterisks
	node   *node
	shared string // the pattern, where all that match share a bucket
}

// LoadRules reads rule files, and the *.yaml and *.yml files of folders. The
// error lists every fault of every file, one a line.
func LoadRules(paths ...string) (*Rules, error) {
	files, err := expand(paths)
	if err != nil {
		return nil, err
	}
	var parsed []RuleFile
	var faults []error
	for _, f := range files {
		rf, err := config.LoadFile(f, RuleFile{})
		if err != nil {
			faults = append(faults, err)
			continue
		}
		parsed = append(parsed, rf)
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	rules, err := Compile(parsed...)
	if err != nil {
		return nil, err
	}
	rules.files = files
	return rules, nil
}

// ParseRuleFile reads the content of one rule file; name stands for it in
// faults.
func ParseRuleFile(name string, data []byte) (RuleFile, error) {
	return config.Decode(name, data, RuleFile{})
}

// With returns these rules and those of more files, as if they had been
// compiled together.
func (r *Rules) With(more ...RuleFile) (*Rules, error) {
	rules, err := Compile(append(r.parsed[:len(r.parsed):len(r.parsed)], more...)...)
	if err != nil {
		return nil, err
	}
	rules.files = r.files
	return rules, nil
}

// ParseRules compiles the content of one rule file; name stands for it in
// faults.
func ParseRules(name string, data []byte) (*Rules, error) {
	rf, err := ParseRuleFile(name, data)
	if err != nil {
		return nil, err
	}
	return Compile(rf)
}

// expand replaces folders by the rule files in them.
func expand(paths []string) ([]string, error) {
	var files []string
	for _, p := range paths {
		info, err := os.Stat(p)
		if err != nil || !info.IsDir() {
			files = append(files, p) // Reading it says what is wrong.
			continue
		}
		before := len(files)
		for _, pattern := range []string{"*.yaml", "*.yml"} {
			found, err := filepath.Glob(filepath.Join(p, pattern))
			if err != nil {
				return nil, fmt.Errorf("folder %s: %w", p, err)
			}
			files = append(files, found...)
		}
		if len(files) == before {
			return nil, fmt.Errorf("folder %s holds no *.yaml or *.yml file", p)
		}
		sort.Strings(files[before:])
	}
	if len(files) == 0 {
		return nil, errors.New("no rule file is named")
	}
	return files, nil
}

// Files are the files that the rules were loaded from.
func (r *Rules) Files() []string { return r.files }

// Domains are the names of all domains, sorted.
func (r *Rules) Domains() []string {
	names := make([]string, 0, len(r.domains))
	for n := range r.domains {
		names = append(names, n)
	}
	sort.Strings(names)
	return names
}

// Compile makes rules of files that are valid each. Files of one domain are
// merged; the error names what stands in two of them.
func Compile(files ...RuleFile) (*Rules, error) {
	rules := &Rules{domains: map[string]*domain{}, parsed: files}
	var faults []error
	for _, f := range files {
		d := rules.domains[string(f.Domain)]
		if d == nil {
			d = &domain{
				name: string(f.Domain), defaultCost: 1,
				unmatched:  &Rule{Name: "none", counters: new(counters)},
				overridden: &Rule{Name: "override", counters: new(counters)},
			}
			rules.domains[string(f.Domain)] = d
		}
		if err := d.add(f); err != nil {
			faults = append(faults, fmt.Errorf("domain %q: %w", f.Domain, err))
		}
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	return rules, nil
}

func (d *domain) add(f RuleFile) error {
	if f.Tiers != nil {
		if d.tiers != nil {
			return errors.New("tiers stands in two files")
		}
		d.tierEntry, d.subjects, d.tiers = f.Tiers.Entry, f.Tiers.Subjects, map[string]*Rule{}
		for _, t := range f.Tiers.Table {
			limits, err := compileLimits(t.Limits)
			if err != nil {
				return fmt.Errorf("tier %s: %w", t.Name, err)
			}
			d.tiers[t.Name] = &Rule{Name: "tier." + t.Name, Limits: limits, Unlimited: t.Unlimited, OnFailure: FailureMode(t.OnFailure), policy: policyOf(limits), counters: new(counters)}
		}
		d.defaultTier = d.tiers[f.Tiers.Default]
	}
	if f.Costs != nil {
		if d.costs != nil {
			return errors.New("costs stands in two files")
		}
		d.costEntry, d.costs = f.Costs.Entry, map[string]uint64{}
		d.defaultCost = uint64(max(f.Costs.Default, 1))
		for _, c := range f.Costs.Table {
			d.costs[string(c.Value)] = uint64(c.Cost)
		}
	}
	if len(f.System) > 0 {
		if d.system != nil {
			return errors.New("system stands in two files")
		}
		limits, err := compileLimits(f.System)
		if err != nil {
			return fmt.Errorf("system: %w", err)
		}
		for i := range limits {
			if f.System[i].Name == "" {
				limits[i].Name = "system-" + limits[i].Name
			}
			d.systemKeys = append(d.systemKeys, systemKey(d.name)+limits[i].suffix)
		}
		d.system = limits
	}
	return d.root.add("", nil, f.Descriptors)
}

func (n *node) add(path string, valued []bool, rules []DescriptorRule) error {
	if n.exact == nil {
		n.exact = map[Entry]*node{}
	}
	for _, r := range rules {
		name := path + string(r.Key)
		if r.Value != "" {
			name += "_" + string(r.Value)
		}
		child := &node{}
		deeper := append(append([]bool(nil), valued...), bool(r.ValueToMetric))
		rule, err := compileRule(name, r)
		if err != nil {
			return fmt.Errorf("descriptor %s: %w", name, err)
		}
		if child.rule = rule; rule != nil {
			rule.valued = deeper
		}
		e := Entry{string(r.Key), string(r.Value)}
		if _, twice := n.exact[e]; twice {
			return fmt.Errorf("descriptor %s stands in two files", name)
		}
		n.exact[e] = child
		if strings.Contains(e.Value, "*") {
			w := wildcard{key: e.Key, parts: strings.Split(e.Value, "*"), node: child}
			if r.ShareThreshold {
				w.shared = e.Value
			}
			n.wildcards = append(n.wildcards, w)
		}
		if err := child.add(name+".", deeper, r.Descriptors); err != nil {
			return err
		}
	}
	return nil
}

func compileRule(name string, r DescriptorRule) (*Rule, error) {
	limits := r.Limits
	if r.RateLimit != nil {
		limits = []LimitRule{*r.RateLimit}
	}
	if len(limits) == 0 {
		return nil, nil //nolint:nilnil // A node without a limit has no rule.
	}
	rule := &Rule{
		Name: name, cost: uint64(r.Cost), detailed: bool(r.DetailedMetric),
		Shadow: bool(r.ShadowMode), Quota: bool(r.QuotaMode), Metadata: r.Metadata, Unlimited: bool(limits[0].Unlimited),
		OnFailure: FailureMode(r.OnFailure), counters: new(counters),
	}
	for _, l := range limits {
		if l.Name != "" {
			rule.names = append(rule.names, string(l.Name))
		}
		for _, other := range l.Replaces {
			rule.replaces = append(rule.replaces, string(other.Name))
		}
	}
	if rule.Unlimited {
		return rule, nil
	}
	var err error
	rule.Limits, err = compileLimits(limits)
	rule.policy = policyOf(rule.Limits)
	return rule, err
}

func compileLimits(rules []LimitRule) ([]Limit, error) {
	limits := make([]Limit, 0, len(rules))
	for _, r := range rules {
		l, err := r.limit()
		if err != nil {
			return nil, err
		}
		limits = append(limits, l)
	}
	return limits, nil
}
