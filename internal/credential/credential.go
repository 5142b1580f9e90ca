// Package credential authenticates the callers of management endpoints: static
// clients, each with roles and either a hashed secret or a certificate, and
// holders of tokens that somebody else verifies.
//
// A certificate counts where the TLS handshake verified it and the request has
// no Authorization header: what stands there decides alone. A caller with a
// secret presents its secret as "Authorization: Bearer SECRET", or with HTTP
// Basic as NAME:SECRET. The configuration holds only the SHA-256 of a secret, so
// a secret must be random (at least 128 bits; `openssl rand -hex 32`): a hash
// without stretching protects no password. Comparison takes the same time
// whatever is presented.
package credential

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/tollgate-proxy/tollgate/internal/config"
	"github.com/tollgate-proxy/tollgate/internal/problem"
)

// The roles of management callers. Admin may do all that the others may.
const (
	Admin    = "admin"    // everything, emergency actions and definitions included
	Operator = "operator" // revoke, list, set flags and limits
	Service  = "service"  // register sessions, record metrics
	Self     = "self"     // a user, about itself; no client can hold it
)

var roles = []string{Admin, Operator, Service}

// Client is one caller in the configuration.
type Client struct {
	Name         string   `yaml:"name" doc:"Name of the caller, as the audit trail shows it."`
	SecretSHA256 string   `yaml:"secret_sha256" doc:"SHA-256 of the caller's random secret, in hexadecimal (printf %s SECRET | sha256sum)."`
	Roles        []string `yaml:"roles" doc:"What the caller may do: admin, operator, service."`

	CertificateSHA256 string `yaml:"certificate_sha256" doc:"Instead of a secret: SHA-256 of the caller's client certificate, in hexadecimal (openssl x509 -fingerprint -sha256, without colons)."`
	CertificateSAN    string `yaml:"certificate_san" doc:"Instead of a secret: a subject alternative name of the caller's client certificate, a DNS name or a URI such as spiffe://example.com/login, compared whole."`
}

// Validate checks the client.
func (c Client) Validate(r *config.Report) {
	if c.Name == "" || strings.ContainsAny(c.Name, ": \t\r\n") {
		r.Fault("name", c.Name, "a name without spaces and colons")
	}
	if n := c.credentials(); n > 1 {
		r.Fault("", nil, "one of secret_sha256, certificate_sha256 and certificate_san")
	} else if _, err := digest(c.SecretSHA256); n == 0 || c.SecretSHA256 != "" && err != nil {
		r.Fault("secret_sha256", config.NewSecret(c.SecretSHA256), "64 hexadecimal digits")
	}
	if _, err := digest(c.CertificateSHA256); c.CertificateSHA256 != "" && err != nil {
		r.Fault("certificate_sha256", c.CertificateSHA256, "64 hexadecimal digits")
	}
	if len(c.Roles) == 0 {
		r.Fault("roles", "", "at least one of "+strings.Join(roles, ", "))
	}
	for i, role := range c.Roles {
		if !slices.Contains(roles, role) {
			r.Fault(fmt.Sprintf("roles[%d]", i), role, "one of "+strings.Join(roles, ", "))
		}
	}
}

// credentials counts what the client can be known by.
func (c Client) credentials() int {
	n := 0
	for _, s := range []string{c.SecretSHA256, c.CertificateSHA256, c.CertificateSAN} {
		if s != "" {
			n++
		}
	}
	return n
}

func digest(s string) ([sha256.Size]byte, error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != sha256.Size {
		return [sha256.Size]byte{}, errors.New("must be 64 hexadecimal digits")
	}
	return [sha256.Size]byte(b), nil
}

// Caller is who called.
type Caller struct {
	Name  string
	Roles []string
}

// Has says whether the caller holds the role; an admin holds every one.
func (c Caller) Has(role string) bool {
	return slices.Contains(c.Roles, role) || slices.Contains(c.Roles, Admin)
}

// Tokens says whose a Bearer token is that is no client's secret. It must be
// safe for concurrent use.
type Tokens interface {
	Caller(ctx context.Context, token string) (Caller, bool)
}

// Authenticator knows the clients. It is safe for concurrent use.
type Authenticator struct {
	clients *atomic.Pointer[[]client] // shared with those that WithTokens returned
	tokens  Tokens
}

type client struct {
	caller Caller
	// secret and certificate are what the client is known by, nil where it is not.
	secret, certificate *[sha256.Size]byte
	san                 string
}

// New makes an authenticator. Names and credentials must be unique.
func New(clients []Client) (*Authenticator, error) {
	a := &Authenticator{clients: new(atomic.Pointer[[]client])}
	use, err := a.Prepare(clients)
	if err != nil {
		return nil, err
	}
	use()
	return a, nil
}

// Prepare makes other clients ready; use puts them in the place of those that
// are known. Requests under way end as they began.
func (a *Authenticator) Prepare(clients []Client) (use func(), err error) {
	var all []client
	seen := map[any]bool{}
	for i, c := range clients {
		if c.credentials() != 1 {
			return nil, fmt.Errorf("clients[%d] %q: one of secret_sha256, certificate_sha256 and certificate_san is wanted", i, c.Name)
		}
		next := client{caller: Caller{c.Name, slices.Clone(c.Roles)}, san: c.CertificateSAN}
		known := any(c.CertificateSAN)
		for _, field := range []struct {
			name, value string
			to          **[sha256.Size]byte
		}{{"secret_sha256", c.SecretSHA256, &next.secret}, {"certificate_sha256", c.CertificateSHA256, &next.certificate}} {
			if field.value == "" {
				continue
			}
			sum, err := digest(field.value)
			if err != nil {
				return nil, fmt.Errorf("clients[%d] %q: %s %w", i, c.Name, field.name, err)
			}
			*field.to, known = &sum, sum
		}
		type name string
		if seen[name(c.Name)] || seen[known] {
			return nil, fmt.Errorf("clients[%d] %q: another client has the same name, secret or certificate", i, c.Name)
		}
		seen[name(c.Name)], seen[known] = true, true
		all = append(all, next)
	}
	return func() { a.clients.Store(&all) }, nil
}

// WithTokens returns an authenticator that also asks tokens about a Bearer token
// that is no client's secret.
func (a *Authenticator) WithTokens(tokens Tokens) *Authenticator {
	return &Authenticator{clients: a.clients, tokens: tokens}
}

// Authenticate finds who presents these credentials.
func (a *Authenticator) Authenticate(r *http.Request) (Caller, bool) {
	values := r.Header.Values("Authorization")
	if len(values) == 0 {
		return a.certified(r)
	}
	if len(values) != 1 {
		return Caller{}, false
	}
	name, secret, basic := r.BasicAuth()
	if !basic {
		scheme, rest, ok := strings.Cut(values[0], " ")
		if !ok || !strings.EqualFold(scheme, "bearer") {
			return Caller{}, false
		}
		secret = strings.TrimSpace(rest)
	}
	hash := sha256.Sum256([]byte(secret))
	var found *client
	clients := *a.clients.Load()
	for i := range clients { // all of them, always
		if s := clients[i].secret; s != nil && subtle.ConstantTimeCompare(hash[:], s[:]) == 1 {
			found = &clients[i]
		}
	}
	switch {
	case found != nil && (!basic || found.caller.Name == name):
		return found.caller, true
	case found == nil && !basic && a.tokens != nil:
		return a.tokens.Caller(r.Context(), secret)
	}
	return Caller{}, false
}

// certified finds the client of a certificate that the handshake verified.
func (a *Authenticator) certified(r *http.Request) (Caller, bool) {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 || len(r.TLS.PeerCertificates) == 0 {
		return Caller{}, false
	}
	leaf := r.TLS.PeerCertificates[0]
	sum := sha256.Sum256(leaf.Raw)
	names := slices.Clone(leaf.DNSNames)
	for _, u := range leaf.URIs {
		names = append(names, u.String())
	}
	for _, c := range *a.clients.Load() {
		if c.certificate != nil && *c.certificate == sum || c.san != "" && slices.Contains(names, c.san) {
			return c.caller, true
		}
	}
	return Caller{}, false
}

// Require lets only callers with the role through to next, which finds the
// caller with From.
func (a *Authenticator) Require(role string, next http.Handler) http.Handler {
	return a.RequireAny([]string{role}, next)
}

// RequireAny is Require with several roles, of which the caller needs one.
func (a *Authenticator) RequireAny(roles []string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := r.Header.Get("X-Request-Id")
		caller, ok := a.Authenticate(r)
		if !ok {
			w.Header().Set("WWW-Authenticate", `Bearer realm="tollgate"`)
			problem.Write(w, problem.New(http.StatusUnauthorized, "credentials_required",
				"Present the secret of a management client as a Bearer token.").WithRequestID(id))
			return
		}
		if !slices.ContainsFunc(roles, caller.Has) {
			problem.Write(w, problem.New(http.StatusForbidden, "role_required",
				"This needs the role "+strings.Join(roles, " or ")+".").WithRequestID(id))
			return
		}
		next.ServeHTTP(w, r.WithContext(With(r.Context(), caller)))
	})
}

type callerKey struct{}

// With returns a context with the caller, for who authenticates in another way.
func With(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// From returns the caller that Require let through.
func From(ctx context.Context) (Caller, bool) {
	c, ok := ctx.Value(callerKey{}).(Caller)
	return c, ok
}
