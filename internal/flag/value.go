package flag

import (
	"encoding/json"
	"math"
	"slices"
	"strconv"
	"strings"
)

// kind is a JSON type.
type kind uint8

const (
	kindNull kind = iota
	kindBool
	kindNumber
	kindString
	kindList
	kindObject
)

// value is one JSON value during targeting. It is passed by value, so that
// rules are evaluated without allocation.
type value struct {
	kind kind
	num  float64 // kindNumber; for kindBool 0 or 1
	str  string  // kindString
	// ref holds lists (*[]value, *[]string, []any) and objects
	// (map[string]any): what fits an interface without allocation.
	ref any
}

func boolValue(b bool) value {
	if b {
		return value{kind: kindBool, num: 1}
	}
	return value{kind: kindBool}
}

func numberValue(f float64) value { return value{kind: kindNumber, num: f} }

func stringValue(s string) value { return value{kind: kindString, str: s} }

// orNull is a string value, or null where it is empty.
func orNull(s string) value {
	if s == "" {
		return value{}
	}
	return stringValue(s)
}

// valueOf reads what encoding/json decodes, and the Go types that claims may
// arrive in besides. Other types are null.
func valueOf(a any) value {
	switch a := a.(type) {
	case string:
		return stringValue(a)
	case bool:
		return boolValue(a)
	case float64:
		return numberValue(a)
	case int:
		return numberValue(float64(a))
	case int64:
		return numberValue(float64(a))
	case json.Number:
		if f, err := a.Float64(); err == nil {
			return numberValue(f)
		}
	case []any, *[]string, *[]value:
		return value{kind: kindList, ref: a}
	case map[string]any:
		return value{kind: kindObject, ref: a}
	}
	return value{}
}

func (v value) len() int {
	switch l := v.ref.(type) {
	case *[]value:
		return len(*l)
	case *[]string:
		return len(*l)
	case []any:
		return len(l)
	}
	return 0
}

func (v value) at(i int) value {
	switch l := v.ref.(type) {
	case *[]value:
		return (*l)[i]
	case *[]string:
		return stringValue((*l)[i])
	case []any:
		return valueOf(l[i])
	}
	return value{}
}

// member is one step of a path: an object's member or a list's element.
func (v value) member(name string) value {
	switch v.kind {
	case kindObject:
		if m, ok := v.ref.(map[string]any); ok {
			return valueOf(m[name])
		}
	case kindList:
		if i, err := strconv.Atoi(name); err == nil && i >= 0 && i < v.len() {
			return v.at(i)
		}
	default:
	}
	return value{}
}

// truthy is JSONLogic's: null, false, 0, "" and the empty list are false.
func (v value) truthy() bool {
	switch v.kind {
	case kindBool, kindNumber:
		return v.num != 0 && !math.IsNaN(v.num)
	case kindString:
		return v.str != ""
	case kindList:
		return v.len() > 0
	case kindObject:
		return true
	default:
		return false
	}
}

// number is JavaScript's Number(v); NaN where v is not numeric.
func (v value) number() float64 {
	switch v.kind {
	case kindNull:
		return 0
	case kindBool, kindNumber:
		return v.num
	case kindString:
		text := strings.TrimSpace(v.str)
		if text == "" {
			return 0
		}
		// ParseFloat also takes inf, nan, hexadecimal and underscores.
		if strings.Trim(text, "0123456789+-.eE") != "" {
			return math.NaN()
		}
		if f, err := strconv.ParseFloat(text, 64); err == nil {
			return f
		}
	default:
	}
	return math.NaN()
}

// strictEqual is ===; lists and objects equal nothing.
func strictEqual(a, b value) bool {
	if a.kind != b.kind {
		return false
	}
	switch a.kind {
	case kindNull:
		return true
	case kindBool, kindNumber:
		return a.num == b.num
	case kindString:
		return a.str == b.str
	default:
		return false
	}
}

// looseEqual is ==: strings and booleans compare with numbers as numbers.
func looseEqual(a, b value) bool {
	if a.kind == b.kind {
		return strictEqual(a, b)
	}
	if !a.scalar() || !b.scalar() {
		return false
	}
	return a.number() == b.number()
}

// scalar is a boolean, number or string.
func (v value) scalar() bool {
	return v.kind == kindBool || v.kind == kindNumber || v.kind == kindString
}

// less reports a < b: strings by bytes, all else as numbers.
func less(a, b value) bool {
	if a.kind == kindString && b.kind == kindString {
		return a.str < b.str
	}
	return a.number() < b.number()
}

// lessOrEqual reports a <= b; it is not the negation of b < a, since NaN
// compares with nothing.
func lessOrEqual(a, b value) bool {
	if a.kind == kindString && b.kind == kindString {
		return a.str <= b.str
	}
	return a.number() <= b.number()
}

// contains is the operator in: a substring of a string or a member of a list.
func contains(needle, hay value) bool {
	switch hay.kind {
	case kindString:
		return needle.kind == kindString && strings.Contains(hay.str, needle.str)
	case kindList:
		if strs, ok := hay.ref.(*[]string); ok {
			return needle.kind == kindString && slices.Contains(*strs, needle.str)
		}
		for i := range hay.len() {
			if strictEqual(needle, hay.at(i)) {
				return true
			}
		}
	default:
	}
	return false
}

// appendText appends the value as the operator cat shows it.
func (v value) appendText(dst []byte) []byte {
	switch v.kind {
	case kindBool:
		return strconv.AppendBool(dst, v.num != 0)
	case kindNumber:
		if math.Abs(v.num) < 1e21 {
			return strconv.AppendFloat(dst, v.num, 'f', -1, 64)
		}
		return strconv.AppendFloat(dst, v.num, 'g', -1, 64)
	case kindString:
		return append(dst, v.str...)
	case kindList:
		for i := range v.len() {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = v.at(i).appendText(dst)
		}
	default:
	}
	return dst
}
