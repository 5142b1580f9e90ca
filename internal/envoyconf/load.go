package envoyconf

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

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
	text, err := json.Marshal(tree)
	if err != nil {
		return nil, fmt.Errorf("not expressible as JSON: %w", err)
	}
	b := new(bootstrapv3.Bootstrap)
	if err := protojson.Unmarshal(text, b); err != nil {
		return nil, err
	}
	if err := validate(b); err != nil {
		return nil, err
	}
	return b, nil
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
