package flag

import (
	"math"
	"slices"
	"strings"
)

// rule is a node of a compiled targeting rule. It is interpreted by a plain
// recursive method rather than as closures: so the compiler can prove that the
// environment does not escape, and evaluation does not allocate.
type rule struct {
	op       op
	args     []rule
	constant value // opConst's value, opFlagKey's, missing_some's number
	// variant is the one that an opConst names where rules name variants.
	variant *variant
	// path holds the steps of a variable's name, after the attribute.
	path     []string
	whole    string   // opClaim's whole name, tried before the path
	words    []string // opIn's list where it is constant and of strings
	split    *split
	versions *versions
	names    []value // missing's and missing_some's, in parallel to args
}

type op uint8

const (
	opConst op = iota
	opList
	opFlagKey
	opTimestamp
	opTargetingKey
	opTier
	opRoles
	opAnonymous
	opClaim
	opItem
	opAccumulator
	opDefault // a var with a default: args[0], else args[1]
	opIf
	opAnd
	opOr
	opNot
	opBool
	opEqual
	opNotEqual
	opSame
	opNotSame
	opLess
	opLessEqual
	opGreater
	opGreaterEqual
	opAdd
	opSubtract
	opMultiply
	opDivide
	opModulo
	opMin
	opMax
	opIn
	opCat
	opSubstr
	opMerge
	opAll
	opSome
	opNone
	opMap
	opFilter
	opReduce
	opMissing
	opMissingSome
	opStartsWith
	opEndsWith
	opSemver
	opFractional
	opRollout
)

// split is what fractional and rollout need besides arguments.
type split struct {
	flagdKey murmur3 // flagd's key, hashed
	legacy   bool    // flagd-1
	bucketBy *rule
	prefix   murmur3 // the constant text before bucketBy's
	// variants and weights are fractional's, in parallel.
	variants []rule
	weights  []rule
	// total is the sum of the weights if all are constant, else 0; ends are
	// then the running sums.
	total uint32
	ends  []uint32
	// from and until are the roll-out's seconds since the epoch.
	from, until int64
}

// env is what a rule may read.
type env struct {
	subject *Subject
	now     int64
	item    value // the element under all, some, none, map, filter and reduce
	// accumulator is what reduce has come to so far.
	accumulator value
}

func (r *rule) eval(e *env) value {
	switch r.op {
	case opConst:
		return r.constant
	case opTargetingKey:
		return orNull(e.subject.Key)
	case opTier:
		return orNull(e.subject.Tier)
	case opClaim:
		return claimValue(e.subject, r.whole, r.path)
	case opIf, opFractional, opRollout:
		if chosen := r.choose(e); chosen != nil {
			return chosen.eval(e)
		}
		return value{}
	case opAnd, opOr:
		var v value
		for i := range r.args {
			if v = r.args[i].eval(e); v.truthy() == (r.op == opOr) {
				break
			}
		}
		return v
	case opReduce:
		return r.reduce(e)
	case opNot, opBool, opEqual, opNotEqual, opSame, opNotSame, opLess, opLessEqual, opGreater, opGreaterEqual,
		opIn, opAll, opSome, opNone, opStartsWith, opEndsWith, opSemver:
		return boolValue(r.holds(e))
	case opAdd, opSubtract, opMultiply, opDivide, opModulo, opMin, opMax:
		return numberValue(r.arithmetic(e))
	case opCat, opSubstr:
		return stringValue(r.text(e))
	case opList, opMerge, opMap, opFilter, opMissing, opMissingSome:
		return value{kind: kindList, ref: r.list(e)}
	default:
		return r.data(e)
	}
}

// choose follows the operators that choose between rules to the rule chosen,
// nil where none is. Handing on rules in place of values saves most of the
// time: a value is too large for registers.
func (r *rule) choose(e *env) *rule {
	for r != nil {
		switch r.op {
		case opIf:
			r = r.branch(e)
		case opFractional:
			r = r.split.fractional(e)
		case opRollout:
			r = r.rollout(e)
		default:
			return r
		}
	}
	return nil
}

func (r *rule) branch(e *env) *rule {
	i := 0
	for ; i+1 < len(r.args); i += 2 {
		if r.args[i].holds(e) {
			return &r.args[i+1]
		}
	}
	if i < len(r.args) {
		return &r.args[i]
	}
	return nil
}

// holds is eval's truth, without making values of the truths in between.
func (r *rule) holds(e *env) bool {
	switch r.op {
	case opAnd:
		for i := range r.args {
			if !r.args[i].holds(e) {
				return false
			}
		}
		return true
	case opOr:
		for i := range r.args {
			if r.args[i].holds(e) {
				return true
			}
		}
		return false
	case opNot:
		return !r.args[0].holds(e)
	case opBool:
		return r.args[0].holds(e)
	case opIn:
		return r.in(e)
	case opStartsWith:
		a, isText := r.args[0].str(e)
		b, also := r.args[1].str(e)
		return isText && also && strings.HasPrefix(a, b)
	case opEndsWith:
		a, isText := r.args[0].str(e)
		b, also := r.args[1].str(e)
		return isText && also && strings.HasSuffix(a, b)
	case opSemver:
		return r.versions.holds(r, e)
	case opAll, opSome, opNone:
		return r.quantify(e)
	case opEqual, opNotEqual, opSame, opNotSame, opLess, opLessEqual, opGreater, opGreaterEqual:
		return r.compare(e)
	default:
		return r.eval(e).truthy()
	}
}

// data reads what the rule is evaluated over.
func (r *rule) data(e *env) value {
	switch r.op {
	case opFlagKey:
		return r.constant
	case opTimestamp:
		return numberValue(float64(e.now))
	case opRoles:
		return follow(value{kind: kindList, ref: &e.subject.Roles}, r.path)
	case opAnonymous:
		return boolValue(e.subject.Anonymous)
	case opItem:
		return follow(e.item, r.path)
	case opAccumulator:
		return follow(e.accumulator, r.path)
	case opDefault:
		if v := r.args[0].eval(e); v.kind != kindNull {
			return v
		}
		return r.args[1].eval(e)
	default:
		return value{}
	}
}

func follow(v value, path []string) value {
	for _, step := range path {
		v = v.member(step)
	}
	return v
}

// str is eval where a string is wanted, without making a value of it.
func (r *rule) str(e *env) (string, bool) {
	switch r.op {
	case opConst:
		return r.constant.str, r.constant.kind == kindString
	case opFlagKey:
		return r.constant.str, true
	case opTier:
		return e.subject.Tier, e.subject.Tier != ""
	case opTargetingKey:
		return e.subject.Key, e.subject.Key != ""
	case opClaim:
		if text, ok := e.subject.Claims[r.whole].(string); ok || len(r.path) == 1 {
			return text, ok
		}
	default:
	}
	v := r.eval(e)
	return v.str, v.kind == kindString
}

func (r *rule) in(e *env) bool {
	if r.words != nil {
		text, ok := r.args[0].str(e)
		return ok && slices.Contains(r.words, text)
	}
	if hay := &r.args[1]; hay.op == opRoles && len(hay.path) == 0 {
		text, ok := r.args[0].str(e)
		return ok && slices.Contains(e.subject.Roles, text)
	}
	return contains(r.args[0].eval(e), r.args[1].eval(e))
}

func (r *rule) compare(e *env) bool {
	if r.op <= opNotSame && r.args[1].op == opConst && r.args[1].constant.kind == kindString {
		// Two strings are equal or not, loosely and strictly alike.
		if text, ok := r.args[0].str(e); ok {
			return (text == r.args[1].constant.str) == (r.op == opEqual || r.op == opSame)
		}
	}
	a, b := r.args[0].eval(e), r.args[1].eval(e)
	switch r.op {
	case opEqual:
		return looseEqual(a, b)
	case opNotEqual:
		return !looseEqual(a, b)
	case opSame:
		return strictEqual(a, b)
	case opNotSame:
		return !strictEqual(a, b)
	case opGreater:
		return less(b, a)
	case opGreaterEqual:
		return lessOrEqual(b, a)
	case opLess:
		return less(a, b) && (len(r.args) < 3 || less(b, r.args[2].eval(e)))
	default: // opLessEqual
		return lessOrEqual(a, b) && (len(r.args) < 3 || lessOrEqual(b, r.args[2].eval(e)))
	}
}

func (r *rule) arithmetic(e *env) float64 {
	n := r.args[0].eval(e).number()
	if r.op == opSubtract && len(r.args) == 1 {
		return -n
	}
	for i := 1; i < len(r.args); i++ {
		m := r.args[i].eval(e).number()
		switch r.op {
		case opAdd:
			n += m
		case opSubtract:
			n -= m
		case opMultiply:
			n *= m
		case opDivide:
			n /= m
		case opModulo:
			n = math.Mod(n, m)
		case opMin:
			n = math.Min(n, m)
		default: // opMax
			n = math.Max(n, m)
		}
	}
	return n
}

// text is cat and substr.
func (r *rule) text(e *env) string {
	if r.op == opSubstr {
		return r.substr(e)
	}
	var out []byte
	for i := range r.args {
		out = r.args[i].eval(e).appendText(out)
	}
	return string(out)
}

// list is a list that is not constant: written out, merged, mapped, filtered, or
// of what is missing.
func (r *rule) list(e *env) *[]value {
	list := []value{}
	switch r.op {
	case opList:
		for i := range r.args {
			list = append(list, r.args[i].eval(e))
		}
	case opMerge:
		for i := range r.args {
			v := r.args[i].eval(e)
			if v.kind != kindList {
				list = append(list, v)
				continue
			}
			for j := range v.len() {
				list = append(list, v.at(j))
			}
		}
	case opMap, opFilter:
		elements := r.args[0].eval(e)
		inner := env{subject: e.subject, now: e.now}
		for i := range elements.len() {
			inner.item = elements.at(i)
			switch v := r.args[1].eval(&inner); {
			case r.op == opMap:
				list = append(list, v)
			case v.truthy():
				list = append(list, inner.item)
			}
		}
	default: // opMissing, opMissingSome
		for i := range r.args {
			if r.args[i].eval(e).kind == kindNull {
				list = append(list, r.names[i])
			}
		}
		// missing_some has enough if as many are there as it asks for.
		if r.op == opMissingSome && float64(len(r.args)-len(list)) >= r.constant.num {
			list = list[:0]
		}
	}
	return &list
}

// substr counts in characters; a negative start counts from the end, a
// negative length leaves that many off the end.
func (r *rule) substr(e *env) string {
	text := []rune(string(r.args[0].eval(e).appendText(nil)))
	start := clamp(r.args[1].eval(e).number(), len(text))
	if start < 0 {
		start = max(0, len(text)+start)
	}
	end := len(text)
	if len(r.args) == 3 {
		if length := clamp(r.args[2].eval(e).number(), len(text)); length < 0 {
			end += length
		} else {
			end = min(end, start+length)
		}
	}
	if start >= end {
		return ""
	}
	return string(text[start:end])
}

// clamp truncates a number to an integer from -limit to limit; NaN is 0.
func clamp(f float64, limit int) int {
	if math.IsNaN(f) {
		return 0
	}
	return int(math.Max(-float64(limit), math.Min(float64(limit), math.Trunc(f))))
}

// quantify is all, some and none. Of an empty list, all is false.
func (r *rule) quantify(e *env) bool {
	list := r.args[0].eval(e)
	inner := env{subject: e.subject, now: e.now}
	hits, n := 0, list.len()
	for i := range n {
		inner.item = list.at(i)
		if r.args[1].eval(&inner).truthy() {
			hits++
		}
	}
	switch r.op {
	case opAll:
		return n > 0 && hits == n
	case opSome:
		return hits > 0
	default: // opNone
		return hits == 0
	}
}

// reduce folds a list into one value, beginning with null or args[2].
func (r *rule) reduce(e *env) value {
	list := r.args[0].eval(e)
	inner := env{subject: e.subject, now: e.now}
	if len(r.args) == 3 {
		inner.accumulator = r.args[2].eval(e)
	}
	for i := range list.len() {
		inner.item = list.at(i)
		inner.accumulator = r.args[1].eval(&inner)
	}
	return inner.accumulator
}
