package config

import (
	"encoding"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// maxNodes bounds what one file may decode to, aliases expanded.
const maxNodes = 4 << 20

// maxDepth bounds nesting, so that an alias that contains itself ends.
const maxDepth = 200

// decode sets v from node, strictly.
func (l *loader) decode(node *yaml.Node, v reflect.Value, key string) {
	if l.nodes++; l.nodes > maxNodes {
		if l.nodes == maxNodes+1 {
			l.fault(key, "", fmt.Sprintf("the file expands to more than %d values", maxNodes))
		}
		return
	}
	if l.depth++; l.depth > maxDepth {
		l.depth--
		l.fault(key, "", fmt.Sprintf("nested deeper than %d levels, or an alias that contains itself", maxDepth))
		return
	}
	defer func() { l.depth-- }()
	node = resolve(node)
	if _, known := l.origins[key]; !known && !l.fromEnv {
		l.origins[key] = origin{l.file, node.Line}
	}
	t := v.Type()
	switch {
	case t == nodeType:
		v.Set(reflect.ValueOf(*node))
		return
	case isText(t):
		l.decodeText(node, v, key)
		return
	case t == durationType:
		l.decodeDuration(node, v, key)
		return
	}
	switch t.Kind() {
	case reflect.Pointer:
		if isNull(node) {
			v.SetZero()
			return
		}
		p := reflect.New(t.Elem())
		l.decode(node, p.Elem(), key)
		v.Set(p)
	case reflect.Struct:
		if isNull(node) {
			return
		}
		l.eachKey(node, t, key, func(key, _ string, value *yaml.Node, field reflect.StructField) {
			l.decode(value, v.FieldByIndex(field.Index), key)
		})
	case reflect.Slice:
		l.decodeSlice(node, v, key)
	case reflect.Map:
		l.decodeMap(node, v, key)
	case reflect.Interface:
		var out any
		if err := node.Decode(&out); err != nil {
			l.fault(key, "", "not valid YAML: "+err.Error())
			return
		}
		if out != nil {
			v.Set(reflect.ValueOf(out))
		}
	default:
		l.decodeScalar(node, v, key)
	}
}

func (l *loader) decodeSlice(node *yaml.Node, v reflect.Value, key string) {
	if isNull(node) {
		v.SetZero()
		return
	}
	if node.Kind != yaml.SequenceNode {
		l.fault(key, scalarText(node), "a list")
		return
	}
	out := reflect.MakeSlice(v.Type(), len(node.Content), len(node.Content))
	for i, n := range node.Content {
		l.decode(n, out.Index(i), fmt.Sprintf("%s[%d]", key, i))
	}
	v.Set(out)
}

func (l *loader) decodeMap(node *yaml.Node, v reflect.Value, key string) {
	if isNull(node) {
		v.SetZero()
		return
	}
	if node.Kind != yaml.MappingNode {
		l.fault(key, scalarText(node), "a mapping of names to values")
		return
	}
	out := reflect.MakeMapWithSize(v.Type(), len(node.Content)/2)
	for i := 0; i+1 < len(node.Content); i += 2 {
		k, n := node.Content[i], node.Content[i+1]
		at := join(key, k.Value)
		l.origins[at] = origin{l.file, k.Line}
		name := reflect.ValueOf(k.Value).Convert(v.Type().Key())
		if out.MapIndex(name).IsValid() {
			l.fault(at, "", "the key stands twice")
			continue
		}
		elem := reflect.New(v.Type().Elem()).Elem()
		l.decode(n, elem, at)
		out.SetMapIndex(name, elem)
	}
	v.Set(out)
}

func (l *loader) decodeText(node *yaml.Node, v reflect.Value, key string) {
	allowed := "a value written as text"
	if a, ok := v.Addr().Interface().(interface{ Allowed() string }); ok {
		allowed = a.Allowed()
	}
	shown := scalarText(node)
	_, secret := v.Addr().Interface().(*Secret)
	if secret {
		shown = redacted
	}
	if node.Kind != yaml.ScalarNode || isNull(node) {
		l.fault(key, "", allowed)
		return
	}
	text := node.Value
	if p, ok := v.Addr().Interface().(*Path); ok && !l.fromEnv {
		p.resolve(l.dir, text)
		return
	}
	reader, ok := v.Addr().Interface().(encoding.TextUnmarshaler)
	if !ok {
		panic(fmt.Sprintf("config: %s does not read itself from text", v.Type())) // isText said so
	}
	if err := reader.UnmarshalText([]byte(text)); err != nil {
		if secret {
			l.fault(key, shown, allowed)
			return
		}
		l.fault(key, shown, fmt.Sprintf("%s (%v)", allowed, err))
	}
}

const durationAllowed = `a duration with its unit, such as "250ms", "5s" or "1h30m"`

func (l *loader) decodeDuration(node *yaml.Node, v reflect.Value, key string) {
	// A bare 0 is refused too: one rule, no exception to remember.
	if node.Kind != yaml.ScalarNode || node.ShortTag() != "!!str" {
		l.fault(key, scalarText(node), durationAllowed)
		return
	}
	d, err := time.ParseDuration(node.Value)
	if err != nil {
		l.fault(key, node.Value, durationAllowed)
		return
	}
	v.SetInt(int64(d))
}

func (l *loader) decodeScalar(node *yaml.Node, v reflect.Value, key string) {
	tag := node.ShortTag()
	wrong := func(allowed string) { l.fault(key, scalarText(node), allowed) }
	if node.Kind != yaml.ScalarNode {
		wrong("a single value, not a list or mapping")
		return
	}
	switch v.Kind() {
	case reflect.String:
		if tag != "!!str" && !l.fromEnv {
			wrong("text; quote it if it looks like a number, a date or a boolean")
			return
		}
		if !utf8.ValidString(node.Value) {
			wrong("valid UTF-8 text")
			return
		}
		v.SetString(node.Value)
	case reflect.Bool:
		b, err := strconv.ParseBool(node.Value)
		if tag != "!!bool" || err != nil {
			wrong("true or false")
			return
		}
		v.SetBool(b)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		n, err := strconv.ParseInt(node.Value, 0, v.Type().Bits())
		if tag != "!!int" || err != nil {
			wrong(fmt.Sprintf("a whole number of at most %d bits", v.Type().Bits()))
			return
		}
		v.SetInt(n)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		n, err := strconv.ParseUint(node.Value, 0, v.Type().Bits())
		if tag != "!!int" || err != nil {
			wrong(fmt.Sprintf("a whole number from 0 of at most %d bits", v.Type().Bits()))
			return
		}
		v.SetUint(n)
	case reflect.Float32, reflect.Float64:
		f, err := strconv.ParseFloat(node.Value, 64)
		if tag != "!!float" && tag != "!!int" || err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
			wrong("a finite number")
			return
		}
		v.SetFloat(f)
	default:
		panic(fmt.Sprintf("config: the type %s of %s cannot be configured", v.Type(), key))
	}
}

// resolve follows an alias to what it stands for.
func resolve(node *yaml.Node) *yaml.Node {
	for node.Kind == yaml.AliasNode {
		node = node.Alias
	}
	return node
}

func isNull(node *yaml.Node) bool {
	n := resolve(node)
	return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null"
}

func scalarText(node *yaml.Node) string {
	if node.Kind == yaml.ScalarNode {
		return node.Value
	}
	return ""
}

// clip bounds a value shown in a fault.
func clip(s string) string {
	const most = 120
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}
