package ratelimit

import (
	"strconv"
	"strings"
)

// match is what a descriptor met.
type match struct {
	rule *Rule
	// kind and entries name the subject: whose buckets they are.
	kind    byte
	entries []Entry
}

// The kinds of subjects; see appendSubjectKey.
const (
	kindTier       = '~'
	kindDescriptor = ';'
)

// match finds the rule of a descriptor: the tree's where one matches all of
// its entries, else the tier table's where an entry names a subject. The rule
// is nil where neither does.
func (d *domain) match(entries []Entry) match {
	if rule, shared := d.root.find(entries); rule != nil {
		if shared != nil {
			entries = shared
		}
		return match{rule: rule, kind: kindDescriptor, entries: entries}
	}
	for _, subject := range d.subjects {
		for i := range entries {
			if entries[i].Key == subject {
				return match{rule: d.tier(entries), kind: kindTier, entries: entries[i : i+1]}
			}
		}
	}
	return match{}
}

// find walks the tree as envoyproxy/ratelimit does: at each entry the rule for
// the value, else the first wildcard that fits, else the rule for any value.
// shared is a copy of the entries with patterns in place of the values that
// share a bucket, or nil.
func (n *node) find(entries []Entry) (rule *Rule, shared []Entry) {
	for i, e := range entries {
		next := n.exact[e]
		for w := 0; next == nil && w < len(n.wildcards); w++ {
			if c := &n.wildcards[w]; c.key == e.Key && c.matches(e.Value) {
				next = c.node
				if c.shared != "" {
					if shared == nil {
						shared = append([]Entry(nil), entries...)
					}
					shared[i].Value = c.shared
				}
			}
		}
		if next == nil {
			if next = n.exact[Entry{Key: e.Key}]; next == nil {
				return nil, nil
			}
		}
		n = next
	}
	return n.rule, shared
}

// matches says whether value is the parts in order, with any text between.
func (w *wildcard) matches(value string) bool {
	last := len(w.parts) - 1
	rest, ok := strings.CutPrefix(value, w.parts[0])
	if !ok {
		return false
	}
	if rest, ok = strings.CutSuffix(rest, w.parts[last]); !ok {
		return false
	}
	for _, part := range w.parts[1:last] {
		at := strings.Index(rest, part)
		if at < 0 {
			return false
		}
		rest = rest[at+len(part):]
	}
	return true
}

// tier returns the limits of the tier that the entries name.
func (d *domain) tier(entries []Entry) *Rule {
	for i := range entries {
		if entries[i].Key == d.tierEntry {
			if rule := d.tiers[entries[i].Value]; rule != nil {
				return rule
			}
			break
		}
	}
	return d.defaultTier
}

// cost returns what a request costs by its entries.
func (d *domain) cost(rule *Rule, entries []Entry) uint64 {
	if rule != nil && rule.cost > 0 {
		return rule.cost
	}
	if d.costs != nil {
		for i := range entries {
			if entries[i].Key == d.costEntry {
				if c, ok := d.costs[entries[i].Value]; ok {
					return c
				}
				break
			}
		}
	}
	return d.defaultCost
}

// Explain says in one line which rule a descriptor with these entries meets,
// and what its limits are.
func (r *Rules) Explain(name string, entries []Entry) string {
	d := r.domains[name]
	if d == nil {
		return "no rule: the domain is unknown, every request passes"
	}
	m := d.match(entries)
	switch {
	case m.rule == nil && len(d.system) > 0:
		return "no rule: held by the system's limits alone, " + policyOf(d.system)
	case m.rule == nil:
		return "no rule: every request passes"
	case m.rule.Unlimited:
		return "rule " + m.rule.Name + ": unlimited"
	}
	text := "rule " + m.rule.Name + ": " + m.rule.policy + ", cost " + strconv.FormatUint(d.cost(m.rule, entries), 10)
	if m.rule.Shadow || m.rule.Quota {
		text += ", only watched"
	}
	return text
}

// HasTier says whether the tier table of a domain has a tier of that name.
func (r *Rules) HasTier(name, tier string) bool {
	d := r.domains[name]
	return d != nil && d.tiers[tier] != nil
}
