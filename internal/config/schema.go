package config

import (
	"encoding"
	"fmt"
	"iter"
	"maps"
	"reflect"
	"sort"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

var (
	durationType = reflect.TypeFor[time.Duration]()
	nodeType     = reflect.TypeFor[yaml.Node]()
	textType     = reflect.TypeFor[encoding.TextUnmarshaler]()
	checkerType  = reflect.TypeFor[Validator]()
)

// schemaField is one key that a file or a variable can set: a scalar or a list.
type schemaField struct {
	key   string
	env   string
	index []int
	typ   reflect.Type
	doc   string
	// reload says that a running process takes a changed value over: the key, or a
	// section that it is in, has the tag `reload:"true"`.
	reload bool
}

// newSchema lists the keys of a configuration struct in field order. It panics
// where the struct breaks the package's conventions: a programmer's mistake
// that any test of the configuration shows.
func newSchema(t reflect.Type) []schemaField {
	if t.Kind() != reflect.Struct {
		panic(fmt.Sprintf("config: %s is not a struct", t))
	}
	var out []schemaField
	var walk func(t reflect.Type, prefix string, index []int, reload bool)
	walk = func(t reflect.Type, prefix string, index []int, reload bool) {
		for name, f := range orderedFields(t) {
			key := join(prefix, name)
			at := append(append([]int{}, index...), f.Index...)
			reload := reload || f.Tag.Get("reload") == "true"
			if isSection(f.Type) {
				walk(f.Type, key, at, reload)
				continue
			}
			out = append(out, schemaField{key: key, env: envName(key), index: at, typ: f.Type, doc: f.Tag.Get("doc"), reload: reload})
		}
	}
	walk(t, "", nil, false)
	seen := map[string]string{}
	for _, f := range out {
		if other, ok := seen[f.env]; ok {
			panic(fmt.Sprintf("config: %s and %s share the variable %s", other, f.key, f.env))
		}
		seen[f.env] = f.key
	}
	return out
}

// orderedFields yields the keys of a struct, inlined sections flattened.
func orderedFields(t reflect.Type) iter.Seq2[string, reflect.StructField] {
	return func(yield func(string, reflect.StructField) bool) {
		for _, f := range reflect.VisibleFields(t) {
			if !f.IsExported() || f.Anonymous || len(f.Index) > 1 && !inlined(t, f.Index) {
				if f.Anonymous && reflect.PointerTo(f.Type).Implements(checkerType) {
					panic(fmt.Sprintf("config: %s inlines %s, which validates: give it named sections that do", t, f.Type))
				}
				continue
			}
			name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
			if name == "-" {
				continue
			}
			if name == "" || name != strings.ToLower(name) || strings.ContainsAny(name, ". ") {
				panic(fmt.Sprintf("config: field %s of %s needs a yaml tag in lower case without dots", f.Name, t))
			}
			if !yield(name, f) {
				return
			}
		}
	}
}

// inlined says whether every step of index but the last is an embedded struct
// tagged yaml:",inline".
func inlined(t reflect.Type, index []int) bool {
	for _, i := range index[:len(index)-1] {
		f := t.Field(i)
		if !f.Anonymous || f.Tag.Get("yaml") != ",inline" {
			return false
		}
		t = f.Type
	}
	return true
}

func fieldsByName(t reflect.Type) map[string]reflect.StructField {
	return maps.Collect(orderedFields(t))
}

func sortedNames(fields map[string]reflect.StructField) []string {
	out := make([]string, 0, len(fields))
	for name := range fields {
		out = append(out, name)
	}
	sort.Strings(out)
	return out
}

// isText says whether a type reads itself from text.
func isText(t reflect.Type) bool { return reflect.PointerTo(t).Implements(textType) }

// isSection says whether a type is a nested struct whose keys are keys of the
// whole.
func isSection(t reflect.Type) bool {
	return t.Kind() == reflect.Struct && !isText(t) && t != nodeType
}

func join(prefix, key string) string {
	switch {
	case prefix == "":
		return key
	case key == "":
		return prefix
	default:
		return prefix + "." + key
	}
}

// parent returns the key one step out: a.b[1] gives a.b, a.b gives a.
func parent(key string) string {
	if i := strings.LastIndexAny(key, ".["); i >= 0 {
		return key[:i]
	}
	return ""
}

func envName(key string) string {
	return EnvPrefix + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
}

func keyOfEnv(name string) string { return strings.ToLower(strings.TrimPrefix(name, EnvPrefix)) }

// nearest returns the name with the smallest edit distance.
func nearest(name string, names []string) string {
	best, bestDistance := "", int(^uint(0)>>1)
	for _, n := range names {
		if d := distance(name, n); d < bestDistance {
			best, bestDistance = n, d
		}
	}
	return best
}

// distance is Levenshtein's edit distance in bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			next := min(row[j]+1, row[j+1]+1, diagonal+cost)
			diagonal, row[j+1] = row[j+1], next
		}
	}
	return row[len(b)]
}
