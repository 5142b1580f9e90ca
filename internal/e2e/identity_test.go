package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"go.yaml.in/yaml/v3"

	"github.com/tollgate-proxy/tollgate/internal/envoyconf"
	"github.com/tollgate-proxy/tollgate/internal/tokentest"
)

// tellingBackend starts a backend that answers with the user it was told of.
func tellingBackend(t *testing.T) (addr string) {
	t.Helper()
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("seen-user", r.Header.Get("X-User-Id"))
	}))
	t.Cleanup(backend.Close)
	return backend.Listener.Addr().String()
}

// TestIdentityFromEnvoy: what Envoy says of the caller, beside the token, by the
// examples of docs/guide/envoy.md: the client certificate of the TLS handshake,
// and the word of its jwt_authn filter. One issuer's keys are known to authz, the
// other's to Envoy alone.
func TestIdentityFromEnvoy(t *testing.T) {
	e := newEdge(t)
	e.backend = tellingBackend(t)
	p := newIdentities(t, e)

	_, authz := e.spawnWith(t, "authz", "authz", p.authzConfig(t, e), "TOLLGATE_JWT_AUTHN_PAYLOAD_KEY=jwt_payload")
	b, err := envoyconf.Parse(p.envoyConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	options := envoyconf.Options{OneCall: true, Clusters: map[string][]envoyconf.Endpoint{envoyconf.ClusterAuthz: {{Address: authz}}}}
	_, base := e.envoyOf(t, "envoy", b, options)
	p.base = strings.Replace(base, "http://", "https://", 1)

	t.Run("client certificates", p.testCertificates)
	t.Run("jwt_authn", p.testJWTAuthn)
}

// The issuers of tokens.
const (
	direct = "https://direct.test/" // whose keys authz has
	byword = "https://byword.test/" // whose keys Envoy has
)

type identities struct {
	folder      string
	base        string
	keys        map[string]*ecdsa.PrivateKey // by issuer
	authority   *x509.Certificate
	signer      *ecdsa.PrivateKey // the authority's
	ours, other tls.Certificate
}

func newIdentities(t *testing.T, e *edge) *identities {
	t.Helper()
	p := &identities{folder: e.work, keys: map[string]*ecdsa.PrivateKey{direct: tokentest.Key(t), byword: tokentest.Key(t)}, signer: tokentest.Key(t)}
	p.authority = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "clients"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, p.authority, p.authority, p.signer.Public(), p.signer)
	if err != nil {
		t.Fatal(err)
	}
	p.write(t, "clients.crt", pemOf("CERTIFICATE", der))
	p.ours, p.other = p.certificate(t, "ours"), p.certificate(t, "other")
	server := p.certificate(t, "server")
	key, err := x509.MarshalPKCS8PrivateKey(server.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	p.write(t, "tls.crt", pemOf("CERTIFICATE", server.Certificate[0]))
	p.write(t, "tls.key", pemOf("PRIVATE KEY", key))
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: p.keys[byword].Public(), Algorithm: "ES256", Use: "sig"}}})
	if err != nil {
		t.Fatal(err)
	}
	p.write(t, "jwks.json", set)
	return p
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func (p *identities) write(t *testing.T, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(p.folder, name), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// certificate is one by the authority.
func (p *identities) certificate(t *testing.T, name string) tls.Certificate {
	t.Helper()
	key := tokentest.Key(t)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, p.authority, key.Public(), p.signer)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// authzConfig is the shipped configuration with the two issuers.
func (p *identities) authzConfig(t *testing.T, e *edge) string {
	t.Helper()
	shipped, err := os.ReadFile(filepath.Join(root, "config", "authz.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := editYAML(shipped, func(tree map[string]any) error {
		tokens, ok := tree["tokens"].(map[string]any)
		if !ok {
			return errors.New("no section tokens")
		}
		tree["flags"] = map[string]any{"file": filepath.Join(root, "config", "flags.yaml")}
		issuer := func(name, url string, keys map[string]any) map[string]any {
			return map[string]any{"name": name, "issuer": url, "algorithms": []string{"ES256"}, "audiences": []string{"my-api"}, "keys": keys}
		}
		tokens["issuers"] = []any{
			issuer("direct", direct, map[string]any{"pem_file": string(tokentest.PublicKeyFile(t, p.keys[direct]))}),
			issuer("byword", byword, map[string]any{"envoy": true}),
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	p.write(t, "authz-identities.yaml", text)
	return filepath.Join(e.work, "authz-identities.yaml")
}

// envoyConfig is the shipped configuration with the examples of the guide.
func (p *identities) envoyConfig(t *testing.T) []byte {
	t.Helper()
	shipped, err := os.ReadFile(filepath.Join(root, "envoy", "envoy.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	public, filter := p.example(t, "address:"), p.example(t, "name: envoy.filters.http.jwt_authn")
	secured := public["filter_chains"].([]any)[0].(map[string]any)                                                              //nolint:forcetypeassert // a panic is a failure
	overlay(secured["transport_socket"].(map[string]any)["typed_config"].(map[string]any), p.example(t, "require_client_cert")) //nolint:forcetypeassert // as above
	text, err := editYAML(shipped, func(tree map[string]any) error {
		listener := tree["static_resources"].(map[string]any)["listeners"].([]any)[0]                                             //nolint:forcetypeassert // a panic is a failure
		chain := listener.(map[string]any)["filter_chains"].([]any)[0].(map[string]any)                                           //nolint:forcetypeassert // as above
		maps.Copy(chain, secured)                                                                                                 // transport_socket
		manager := chain["filters"].([]any)[0].(map[string]any)["typed_config"]                                                   //nolint:forcetypeassert // as above
		filters := manager.(map[string]any)["http_filters"].([]any)                                                               //nolint:forcetypeassert // as above
		at := slices.IndexFunc(filters, func(f any) bool { return f.(map[string]any)["name"] == "envoy.filters.http.ext_authz" }) //nolint:forcetypeassert // as above
		manager.(map[string]any)["http_filters"] = slices.Insert(filters, at, any(filter))                                        //nolint:forcetypeassert // as above
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// example is a block of the guide, with the paths and the issuer of this test.
func (p *identities) example(t *testing.T, begins string) map[string]any {
	t.Helper()
	guide, err := os.ReadFile(filepath.Join(root, "docs", "guide", "envoy.md"))
	if err != nil {
		t.Fatal(err)
	}
	before, block, found := strings.Cut(string(guide), "```yaml\n"+begins)
	if !found { // Perhaps it stands in a list.
		before, block, found = strings.Cut(string(guide), "```yaml\n   "+begins)
	}
	indent := before[strings.LastIndexByte(before, '\n')+1:]
	block, _, closed := strings.Cut(begins+block, "\n"+indent+"```")
	if !found || !closed {
		t.Fatalf("the guide has no example that begins with %s", begins)
	}
	block = strings.ReplaceAll(block, "\n"+indent, "\n")
	block = strings.NewReplacer("/etc/envoy/", p.folder+"/", "https://id.example.com/", byword).Replace(block)
	var tree map[string]any
	if err := yaml.NewDecoder(bytes.NewReader([]byte(block))).Decode(&tree); err != nil {
		t.Fatal(err)
	}
	return tree
}

// overlay puts one tree over another, map by map.
func overlay(onto, from map[string]any) {
	for key, value := range from {
		below, isMap := value.(map[string]any)
		if at, ok := onto[key].(map[string]any); ok && isMap {
			overlay(at, below)
			continue
		}
		onto[key] = value
	}
}

// token is one of an issuer, for ada, with claims changed.
func (p *identities) token(t *testing.T, issuer string, claims map[string]any) string {
	t.Helper()
	all := map[string]any{
		"iss": issuer, "sub": "ada", "aud": "my-api", "jti": rand.Text(), "sid": "s-1", "tier": "premium",
		"iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix(),
	}
	maps.Copy(all, claims)
	return tokentest.Sign(t, p.keys[issuer], "", all)
}

// boundTo is the claim that binds a token to a certificate.
func boundTo(c tls.Certificate) map[string]any {
	sum := sha256.Sum256(c.Certificate[0])
	return map[string]any{"cnf": map[string]any{"x5t#S256": base64.RawURLEncoding.EncodeToString(sum[:])}}
}

// call asks through Envoy and returns the status, the code of the refusal, and
// the user that the backend saw.
func (p *identities) call(t *testing.T, certificate *tls.Certificate, path string, header http.Header) (status int, code, user string) {
	t.Helper()
	config := &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "server", MinVersion: tls.VersionTLS12}
	config.RootCAs.AddCert(p.root(t))
	if certificate != nil {
		config.Certificates = []tls.Certificate{*certificate}
	}
	transport := &http.Transport{TLSClientConfig: config}
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.base+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(request.Header, header)
	response, err := transport.RoundTrip(request)
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
	return response.StatusCode, problem.Code, response.Header.Get("Seen-User")
}

func (p *identities) root(t *testing.T) *x509.Certificate {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(p.folder, "clients.crt"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func bearer(token string) http.Header { return http.Header{"Authorization": {"Bearer " + token}} }

func (p *identities) testCertificates(t *testing.T) {
	plain, bound := p.token(t, direct, nil), p.token(t, direct, boundTo(p.ours))
	forwarded := bearer(bound)
	certificate := url.PathEscape(string(pemOf("CERTIFICATE", p.ours.Certificate[0])))
	forwarded["X-Forwarded-Client-Cert"] = []string{`Hash=0;Cert="` + certificate + `"`}
	for name, c := range map[string]struct {
		certificate *tls.Certificate
		header      http.Header
		code        string
	}{
		"bound, with its certificate":          {&p.ours, bearer(bound), ""},
		"bound, with another":                  {&p.other, bearer(bound), "token_invalid"},
		"bound, with none":                     {nil, bearer(bound), "token_invalid"},
		"bound, with its certificate as words": {nil, forwarded, "token_invalid"},
		"bound, with words beside another":     {&p.other, forwarded, "token_invalid"},
		"plain, with none":                     {nil, bearer(plain), ""},
		"plain, with one":                      {&p.ours, bearer(plain), ""},
		"a certificate is no token":            {&p.ours, nil, "token_missing"},
	} {
		t.Run(name, func(t *testing.T) { p.expect(t, c.certificate, "/orders", c.header, c.code) })
	}
}

func (p *identities) expect(t *testing.T, certificate *tls.Certificate, path string, header http.Header, code string) {
	t.Helper()
	want, user := http.StatusOK, "ada"
	if code != "" {
		want, user = http.StatusUnauthorized, ""
	}
	if status, got, seen := p.call(t, certificate, path, header); status != want || got != code || seen != user {
		t.Errorf("answered %d %s, and the backend saw %q; want %d %s, %q", status, got, seen, want, code, user)
	}
}

func (p *identities) testJWTAuthn(t *testing.T) {
	good := p.token(t, byword, nil)
	parts := strings.Split(good, ".")
	forged := (&identities{keys: map[string]*ecdsa.PrivateKey{byword: tokentest.Key(t)}}).token(t, byword, nil)
	unsigned := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + parts[1] + "."
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	words := http.Header{} // what a client might hope to be taken for metadata; Envoy refuses underscores at once
	for _, name := range []string{"Jwt-Payload", "X-Jwt-Payload", "Envoy.Filters.Http.Jwt-Authn", "X-Envoy-Metadata"} {
		words[name] = []string{parts[1], string(payload)}
	}
	forgedWords := words.Clone()
	forgedWords["Authorization"] = []string{"Bearer " + forged}
	for name, c := range map[string]struct {
		certificate *tls.Certificate
		path        string
		header      http.Header
		code        string
	}{
		"vouched for":                      {header: bearer(good)},
		"of an issuer that authz verifies": {header: bearer(p.token(t, direct, nil))},
		"nothing":                          {code: "token_missing"},
		"signed by another":                {header: bearer(forged), code: "token_invalid"},
		"not signed":                       {header: bearer(unsigned), code: "token_malformed"},
		"expired":                          {header: bearer(p.token(t, byword, map[string]any{"exp": time.Now().Add(-time.Hour).Unix()})), code: "token_invalid"},
		"for somebody else":                {header: bearer(p.token(t, byword, map[string]any{"aud": "theirs"})), code: "token_invalid"},
		"lives too long":                   {header: bearer(p.token(t, byword, map[string]any{"exp": time.Now().Add(72 * time.Hour).Unix()})), code: "token_invalid"},
		"words in headers":                 {header: words, code: "token_missing"},
		"words beside a forged token":      {header: forgedWords, code: "token_invalid"},
		"in the query":                     {path: "/orders?access_token=" + good, code: "token_missing"},
		"in the query, beside a forged":    {path: "/orders?access_token=" + good, header: bearer(forged), code: "token_invalid"},
		"two tokens":                       {header: http.Header{"Authorization": {"Bearer " + good, "Bearer " + forged}}, code: "token_malformed"},
		"bound, with its certificate":      {certificate: &p.ours, header: bearer(p.token(t, byword, boundTo(p.ours)))},
		"bound, with none":                 {header: bearer(p.token(t, byword, boundTo(p.ours))), code: "token_invalid"},
	} {
		if c.path == "" {
			c.path = "/orders"
		}
		t.Run(name, func(t *testing.T) { p.expect(t, c.certificate, c.path, c.header, c.code) })
	}
}
