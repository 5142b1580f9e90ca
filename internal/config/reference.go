package config

import (
	"fmt"
	"io"
	"reflect"
	"strings"
	"time"
)

// WriteReference writes the reference page of a configuration in Markdown: a
// table of every key with its type, default, variable, meaning and what a change
// of it takes (the tag reload), and one for the elements of each list.
func WriteReference[T any](w io.Writer, title string, defaults T) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\n\n", title)
	b.WriteString("Generated from the source; every key can also be set by the environment variable beside it.\n" +
		"A list is set by a variable as `a,b,c`, or in YAML or JSON.\n\n" +
		"A change of the file takes a *reload* (SIGHUP, or by itself where the process watches its file) or a *restart*: after a\n" +
		"reload the log names the changed keys that still wait for a restart. Where a key names a file, this is about the name: the file\n" +
		"itself may be read again when it changes, as the guides say.\n\n")
	b.WriteString("| key | type | default | variable | change | meaning |\n| --- | --- | --- | --- | --- | --- |\n")
	root := reflect.ValueOf(defaults)
	var lists []schemaField
	for _, f := range newSchema(root.Type()) {
		change := "restart"
		if f.reload {
			change = "reload"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | `%s` | %s | %s |\n", f.key, typeName(f.typ), shown(root.FieldByIndex(f.index)), f.env, change, f.doc)
		if elem, ok := listElement(f.typ); ok {
			lists = append(lists, schemaField{key: f.key + "[]", typ: elem})
		}
	}
	done := map[reflect.Type]bool{} // a list may hold itself
	for len(lists) > 0 {
		l := lists[0]
		lists = lists[1:]
		if done[l.typ] {
			continue
		}
		done[l.typ] = true
		fmt.Fprintf(&b, "\n## `%s`\n\n| key | type | meaning |\n| --- | --- | --- |\n", l.key)
		for _, f := range newSchema(l.typ) {
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", f.key, typeName(f.typ), f.doc)
			if elem, ok := listElement(f.typ); ok {
				lists = append(lists, schemaField{key: l.key + "." + f.key + "[]", typ: elem})
			}
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// NeedRestart lists the keys, without the tag reload, that have another value in
// next than in running.
func NeedRestart[T any](running, next T) []string {
	var keys []string
	before, after := reflect.ValueOf(running), reflect.ValueOf(next)
	for _, f := range newSchema(before.Type()) {
		if !f.reload && !reflect.DeepEqual(before.FieldByIndex(f.index).Interface(), after.FieldByIndex(f.index).Interface()) {
			keys = append(keys, f.key)
		}
	}
	return keys
}

// Undocumented lists the keys of a configuration that have no doc tag.
func Undocumented[T any]() []string {
	var out []string
	done := map[reflect.Type]bool{} // a list may hold itself
	var walk func(t reflect.Type, prefix string)
	walk = func(t reflect.Type, prefix string) {
		for _, f := range newSchema(t) {
			if f.doc == "" {
				out = append(out, join(prefix, f.key))
			}
			if elem, ok := listElement(f.typ); ok && !done[elem] {
				done[elem] = true
				walk(elem, join(prefix, f.key)+"[]")
			}
		}
	}
	walk(reflect.TypeFor[T](), "")
	return out
}

// listElement returns the struct that a list, a map or a pointer holds.
func listElement(t reflect.Type) (reflect.Type, bool) {
	switch t.Kind() {
	case reflect.Slice, reflect.Map, reflect.Pointer:
		e := t.Elem()
		if e.Kind() == reflect.Pointer {
			e = e.Elem()
		}
		return e, isSection(e)
	default:
		return nil, false
	}
}

func typeName(t reflect.Type) string {
	switch {
	case t == durationType:
		return "duration"
	case t == reflect.TypeFor[Secret]():
		return "secret"
	case t == reflect.TypeFor[Bytes]():
		return "size"
	case t == reflect.TypeFor[Path]():
		return "path"
	case isText(t):
		return "text"
	}
	switch t.Kind() {
	case reflect.Pointer:
		return typeName(t.Elem())
	case reflect.Slice:
		return "list of " + typeName(t.Elem())
	case reflect.Map:
		return "mapping to " + typeName(t.Elem())
	case reflect.Struct:
		return "section"
	case reflect.Bool:
		return "boolean"
	case reflect.String:
		return "text"
	case reflect.Float32, reflect.Float64:
		return "number"
	case reflect.Interface:
		return "any"
	default:
		return "whole number"
	}
}

// shown formats a default for a table cell.
func shown(v reflect.Value) string {
	if v.IsZero() {
		if v.Kind() == reflect.Bool {
			return "`false`"
		}
		return ""
	}
	if d, ok := v.Interface().(time.Duration); ok {
		return "`" + shortDuration(d) + "`"
	}
	if _, ok := listElement(v.Type()); ok && v.Kind() == reflect.Slice {
		return fmt.Sprintf("%d entries", v.Len())
	}
	text := fmt.Sprint(v.Interface())
	return "`" + strings.ReplaceAll(text, "|", `\|`) + "`"
}

// shortDuration drops the zero units of time.Duration's text: 5m, not 5m0s.
func shortDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}
