package envoyconf

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// documents returns the documents of a YAML file.
func documents(t *testing.T, path string) []any {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var all []any
	for decoder := yaml.NewDecoder(file); ; {
		var doc any
		switch err := decoder.Decode(&doc); {
		case errors.Is(err, io.EOF):
			return all
		case err != nil:
			t.Fatalf("%s: %v", path, err)
		}
		all = append(all, doc)
	}
}

// at follows keys and list indices; a missing step fails the test.
func at(t *testing.T, tree any, steps ...any) any {
	t.Helper()
	for _, step := range steps {
		switch s := step.(type) {
		case string:
			m, ok := tree.(map[string]any)
			if !ok || m[s] == nil {
				t.Fatalf("no %v in %v", s, tree)
			}
			tree = m[s]
		case int:
			l, ok := tree.([]any)
			if !ok || len(l) <= s {
				t.Fatalf("no element %d in %v", s, tree)
			}
			tree = l[s]
		}
	}
	return tree
}

// part is one piece of an example with the same piece of envoy/envoy.yaml.
type part struct {
	name             string
	example, shipped any
}

func examples(t *testing.T) []part {
	t.Helper()
	bootstrap := documents(t, filepath.Join(root, "envoy", "envoy.yaml"))[0]
	manager := at(t, bootstrap, "static_resources", "listeners", 0, "filter_chains", 0, "filters", 0, "typed_config")
	filters, clusters := map[string]any{}, map[string]any{}
	for _, f := range at(t, manager, "http_filters").([]any) {
		filters[at(t, f, "name").(string)] = f
	}
	for _, c := range at(t, bootstrap, "static_resources", "clusters").([]any) {
		clusters[at(t, c, "name").(string)] = c
	}
	var parts []part

	istio := documents(t, filepath.Join(root, "envoy", "istio", "envoyfilter.yaml"))[0]
	for _, patch := range at(t, istio, "spec", "configPatches").([]any) {
		value := at(t, patch, "patch", "value")
		switch at(t, patch, "applyTo") {
		case "NETWORK_FILTER":
			for key, v := range at(t, value, "typed_config").(map[string]any) {
				parts = append(parts, part{"istio manager " + key, v, at(t, manager, key)})
			}
		case "HTTP_FILTER":
			name := at(t, value, "name").(string)
			parts = append(parts, part{"istio " + name, value, filters[name]})
		case "CLUSTER":
			service, _, _ := strings.Cut(at(t, patch, "match", "cluster", "service").(string), ".")
			for key, v := range value.(map[string]any) {
				parts = append(parts, part{"istio cluster " + service + " " + key, v, at(t, clusters[service], key)})
			}
		}
	}

	gateway := documents(t, filepath.Join(root, "envoy", "gateway-api", "patch.yaml"))[0]
	for _, patch := range at(t, gateway, "spec", "jsonPatches").([]any) {
		path, value := at(t, patch, "operation", "path").(string), at(t, patch, "operation", "value")
		field, listener := strings.CutPrefix(path, "/default_filter_chain/filters/0/typed_config/")
		switch {
		case !listener:
			name := strings.TrimPrefix(at(t, patch, "name").(string), "tollgate-")
			own := value.(map[string]any)
			for key, v := range clusters[name].(map[string]any) {
				if key != "name" && key != "load_assignment" {
					parts = append(parts, part{"gateway cluster " + name + " " + key, own[key], v})
				}
			}
		case field == "http_filters/0":
			name := at(t, value, "name").(string)
			parts = append(parts, part{"gateway " + name, value, filters[name]})
		default:
			want := manager
			for step := range strings.SplitSeq(field, "/") {
				want = at(t, want, step)
			}
			parts = append(parts, part{"gateway manager " + field, value, want})
		}
	}
	return parts
}

// renamed gives authz and ratelimit the names that envoy/envoy.yaml has for them.
func renamed(tree any) any {
	switch v := tree.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for key, value := range v {
			name, isText := value.(string)
			if key == "cluster_name" && isText {
				for _, known := range []string{ClusterAuthz, ClusterRateLimit} {
					if strings.Contains(name, known) {
						value = known
					}
				}
			}
			out[key] = renamed(value)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = renamed(v[i])
		}
		return out
	}
	return tree
}

// TestExamplesSayWhatTheShippedFileSays keeps the examples for Istio and Envoy Gateway from drifting.
func TestExamplesSayWhatTheShippedFileSays(t *testing.T) {
	seen := map[string]bool{}
	for _, p := range examples(t) {
		seen[p.name] = true
		if diff := cmp.Diff(p.shipped, renamed(p.example)); diff != "" {
			t.Errorf("%s differs from envoy/envoy.yaml:\n%s", p.name, diff)
		}
	}
	for _, kind := range []string{"istio ", "gateway "} {
		for _, name := range []string{
			"envoy.filters.http.header_mutation", "envoy.filters.http.body_size_limit", "envoy.filters.http.ext_authz",
			"envoy.filters.http.ratelimit", "manager early_header_mutation_extensions", "manager local_reply_config",
		} {
			if !seen[kind+name] {
				t.Errorf("%s%s is missing", kind, name)
			}
		}
	}
}

// TestExamplesAreStrict decodes every packed message and cluster in the examples.
func TestExamplesAreStrict(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(root, "envoy", "*", "*.yaml"))
	if err != nil || len(files) < 4 {
		t.Fatalf("examples: %v, %v", files, err)
	}
	decoded := 0
	decode := func(file string, tree any, m proto.Message) {
		decoded++
		text, err := json.Marshal(tree)
		if err != nil {
			t.Fatal(err)
		}
		if err := protojson.Unmarshal(text, m); err != nil {
			t.Errorf("%s: %v", file, pointOut(err, text))
		}
	}
	for _, file := range files {
		var walk func(tree any)
		walk = func(tree any) {
			switch v := tree.(type) {
			case map[string]any:
				if v["@type"] != nil {
					decode(file, v, new(anypb.Any))
					return
				}
				if v["load_assignment"] != nil || v["health_checks"] != nil {
					decode(file, v, new(clusterv3.Cluster))
					return
				}
				for _, value := range v {
					walk(value)
				}
			case []any:
				for _, value := range v {
					walk(value)
				}
			}
		}
		for _, doc := range documents(t, file) {
			if at(t, doc, "apiVersion") == "" || at(t, doc, "kind") == "" || at(t, doc, "metadata", "name") == "" {
				t.Errorf("%s: a document without apiVersion, kind or name", file)
			}
			walk(doc)
		}
	}
	if decoded < 12 {
		t.Errorf("only %d messages found", decoded)
	}
}
