// Package config loads the configuration of a process, and the rule files a
// process reads, strictly: every fault of a file is reported at once, with its
// file, line, key, value and what is allowed instead, and a faulty
// configuration changes nothing.
//
// A configuration is a Go struct. Each field carries a yaml tag (its key, lower
// case with underscores) and a doc tag (one sentence, from which the reference
// pages are generated). Sources are layered: the defaults in the struct, then
// the YAML file, then the environment, where the key redis.url is
// TOLLGATE_REDIS_URL. Lists are replaced whole, never merged.
//
// It is the only package that knows viper, which holds the layers. Viper alone
// would not do: it lower-cases keys, forgets line numbers, takes a bare 5 for
// five nanoseconds and ignores keys it does not know.
package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"sort"
	"strings"

	"github.com/spf13/viper"
	"go.yaml.in/yaml/v3"
)

// EnvPrefix begins the name of every environment variable that sets a key.
const EnvPrefix = "TOLLGATE_"

// MaxFileSize bounds a configuration file, in bytes.
const MaxFileSize = 16 << 20

// reserved are variables with the prefix that set no key of a process: the
// operator's command reads them, and they may stand in the environment that a
// process inherits.
var reserved = map[string]bool{
	"TOLLGATE_API_URL":   true,
	"TOLLGATE_API_TOKEN": true,
	"TOLLGATE_ENVOY":     true,
}

// Fault is one thing wrong with a configuration.
type Fault struct {
	// File is the file's path, or "environment NAME" for a variable.
	File string
	// Line is the line in File, from 1; 0 where there is none.
	Line int
	// Key is the full key, such as routes[2].path.
	Key string
	// Value is the offending value as text, never a secret; it may be empty.
	Value string
	// Allowed says what would be right.
	Allowed string
}

// String formats the fault on one line.
func (f Fault) String() string {
	var b strings.Builder
	b.WriteString(f.File)
	if f.Line > 0 {
		fmt.Fprintf(&b, ":%d", f.Line)
	}
	b.WriteString(": ")
	if f.Key != "" {
		b.WriteString(f.Key)
		b.WriteString(": ")
	}
	if f.Value != "" {
		fmt.Fprintf(&b, "%q: ", clip(f.Value))
	}
	b.WriteString(f.Allowed)
	return b.String()
}

// Faults is an error that holds everything wrong with a configuration, in the
// order of the file.
type Faults []Fault

// Error lists the faults, one a line.
func (fs Faults) Error() string {
	lines := make([]string, len(fs))
	for i, f := range fs {
		lines[i] = f.String()
	}
	return strings.Join(lines, "\n")
}

// Validator is implemented by structs (by value or pointer) that check what a
// type cannot say. Load and Decode call it on every struct of the
// configuration, elements of lists included.
type Validator interface {
	Validate(r *Report)
}

// Report collects the faults that one Validate call finds.
type Report struct {
	prefix string
	l      *loader
}

// Fault records that the value at key, relative to the struct being validated,
// is wrong, and what is allowed. The key "" means the struct itself.
func (r *Report) Fault(key string, value any, allowed string) {
	full := r.prefix
	if key != "" {
		full = join(r.prefix, key)
	}
	text := ""
	switch v := value.(type) {
	case nil:
	case Secret, *Secret:
		text = redacted
	default:
		text = fmt.Sprint(v)
	}
	r.l.fault(full, text, allowed)
}

// File records a fault where the file at key cannot be read; an empty path is
// none.
func (r *Report) File(key string, path Path) {
	if path == "" {
		return
	}
	f, err := os.Open(string(path))
	if err != nil {
		var pe *os.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		r.Fault(key, path, fmt.Sprintf("the path of a file that can be read: %v", err))
		return
	}
	_ = f.Close()
}

// Load reads the YAML file at path over a copy of defaults, then the variables
// of environ ("NAME=value", as os.Environ gives them) over that, and validates
// the whole. The error is Faults where the configuration is wrong. Load does
// not modify defaults, but shares what pointers and slices in it refer to.
func Load[T any](path string, environ []string, defaults T) (T, error) {
	data, err := readFile(path)
	if err != nil {
		return defaults, err
	}
	l := newLoader(path)
	out := defaults
	root := reflect.ValueOf(&out).Elem()
	schema := newSchema(root.Type())

	layers := viper.New()
	doc := l.parse(data)
	if doc != nil {
		file := map[string]any{}
		l.collect(doc, root.Type(), "", file)
		if err := layers.MergeConfigMap(file); err != nil {
			return defaults, fmt.Errorf("%s: %w", path, err)
		}
	}
	l.environment(environ, schema, layers)
	for _, f := range schema {
		lf, ok := layers.Get(f.key).(*leaf)
		if !ok {
			continue
		}
		if lf.env != "" {
			l.origins[f.key] = origin{file: "environment " + lf.env}
			l.fromEnv = true
		}
		l.decode(lf.node, root.FieldByIndex(f.index), f.key)
		l.fromEnv = false
	}
	if len(l.faults) == 0 {
		l.validate(root, "")
	}
	if len(l.faults) > 0 {
		return defaults, l.sorted()
	}
	return out, nil
}

// LoadFile reads a rule file as Decode does.
func LoadFile[T any](path string, defaults T) (T, error) {
	data, err := readFile(path)
	if err != nil {
		return defaults, err
	}
	return Decode(path, data, defaults)
}

// Decode reads a rule file's content as strictly as Load, without the
// environment. file names it in faults, and relative Paths are taken from its
// folder.
func Decode[T any](file string, data []byte, defaults T) (T, error) {
	l := newLoader(file)
	out := defaults
	root := reflect.ValueOf(&out).Elem()
	if doc := l.parse(data); doc != nil {
		l.decode(doc, root, "")
	}
	if len(l.faults) == 0 {
		l.validate(root, "")
	}
	if len(l.faults) > 0 {
		return defaults, l.sorted()
	}
	return out, nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		var pe *os.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return nil, Faults{{File: path, Allowed: fmt.Sprintf("the file cannot be read: %v", err)}}
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxFileSize+1))
	if err != nil {
		return nil, Faults{{File: path, Allowed: fmt.Sprintf("the file cannot be read: %v", err)}}
	}
	if len(data) > MaxFileSize {
		return nil, Faults{{File: path, Allowed: fmt.Sprintf("the file is larger than %d bytes", MaxFileSize)}}
	}
	return data, nil
}

// leaf is a value of one layer before it is decoded.
type leaf struct {
	node *yaml.Node
	env  string // the variable it came from, or ""
}

// origin is where the value of a key stands.
type origin struct {
	file string
	line int
}

// loader holds the state of one Load or Decode call.
type loader struct {
	file    string
	dir     string
	origins map[string]origin
	faults  Faults
	fromEnv bool
	nodes   int // decoded so far, against alias bombs
	depth   int // of the value being decoded
}

func newLoader(file string) *loader {
	return &loader{file: file, dir: filepath.Dir(file), origins: map[string]origin{}}
}

// fault records a fault at key, found at the nearest enclosing key that has an
// origin.
func (l *loader) fault(key, value, allowed string) {
	at := origin{file: l.file}
	for k := key; ; k = parent(k) {
		if o, ok := l.origins[k]; ok {
			at = o
			break
		}
		if k == "" {
			break
		}
	}
	l.faults = append(l.faults, Fault{File: at.file, Line: at.line, Key: key, Value: value, Allowed: allowed})
}

func (l *loader) sorted() Faults {
	sort.SliceStable(l.faults, func(i, j int) bool {
		a, b := l.faults[i], l.faults[j]
		if (a.File == l.file) != (b.File == l.file) {
			return a.File == l.file
		}
		return a.Line < b.Line
	})
	return l.faults
}

// parse reads the single document of a file; nil where it is empty or faulty.
func (l *loader) parse(data []byte) *yaml.Node {
	dec := yaml.NewDecoder(strings.NewReader(string(data)))
	var doc yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if !errors.Is(err, io.EOF) {
			l.faults = append(l.faults, syntaxFault(l.file, err))
		}
		return nil
	}
	var more yaml.Node
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		l.faults = append(l.faults, Fault{File: l.file, Line: more.Line, Allowed: "a file holds one YAML document"})
		return nil
	}
	return doc.Content[0]
}

func syntaxFault(file string, err error) Fault {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	f := Fault{File: file}
	if _, e := fmt.Sscanf(text, "line %d:", &f.Line); e == nil {
		_, text, _ = strings.Cut(text, ": ")
	}
	f.Allowed = "not valid YAML: " + text
	return f
}

// collect checks the keys of a mapping against the struct type t and puts its
// leaves into layer.
func (l *loader) collect(node *yaml.Node, t reflect.Type, prefix string, layer map[string]any) {
	l.eachKey(node, t, prefix, func(key string, name string, value *yaml.Node, field reflect.StructField) {
		if isSection(field.Type) {
			if isNull(value) {
				return
			}
			sub := map[string]any{}
			l.collect(value, field.Type, key, sub)
			layer[name] = sub
			return
		}
		layer[name] = &leaf{node: value}
	})
}

// eachKey calls f for every known key of a mapping that stands for a struct of
// type t, and reports unknown and repeated keys.
func (l *loader) eachKey(node *yaml.Node, t reflect.Type, prefix string, f func(key, name string, value *yaml.Node, field reflect.StructField)) {
	node = resolve(node)
	if node.Kind != yaml.MappingNode {
		l.origins[prefix] = origin{l.file, node.Line}
		l.fault(prefix, scalarText(node), "a mapping of keys to values")
		return
	}
	fields := fieldsByName(t)
	seen := map[string]bool{}
	for i := 0; i+1 < len(node.Content); i += 2 {
		k, v := node.Content[i], node.Content[i+1]
		key := join(prefix, k.Value)
		if seen[k.Value] {
			l.faults = append(l.faults, Fault{File: l.file, Line: k.Line, Key: key, Allowed: "the key stands twice"})
			continue
		}
		seen[k.Value] = true
		if !l.fromEnv {
			l.origins[key] = origin{l.file, k.Line}
		}
		field, ok := fields[k.Value]
		if !ok {
			l.fault(key, "", "unknown key; allowed here: "+strings.Join(sortedNames(fields), ", "))
			continue
		}
		f(key, k.Value, v, field)
	}
}

// environment puts the variables of environ that name a key of the schema into
// the top layer, and reports those that name none.
func (l *loader) environment(environ []string, schema []schemaField, layers *viper.Viper) {
	byName := make(map[string]schemaField, len(schema))
	names := make([]string, 0, len(schema))
	for _, f := range schema {
		byName[f.env] = f
		names = append(names, f.env)
	}
	for _, entry := range environ {
		name, value, ok := strings.Cut(entry, "=")
		if !ok || !strings.HasPrefix(name, EnvPrefix) || reserved[name] {
			continue
		}
		f, known := byName[name]
		if !known {
			l.faults = append(l.faults, Fault{
				File: "environment " + name, Key: keyOfEnv(name),
				Allowed: "no such key; the nearest variable is " + nearest(name, names),
			})
			continue
		}
		node, err := envNode(value, f.typ)
		if err != nil {
			l.faults = append(l.faults, Fault{File: "environment " + name, Key: f.key, Allowed: "not valid YAML: " + strings.TrimPrefix(err.Error(), "yaml: ")})
			continue
		}
		layers.Set(f.key, &leaf{node: node, env: name})
	}
}

// envNode turns a variable's text into the node that the same value would have
// in a file. Lists of scalars may be written a,b,c; any list in YAML or JSON.
func envNode(value string, t reflect.Type) (*yaml.Node, error) {
	if t.Kind() == reflect.Slice && !isText(t) {
		trimmed := strings.TrimSpace(value)
		if !strings.HasPrefix(trimmed, "[") && !strings.HasPrefix(trimmed, "-") {
			list := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
			for part := range strings.SplitSeq(trimmed, ",") {
				if part = strings.TrimSpace(part); part != "" {
					list.Content = append(list.Content, scalarNode(part))
				}
			}
			return list, nil
		}
	} else if t.Kind() != reflect.Map && t.Kind() != reflect.Interface {
		return scalarNode(value), nil
	}
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(value), &doc); err != nil {
		return nil, err
	}
	if len(doc.Content) == 0 {
		return scalarNode(""), nil
	}
	return doc.Content[0], nil
}

// scalarNode resolves text as YAML resolves a plain scalar, whatever characters
// it holds.
func scalarNode(text string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.ScalarNode, Value: text}
	n.Tag = n.ShortTag()
	return n
}

// validate calls Validate on every struct in v, depth first in field order.
func (l *loader) validate(v reflect.Value, key string) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			l.validate(v.Elem(), key)
		}
		return
	case reflect.Slice:
		if !isText(v.Type()) {
			for i := range v.Len() {
				l.validate(v.Index(i), fmt.Sprintf("%s[%d]", key, i))
			}
		}
		return
	case reflect.Map:
		iter := v.MapRange()
		for iter.Next() {
			if iter.Value().Kind() == reflect.Struct {
				c := reflect.New(iter.Value().Type()).Elem()
				c.Set(iter.Value())
				l.validate(c, join(key, iter.Key().String()))
			}
		}
		return
	case reflect.Struct:
	default:
		return
	}
	if isText(v.Type()) || v.Type() == nodeType {
		return
	}
	for name, f := range orderedFields(v.Type()) {
		l.validate(v.FieldByIndex(f.Index), join(key, name))
	}
	if own, ok := v.Addr().Interface().(Validator); ok {
		own.Validate(&Report{prefix: key, l: l})
	}
}
