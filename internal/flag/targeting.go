package flag

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxRuleNodes bounds one flag's targeting after shared evaluators are
// written out.
const maxRuleNodes = 5000

// targeting reads the member "targeting": evaluators are written out, the rule
// is checked by compiling it, and its JSON kept.
func (p *documentReader) targeting(def *Definition, n *yaml.Node, key string) {
	if !p.is(n, key, "object") {
		return
	}
	if len(n.Content) == 0 {
		return
	}
	before, left := len(p.faults), maxRuleNodes
	full := p.inline(n, key, nil, &left)
	if left < 0 {
		p.fault(n, key, nil, fmt.Sprintf("a rule of at most %d values, shared evaluators included", maxRuleNodes))
	}
	if before != len(p.faults) {
		return
	}
	c := &ruleCompiler{reader: p.reader, def: def}
	c.rule(full, key, place{result: true})
	def.Targeting = appendJSON(nil, full)
}

// inline replaces {"$ref": name} by the evaluator of that name.
func (p *documentReader) inline(n *yaml.Node, key string, stack []string, left *int) *yaml.Node {
	if *left--; *left < 0 {
		return n
	}
	if n.Kind == yaml.MappingNode && len(n.Content) == 2 && n.Content[0].Value == "$ref" {
		name := n.Content[1].Value
		target, ok := p.evaluators[name]
		switch {
		case !ok:
			p.fault(n, key, name, "the name of one of the document's $evaluators")
			return n
		case slices.Contains(stack, name):
			p.fault(n, key, strings.Join(append(stack, name), " -> "), "evaluators that do not lead back to themselves")
			return n
		}
		return p.inline(target, key, append(slices.Clone(stack), name), left)
	}
	if len(n.Content) == 0 {
		return n
	}
	out := *n
	out.Content = make([]*yaml.Node, len(n.Content))
	for i, child := range n.Content {
		out.Content[i] = p.inline(child, key, stack, left)
	}
	return &out
}

// place says where in a rule an expression stands.
type place struct {
	// result: its value becomes the flag's variant.
	result bool
	// item: it is evaluated per element of a list.
	item bool
	// reduce: the element is its variable current, beside accumulator.
	reduce bool
}

// inside is the place of an argument.
func (p place) inside() place {
	p.result = false
	return p
}

// ruleCompiler compiles one flag's targeting.
type ruleCompiler struct {
	*reader
	def *Definition
	// variants are the flag's, by name; nil while it is only checked.
	variants map[string]*variant
}

// operator gives an operator's code and how many arguments it takes.
func operator(name string) (o op, least, most int, ok bool) {
	const many = math.MaxInt
	switch name {
	case "var":
		return opClaim, 1, 2, true
	case "missing":
		return opMissing, 1, many, true
	case "missing_some":
		return opMissingSome, 2, 2, true
	case "if", "?:":
		return opIf, 1, many, true
	case "and":
		return opAnd, 1, many, true
	case "or":
		return opOr, 1, many, true
	case "!":
		return opNot, 1, 1, true
	case "!!":
		return opBool, 1, 1, true
	case "==":
		return opEqual, 2, 2, true
	case "!=":
		return opNotEqual, 2, 2, true
	case "===":
		return opSame, 2, 2, true
	case "!==":
		return opNotSame, 2, 2, true
	case "<":
		return opLess, 2, 3, true
	case "<=":
		return opLessEqual, 2, 3, true
	case ">":
		return opGreater, 2, 2, true
	case ">=":
		return opGreaterEqual, 2, 2, true
	case "+":
		return opAdd, 1, many, true
	case "-":
		return opSubtract, 1, 2, true
	case "*":
		return opMultiply, 2, many, true
	case "/":
		return opDivide, 2, 2, true
	case "%":
		return opModulo, 2, 2, true
	case "min":
		return opMin, 1, many, true
	case "max":
		return opMax, 1, many, true
	case "in":
		return opIn, 2, 2, true
	case "cat":
		return opCat, 1, many, true
	case "substr":
		return opSubstr, 2, 3, true
	case "merge":
		return opMerge, 1, many, true
	case "all":
		return opAll, 2, 2, true
	case "some":
		return opSome, 2, 2, true
	case "none":
		return opNone, 2, 2, true
	case "map":
		return opMap, 2, 2, true
	case "filter":
		return opFilter, 2, 2, true
	case "reduce":
		return opReduce, 2, 3, true
	case "starts_with":
		return opStartsWith, 2, 2, true
	case "ends_with":
		return opEndsWith, 2, 2, true
	case "sem_ver":
		return opSemver, 3, 3, true
	case "fractional":
		return opFractional, 1, many, true
	case "rollout":
		return opRollout, 3, 5, true
	}
	return 0, 0, 0, false
}

const allowedOperators = "one of the operators var, missing, missing_some, if, and, or, !, !!, ==, !=, ===, !==, <, <=, >, >=, " +
	"+, -, *, /, %, min, max, in, cat, substr, merge, all, some, none, map, filter, reduce, starts_with, ends_with, sem_ver, fractional, rollout"

func (c *ruleCompiler) rule(n *yaml.Node, key string, at place) rule {
	switch n.Kind {
	case yaml.MappingNode:
		return c.operation(n, key, at)
	case yaml.SequenceNode:
		if at.result {
			c.fault(n, key, shown(n), "a variant's name, null or a rule")
		}
		r := rule{op: opList, args: c.rules(n.Content, key, at.inside())}
		return constantList(r)
	default:
	}
	r := rule{op: opConst, constant: valueOf(goValue(n))}
	if at.result {
		r.variant = c.variant(n, key, r.constant)
	}
	return r
}

// constantList turns a list of constants into a constant.
func constantList(r rule) rule {
	list := make([]value, len(r.args))
	for i, a := range r.args {
		if a.op != opConst {
			return r
		}
		list[i] = a.constant
	}
	return rule{op: opConst, constant: value{kind: kindList, ref: &list}}
}

// variant checks a constant that becomes the flag's variant, and finds it.
func (c *ruleCompiler) variant(n *yaml.Node, key string, v value) *variant {
	if v.kind == kindNull {
		return nil
	}
	name := string(v.appendText(nil))
	if _, ok := c.def.Variants[name]; !ok {
		names := make([]string, 0, len(c.def.Variants))
		for name := range c.def.Variants {
			names = append(names, name)
		}
		slices.Sort(names)
		c.fault(n, key, name, fmt.Sprintf("one of the flag's variants %v, or null for the default", names))
	}
	return c.variants[name]
}

func (c *ruleCompiler) rules(nodes []*yaml.Node, key string, at place) []rule {
	out := make([]rule, len(nodes))
	for i, n := range nodes {
		out[i] = c.rule(n, fmt.Sprintf("%s[%d]", key, i), at)
	}
	return out
}

func (c *ruleCompiler) operation(n *yaml.Node, key string, at place) rule {
	if len(n.Content) != 2 {
		c.fault(n, key, nil, "an object with exactly one operator")
		return rule{}
	}
	name := n.Content[0].Value
	key = join(key, name)
	o, least, most, ok := operator(name)
	if !ok {
		c.fault(n, key, name, allowedOperators)
		return rule{}
	}
	args := []*yaml.Node{n.Content[1]}
	if n.Content[1].Kind == yaml.SequenceNode {
		args = n.Content[1].Content
	}
	// The shortest forms of these have another shape.
	if len(args) < least || len(args) > most {
		allowed := fmt.Sprintf("%d arguments", least)
		switch {
		case most == math.MaxInt:
			allowed = fmt.Sprintf("at least %d arguments", least)
		case most != least:
			allowed = fmt.Sprintf("%d to %d arguments", least, most)
		}
		c.fault(n, key, len(args), allowed)
		return rule{}
	}
	inner := at.inside()
	switch o {
	case opClaim:
		return c.variable(n, args, key, at)
	case opMissing, opMissingSome:
		return c.missing(n, o, args, key, inner)
	case opIf:
		r := rule{op: opIf, args: make([]rule, len(args))}
		for i, a := range args {
			branch := at
			branch.result = at.result && (i%2 == 1 || i == len(args)-1)
			r.args[i] = c.rule(a, fmt.Sprintf("%s[%d]", key, i), branch)
		}
		return r
	case opAll, opSome, opNone, opMap, opFilter:
		return rule{op: o, args: []rule{
			c.rule(args[0], key+"[0]", inner),
			c.rule(args[1], key+"[1]", place{item: true}),
		}}
	case opReduce:
		r := rule{op: o, args: make([]rule, len(args))}
		for i, a := range args {
			where := inner
			if i == 1 {
				where = place{item: true, reduce: true}
			}
			r.args[i] = c.rule(a, fmt.Sprintf("%s[%d]", key, i), where)
		}
		return r
	case opSemver:
		return c.semver(args, key, inner)
	case opFractional:
		return c.fractional(n, args, key, at)
	case opRollout:
		return c.rollout(n, args, key, at)
	default:
	}
	r := rule{op: o, args: c.rules(args, key, inner)}
	if o == opIn && r.args[1].op == opConst {
		r.words = words(r.args[1].constant)
	}
	return r
}

// words is a list of strings, nil if it is anything else.
func words(list value) []string {
	out := make([]string, 0, list.len())
	for i := range list.len() {
		v := list.at(i)
		if v.kind != kindString {
			return nil
		}
		out = append(out, v.str)
	}
	if list.kind != kindList {
		return nil
	}
	return out
}

// variable compiles var: a name or path, and a default.
func (c *ruleCompiler) variable(n *yaml.Node, args []*yaml.Node, key string, at place) rule {
	if k := kindOf(args[0]); k != "string" && (k != "number" || !at.item) {
		c.fault(n, key, shown(args[0]), "a variable's name; computed names are not supported")
		return rule{}
	}
	r := c.attribute(n, args[0].Value, key, at)
	if len(args) == 2 {
		return rule{op: opDefault, args: []rule{r, c.rule(args[1], key+"[1]", at)}}
	}
	return r
}

func (c *ruleCompiler) attribute(n *yaml.Node, name, key string, at place) rule {
	path := strings.Split(name, ".")
	switch {
	case at.reduce:
		switch path[0] {
		case "current":
			return rule{op: opItem, path: path[1:]}
		case "accumulator":
			return rule{op: opAccumulator, path: path[1:]}
		}
		c.fault(n, key, name, "current or accumulator, which are all that reduce sees")
		return rule{}
	case at.item:
		if name == "" {
			path = nil
		}
		return rule{op: opItem, path: path}
	case name == "$flagd.flagKey":
		return rule{op: opFlagKey, constant: stringValue(c.flagdKey())}
	case name == "$flagd.timestamp":
		return rule{op: opTimestamp}
	case name == "" || path[0] == "$flagd":
		c.fault(n, key, name, "an attribute's name, $flagd.flagKey or $flagd.timestamp")
		return rule{}
	case name == "targetingKey":
		return rule{op: opTargetingKey}
	case name == "tier":
		return rule{op: opTier}
	case name == "anonymous":
		return rule{op: opAnonymous}
	case path[0] == "roles":
		return rule{op: opRoles, path: path[1:]}
	}
	return rule{op: opClaim, whole: name, path: path}
}

func (c *ruleCompiler) flagdKey() string {
	if c.def.Extension.FlagdKey != "" {
		return c.def.Extension.FlagdKey
	}
	return c.def.Key
}

// missing compiles missing and missing_some; their names must be constant.
func (c *ruleCompiler) missing(n *yaml.Node, o op, args []*yaml.Node, key string, at place) rule {
	r := rule{op: o}
	if o == opMissingSome {
		least, ok := number(args[0])
		if !ok || args[1].Kind != yaml.SequenceNode {
			c.fault(n, key, shown(n.Content[1]), "a number and a list of names")
			return rule{}
		}
		r.constant = numberValue(least)
		args = args[1].Content
	}
	for _, a := range args {
		if kindOf(a) != "string" {
			c.fault(a, key, shown(a), "names of variables")
			return rule{}
		}
		r.names = append(r.names, stringValue(a.Value))
		r.args = append(r.args, c.attribute(a, a.Value, key, at))
	}
	return r
}

func (c *ruleCompiler) semver(args []*yaml.Node, key string, at place) rule {
	if !slices.Contains([]string{"=", "!=", ">", "<", ">=", "<=", "~", "^"}, args[1].Value) {
		c.fault(args[1], key+"[1]", shown(args[1]), "one of =, !=, >, <, >=, <=, ~, ^")
	}
	r := rule{op: opSemver, versions: &versions{operator: args[1].Value}, args: []rule{
		c.rule(args[0], key+"[0]", at),
		c.rule(args[2], key+"[2]", at),
	}}
	for i, a := range r.args {
		if a.op != opConst {
			continue
		}
		v, ok := parseSemver(a.constant.str)
		if !ok {
			c.fault(args[2*i], fmt.Sprintf("%s[%d]", key, 2*i), shown(args[2*i]), "a semantic version such as 1.2.3")
		}
		r.versions.constant[i] = &v
	}
	return r
}

func (c *ruleCompiler) fractional(n *yaml.Node, args []*yaml.Node, key string, at place) rule {
	s := &split{flagdKey: murmur3Of(c.flagdKey()), legacy: c.def.Extension.FlagdHash == HashFlagd1}
	shift := 0
	if args[0].Kind != yaml.SequenceNode {
		s.setBucketBy(c.rule(args[0], key+"[0]", at.inside()))
		args, shift = args[1:], 1
	}
	if len(args) == 0 || len(args) > MaxVariants {
		c.fault(n, key, len(args), fmt.Sprintf("1 to %d lists of a variant and a weight", MaxVariants))
		return rule{}
	}
	constant, total := true, 0.0
	for i, a := range args {
		at, key := at, fmt.Sprintf("%s[%d]", key, i+shift)
		if a.Kind != yaml.SequenceNode || len(a.Content) == 0 || len(a.Content) > 2 {
			c.fault(a, key, shown(a), "a list of a variant and a weight")
			return rule{}
		}
		weight := rule{op: opConst, constant: numberValue(1)}
		if len(a.Content) == 2 {
			weight = c.rule(a.Content[1], key+"[1]", at.inside())
		}
		if weight.op == opConst {
			w := weight.constant.num
			if weight.constant.kind != kindNumber || w != math.Trunc(w) || w < 0 || w > math.MaxInt32 {
				c.fault(a, key+"[1]", shown(a.Content[1]), "a whole number from 0 to 2147483647")
				return rule{}
			}
			total += w
		} else {
			constant = false
		}
		s.variants = append(s.variants, c.rule(a.Content[0], key+"[0]", at))
		s.weights = append(s.weights, weight)
	}
	if total > math.MaxInt32 || constant && total == 0 {
		c.fault(n, key, total, "weights that add up to between 1 and 2147483647")
		return rule{}
	}
	if constant {
		s.total = uint32(total)
		end := uint32(0)
		for i := range s.weights {
			end += uint32(s.weights[i].constant.num)
			s.ends = append(s.ends, end)
		}
	}
	return rule{op: opFractional, split: s}
}

func (c *ruleCompiler) rollout(n *yaml.Node, args []*yaml.Node, key string, at place) rule {
	s := &split{flagdKey: murmur3Of(c.flagdKey())}
	if kindOf(args[0]) == "object" {
		s.setBucketBy(c.rule(args[0], key+"[0]", at.inside()))
		args = args[1:]
	}
	if len(args) < 3 || len(args) > 4 {
		c.fault(n, key, shown(n.Content[1]), "a bucketing rule if any, start, end, the variant before if not the default, the variant after")
		return rule{}
	}
	from, ok := number(args[0])
	until, also := number(args[1])
	if !ok || !also || from < 0 || until > math.MaxInt32 || from >= until {
		c.fault(n, key, shown(n.Content[1]), "start and end in whole seconds since 1970, the start before the end, up to 2147483647")
		return rule{}
	}
	s.from, s.until = int64(from), int64(until)
	before := rule{op: opConst}
	if len(args) == 4 {
		before = c.rule(args[2], key, at)
	}
	return rule{op: opRollout, split: s, args: []rule{before, c.rule(args[len(args)-1], key, at)}}
}
