package account

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"net/http"

	"go.yaml.in/yaml/v3"

	"github.com/tollgate-proxy/tollgate/internal/credential"
)

//go:embed openapi.yaml
var openAPISource []byte

// OpenAPI is the part of the API that serves its description, to everybody: what
// it says is in the source.
type OpenAPI struct{ document []byte }

// NewOpenAPI returns the part. An error is a fault of the embedded document.
func NewOpenAPI() (*OpenAPI, error) {
	var document map[string]any
	if err := yaml.Unmarshal(openAPISource, &document); err != nil {
		return nil, fmt.Errorf("openapi.yaml: %w", err)
	}
	text, err := json.Marshal(document)
	if err != nil {
		return nil, fmt.Errorf("openapi.yaml: %w", err)
	}
	return &OpenAPI{text}, nil
}

// Register implements Part.
func (o *OpenAPI) Register(mux Routes, _ *credential.Authenticator) {
	mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "max-age=300")
		_, _ = w.Write(o.document) // the client is gone; nobody is left to tell
	})
}
