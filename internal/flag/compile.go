package flag

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"
)

// maxPrerequisiteCost bounds how many flags one evaluation may evaluate: in a
// graph of prerequisites that share flags, the work multiplies.
const maxPrerequisiteCost = 64

// Compile checks the definitions against each other and compiles them. All
// faults are reported at once. The definitions must have come from [Parse] or
// [ParseFlag] and may not change afterwards.
func Compile(defs *Definitions) (*Set, error) {
	c := &compiler{reader: &reader{file: "flags"}}
	set := c.compile(defs)
	set.digest = digest(defs)
	return set, c.err()
}

// digest is a hash over all definitions.
func digest(defs *Definitions) uint64 {
	h := xxhash.New()
	for _, key := range slices.Sorted(maps.Keys(defs.Flags)) {
		data, err := json.Marshal(defs.Flags[key])
		if err != nil { // not reached: definitions come from JSON or YAML
			data = []byte(err.Error())
		}
		_, _ = h.WriteString(key)
		_, _ = h.Write(data)
	}
	return h.Sum64()
}

// compiler turns definitions into a Set.
type compiler struct {
	*reader
	// lines are the flags' lines in their file; may be nil.
	lines map[string]int
	flags map[string]*compiled
	costs map[*compiled]int
}

func (c *compiler) compile(defs *Definitions) *Set {
	set := &Set{flags: make(map[string]*compiled, len(defs.Flags))}
	if len(defs.Flags) > MaxFlags {
		c.fault(nil, "flags", len(defs.Flags), fmt.Sprintf("at most %d flags", MaxFlags))
		return set
	}
	c.flags = set.flags
	set.keys = slices.Sorted(maps.Keys(defs.Flags))
	for _, key := range set.keys {
		def := defs.Flags[key]
		f := c.flag(&def)
		set.flags[key] = f
		set.sorted = append(set.sorted, f)
	}
	length := 0
	for _, f := range set.sorted {
		def := defs.Flags[f.key]
		c.prerequisites(f, &def)
		if !f.hidden {
			length += f.longest + 1
		}
	}
	if length > MaxHeaderBytes {
		c.fault(nil, "flags", length, fmt.Sprintf("flags whose header has at most %d bytes; mark flags that backends do not read header: false", MaxHeaderBytes))
		c.faults[len(c.faults)-1].Line = c.lines[""]
	}
	c.costs = map[*compiled]int{}
	for _, f := range set.sorted {
		c.cost(f, nil)
	}
	c.layers(defs, set.keys)
	return set
}

// at reports a fault of a flag at its line.
func (c *compiler) at(flag, member string, value any, allowed string) {
	c.fault(nil, "flags."+flag+"."+member, value, allowed)
	c.faults[len(c.faults)-1].Line = c.lines[flag]
}

func (c *compiler) flag(def *Definition) *compiled {
	x := &def.Extension
	f := &compiled{
		key:      def.Key,
		disabled: def.State == Disabled,
		hidden:   x.Header != nil && !*x.Header,
		from:     math.MinInt64,
		until:    math.MaxInt64,
		byName:   make(map[string]*variant, len(def.Variants)),
		metadata: def.Metadata,
	}
	names := slices.Sorted(maps.Keys(def.Variants))
	f.variants = make([]variant, len(names))
	for i, name := range names {
		v := &f.variants[i]
		*v = newVariant(def.Key, name, def.Variants[name], i)
		f.byName[name] = v
		f.longest = max(f.longest, len(v.pair))
		if number, ok := v.value.(float64); ok && number != math.Trunc(number) {
			f.fractional = true
		}
	}
	f.byDefault = f.byName[def.DefaultVariant]
	f.off = f.byName[def.OffVariant()]
	switch {
	case x.Killed:
		f.fixed, f.fixedReason = f.off, ReasonDisabled
	case x.Force != "":
		f.fixed, f.fixedReason = f.byName[x.Force], ReasonStatic
	}
	f.isFixed = x.Killed || x.Force != ""
	if !x.Schedule.From.IsZero() {
		f.from = x.Schedule.From.Unix()
	}
	if !x.Schedule.Until.IsZero() {
		f.until = x.Schedule.Until.Unix()
	}
	if len(x.Users) > 0 {
		f.users = map[string]*variant{}
		for _, list := range x.Users {
			for _, user := range list.Keys {
				f.users[user] = f.byName[list.Variant]
			}
		}
	}
	f.audience = compileAudience(x.Audience)
	if x.Holdout != nil {
		f.holdout, f.holdoutSalt = x.Holdout.Percentage, saltHash("holdout:"+x.Holdout.Name)
	}
	if x.Layer != nil {
		f.layered, f.layerSalt = true, saltHash("layer:"+x.Layer.Name)
		f.layerFrom, f.layerUntil = x.Layer.From, x.Layer.Until
	}
	c.targeting(f, def)
	if x.Rollout != nil {
		f.rollout = compileRollout(def, f)
	}
	f.dynamic = f.targeting != nil || f.rollout != nil || f.users != nil || !f.audience.everyone ||
		f.layered || f.holdout > 0 || len(x.Prerequisites) > 0 || !x.Schedule.From.IsZero() || !x.Schedule.Until.IsZero()
	return f
}

// targeting compiles the rule again from its JSON, which Parse has written.
func (c *compiler) targeting(f *compiled, def *Definition) {
	if len(def.Targeting) == 0 {
		return
	}
	n, err := parseNode(def.Targeting)
	if err != nil {
		c.at(def.Key, "targeting", nil, "a JSON rule: "+err.Error())
		return
	}
	// Lines within a stored rule are of no use to anyone.
	rc := &ruleCompiler{reader: &reader{}, def: def, variants: f.byName}
	r := rc.rule(n, "targeting", place{result: true})
	for _, fault := range rc.faults {
		c.at(def.Key, fault.Key, fault.Value, fault.Allowed)
	}
	f.targeting = &r
}

// newVariant prepares a variant's value and header text.
func newVariant(key, name string, val any, index int) variant {
	v := variant{name: name, value: val, header: name, bit: 1 << index}
	switch val {
	case true:
		v.header = "on"
	case false:
		v.header = "off"
	}
	v.pair = key + "=" + v.header
	return v
}

func compileAudience(a Audience) audience {
	out := audience{everyone: a.IsZero(), tiers: a.Tiers, roles: a.Roles}
	for _, m := range a.Claims {
		out.claims = append(out.claims, claim{name: m.Name, path: strings.Split(m.Name, "."), values: m.Values})
	}
	return out
}

func compileRollout(def *Definition, f *compiled) *rollout {
	o, x := def.Extension.Rollout, &def.Extension
	r := &rollout{
		percentage: o.Percentage,
		salt:       saltHash(x.Salt),
		splitSalt:  saltHash("split:" + x.Salt),
		flagdSalt:  murmur3Of(x.Salt),
		hash:       x.Hash,
	}
	if o.BucketBy != "" {
		r.bucketBy, r.bucketPath = o.BucketBy, strings.Split(o.BucketBy, ".")
	}
	if g := o.Progressive; g != nil {
		r.progressive = true
		r.from, r.until = g.From.Unix(), g.Until.Unix()
		r.percentage, r.end = g.Start, g.End
	}
	name := o.Variant
	if name == "" {
		name = def.OnVariant()
	}
	weights := o.Variants
	if len(weights) == 0 {
		weights = []Weight{{Variant: name, Weight: 1}}
	}
	for _, w := range weights {
		r.total += uint32(w.Weight)
		r.variants = append(r.variants, f.byName[w.Variant])
		r.ends = append(r.ends, r.total)
	}
	return r
}

func (c *compiler) prerequisites(f *compiled, def *Definition) {
	for i, q := range def.Extension.Prerequisites {
		member := fmt.Sprintf("tollgate.prerequisites[%d]", i)
		other, ok := c.flags[q.Flag]
		if !ok {
			c.at(def.Key, member+".flag", q.Flag, "the key of another flag of the set")
			continue
		}
		p := prerequisite{flag: other}
		for _, name := range q.Variants {
			v, ok := other.byName[name]
			if !ok {
				c.at(def.Key, member+".variants", name, fmt.Sprintf("variants of the flag %s: %v", q.Flag, slices.Sorted(maps.Keys(other.byName))))
				continue
			}
			p.allowed |= v.bit
		}
		f.prerequisites = append(f.prerequisites, p)
	}
}

// cost counts the flags that evaluating f evaluates, and finds cycles.
func (c *compiler) cost(f *compiled, stack []*compiled) int {
	if cost, ok := c.costs[f]; ok {
		return cost
	}
	if i := slices.Index(stack, f); i >= 0 {
		names := make([]string, 0, len(stack)-i+1)
		for _, s := range append(stack[i:], f) {
			names = append(names, s.key)
		}
		c.at(f.key, "tollgate.prerequisites", strings.Join(names, " -> "), "prerequisites that do not lead back to the flag")
		for _, s := range stack[i:] {
			s.prerequisites = nil // so that each cycle is reported once
		}
		return 1
	}
	cost := 1
	for _, p := range f.prerequisites {
		cost += c.cost(p.flag, append(stack, f))
		if cost > maxPrerequisiteCost {
			c.at(f.key, "tollgate.prerequisites", nil, fmt.Sprintf("prerequisites that need at most %d flags to be evaluated", maxPrerequisiteCost))
			f.prerequisites = nil
			cost = 1
			break
		}
	}
	c.costs[f] = cost
	return cost
}

// layers checks that the slices of each layer are disjoint, and that holdouts
// of one name agree.
func (c *compiler) layers(defs *Definitions, keys []string) {
	taken := map[string][]string{}
	holdouts := map[string]string{}
	for _, key := range keys {
		x := defs.Flags[key].Extension
		if l := x.Layer; l != nil {
			for _, other := range taken[l.Name] {
				if o := defs.Flags[other].Extension.Layer; l.From < o.Until && o.From < l.Until {
					c.at(key, "tollgate.layer", fmt.Sprintf("%s to %s", l.From, l.Until),
						fmt.Sprintf("a slice of layer %s that does not overlap %s's, %s to %s", l.Name, other, o.From, o.Until))
				}
			}
			taken[l.Name] = append(taken[l.Name], key)
		}
		if h := x.Holdout; h != nil {
			if other, ok := holdouts[h.Name]; ok && defs.Flags[other].Extension.Holdout.Percentage != h.Percentage {
				c.at(key, "tollgate.holdout.percentage", h.Percentage,
					fmt.Sprintf("%s, as holdout %s has in %s", defs.Flags[other].Extension.Holdout.Percentage, h.Name, other))
			}
			holdouts[h.Name] = key
		}
	}
}

// subjectHash is the subject's part of tollgate-1.
func subjectHash(key string) uint64 { return xxhash.Sum64String(key) }

// leaveOut removes the flags that depend on broken ones which are not among the
// definitions, and lists them, sorted.
func (d *Definitions) leaveOut(broken map[string]error) []string {
	var out []string
	missing := func(q Prerequisite) bool {
		_, there := d.Flags[q.Flag]
		_, isBroken := broken[q.Flag]
		return !there && (isBroken || slices.Contains(out, q.Flag))
	}
	for n := -1; len(broken) > 0 && n < len(out); {
		n = len(out)
		for key, def := range d.Flags {
			if slices.ContainsFunc(def.Extension.Prerequisites, missing) {
				delete(d.Flags, key)
				out = append(out, key)
			}
		}
	}
	slices.Sort(out)
	return out
}

// Stale lists the flags whose expiry has passed, sorted.
func (d *Definitions) Stale(now time.Time) []string {
	var keys []string
	for _, key := range slices.Sorted(maps.Keys(d.Flags)) {
		if e := d.Flags[key].Extension.Expires; !e.IsZero() && !now.Before(e) {
			keys = append(keys, key)
		}
	}
	return keys
}
