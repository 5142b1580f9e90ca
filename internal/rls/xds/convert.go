package xds

import (
	"fmt"

	configv3 "github.com/envoyproxy/go-control-plane/ratelimit/config/ratelimit/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/tollgate-proxy/tollgate/internal/ratelimit"
)

// typeURL is the only type of resource that is asked for.
const typeURL = "type.googleapis.com/ratelimit.config.ratelimit.v3.RateLimitConfig"

// ruleFile reads a resource as the rule file that it stands for: the names of
// its fields in JSON are those of the grammar.
func ruleFile(resource *anypb.Any) (ratelimit.RuleFile, error) {
	var message configv3.RateLimitConfig
	if err := resource.UnmarshalTo(&message); err != nil {
		return ratelimit.RuleFile{}, fmt.Errorf("resource of type %q: %w", resource.GetTypeUrl(), err)
	}
	name := "xds:" + message.GetName()
	if unknown(message.ProtoReflect()) {
		return ratelimit.RuleFile{}, fmt.Errorf("%s: it has a field that is not known here; a limit might mean something else without it", name)
	}
	plain := proto.Clone(&message).(*configv3.RateLimitConfig) //nolint:forcetypeassert // A clone has its type.
	plain.Name = ""
	data, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(plain)
	if err != nil {
		return ratelimit.RuleFile{}, fmt.Errorf("%s: %w", name, err)
	}
	return ratelimit.ParseRuleFile(name, data) // JSON is YAML.
}

// unknown says whether a message, or one in it, has fields that this version of
// the protocol does not know.
func unknown(m protoreflect.Message) bool {
	if len(m.GetUnknown()) > 0 {
		return true
	}
	found := false
	m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case field.Message() == nil:
		case field.IsList():
			for i := range value.List().Len() {
				found = found || unknown(value.List().Get(i).Message())
			}
		default:
			found = unknown(value.Message())
		}
		return !found
	})
	return found
}
