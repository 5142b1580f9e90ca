package authn

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/config"
)

// The issuer and the audience of development tokens. No certificate can exist
// for the issuer's name (RFC 2606).
const (
	DevelopmentIssuerURL = "https://dev.tollgate.invalid"
	DevelopmentAudience  = "tollgate"
)

// developmentClient is the client_id of development tokens that name none.
const developmentClient = "tollgate-cli"

// DevelopmentIssuer makes sure that the private key is there (see NewMinter)
// and returns the entry of the issuer that signs with it. New calls it for
// Config.Development.
func DevelopmentIssuer(keyFile string) (IssuerConfig, error) {
	if _, err := NewMinter(keyFile); err != nil {
		return IssuerConfig{}, err
	}
	return IssuerConfig{
		Name:       "development",
		Issuer:     DevelopmentIssuerURL,
		Algorithms: []string{"ES256"},
		Audiences:  []string{DevelopmentAudience},
		Types:      []string{"at+jwt"},
		Keys:       KeysConfig{PEMFile: config.Path(keyFile)},
	}, nil
}

// MintOptions say what a development token claims.
type MintOptions struct {
	// User is the subject, and required.
	User string
	// Tier is left out where empty, and so are the other texts and lists.
	Tier, Session, Device   string
	Roles, Scopes, Consents []string
	// Client is tollgate-cli where empty.
	Client string
	// Audience is DevelopmentAudience where empty.
	Audience string
	// TokenID is random where empty.
	TokenID string
	// Version is left out where 0.
	Version int64
	// TTL is the lifetime, cut to whole seconds; 0 means an hour, and a negative
	// one makes a token that has expired.
	TTL time.Duration
	// Now is the time of issue; zero means the time of the call.
	Now time.Time
}

// Mint signs a development token with the key in keyFile, which it makes where
// it is missing. A Minter does so for many tokens.
func Mint(keyFile string, o MintOptions) (string, error) {
	m, err := NewMinter(keyFile)
	if err != nil {
		return "", err
	}
	return m.Mint(o)
}

// Minter signs development tokens with one key. It is safe for concurrent use.
type Minter struct {
	key    *ecdsa.PrivateKey
	header string
}

// NewMinter reads the key in keyFile. Where there is none it makes one, with
// its folder, readable by the owner alone; of processes that do so at once all
// get the same key.
func NewMinter(keyFile string) (*Minter, error) {
	data, err := os.ReadFile(keyFile)
	if errors.Is(err, fs.ErrNotExist) {
		if err = createKey(keyFile); err != nil {
			return nil, fmt.Errorf("make a development key: %w", err)
		}
		data, err = os.ReadFile(keyFile)
	}
	if err != nil {
		return nil, fmt.Errorf("development key: %w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, fmt.Errorf("development key: %s: not a PEM file with a private key", keyFile)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("development key: %s: %w", keyFile, err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("development key: %s: not a key on curve P-256", keyFile)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("development key: %s: %w", keyFile, err)
	}
	sum := sha256.Sum256(public)
	header, err := encodePart(map[string]any{"alg": "ES256", "typ": "at+jwt", "kid": base64.RawURLEncoding.EncodeToString(sum[:8])})
	if err != nil {
		return nil, err
	}
	return &Minter{key: key, header: header}, nil
}

// createKey writes a new key under another name and links it into place, which
// fails where the file is there by now: it never replaces a key, and nobody
// reads half of one.
func createKey(keyFile string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	dir := filepath.Dir(keyFile)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".development-key-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	err = pem.Encode(f, &pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), keyFile); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// Mint signs one token.
func (m *Minter) Mint(o MintOptions) (string, error) {
	if o.User == "" {
		return "", errors.New("a token needs a user")
	}
	now := o.Now
	if now.IsZero() {
		now = time.Now()
	}
	ttl := o.TTL
	if ttl == 0 {
		ttl = time.Hour
	}
	claims := map[string]any{
		"iss": DevelopmentIssuerURL, "sub": o.User, "aud": orElse(o.Audience, DevelopmentAudience),
		"client_id": orElse(o.Client, developmentClient), "jti": orElse(o.TokenID, rand.Text()),
		"iat": now.Unix(), "exp": now.Unix() + int64(ttl/time.Second),
	}
	for name, text := range map[string]string{"tier": o.Tier, "sid": o.Session, "device_id": o.Device} {
		if text != "" {
			claims[name] = text
		}
	}
	for name, list := range map[string][]string{"roles": o.Roles, "scope": o.Scopes, "consents": o.Consents} {
		if len(list) > 0 {
			claims[name] = list
		}
	}
	if o.Version != 0 {
		claims["ver"] = o.Version
	}
	payload, err := encodePart(claims)
	if err != nil {
		return "", err
	}
	input := m.header + "." + payload
	digest := sha256.Sum256([]byte(input))
	r, s, err := ecdsa.Sign(rand.Reader, m.key, digest[:])
	if err != nil {
		return "", fmt.Errorf("sign a development token: %w", err)
	}
	var signature [64]byte
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return input + "." + base64.RawURLEncoding.EncodeToString(signature[:]), nil
}

func encodePart(v map[string]any) (string, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return "", fmt.Errorf("encode a token: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(b), nil
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
