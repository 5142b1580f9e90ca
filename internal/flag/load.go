package flag

import (
	"fmt"
	"maps"
	"os"
	"slices"

	"go.yaml.in/yaml/v3"
)

// LoadFile reads a definitions file, YAML or JSON, and checks that it
// compiles. The error is a config.Faults with every fault's file, line, key,
// value and what is allowed, or says why the file could not be read.
func LoadFile(path string) (*Definitions, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("flag definitions: %w", err)
	}
	if info.Size() > MaxDocumentBytes {
		return nil, fmt.Errorf("flag definitions: %s has %d bytes, more than %d", path, info.Size(), MaxDocumentBytes)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("flag definitions: %w", err)
	}
	return Parse(path, data)
}

// Parse reads a definitions document as LoadFile does; name stands for the
// file in faults.
func Parse(name string, data []byte) (*Definitions, error) {
	r := &reader{file: name}
	root, err := parseNode(data)
	if err != nil {
		r.fault(nil, "", nil, "a YAML or JSON document: "+err.Error())
		return nil, r.err()
	}
	p := &documentReader{reader: r, evaluators: map[string]*yaml.Node{}}
	defs := p.document(root)
	if len(r.faults) > 0 {
		return nil, r.err()
	}
	c := &compiler{reader: r, lines: p.lines}
	c.compile(defs)
	if len(r.faults) > 0 {
		return nil, r.err()
	}
	return defs, nil
}

// ParseFlag reads one flag, as stored and as the API takes it: the value of a
// member of "flags". Shared $evaluators are not at hand.
func ParseFlag(name, key string, data []byte) (Definition, error) {
	r := &reader{file: name}
	if len(data) > MaxFlagBytes {
		r.fault(nil, "", len(data), fmt.Sprintf("at most %d bytes", MaxFlagBytes))
		return Definition{}, r.err()
	}
	root, err := parseNode(data)
	if err != nil {
		r.fault(nil, "", nil, "a JSON document: "+err.Error())
		return Definition{}, r.err()
	}
	p := &documentReader{reader: r}
	def := p.flag(root, "", key)
	return def, r.err()
}

// documentReader reads the flagd schema's document.
type documentReader struct {
	*reader
	evaluators map[string]*yaml.Node
	// lines are the flags' own lines, for faults between flags; "" is all of
	// them.
	lines map[string]int
}

func (p *documentReader) document(root *yaml.Node) *Definitions {
	defs := &Definitions{Flags: map[string]Definition{}}
	p.lines = map[string]int{}
	var flags *yaml.Node
	var shared map[string]any
	p.object(root, "", map[string]field{
		"$schema":  func(n *yaml.Node, key string) { p.is(n, key, "string") },
		"metadata": func(n *yaml.Node, key string) { shared = p.metadata(n, key) },
		"$evaluators": func(n *yaml.Node, key string) {
			if p.is(n, key, "object") {
				p.members(n, key, func(name string, rule *yaml.Node, _ string) { p.evaluators[name] = rule })
			}
		},
		"flags": func(n *yaml.Node, key string) {
			if p.is(n, key, "object") {
				flags = n
			}
		},
	})
	if flags == nil {
		if len(p.faults) == 0 {
			p.fault(root, "flags", nil, "the flags, an object by key")
		}
		return defs
	}
	if n := len(flags.Content) / 2; n > MaxFlags {
		p.fault(flags, "flags", n, fmt.Sprintf("at most %d flags", MaxFlags))
		return defs
	}
	p.lines[""] = flags.Line
	p.members(flags, "flags", func(name string, n *yaml.Node, at string) {
		p.lines[name] = n.Line
		def := p.flag(n, at, name)
		if len(shared) > 0 { // as in flagd, every flag has it, and its own comes first
			own := def.Metadata
			def.Metadata = maps.Clone(shared)
			maps.Copy(def.Metadata, own)
			if count := len(def.Metadata); count > maxMetadata { // stored, it could not be read again
				p.fault(n, at+".metadata", count, fmt.Sprintf("at most %d members, with those of the document", maxMetadata))
			}
		}
		defs.Flags[name] = def
	})
	return defs
}

// flag reads one flag and completes what has a default that must not change
// under it: state, salt and hash versions.
func (p *documentReader) flag(n *yaml.Node, at, key string) Definition {
	def := Definition{Key: key, State: Enabled}
	before := len(p.faults)
	if !validKey(key) {
		p.fault(n, at, key, "a key of "+allowedKey)
	}
	var targeting *yaml.Node
	var targetingKey string
	given := false
	p.object(n, at, map[string]field{
		"state": func(n *yaml.Node, key string) {
			var text string
			p.oneOf(&text, string(Enabled), string(Disabled))(n, key)
			def.State = State(text)
		},
		"variants": func(n *yaml.Node, key string) { def.Variants, given = p.variants(n, key), true },
		"defaultVariant": func(n *yaml.Node, key string) {
			if kindOf(n) != "null" {
				p.variantName(&def.DefaultVariant)(n, key)
			}
		},
		"targeting": func(n *yaml.Node, key string) { targeting, targetingKey = n, key },
		"metadata":  func(n *yaml.Node, key string) { def.Metadata = p.metadata(n, key) },
		"tollgate":  func(n *yaml.Node, key string) { p.extension(&def.Extension, n, key) },
	})
	if !given {
		def.Variants = map[string]any{"true": true, "false": false}
	}
	if def.Variants == nil {
		return def // what names variants cannot be judged
	}
	if targeting != nil {
		p.targeting(&def, targeting, targetingKey)
	}
	p.references(&def, n, at)
	if before == len(p.faults) {
		complete(&def)
	}
	return def
}

// complete writes out defaults that decide buckets, so that neither a rename
// nor a later version of the program moves anyone.
func complete(def *Definition) {
	x := &def.Extension
	if x.Rollout != nil {
		if x.Salt == "" {
			x.Salt = def.Key
		}
		if x.Hash == "" {
			x.Hash = HashTollgate1
		}
	}
	if len(def.Targeting) > 0 {
		if x.FlagdHash == "" {
			x.FlagdHash = HashFlagd2
		}
		if x.FlagdKey == "" {
			x.FlagdKey = def.Key
		}
	}
}

func (p *documentReader) metadata(n *yaml.Node, key string) map[string]any {
	if !p.is(n, key, "object") {
		return nil
	}
	if count := len(n.Content) / 2; count > maxMetadata {
		p.fault(n, key, count, fmt.Sprintf("at most %d members", maxMetadata))
		return nil
	}
	out := map[string]any{}
	p.members(n, key, func(name string, n *yaml.Node, at string) {
		switch kindOf(n) {
		case "string", "boolean", "number":
			out[name] = goValue(n)
		default:
			p.fault(n, at, shown(n), "a string, number or boolean")
		}
	})
	return out
}

// maxSafeInteger is the largest integer that every JSON implementation keeps.
const maxSafeInteger = 1<<53 - 1

func (p *documentReader) variants(n *yaml.Node, key string) map[string]any {
	if !p.is(n, key, "object") {
		return nil
	}
	if count := len(n.Content) / 2; count == 0 || count > MaxVariants {
		p.fault(n, key, count, fmt.Sprintf("1 to %d variants", MaxVariants))
		return nil
	}
	out := map[string]any{}
	first := ""
	p.members(n, key, func(name string, n *yaml.Node, at string) {
		if !validVariant(name) {
			p.fault(n, at, name, "a name of "+allowedVariant)
		}
		kind := kindOf(n)
		switch {
		case kind == "null" || kind == "list":
			p.fault(n, at, shown(n), "a boolean, string, number or object")
		case first == "":
			first = kind
		case kind != first:
			p.fault(n, at, shown(n), "a "+first+", as the other variants")
		}
		if f, ok := number(n); kind == "number" && (!ok || f > maxSafeInteger || f < -maxSafeInteger) {
			p.fault(n, at, n.Value, "a number that every JSON implementation keeps: between -(2^53-1) and 2^53-1")
		}
		out[name] = goValue(n)
	})
	return out
}

// references checks that every variant named in the flag exists and fills in
// which variants "on" and "off" mean.
func (p *documentReader) references(def *Definition, n *yaml.Node, at string) {
	names := make([]string, 0, len(def.Variants))
	for name := range def.Variants {
		names = append(names, name)
	}
	slices.Sort(names)
	fault := func(key string, value any, allowed string) { p.fault(locate(n, key), join(at, key), value, allowed) }
	check := func(key, name string) {
		if _, ok := def.Variants[name]; !ok && name != "" {
			fault(key, name, fmt.Sprintf("one of the flag's variants %v", names))
		}
	}
	x := &def.Extension
	check("defaultVariant", def.DefaultVariant)
	check("tollgate.on", x.On)
	check("tollgate.off", x.Off)
	check("tollgate.force", x.Force)
	users := map[string]string{}
	for i, list := range x.Users {
		check(fmt.Sprintf("tollgate.users[%d].variant", i), list.Variant)
		for _, user := range list.Keys {
			if other, ok := users[user]; ok && other != list.Variant {
				fault(fmt.Sprintf("tollgate.users[%d].keys", i), user, "each user with one variant; has "+other+" already")
			}
			users[user] = list.Variant
		}
	}
	if len(users) > MaxUsers {
		fault("tollgate.users", len(users), fmt.Sprintf("at most %d users", MaxUsers))
	}
	if x.Rollout == nil {
		if !x.Audience.IsZero() && len(def.Targeting) == 0 {
			fault("tollgate.audience", nil, "a rollout (100 for the whole audience) or targeting beside it")
		}
		return
	}
	check("tollgate.rollout.variant", x.Rollout.Variant)
	for i, w := range x.Rollout.Variants {
		check(fmt.Sprintf("tollgate.rollout.variants[%d].variant", i), w.Variant)
	}
	if x.Rollout.Variant == "" && len(x.Rollout.Variants) == 0 && def.OnVariant() == "" {
		fault("tollgate.rollout.variant", nil, "the variant to roll out: the flag is not boolean and names no tollgate.on")
	}
	if def.DefaultVariant == "" {
		fault("defaultVariant", nil, "the variant for those outside the rollout")
	}
}

// OnVariant is the variant that "on" means; empty where that is not known.
func (d *Definition) OnVariant() string {
	if d.Extension.On != "" {
		return d.Extension.On
	}
	return d.booleanVariant(true)
}

// OffVariant is the variant that "off" means; empty leaves the value to the
// caller's code.
func (d *Definition) OffVariant() string {
	if d.Extension.Off != "" {
		return d.Extension.Off
	}
	if name := d.booleanVariant(false); name != "" {
		return name
	}
	return d.DefaultVariant
}

// booleanVariant is the first variant by name with the value.
func (d *Definition) booleanVariant(value bool) string {
	found := ""
	for name, v := range d.Variants {
		if v == value && (found == "" || name < found) {
			found = name
		}
	}
	return found
}
