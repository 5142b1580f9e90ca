package stack

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/tollgate-proxy/tollgate/internal/credential"
)

// OperatorFile is the name of the credential's file within Options.Work.
const OperatorFile = "operator.json"

// Operator is the credential with which the management API of a demo stack is
// called, and where that API is. It is made afresh for every stack.
type Operator struct {
	// URL is authz's API; Ratelimit is ratelimit's, and Pyproxy are those of the
	// pyproxy replicas.
	URL       string   `json:"url"`
	Ratelimit string   `json:"ratelimit"`
	Pyproxy   []string `json:"pyproxy"`
	// Name is the client's, Token its secret.
	Name  string `json:"name"`
	Token string `json:"token"`
}

// newOperator makes a random credential.
func newOperator(ports Ports) Operator {
	return Operator{
		URL:       ports.URL(AuthzHTTP),
		Ratelimit: ports.URL(RatelimitHTTP),
		Pyproxy:   []string{ports.URL(Pyproxy1HTTP), ports.URL(Pyproxy2HTTP)},
		Name:      "demo-operator",
		Token:     rand.Text(),
	}
}

// setting makes a process know the credential: the list of the management API's
// callers, as YAML, which JSON is.
func (o Operator) setting() (string, error) {
	sum := sha256.Sum256([]byte(o.Token))
	clients, err := json.Marshal([]map[string]any{{
		"name": o.Name, "secret_sha256": hex.EncodeToString(sum[:]), "roles": []string{credential.Operator, credential.Service},
	}})
	if err != nil {
		return "", fmt.Errorf("operator's credential: %w", err)
	}
	return "TOLLGATE_MANAGEMENT_CLIENTS=" + string(clients), nil
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
