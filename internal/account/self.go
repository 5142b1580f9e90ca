package account

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/credential"
	"github.com/tollgate-proxy/tollgate/internal/gate"
	"github.com/tollgate-proxy/tollgate/internal/problem"
	"github.com/tollgate-proxy/tollgate/internal/revocation"
	"github.com/tollgate-proxy/tollgate/internal/session"
)

// UserVerifier verifies a user's token; *authn.Verifier is one. Its errors are
// *authn.Error.
type UserVerifier interface {
	VerifyBearer(ctx context.Context, token string, now time.Time) (*authn.Principal, error)
}

// Self is the part of the API that users reach themselves, through Envoy: their
// own sessions and no others.
//
// Who asks is who the Bearer token of the Authorization header speaks for,
// verified here, again, and held against the revocations in the store. No other
// header counts: whoever reaches this port can write x-user-id. Cookies do not
// count either, so that no other site's page can end a session. All fields are
// required.
type Self struct {
	Verifier UserVerifier
	Checker  TokenChecker
	Revoker  Revoker
	Manager  SessionManager
	Auditor  Auditor
	Now      func() time.Time
}

// Register implements Part.
func (s *Self) Register(mux Routes, _ *credential.Authenticator) {
	mux.Handle("GET /v1/me/sessions", s.own(s.list))
	mux.Handle("DELETE /v1/me/sessions", s.own(s.endAll))
	mux.Handle("DELETE /v1/me/sessions/{id}", s.own(s.end))
	mux.Handle("POST /v1/me/sessions/end-others", s.own(s.endOthers))
}

type ownHandler func(w http.ResponseWriter, r *http.Request, p *authn.Principal)

// own lets users with a good token through.
func (s *Self) own(next ownHandler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, err := s.authenticate(w, r)
		if err != nil {
			writeError(w, r, err)
			return
		}
		r = r.WithContext(credential.With(r.Context(), credential.Caller{Name: describe(p.Subject, p.Issuer), Roles: []string{credential.Self}}))
		next(w, r, p)
	})
}

func (s *Self) authenticate(w http.ResponseWriter, r *http.Request) (*authn.Principal, error) {
	refuse := func(code, detail string) error {
		challenge := `Bearer realm="tollgate"`
		if code != authn.CodeMissing {
			challenge += `, error="invalid_token"`
		}
		w.Header().Set("WWW-Authenticate", challenge)
		return problem.New(http.StatusUnauthorized, code, detail)
	}
	values := r.Header.Values("Authorization")
	if len(values) == 0 {
		return nil, refuse(authn.CodeMissing, "A user's token is required.")
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	if len(values) != 1 || !strings.EqualFold(scheme, "bearer") {
		return nil, refuse(authn.CodeMalformed, "One Authorization header with a Bearer token is wanted.")
	}
	p, err := s.Verifier.VerifyBearer(r.Context(), token, s.Now())
	if err != nil {
		var e *authn.Error
		if errors.As(err, &e) && e.Code != authn.CodeUnavailable {
			return nil, refuse(e.Code, e.Public)
		}
		return nil, unavailable(w, "The token cannot be verified at the moment.")
	}
	known := gate.RevocationToken(p)
	verdict, err := s.Checker.Check(r.Context(), &known)
	switch {
	case err != nil:
		return nil, unavailable(w, "Whether the token was revoked cannot be found out at the moment.")
	case verdict.Revoked:
		return nil, refuse(string(verdict.Code), "The token is not valid any more.")
	}
	return p, nil
}

// unavailable says that something that is needed does not answer.
func unavailable(w http.ResponseWriter, detail string) error {
	w.Header().Set("Retry-After", problem.RetryAfter(time.Second))
	return problem.New(http.StatusServiceUnavailable, "dependency_unavailable", detail)
}

func (s *Self) list(w http.ResponseWriter, r *http.Request, p *authn.Principal) {
	all, err := s.listOwn(r.Context(), p)
	if err != nil {
		writeError(w, r, sessionError(w, err))
		return
	}
	writeJSON(w, http.StatusOK, viewSessions(p.Subject, all, p.Session))
}

// listOwn returns the sessions of the user whom the token's issuer means: the same
// subject of another issuer may be somebody else. A session that names no issuer
// may be any one's.
func (s *Self) listOwn(ctx context.Context, p *authn.Principal) ([]session.Session, error) {
	all, err := s.Manager.List(ctx, p.Subject)
	return slices.DeleteFunc(all, func(o session.Session) bool { return o.Issuer != "" && o.Issuer != p.Issuer }), err
}

// end ends one of the user's own sessions. A session that is not the user's is
// left alone: its end would kill the tokens of whoever has it.
func (s *Self) end(w http.ResponseWriter, r *http.Request, p *authn.Principal) {
	id := r.PathValue("id")
	event := Event{Actor: actor(r.Context()), Action: "session.end", Target: sessionOf(id, p.Subject), At: s.Now()}
	if audited(w, r, s.Auditor, event, s.endOwn(r.Context(), p, id)) {
		w.WriteHeader(http.StatusNoContent)
	}
}

func (s *Self) endOwn(ctx context.Context, p *authn.Principal, id string) error {
	all, err := s.listOwn(ctx, p)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(all, func(o session.Session) bool { return o.ID == id }) && id != p.Session {
		return problem.New(http.StatusNotFound, "session_not_found", "You have no such session.")
	}
	if err := s.Manager.End(ctx, p.Subject, session.Ref{Issuer: p.Issuer, ID: id}); !errors.Is(err, session.ErrNotFound) {
		return err
	}
	return nil // it was the token's own, which nobody had registered
}

// endAll logs the user out everywhere: every token that was issued up to now,
// and every session.
func (s *Self) endAll(w http.ResponseWriter, r *http.Request, p *authn.Principal) {
	event := Event{Actor: actor(r.Context()), Action: "session.end_all", Target: p.Subject, At: s.Now()}
	n := 0
	_, err := s.Revoker.Revoke(r.Context(), revocation.Revocation{Kind: revocation.KindUser, ID: p.Subject, Issuer: p.Issuer})
	if err == nil {
		n, err = s.Manager.EndAll(r.Context(), p.Subject, p.Issuer)
	}
	if audited(w, r, s.Auditor, event, err) {
		writeJSON(w, http.StatusOK, endedAnswer{n})
	}
}

// endOthers keeps the session that the user asks in.
func (s *Self) endOthers(w http.ResponseWriter, r *http.Request, p *authn.Principal) {
	event := Event{Actor: actor(r.Context()), Action: "session.end_others", Target: p.Subject, At: s.Now()}
	var n int
	var err error
	if p.Session == "" {
		err = problem.New(http.StatusConflict, "session_unknown", "The token names no session that could stay.")
	} else {
		n, err = s.Manager.EndOthers(r.Context(), p.Subject, session.Ref{Issuer: p.Issuer, ID: p.Session})
	}
	if audited(w, r, s.Auditor, event, err) {
		writeJSON(w, http.StatusOK, endedAnswer{n})
	}
}
