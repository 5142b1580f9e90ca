package stack

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"go.yaml.in/yaml/v3"

	"github.com/tollgate-proxy/tollgate/internal/credential"
)

// OperatorFile is the name of the credential's file within Options.Work.
const OperatorFile = "operator.json"

// Operator is the credential with which the management API of a demo stack is
// called, and where that API is. It is made afresh for every stack.
type Operator struct {
	// URL is authz's API; Pyproxy are the URLs of the pyproxy replicas.
	URL     string   `json:"url"`
	Pyproxy []string `json:"pyproxy"`
	// Name is the client's, Token its secret.
	Name  string `json:"name"`
	Token string `json:"token"`
}

// newOperator makes a random credential.
func newOperator(ports Ports) Operator {
	return Operator{
		URL:     ports.URL(AuthzHTTP),
		Pyproxy: []string{ports.URL(Pyproxy1HTTP), ports.URL(Pyproxy2HTTP)},
		Name:    "demo-operator",
		Token:   rand.Text(),
	}
}

// digest is what authz keeps of the secret.
func (o Operator) digest() string {
	sum := sha256.Sum256([]byte(o.Token))
	return hex.EncodeToString(sum[:])
}

// save writes the credential for `tollgate` to find, readable for its owner alone.
func (o Operator) save(work string) error {
	data, err := json.MarshalIndent(o, "", "  ")
	if err != nil {
		return fmt.Errorf("operator's credential: %w", err)
	}
	path := filepath.Join(work, OperatorFile)
	// A file that is there already keeps its mode, so it goes first.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("operator's credential: %w", err)
	}
	if err := os.WriteFile(path, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("operator's credential: %w", err)
	}
	return nil
}

// LoadOperator reads the credential that a stack with this work folder wrote. The
// error wraps os.ErrNotExist where there is none.
func LoadOperator(work string) (Operator, error) {
	path := filepath.Join(work, OperatorFile)
	data, err := os.ReadFile(path)
	if err != nil {
		return Operator{}, fmt.Errorf("operator's credential: %w", err)
	}
	var o Operator
	if err := json.Unmarshal(data, &o); err != nil {
		return Operator{}, fmt.Errorf("operator's credential %s: %w", path, err)
	}
	return o, nil
}

// addOperator adds the credential to the callers of the management API
// (management.clients). A configuration without that section stays as it is.
func addOperator(config []byte, o Operator) ([]byte, error) {
	var document yaml.Node
	if err := yaml.Unmarshal(config, &document); err != nil {
		return nil, err
	}
	if len(document.Content) != 1 {
		return config, nil
	}
	management := member(document.Content[0], "management")
	if management == nil {
		return config, nil
	}
	client := new(yaml.Node)
	if err := client.Encode(map[string]any{"name": o.Name, "secret_sha256": o.digest(), "roles": []string{credential.Operator}}); err != nil {
		return nil, err
	}
	clients := member(management, "clients")
	if clients == nil || clients.Kind != yaml.SequenceNode {
		return nil, errors.New("management.clients is not a list")
	}
	clients.Style = 0
	clients.Content = append(clients.Content, client)
	var out bytes.Buffer
	encoder := yaml.NewEncoder(&out)
	encoder.SetIndent(2)
	if err := errors.Join(encoder.Encode(&document), encoder.Close()); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// member finds a mapping's member, nil where there is none.
func member(mapping *yaml.Node, key string) *yaml.Node {
	for i := 0; mapping.Kind == yaml.MappingNode && i+1 < len(mapping.Content); i += 2 {
		if mapping.Content[i].Value == key {
			return mapping.Content[i+1]
		}
	}
	return nil
}
