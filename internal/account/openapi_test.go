package account

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/tollgate-proxy/tollgate/internal/credential"
)

// described is the document as the API serves it, and its schemas.
type described struct {
	document map[string]any
	compiler *jsonschema.Compiler
	mu       sync.Mutex
	schemas  map[string]*jsonschema.Schema
}

var description = sync.OnceValues(func() (*described, error) {
	part, err := NewOpenAPI()
	if err != nil {
		return nil, err
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(part.document))
	if err != nil {
		return nil, err
	}
	d := &described{document: v.(map[string]any), compiler: jsonschema.NewCompiler(), schemas: map[string]*jsonschema.Schema{}}
	d.compiler.AssertFormat()
	return d, d.compiler.AddResource("openapi.json", v)
})

func describedAPI(t testing.TB) *described {
	t.Helper()
	d, err := description()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// at finds what a JSON pointer names, references followed, and the pointer that
// really names it.
func (d *described) at(pointer ...string) (any, []string) {
	var v any = d.document
	var real []string
	for i := 0; ; i++ {
		if m, ok := v.(map[string]any); ok {
			if ref, ok := m["$ref"].(string); ok {
				v, real = d.at(strings.Split(strings.TrimPrefix(ref, "#/"), "/")...)
			}
		}
		if i == len(pointer) {
			return v, real
		}
		m, ok := v.(map[string]any)
		if !ok {
			return nil, nil
		}
		v, real = m[pointer[i]], append(slices.Clone(real), pointer[i])
	}
}

// validate checks a value against the schema at a pointer.
func (d *described) validate(value any, pointer []string) error {
	escaped := make([]string, len(pointer))
	for i, p := range pointer {
		escaped[i] = strings.NewReplacer("~", "~0", "/", "~1", "+", "%2B", "{", "%7B", "}", "%7D").Replace(p)
	}
	name := "openapi.json#/" + strings.Join(escaped, "/")
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.schemas[name] == nil {
		s, err := d.compiler.Compile(name)
		if err != nil {
			return err
		}
		d.schemas[name] = s
	}
	return d.schemas[name].Validate(value)
}

// operations maps "METHOD /path" to the pointer of the operation.
func (d *described) operations() map[string][]string {
	all := map[string][]string{}
	for path, item := range d.document["paths"].(map[string]any) {
		for method := range item.(map[string]any) {
			if method != "parameters" {
				all[strings.ToUpper(method)+" "+path] = []string{"paths", path, method}
			}
		}
	}
	return all
}

// routeList remembers what is registered.
type routeList []string

func (l *routeList) Handle(pattern string, _ http.Handler) { *l = append(*l, pattern) }
func (l *routeList) HandleFunc(pattern string, _ func(http.ResponseWriter, *http.Request)) {
	*l = append(*l, pattern)
}

// everyPart is every part that there is, without what it works with.
func everyPart() []Part {
	return []Part{
		&Tokens{}, &Sessions{}, &Self{}, &OAuth{}, &Signals{}, &Trail{}, &Anomaly{Self: &Self{}}, &Explain{}, &Flags{}, &OFREP{}, &Experiments{}, &OpenAPI{},
	}
}

// Every part of the package is looked at by these tests.
func TestEveryPartIsListed(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	found := map[string]bool{}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		tree, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range tree.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if ok && f.Name.Name == "Register" && f.Recv != nil {
				found[fmt.Sprint("*account.", f.Recv.List[0].Type.(*ast.StarExpr).X)] = true
			}
		}
	}
	listed := map[string]bool{}
	for _, p := range everyPart() {
		listed[fmt.Sprintf("%T", p)] = true
	}
	if diff := cmp.Diff(found, listed); diff != "" {
		t.Errorf("parts in the source (-) and in everyPart (+):\n%s", diff)
	}
}

// Every route is described, and nothing is described that is no route.
func TestRoutesAndDescriptionAgree(t *testing.T) {
	auth, err := credential.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	var routes routeList
	for _, p := range everyPart() {
		p.Register(&routes, auth)
	}
	slices.Sort(routes)
	if diff := cmp.Diff(slices.Sorted(maps.Keys(describedAPI(t).operations())), []string(routes)); diff != "" {
		t.Errorf("openapi.yaml (-) and the routes (+) differ: describe new routes there\n%s", diff)
	}
}

var pathParameter = regexp.MustCompile(`\{(\w+)\}`)

// Operations have names of their own and all their path parameters, what they
// refer to is there, and every example is what its schema says.
func TestDescriptionIsSound(t *testing.T) {
	d := describedAPI(t)
	seen := map[string]string{}
	examples := 0
	for name, pointer := range d.operations() {
		v, _ := d.at(pointer...)
		op := v.(map[string]any)
		id, _ := op["operationId"].(string)
		if id == "" || seen[id] != "" || op["summary"] == nil || op["responses"] == nil {
			t.Errorf("%s: operationId %q (also %s), a summary and responses are wanted", name, id, seen[id])
		}
		seen[id] = name
		var have []string
		for _, at := range [][]string{{"paths", pointer[1], "parameters"}, append(slices.Clone(pointer), "parameters")} {
			list, _ := d.at(at...)
			items, _ := list.([]any)
			for _, p := range items {
				m := p.(map[string]any)
				if ref, ok := m["$ref"].(string); ok {
					r, _ := d.at(strings.Split(strings.TrimPrefix(ref, "#/"), "/")...)
					m = r.(map[string]any)
				}
				if m["in"] == "path" {
					have = append(have, m["name"].(string))
				}
			}
		}
		var want []string
		for _, m := range pathParameter.FindAllStringSubmatch(pointer[1], -1) {
			want = append(want, m[1])
		}
		if diff := cmp.Diff(want, have); diff != "" {
			t.Errorf("%s: path parameters (-want +got):\n%s", name, diff)
		}
		contents := [][]string{append(slices.Clone(pointer), "requestBody", "content")}
		for status := range op["responses"].(map[string]any) {
			contents = append(contents, append(slices.Clone(pointer), "responses", status, "content"))
		}
		for _, content := range contents {
			v, real := d.at(content...)
			types, _ := v.(map[string]any)
			for kind := range types {
				medium := types[kind].(map[string]any)
				schema := append(slices.Clone(real), kind, "schema")
				if err := d.compiles(schema); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				list, _ := medium["examples"].(map[string]any)
				for example, e := range list {
					examples++
					if err := d.validate(e.(map[string]any)["value"], schema); err != nil {
						t.Errorf("%s: example %s: %v", name, example, err)
					}
				}
			}
		}
	}
	if examples < 20 {
		t.Errorf("only %d examples were looked at", examples)
	}
}

func (d *described) compiles(pointer []string) error {
	err := d.validate(nil, pointer)
	if _, invalid := err.(*jsonschema.ValidationError); invalid { //nolint:errorlint // what Validate itself returns
		return nil
	}
	return err
}

// checkAnswer holds an answer of the API against the description.
func checkAnswer(t testing.TB, method, target string, status int, contentType, body string) {
	t.Helper()
	d := describedAPI(t)
	path, _, _ := strings.Cut(target, "?")
	best := ""
	for name := range d.operations() {
		m, template, _ := strings.Cut(name, " ")
		re := "^" + pathParameter.ReplaceAllString(template, "[^/]+") + "$"
		if m == method && regexp.MustCompile(re).MatchString(path) && (best == "" || !strings.Contains(template, "{")) {
			best = name
		}
	}
	if best == "" {
		return
	}
	pointer := append(slices.Clone(d.operations()[best]), "responses")
	answers, _ := d.at(pointer...)
	key := fmt.Sprint(status)
	if _, ok := answers.(map[string]any)[key]; !ok {
		if key = "default"; status < 400 {
			t.Errorf("%s: %d is not described", best, status)
			return
		}
	}
	v, real := d.at(append(pointer, key, "content")...)
	contents, _ := v.(map[string]any)
	kind, _, _ := strings.Cut(contentType, ";")
	if body == "" && contents == nil {
		return
	}
	if _, ok := contents[kind]; !ok {
		t.Errorf("%s: %d with %q is not described", best, status, kind)
		return
	}
	if !strings.HasSuffix(kind, "json") {
		return
	}
	value, err := jsonschema.UnmarshalJSON(strings.NewReader(body))
	if err == nil {
		err = d.validate(value, append(slices.Clone(real), kind, "schema"))
	}
	if err != nil {
		t.Errorf("%s: %d is not as described: %v\n%s", best, status, err, body)
	}
}

func TestServedDescription(t *testing.T) {
	part, err := NewOpenAPI()
	if err != nil {
		t.Fatal(err)
	}
	auth, err := credential.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	New(auth, part).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/openapi.json", nil))
	if w.Code != 200 || !strings.Contains(w.Body.String(), `"openapi":"3.1.0"`) {
		t.Errorf("%d %.80s", w.Code, w.Body)
	}
	checkAnswer(t, "GET", "/openapi.json", w.Code, w.Header().Get("Content-Type"), w.Body.String())
}
