package flag

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/tollgate-proxy/tollgate/internal/config"
)

// reader walks nodes and collects faults.
type reader struct {
	file   string
	faults config.Faults
}

func (r *reader) fault(n *yaml.Node, key string, value any, allowed string) {
	f := config.Fault{File: r.file, Key: key, Allowed: allowed}
	if n != nil {
		f.Line = n.Line
	}
	if value != nil {
		text := fmt.Sprint(value)
		if len(text) > maxNameBytes {
			text = text[:maxNameBytes] + "…"
		}
		f.Value = text
	}
	r.faults = append(r.faults, f)
}

// err is nil without faults; otherwise it lists them in the file's order.
func (r *reader) err() error {
	if len(r.faults) == 0 {
		return nil
	}
	slices.SortStableFunc(r.faults, func(a, b config.Fault) int { return cmp.Compare(a.Line, b.Line) })
	return r.faults
}

// locate finds a member by its path, such as tollgate.users[0].keys, as far as
// it goes: for the line of a fault that is found later.
func locate(n *yaml.Node, path string) *yaml.Node {
	for step := range strings.FieldsFuncSeq(path, func(c rune) bool { return strings.ContainsRune(".[]", c) }) {
		var next *yaml.Node
		switch i, err := strconv.Atoi(step); {
		case n.Kind == yaml.SequenceNode && err == nil && i < len(n.Content):
			next = n.Content[i]
		case n.Kind == yaml.MappingNode:
			for i := 0; i+1 < len(n.Content); i += 2 {
				if n.Content[i].Value == step {
					next = n.Content[i+1]
				}
			}
		}
		if next == nil {
			return n
		}
		n = next
	}
	return n
}

// shown is a node's value for a fault.
func shown(n *yaml.Node) string {
	if n.Kind == yaml.ScalarNode {
		return n.Value
	}
	return string(appendJSON(nil, n))
}

func (r *reader) is(n *yaml.Node, key, kind string) bool {
	if kindOf(n) == kind {
		return true
	}
	r.fault(n, key, shown(n), "a "+kind)
	return false
}

// field reads one member of an object.
type field func(n *yaml.Node, key string)

// object gives each member to its field. Unknown and repeated names are faults.
func (r *reader) object(n *yaml.Node, key string, fields map[string]field) {
	if !r.is(n, key, "object") {
		return
	}
	r.members(n, key, func(name string, value *yaml.Node, at string) {
		read, ok := fields[name]
		if !ok {
			names := make([]string, 0, len(fields))
			for name := range fields {
				names = append(names, name)
			}
			slices.Sort(names)
			r.fault(value, at, nil, "one of "+strings.Join(names, ", "))
			return
		}
		read(value, at)
	})
}

// members gives each member of an object; repeated names are faults.
func (r *reader) members(n *yaml.Node, key string, each func(name string, value *yaml.Node, at string)) {
	seen := make(map[string]bool, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		name := n.Content[i]
		at := join(key, name.Value)
		switch {
		case name.Kind != yaml.ScalarNode || name.Value == "":
			r.fault(name, at, nil, "a name")
		case seen[name.Value]:
			r.fault(name, at, nil, "each name once")
		default:
			seen[name.Value] = true
			each(name.Value, n.Content[i+1], at)
		}
	}
}

func join(key, name string) string {
	if key == "" {
		return name
	}
	return key + "." + name
}

func (r *reader) list(n *yaml.Node, key string, most int, each field) {
	if !r.is(n, key, "list") {
		return
	}
	if len(n.Content) > most {
		r.fault(n, key, len(n.Content), fmt.Sprintf("at most %d entries", most))
		return
	}
	for i, child := range n.Content {
		each(child, key+"["+strconv.Itoa(i)+"]")
	}
}

func (r *reader) texts(into *[]string, most int) field {
	return func(n *yaml.Node, key string) {
		r.list(n, key, most, func(n *yaml.Node, key string) {
			if text, ok := r.textOf(n, key, maxTextBytes); ok {
				*into = append(*into, text)
			}
		})
		if n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
			r.fault(n, key, nil, "at least one entry")
		}
	}
}

func (r *reader) textOf(n *yaml.Node, key string, most int) (string, bool) {
	if kind := kindOf(n); kind != "string" {
		r.fault(n, key, shown(n), "a string")
		return "", false
	}
	if n.Value == "" || len(n.Value) > most {
		r.fault(n, key, n.Value, fmt.Sprintf("1 to %d bytes", most))
		return "", false
	}
	return n.Value, true
}

func (r *reader) text(into *string, most int) field {
	return func(n *yaml.Node, key string) { *into, _ = r.textOf(n, key, most) }
}

// variantName reads the name of a variant; whether it exists is checked when
// the whole flag is known.
func (r *reader) variantName(into *string) field {
	return func(n *yaml.Node, key string) {
		// YAML takes an unquoted true or false for a boolean; flagd's default
		// variants have these names.
		if kindOf(n) == "boolean" {
			*into = strconv.FormatBool(goValue(n) == true)
			return
		}
		*into, _ = r.textOf(n, key, maxNameBytes)
	}
}

func (r *reader) boolean(into *bool) field {
	return func(n *yaml.Node, key string) {
		if r.is(n, key, "boolean") {
			*into = goValue(n) == true
		}
	}
}

func (r *reader) percentage(into *Percentage) field {
	return func(n *yaml.Node, key string) {
		f, ok := number(n)
		p, err := PercentageOf(f)
		if !ok || err != nil {
			r.fault(n, key, shown(n), "a number from 0 to 100 in steps of 0.001")
			return
		}
		*into = p
	}
}

func (r *reader) time(into *time.Time) field {
	return func(n *yaml.Node, key string) {
		for _, layout := range []string{time.RFC3339, time.DateOnly} {
			if t, err := time.Parse(layout, n.Value); err == nil && n.Kind == yaml.ScalarNode {
				*into = t.UTC()
				return
			}
		}
		r.fault(n, key, shown(n), "a date such as 2027-01-31, or a time such as 2027-01-31T12:00:00Z")
	}
}

func (r *reader) oneOf(into *string, allowed ...string) field {
	return func(n *yaml.Node, key string) {
		if n.Kind == yaml.ScalarNode && slices.Contains(allowed, n.Value) {
			*into = n.Value
			return
		}
		r.fault(n, key, shown(n), "one of "+strings.Join(allowed, ", "))
	}
}

func (r *reader) hash(into *Hash, allowed ...Hash) field {
	return func(n *yaml.Node, key string) {
		names := make([]string, len(allowed))
		for i, h := range allowed {
			names[i] = string(h)
		}
		var text string
		r.oneOf(&text, names...)(n, key)
		*into = Hash(text)
	}
}

// validKey reports whether a flag's key is [a-z0-9-], bounded, and does not
// begin or end with a hyphen.
func validKey(key string) bool {
	if key == "" || len(key) > maxNameBytes || key[0] == '-' || key[len(key)-1] == '-' {
		return false
	}
	for i := range len(key) {
		if c := key[i]; c != '-' && (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

const allowedKey = "1 to 64 of a-z, 0-9 and hyphen, beginning and ending with a letter or digit"

// validVariant reports whether a variant's name may stand in a header: no
// comma, equals sign, space, control or non-ASCII character.
func validVariant(name string) bool {
	if name == "" || len(name) > maxNameBytes {
		return false
	}
	for i := range len(name) {
		c := name[i]
		letter := c|0x20 >= 'a' && c|0x20 <= 'z'
		if !letter && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return true
}

const allowedVariant = "1 to 64 of letters, digits, dot, hyphen and underscore"
