package flag

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"

	"go.yaml.in/yaml/v3"
)

// maxDepth bounds the nesting of a document.
const maxDepth = 64

var errTooDeep = fmt.Errorf("nested deeper than %d", maxDepth)

// parseNode reads a document as a tree of yaml nodes with line numbers. JSON
// is read as JSON, not as the YAML that it almost is: tabs and surrogate pairs
// mean something else there.
func parseNode(data []byte) (*yaml.Node, error) {
	if len(data) > MaxDocumentBytes {
		return nil, fmt.Errorf("document of %d bytes is larger than %d", len(data), MaxDocumentBytes)
	}
	if trimmed := bytes.TrimLeft(data, " \t\r\n"); len(trimmed) > 0 && trimmed[0] == '{' {
		return parseJSONNode(data)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, err
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
		return nil, errors.New("document is empty")
	}
	root := doc.Content[0]
	return root, checkNode(root, 0)
}

// checkNode refuses what definitions have no use for: aliases and merge keys
// (which make small files expand without bound) and deep nesting.
func checkNode(n *yaml.Node, depth int) error {
	switch {
	case depth > maxDepth:
		return fmt.Errorf("line %d: %w", n.Line, errTooDeep)
	case n.Kind == yaml.AliasNode:
		return fmt.Errorf("line %d: aliases are not supported; use $evaluators", n.Line)
	}
	for _, child := range n.Content {
		if err := checkNode(child, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// jsonReader turns JSON tokens into yaml nodes.
type jsonReader struct {
	data   []byte
	dec    *json.Decoder
	line   int
	offset int64
}

func parseJSONNode(data []byte) (*yaml.Node, error) {
	r := &jsonReader{data: data, dec: json.NewDecoder(bytes.NewReader(data)), line: 1}
	r.dec.UseNumber()
	root, err := r.value(0)
	if err != nil {
		return nil, fmt.Errorf("line %d: %w", r.line, err)
	}
	if _, err := r.token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("line %d: more data after the document", r.line)
	}
	return root, nil
}

func (r *jsonReader) token() (json.Token, error) {
	t, err := r.dec.Token()
	end := min(r.dec.InputOffset(), int64(len(r.data)))
	r.line += bytes.Count(r.data[r.offset:end], []byte("\n"))
	r.offset = end
	if errors.Is(err, io.EOF) && end < int64(len(r.data)) {
		return t, io.ErrUnexpectedEOF
	}
	return t, err
}

func (r *jsonReader) value(depth int) (*yaml.Node, error) {
	t, err := r.token()
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	if depth > maxDepth {
		return nil, errTooDeep
	}
	n := &yaml.Node{Kind: yaml.ScalarNode, Line: r.line}
	switch t := t.(type) {
	case json.Delim:
		n.Kind, n.Tag = yaml.MappingNode, "!!map"
		if t == '[' {
			n.Kind, n.Tag = yaml.SequenceNode, "!!seq"
		}
		for r.dec.More() {
			child, err := r.value(depth + 1)
			if err != nil {
				return nil, err
			}
			n.Content = append(n.Content, child)
		}
		if _, err := r.token(); err != nil {
			return nil, err
		}
	case string:
		n.Tag, n.Value = "!!str", t
	case json.Number:
		n.Tag, n.Value = "!!float", t.String()
	case bool:
		n.Tag, n.Value = "!!bool", strconv.FormatBool(t)
	case nil:
		n.Tag, n.Value = "!!null", "null"
	}
	return n, nil
}

// kindOf names a node's JSON type.
func kindOf(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "object"
	case yaml.SequenceNode:
		return "list"
	default:
	}
	switch n.ShortTag() {
	case "!!bool":
		return "boolean"
	case "!!int", "!!float":
		return "number"
	case "!!null":
		return "null"
	}
	return "string"
}

// number reads a finite number.
func number(n *yaml.Node) (float64, bool) {
	var f float64
	if kindOf(n) != "number" || n.Decode(&f) != nil || math.IsInf(f, 0) || math.IsNaN(f) {
		return 0, false
	}
	return f, true
}

// goValue converts a node to what encoding/json would decode.
func goValue(n *yaml.Node) any {
	switch kindOf(n) {
	case "object":
		m := make(map[string]any, len(n.Content)/2)
		for i := 0; i+1 < len(n.Content); i += 2 {
			m[n.Content[i].Value] = goValue(n.Content[i+1])
		}
		return m
	case "list":
		l := make([]any, len(n.Content))
		for i, child := range n.Content {
			l[i] = goValue(child)
		}
		return l
	case "boolean":
		var b bool
		if n.Decode(&b) != nil {
			return nil
		}
		return b
	case "number":
		f, ok := number(n)
		if !ok {
			return nil
		}
		return f
	case "null":
		return nil
	}
	return n.Value
}

// appendJSON writes a node as JSON, in the document's order.
func appendJSON(dst []byte, n *yaml.Node) []byte {
	switch n.Kind {
	case yaml.MappingNode:
		dst = append(dst, '{')
		for i := 0; i+1 < len(n.Content); i += 2 {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = appendScalar(dst, n.Content[i].Value)
			dst = append(dst, ':')
			dst = appendJSON(dst, n.Content[i+1])
		}
		return append(dst, '}')
	case yaml.SequenceNode:
		dst = append(dst, '[')
		for i, child := range n.Content {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = appendJSON(dst, child)
		}
		return append(dst, ']')
	default:
		return appendScalar(dst, goValue(n))
	}
}

func appendScalar(dst []byte, v any) []byte {
	out, err := json.Marshal(v)
	if err != nil { // not reached: scalars are strings, booleans, null and finite numbers
		return append(dst, "null"...)
	}
	return append(dst, out...)
}
