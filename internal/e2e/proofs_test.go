package e2e

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/tollgate-proxy/tollgate/internal/envoyconf"
	"github.com/tollgate-proxy/tollgate/internal/tokentest"
)

// TestProofs: tokens bound to a client's key, through two Envoys with an authz
// each, which share their memory of proofs and the secret of their nonces.
func TestProofs(t *testing.T) {
	e := newEdge(t)
	e.backend = tellingBackend(t)
	p := newIdentities(t, e)
	p.write(t, "nonces", []byte(strings.Repeat("secret ", 8)))
	var edges [2]string
	for i, name := range []string{"one", "two"} {
		_, authz := e.spawnWith(t, "authz-"+name, "authz", p.authzConfig(t, e), "TOLLGATE_TOKENS_PROOFS_SHARED=true",
			"TOLLGATE_TOKENS_PROOFS_NONCE_SECRET_FILE="+filepath.Join(p.folder, "nonces"))
		options := envoyconf.Options{OneCall: true, Clusters: map[string][]envoyconf.Endpoint{envoyconf.ClusterAuthz: {{Address: authz}}}}
		_, edges[i] = e.envoy(t, "envoy-"+name, options)
	}
	holder := newHolder(t, p)

	answer := holder.ask(t, edges[0], holder.prove(t, ""))
	nonce := answer.header.Get("DPoP-Nonce")
	if answer.status != http.StatusUnauthorized || answer.code != "dpop_nonce_required" || nonce == "" ||
		!strings.Contains(answer.header.Get("WWW-Authenticate"), `error="use_dpop_nonce"`) {
		t.Fatalf("without a nonce: %+v", answer)
	}
	proof := holder.prove(t, nonce)
	if answer = holder.ask(t, edges[1], proof); answer.status != http.StatusOK || answer.header.Get("Seen-User") != "ada" {
		t.Errorf("with the nonce, at the other replica: %+v", answer)
	}
	for _, edge := range edges {
		if answer = holder.ask(t, edge, proof); answer.status != http.StatusUnauthorized || answer.code != "token_invalid" ||
			!strings.HasPrefix(answer.header.Get("WWW-Authenticate"), `DPoP realm="tollgate", error="invalid_dpop_proof"`) {
			t.Errorf("the same proof again: %+v", answer)
		}
	}
	if answer = holder.ask(t, edges[0], holder.prove(t, nonce)); answer.status != http.StatusOK {
		t.Errorf("another proof with the nonce: %+v", answer)
	}
	holder.scheme = "Bearer"
	if answer = holder.ask(t, edges[0], ""); answer.code != "token_invalid" ||
		!strings.HasSuffix(answer.header.Get("WWW-Authenticate"), `DPoP realm="tollgate", algs="ES256 EdDSA"`) {
		t.Errorf("as plain bearer: %+v", answer)
	}
}

// holder is a client with a key that its token is bound to.
type holder struct {
	key           *ecdsa.PrivateKey
	token, scheme string
}

// proven is the address that proofs are for, whichever Envoy is asked.
const proven = "api.test"

func newHolder(t *testing.T, p *identities) *holder {
	t.Helper()
	key := tokentest.Key(t)
	sum, err := (&jose.JSONWebKey{Key: key.Public()}).Thumbprint(crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	bound := map[string]any{"cnf": map[string]any{"jkt": base64.RawURLEncoding.EncodeToString(sum)}}
	return &holder{key, p.token(t, direct, bound), "DPoP"}
}

// prove makes a proof, with a nonce where there is one.
func (h *holder) prove(t *testing.T, nonce string) string {
	t.Helper()
	sum := sha256.Sum256([]byte(h.token))
	claims := map[string]any{
		"jti": rand.Text(), "htm": http.MethodGet, "htu": "http://" + proven + "/orders", "iat": time.Now().Unix(),
		"ath": base64.RawURLEncoding.EncodeToString(sum[:]),
	}
	if nonce != "" {
		claims["nonce"] = nonce
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	o := (&jose.SignerOptions{EmbedJWK: true}).WithType("dpop+jwt")
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: h.key}, o)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	proof, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return proof
}

type provenAnswer struct {
	status int
	code   string
	header http.Header
}

func (h *holder) ask(t *testing.T, edge, proof string) provenAnswer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, edge+"/orders", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Host = proven
	request.Header.Set("Authorization", h.scheme+" "+h.token)
	if proof != "" {
		request.Header.Set("DPoP", proof)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	var problem struct{ Code string }
	_ = json.Unmarshal(body, &problem) // the backend's answer is none
	return provenAnswer{response.StatusCode, problem.Code, response.Header}
}
