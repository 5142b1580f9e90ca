package account

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/credential"
	"github.com/tollgate-proxy/tollgate/internal/problem"
	"github.com/tollgate-proxy/tollgate/internal/session"
)

// SessionManager registers, lists and ends sessions; *session.Manager is one.
// What it has ended is dead, with all its tokens, when it returns.
type SessionManager interface {
	SessionEnder
	Register(ctx context.Context, s session.Session, tier string) (session.Session, error)
	List(ctx context.Context, user string) ([]session.Session, error)
	// End ends a session, and EndOthers all but one, of one issuer where the reference names it.
	End(ctx context.Context, user string, r session.Ref) error
	EndOthers(ctx context.Context, user string, keep session.Ref) (int, error)
}

// Issuers knows whose tokens are accepted; *authn.Verifier does.
type Issuers interface {
	Knows(issuer string) bool
}

// Sessions is the part of the API that registers, lists and ends sessions: for
// the login service and for operators. Users have Self. All fields are required.
type Sessions struct {
	Manager SessionManager
	Issuers Issuers
	Auditor Auditor
	Now     func() time.Time
}

// maxSessionBody bounds a body about sessions, in bytes.
const maxSessionBody = 16 << 10

// Register implements Part.
func (s *Sessions) Register(mux Routes, auth *credential.Authenticator) {
	operator := func(h http.HandlerFunc) http.Handler { return auth.Require(credential.Operator, h) }
	mux.Handle("POST /v1/sessions", auth.Require(credential.Service, http.HandlerFunc(s.register)))
	mux.Handle("GET /v1/users/{user}/sessions", operator(s.list))
	mux.Handle("DELETE /v1/users/{user}/sessions", operator(s.endAll))
	mux.Handle("DELETE /v1/users/{user}/sessions/{id}", operator(s.end))
	mux.Handle("POST /v1/users/{user}/sessions/end-others", operator(s.endOthers))
}

// registerRequest is what a login service tells of a login.
type registerRequest struct {
	User    string `json:"user"`
	Session string `json:"session"`
	Issuer  string `json:"iss"`
	Tier    string `json:"tier"`
	Device  struct {
		ID        string `json:"id"`
		Name      string `json:"name"`
		UserAgent string `json:"user_agent"`
	} `json:"device"`
	Address string        `json:"address"`
	Place   session.Place `json:"place"`
}

// sessionView is a session as the API shows it.
type sessionView struct {
	ID       string         `json:"id"`
	Issuer   string         `json:"iss,omitempty"`
	Device   session.Device `json:"device"`
	Address  string         `json:"address,omitempty"`
	Place    session.Place  `json:"place"`
	Created  time.Time      `json:"created"`
	LastSeen time.Time      `json:"last_seen"`
	// Current marks the session that the question came in; a user's own list only.
	Current bool `json:"current,omitempty"`
}

func viewSession(s session.Session) sessionView {
	return sessionView{
		ID: s.ID, Issuer: s.Issuer, Device: s.Device, Address: s.Address, Place: s.Place,
		Created: s.Created.UTC(), LastSeen: s.LastSeen.UTC(),
	}
}

type sessionList struct {
	User     string        `json:"user"`
	Sessions []sessionView `json:"sessions"`
}

func viewSessions(user string, all []session.Session, current string) sessionList {
	list := sessionList{User: user, Sessions: make([]sessionView, len(all))}
	for i := range all {
		list.Sessions[i] = viewSession(all[i])
		list.Sessions[i].Current = current != "" && all[i].ID == current
	}
	return list
}

// register answers 201 for a new session and 200 for one that was there.
func (s *Sessions) register(w http.ResponseWriter, r *http.Request) {
	var q registerRequest
	if err := decodeJSON(w, r, maxSessionBody, &q); err != nil {
		writeError(w, r, err)
		return
	}
	event := Event{Actor: actor(r.Context()), Action: "session.register", Target: sessionOf(q.Session, q.User), At: s.Now()}
	stored, err := s.registered(r.Context(), &q)
	if !audited(w, r, s.Auditor, event, err) {
		return
	}
	status := http.StatusOK
	if stored.Created.Equal(stored.LastSeen) {
		status = http.StatusCreated
	}
	writeJSON(w, status, viewSession(stored))
}

func (s *Sessions) registered(ctx context.Context, q *registerRequest) (session.Session, error) {
	if q.Address != "" {
		a, err := netip.ParseAddr(q.Address)
		if err != nil {
			return session.Session{}, badRequest("address is no IP address.")
		}
		q.Address = a.Unmap().String()
	}
	if q.Issuer != "" && !s.Issuers.Knows(q.Issuer) {
		// The end of such a session would kill no token.
		return session.Session{}, badRequest("iss is no issuer whose tokens are accepted here; it is compared exactly.")
	}
	return s.Manager.Register(ctx, session.Session{
		User: q.User, Ref: session.Ref{Issuer: q.Issuer, ID: q.Session}, Address: q.Address, Place: q.Place,
		Device: session.Device{ID: q.Device.ID, Name: q.Device.Name, UserAgent: q.Device.UserAgent},
	}, q.Tier)
}

func (s *Sessions) list(w http.ResponseWriter, r *http.Request) {
	user := r.PathValue("user")
	all, err := s.Manager.List(r.Context(), user)
	if err != nil {
		writeError(w, r, sessionError(w, err))
		return
	}
	writeJSON(w, http.StatusOK, viewSessions(user, all, ""))
}

// end ends one session. Reasons are query parameters where the method is DELETE,
// since its bodies do not survive every proxy.
func (s *Sessions) end(w http.ResponseWriter, r *http.Request) {
	user, reason := r.PathValue("user"), r.URL.Query().Get("reason")
	ref := session.Ref{Issuer: r.URL.Query().Get("iss"), ID: r.PathValue("id")}
	event := Event{Actor: actor(r.Context()), Action: "session.end", Target: describe(sessionOf(ref.ID, user), ref.Issuer), Reason: reason, At: s.Now()}
	err := checkReason(reason, false)
	if err == nil {
		err = s.Manager.End(r.Context(), user, ref)
	}
	if audited(w, r, s.Auditor, event, err) {
		w.WriteHeader(http.StatusNoContent)
	}
}

func (s *Sessions) endAll(w http.ResponseWriter, r *http.Request) {
	user, issuer, reason := r.PathValue("user"), r.URL.Query().Get("iss"), r.URL.Query().Get("reason")
	event := Event{Actor: actor(r.Context()), Action: "session.end_all", Target: describe(user, issuer), Reason: reason, At: s.Now()}
	n, err := 0, checkReason(reason, false)
	if err == nil {
		n, err = s.Manager.EndAll(r.Context(), user, issuer)
	}
	if audited(w, r, s.Auditor, event, err) {
		writeJSON(w, http.StatusOK, endedAnswer{n})
	}
}

// endOthersRequest names the session that stays.
type endOthersRequest struct {
	Keep   string `json:"keep"`
	Issuer string `json:"iss"` // leaves the sessions with other issuers alone
	Reason string `json:"reason"`
}

type endedAnswer struct {
	Ended int `json:"ended"`
}

func (s *Sessions) endOthers(w http.ResponseWriter, r *http.Request) {
	var q endOthersRequest
	if err := decodeJSON(w, r, maxSessionBody, &q); err != nil {
		writeError(w, r, err)
		return
	}
	user := r.PathValue("user")
	event := Event{Actor: actor(r.Context()), Action: "session.end_others", Target: describe(user, q.Issuer), Reason: q.Reason, At: s.Now()}
	n, err := 0, checkReason(q.Reason, false)
	if err == nil {
		n, err = s.Manager.EndOthers(r.Context(), user, session.Ref{Issuer: q.Issuer, ID: q.Keep})
	}
	if audited(w, r, s.Auditor, event, err) {
		writeJSON(w, http.StatusOK, endedAnswer{n})
	}
}

func sessionOf(id, user string) string { return "session " + id + " of " + user }

// audited writes the outcome into the audit trail, and answers where it is an
// error. It reports whether all went well.
func audited(w http.ResponseWriter, r *http.Request, a Auditor, e Event, err error) bool {
	e.Outcome = "done"
	if err != nil {
		err = sessionError(w, publicError(w, err))
		e.Outcome = "failed"
		var p problem.Problem
		if errors.As(err, &p) {
			e.Outcome = p.Code
		}
	}
	a.Audit(r.Context(), e)
	if err != nil {
		writeError(w, r, err)
	}
	return err == nil
}

// sessionError turns what session says into what a client may be told.
func sessionError(w http.ResponseWriter, err error) error {
	switch {
	case errors.Is(err, session.ErrTooMany):
		return problem.New(http.StatusConflict, "session_limit", "The user has as many sessions as allowed. End one, then log in again.")
	case errors.Is(err, session.ErrEnded):
		return problem.New(http.StatusConflict, "session_ended", "The session has ended, and an id is used once. Log in again with a new one.")
	case errors.Is(err, session.ErrNotFound):
		return problem.New(http.StatusNotFound, "session_not_found", "The user has no such session; its tokens, if there are any, are refused from now on.")
	case errors.Is(err, session.ErrInvalid):
		return badRequest(strings.TrimPrefix(err.Error(), "register session: ") + ".")
	case errors.Is(err, session.ErrUnavailable):
		w.Header().Set("Retry-After", problem.RetryAfter(time.Second))
		return problem.New(http.StatusServiceUnavailable, "dependency_unavailable",
			"The session store does not answer: take nothing for done, and repeat the call.")
	}
	return err
}
