package envoyconf

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protopath"
	"google.golang.org/protobuf/reflect/protorange"
)

// Load reads the bootstrap configuration in the YAML or JSON file at path. See Parse for what it refuses.
func Load(path string) (*bootstrapv3.Bootstrap, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read Envoy configuration: %w", err)
	}
	b, err := Parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return b, nil
}

// Parse decodes a bootstrap configuration. It refuses unknown and repeated keys, wrong types, extensions that are
// not known to this package, and values outside the ranges that Envoy's API declares, inside extensions too; the
// error holds every such value.
func Parse(data []byte) (*bootstrapv3.Bootstrap, error) {
	var tree any
	if err := yaml.Unmarshal(data, &tree); err != nil {
		return nil, err
	}
	if _, ok := tree.(map[string]any); !ok {
		return nil, fmt.Errorf("not a configuration: the top level is %T, not a mapping", tree)
	}
	text, err := json.MarshalIndent(tree, "", " ")
	if err != nil {
		return nil, fmt.Errorf("not expressible as JSON: %w", err)
	}
	b := new(bootstrapv3.Bootstrap)
	if err := protojson.Unmarshal(text, b); err != nil {
		return nil, pointOut(err, text)
	}
	if err := validate(b); err != nil {
		return nil, err
	}
	return b, nil
}

var position = regexp.MustCompile(`\(line (\d+):\d+\)`)

// pointOut adds to a decoding error, which counts the lines of text rather than of the file, what stands there.
func pointOut(err error, text []byte) error {
	match := position.FindStringSubmatch(err.Error())
	if match == nil {
		return err
	}
	number, _ := strconv.Atoi(match[1]) // digits, by the expression
	lines := strings.Split(string(text), "\n")
	if number < 1 || number > len(lines) {
		return err
	}
	return fmt.Errorf("at %s: %w", strings.TrimSuffix(strings.TrimSpace(lines[number-1]), ","), err)
}

// validate applies the API's declared ranges to m and to every message packed inside it, which the generated
// method alone does not enter.
func validate(m proto.Message) error {
	var faults []error
	check := func(m proto.Message) {
		if v, ok := m.(interface{ ValidateAll() error }); ok {
			if err := v.ValidateAll(); err != nil {
				faults = append(faults, err)
			}
		}
	}
	check(m)
	err := protorange.Range(m.ProtoReflect(), func(p protopath.Values) error {
		last := p.Index(-1)
		if last.Step.Kind() == protopath.AnyExpandStep {
			check(last.Value.Message().Interface())
		}
		return nil
	})
	return errors.Join(append(faults, err)...)
}
