// Package credential authenticates the callers of management endpoints: static
// clients, each with a hashed secret and roles.
//
// A caller presents its secret as "Authorization: Bearer SECRET", or with HTTP
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
	"fmt"
	"net/http"
	"slices"
	"strings"

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
}

// Validate checks the client.
func (c Client) Validate(r *config.Report) {
	if c.Name == "" || strings.ContainsAny(c.Name, ": \t\r\n") {
		r.Fault("name", c.Name, "a name without spaces and colons")
	}
	if b, err := hex.DecodeString(c.SecretSHA256); err != nil || len(b) != sha256.Size {
		r.Fault("secret_sha256", config.NewSecret(c.SecretSHA256), "64 hexadecimal digits")
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

// Caller is who called.
type Caller struct {
	Name  string
	Roles []string
}

// Has says whether the caller holds the role; an admin holds every one.
func (c Caller) Has(role string) bool {
	return slices.Contains(c.Roles, role) || slices.Contains(c.Roles, Admin)
}

// Authenticator knows the clients. It is immutable.
type Authenticator struct {
	clients []client
}

type client struct {
	caller Caller
	hash   [sha256.Size]byte
}

// New makes an authenticator. Names and secrets must be unique.
func New(clients []Client) (*Authenticator, error) {
	a := &Authenticator{}
	for i, c := range clients {
		b, err := hex.DecodeString(c.SecretSHA256)
		if err != nil || len(b) != sha256.Size {
			return nil, fmt.Errorf("clients[%d] %q: secret_sha256 must be 64 hexadecimal digits", i, c.Name)
		}
		next := client{caller: Caller{c.Name, slices.Clone(c.Roles)}, hash: [sha256.Size]byte(b)}
		for _, other := range a.clients {
			if other.caller.Name == c.Name || other.hash == next.hash {
				return nil, fmt.Errorf("clients[%d] %q: another client has the same name or secret", i, c.Name)
			}
		}
		a.clients = append(a.clients, next)
	}
	return a, nil
}

// Authenticate finds who presents these credentials.
func (a *Authenticator) Authenticate(r *http.Request) (Caller, bool) {
	name, secret, basic := r.BasicAuth()
	if !basic {
		values := r.Header.Values("Authorization")
		if len(values) != 1 {
			return Caller{}, false
		}
		scheme, rest, ok := strings.Cut(values[0], " ")
		if !ok || !strings.EqualFold(scheme, "bearer") {
			return Caller{}, false
		}
		secret = strings.TrimSpace(rest)
	}
	hash := sha256.Sum256([]byte(secret))
	var found *client
	for i := range a.clients { // all of them, always
		if subtle.ConstantTimeCompare(hash[:], a.clients[i].hash[:]) == 1 {
			found = &a.clients[i]
		}
	}
	if found == nil || basic && found.caller.Name != name {
		return Caller{}, false
	}
	return found.caller, true
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
