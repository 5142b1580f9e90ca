package account

import (
	"context"
	"errors"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/credential"
	"github.com/tollgate-proxy/tollgate/internal/gate"
	"github.com/tollgate-proxy/tollgate/internal/problem"
)

// PrincipalInspector verifies a token without asking whether its holder may
// present it; *authn.Verifier is one. Its errors are *authn.Error.
type PrincipalInspector interface {
	Inspect(ctx context.Context, token string, now time.Time) (*authn.Principal, error)
}

// OAuth is the part of the API that speaks OAuth: token revocation (RFC 7009)
// and introspection (RFC 7662), for clients with the role service or operator.
// Clients authenticate with HTTP Basic or a Bearer token. All fields are
// required.
type OAuth struct {
	Revoker   Revoker
	Checker   TokenChecker
	Inspector PrincipalInspector
	// Leeway is how far clocks may be apart, for tokens that are not valid yet.
	Leeway  time.Duration
	Auditor Auditor
	Now     func() time.Time
}

// Register implements Part.
func (o *OAuth) Register(mux Routes, auth *credential.Authenticator) {
	mux.Handle("POST /oauth2/revoke", oauthClient(auth, o.revoke))
	mux.Handle("POST /oauth2/introspect", oauthClient(auth, o.introspect))
}

// oauthError is an error answer of RFC 6749, section 5.2.
type oauthError struct {
	Error       string `json:"error"`
	Description string `json:"error_description,omitempty"`
}

func writeOAuthError(w http.ResponseWriter, status int, code, description string) {
	if status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", problem.RetryAfter(time.Second))
	}
	writeJSON(w, status, oauthError{code, description})
}

const (
	oauthInvalidRequest = "invalid_request"
	oauthUnavailable    = "temporarily_unavailable"
)

// oauthClient lets authenticated clients through.
func oauthClient(auth *credential.Authenticator, next http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		caller, ok := auth.Authenticate(r)
		switch {
		case !ok:
			w.Header().Add("WWW-Authenticate", `Basic realm="tollgate"`)
			w.Header().Add("WWW-Authenticate", `Bearer realm="tollgate"`)
			writeOAuthError(w, http.StatusUnauthorized, "invalid_client", "the client's credentials are missing or wrong")
		case !caller.Has(credential.Service) && !caller.Has(credential.Operator):
			writeOAuthError(w, http.StatusForbidden, "unauthorized_client", "this takes the role service or operator")
		default:
			next(w, r.WithContext(credential.With(r.Context(), caller)))
		}
	})
}

// readForm reads one parameter of a form that must have it once.
func readForm(w http.ResponseWriter, r *http.Request, name string) (string, error) {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "application/x-www-form-urlencoded" {
		return "", errors.New("the body must be application/x-www-form-urlencoded")
	}
	body, err := readBody(w, r, maxTokenBody)
	if err != nil {
		return "", errors.New("the body is too large or did not arrive whole")
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return "", errors.New("the body is not a form")
	}
	if len(form[name]) != 1 || form.Get(name) == "" {
		return "", errors.New(name + " must be there once")
	}
	return form.Get(name), nil
}

// revoke revokes the token that the client presents. As RFC 7009 has it, a token
// that is not valid is answered with 200: the client wanted it dead, and it is.
func (o *OAuth) revoke(w http.ResponseWriter, r *http.Request) {
	token, err := readForm(w, r, "token")
	if err != nil {
		writeOAuthError(w, http.StatusBadRequest, oauthInvalidRequest, err.Error())
		return
	}
	event := Event{Actor: actor(r.Context()), Action: "token.revoke", Target: "unverifiable token", Outcome: "done", At: o.Now()}
	p, err := o.Inspector.Inspect(r.Context(), token, o.Now())
	switch {
	case isUnavailable(err):
		event.Outcome = "dependency_unavailable"
	case err != nil:
		event.Outcome = "token_invalid"
	default:
		known := gate.RevocationToken(p)
		event.Target = nameToken(&known)
		if _, err := o.Revoker.Revoke(r.Context(), known.Revocations()...); err != nil {
			event.Outcome = "dependency_unavailable"
		}
	}
	o.Auditor.Audit(r.Context(), event)
	if event.Outcome == "dependency_unavailable" {
		writeOAuthError(w, http.StatusServiceUnavailable, oauthUnavailable, "take nothing for revoked, and repeat the call")
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
}

// isUnavailable tells an inspection that could not judge from one that refuses.
func isUnavailable(err error) bool {
	var e *authn.Error
	return errors.As(err, &e) && e.Code == authn.CodeUnavailable
}

// introspection is an answer of RFC 7662, section 2.2.
type introspection struct {
	Active    bool     `json:"active"`
	Scope     string   `json:"scope,omitempty"`
	ClientID  string   `json:"client_id,omitempty"`
	TokenType string   `json:"token_type,omitempty"`
	ExpiresAt int64    `json:"exp,omitempty"`
	IssuedAt  int64    `json:"iat,omitempty"`
	NotBefore int64    `json:"nbf,omitempty"`
	Subject   string   `json:"sub,omitempty"`
	Issuer    string   `json:"iss,omitempty"`
	TokenID   string   `json:"jti,omitempty"`
	Session   string   `json:"sid,omitempty"`
	Tier      string   `json:"tier,omitempty"`
	Roles     []string `json:"roles,omitempty"`
	// Confirmation is what the token is bound to (RFC 9449 section 6.2, RFC 8705
	// section 3.2): whoever presents it must have that too.
	Confirmation *confirmation `json:"cnf,omitempty"`
}

type confirmation struct {
	KeyThumbprint         string `json:"jkt,omitempty"`
	CertificateThumbprint string `json:"x5t#S256,omitempty"`
}

// introspect tells a client about a token that it was presented. Redis is asked,
// not a replica. Of a token that is not good nothing is told but that.
func (o *OAuth) introspect(w http.ResponseWriter, r *http.Request) {
	token, err := readForm(w, r, "token")
	if err != nil {
		writeOAuthError(w, http.StatusBadRequest, oauthInvalidRequest, err.Error())
		return
	}
	now := o.Now()
	p, err := o.Inspector.Inspect(r.Context(), token, now)
	switch {
	case isUnavailable(err):
		writeOAuthError(w, http.StatusServiceUnavailable, oauthUnavailable, "the token cannot be judged at the moment")
		return
	case err != nil || p.NotBefore.After(now.Add(o.Leeway)) || p.IssuedAt.After(now.Add(o.Leeway)):
		writeJSON(w, http.StatusOK, introspection{})
		return
	}
	known := gate.RevocationToken(p)
	verdict, err := o.Checker.Check(r.Context(), &known)
	if err != nil {
		writeOAuthError(w, http.StatusServiceUnavailable, oauthUnavailable, "whether the token was revoked cannot be found out at the moment")
		return
	}
	if verdict.Revoked {
		writeJSON(w, http.StatusOK, introspection{})
		return
	}
	answer := introspection{
		Active: true, Scope: strings.Join(p.Scopes, " "), ClientID: p.ClientID, TokenType: "Bearer",
		ExpiresAt: p.ExpiresAt.Unix(), Subject: p.Subject, Issuer: p.Issuer, TokenID: p.TokenID, Session: p.Session,
		Tier: p.Tier, Roles: slices.Clone(p.Roles),
	}
	if c := (confirmation{p.KeyThumbprint, p.CertificateThumbprint}); c != (confirmation{}) {
		answer.Confirmation = &c
	}
	if p.KeyThumbprint != "" {
		answer.TokenType = "DPoP"
	}
	if !p.IssuedAt.IsZero() {
		answer.IssuedAt = p.IssuedAt.Unix()
	}
	if !p.NotBefore.IsZero() {
		answer.NotBefore = p.NotBefore.Unix()
	}
	writeJSON(w, http.StatusOK, answer)
}
