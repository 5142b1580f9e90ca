package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tollgate-proxy/tollgate/internal/config"
	"github.com/tollgate-proxy/tollgate/internal/pyproxy"
)

const routesDocument = "../../docs/reference/routes-api.json"

type object = map[string]any

// The document of all routes is what the services' own documents say, with what
// the gateway and pyproxy answer besides. It says what ships.
func TestTheDocumentOfTheRoutes(t *testing.T) {
	want, err := json.MarshalIndent(combined(t), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, '\n')
	if flag.Lookup("update").Value.String() == "true" { // configtest's: all references are written at once
		if err := os.WriteFile(routesDocument, want, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(routesDocument)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%s is not what the services and config/pyproxy.yaml say; go test ./cmd/pyproxy -update writes it afresh:\n%s", routesDocument, cmp.Diff(string(got), string(want)))
	}
	document := readObject(t, routesDocument)
	refs(document, func(ref string) {
		if at(document, ref) == nil {
			t.Errorf("%s leads nowhere", ref)
		}
	})
}

// serviceDocument is the committed document of a service; services_test.go holds
// it against the running one.
func serviceDocument(t *testing.T, service string) object {
	t.Helper()
	return readObject(t, filepath.Join("../../examples/python-services/openapi", service+".json"))
}

// combined makes one document of the routes that ship.
func combined(t *testing.T) object {
	t.Helper()
	c, err := config.Load(shipped, nil, defaults())
	if err != nil {
		t.Fatal(err)
	}
	paths, schemas := object{}, object{}
	var tags []any
	for _, u := range c.Upstreams {
		document := serviceDocument(t, u.Name)
		tags = append(tags, object{"name": u.Name, "description": at(document, "#/info/summary")})
		operations := object{}
		for _, rt := range c.Routes {
			if rt.Upstream != u.Name {
				continue
			}
			operation, ok := at(document, "#/paths/"+strings.ReplaceAll(rt.Path, "/", "~1")+"/"+strings.ToLower(rt.Method)).(object)
			if !ok {
				t.Fatalf("the document of %s has no %s %s", u.Name, rt.Method, rt.Path)
			}
			describe(rt, operation)
			operations[rt.Name] = operation
			item, _ := paths[rt.Path].(object)
			if item == nil {
				item = object{}
				paths[rt.Path] = item
			}
			item[strings.ToLower(rt.Method)] = operation
		}
		adopt(schemas, document, operations, u.Name)
	}
	return object{
		"openapi": "3.1.0",
		"info": object{
			"title":   "The Python services behind Tollgate",
			"version": "1",
			"description": "The routes of config/pyproxy.yaml. What the services say of themselves, and what Envoy, authz and pyproxy answer besides. " +
				"x-tollgate tells how pyproxy treats a route: whether it may be sent twice, and how long answers are kept.",
			"license": object{"name": "Apache-2.0", "identifier": "Apache-2.0"},
		},
		"servers":  []any{object{"url": "http://127.0.0.1:10000", "description": "Envoy, as the demo runs it"}},
		"security": []any{object{"token": []any{}}},
		"tags":     tags,
		"paths":    paths,
		"components": object{
			"securitySchemes": object{"token": object{"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
			"schemas":         schemas,
			"responses":       refusals(),
		},
	}
}

// describe adds to an operation what happens to it on the way.
func describe(rt pyproxy.Route, operation object) {
	operation["operationId"] = rt.Name
	treatment := object{"upstream": rt.Upstream, "idempotent": rt.Idempotent || rt.Method == "GET"}
	if rt.Cache != nil {
		treatment["kept"] = rt.Cache.TTL.String()
	}
	operation["x-tollgate"] = treatment
	responses, _ := operation["responses"].(object)
	statuses := []string{"400", "401", "403", "429", "502", "503", "504"}
	if operation["requestBody"] != nil {
		statuses = append(statuses, "408", "413")
	}
	for _, status := range statuses {
		if responses[status] == nil {
			responses[status] = object{"$ref": "#/components/responses/" + status}
		}
	}
}

// refusals are the answers of everything before a service.
func refusals() object {
	all := object{}
	for status, means := range map[string]string{
		"400": "The request could be understood in two ways (path_refused, header_refused), or its body is none (request_malformed)",
		"401": "No token, or none that is accepted (token_missing, token_invalid, token_expired, token_revoked, session_ended)",
		"403": "The token does not allow it (role_required, consent_required, address_denied, risk_denied)",
		"408": "The body did not arrive in time (request_timeout)",
		"413": "The body is too large (body_too_large)",
		"429": "Too many requests (rate_limited)",
		"502": "The service gave no answer (upstream_failed)",
		"503": "The service is left alone for a while, or has as many requests as it can take (circuit_open, dependency_unavailable)",
		"504": "The service did not answer in time (upstream_timeout)",
	} {
		answer := object{
			"description": means,
			"content":     object{"application/problem+json": object{"schema": object{"$ref": "#/components/schemas/Problem"}}},
		}
		if status == "429" || status == "503" {
			answer["headers"] = object{"Retry-After": object{"description": "Seconds", "schema": object{"type": "integer"}}}
		}
		all[status] = answer
	}
	return all
}

// adopt takes the schemas that operations use into the document, each under the
// service's name, but for those of problems, which all services share.
func adopt(schemas, document object, operations any, service string) {
	const prefix = "#/components/schemas/"
	name := func(ref string) string {
		own := strings.TrimPrefix(ref, prefix)
		if slices.Contains([]string{"Problem", "FieldFault"}, own) {
			return own
		}
		return service + "." + own
	}
	var take func(tree any)
	take = func(tree any) {
		refs(tree, func(ref string) {
			if to := name(ref); strings.HasPrefix(ref, prefix) && schemas[to] == nil {
				schemas[to] = at(document, ref)
				take(schemas[to])
			}
		})
	}
	take(operations)
	rename := func(tree any) {
		walk(tree, func(o object) {
			if ref, ok := o["$ref"].(string); ok && strings.HasPrefix(ref, prefix) && at(document, ref) != nil {
				o["$ref"] = prefix + name(ref)
			}
		})
	}
	rename(operations)
	for to, schema := range schemas {
		if strings.HasPrefix(to, service+".") {
			rename(schema)
		}
	}
}

func refs(tree any, visit func(ref string)) {
	walk(tree, func(o object) {
		if ref, ok := o["$ref"].(string); ok {
			visit(ref)
		}
	})
}

func walk(tree any, visit func(object)) {
	switch v := tree.(type) {
	case object:
		visit(v)
		for _, child := range v {
			walk(child, visit)
		}
	case []any:
		for _, child := range v {
			walk(child, visit)
		}
	}
}

// at follows a JSON pointer ("#/a/b") and returns nil where it leads nowhere.
func at(document any, pointer string) any {
	for step := range strings.SplitSeq(strings.TrimPrefix(pointer, "#/"), "/") {
		o, ok := document.(object)
		if !ok {
			return nil
		}
		document = o[strings.NewReplacer("~1", "/", "~0", "~").Replace(step)]
	}
	return document
}

func readObject(t *testing.T, path string) object {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, path, data)
}

func parse(t *testing.T, name string, data []byte) object {
	t.Helper()
	var o object
	if err := json.Unmarshal(data, &o); err != nil {
		t.Fatal(fmt.Errorf("%s: %w", name, err))
	}
	return o
}
