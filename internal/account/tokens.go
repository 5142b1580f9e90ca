package account

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode"

	"github.com/tollgate-proxy/tollgate/internal/credential"
	"github.com/tollgate-proxy/tollgate/internal/problem"
	"github.com/tollgate-proxy/tollgate/internal/revocation"
	"github.com/tollgate-proxy/tollgate/internal/session"
)

// Revoker puts revocations in force; *revocation.Store is one.
type Revoker interface {
	Revoke(ctx context.Context, rs ...revocation.Revocation) (revocation.Receipt, error)
}

// TokenChecker says whether a token is revoked; *revocation.Store is one.
type TokenChecker interface {
	Check(ctx context.Context, t *revocation.Token) (revocation.Verdict, error)
}

// TokenInspector verifies a token as the gateway does. Its error wraps ErrTokenExpired where the token is genuine but
// past its time; no error repeats the token.
type TokenInspector interface {
	Inspect(token string) (revocation.Token, error)
}

// ErrTokenExpired is wrapped by a TokenInspector's error for a token that has expired.
var ErrTokenExpired = errors.New("token expired")

// SessionEnder ends registered sessions and tells how many there were.
type SessionEnder interface {
	// EndAll ends a user's with an issuer, or with whichever where it is empty.
	EndAll(ctx context.Context, user, issuer string) (int, error)
	// EndWhosever ends one whose user is not known.
	EndWhosever(ctx context.Context, r session.Ref) (int, error)
}

// Tokens is the part of the API that revokes tokens. All fields but Sessions are required.
type Tokens struct {
	Revoker   Revoker
	Checker   TokenChecker
	Inspector TokenInspector
	Sessions  SessionEnder // nil: there are no registered sessions to end
	Auditor   Auditor
	Now       func() time.Time
}

const (
	// maxTokenBody bounds a body that holds a token, in bytes.
	maxTokenBody = 32 << 10
	// maxReason bounds a reason, in bytes.
	maxReason = 256
)

// Register implements Part.
func (t *Tokens) Register(mux Routes, auth *credential.Authenticator) {
	operator := func(h http.HandlerFunc) http.Handler { return auth.Require(credential.Operator, h) }
	mux.Handle("POST /v1/tokens/revoke", operator(t.revoke))
	mux.Handle("POST /v1/tokens/status", operator(t.status))
	mux.Handle("POST /v1/users/{user}/revoke", operator(t.revokeUser))
}

// revokeRequest names exactly one target.
type revokeRequest struct {
	Token      string `json:"token"`
	TokenID    string `json:"jti"`
	Session    string `json:"session"`
	User       string `json:"user"`
	Client     string `json:"client"`
	Everything bool   `json:"everything"`

	Issuer    string `json:"iss"` // required with jti; alone it is the target; else it narrows the target
	ExpiresAt int64  `json:"exp"` // of the token with that jti, Unix seconds; 0: unknown
	Reason    string `json:"reason"`
}

// revokeAnswer says what is now in force. It never holds the token.
type revokeAnswer struct {
	// Revoked is the kind of target: token, token_id, session, user, client, issuer or everything.
	Revoked string `json:"revoked"`
	// Changed is false where it was in force already, or where there was nothing left to revoke.
	Changed bool `json:"changed"`
	// Expired is true for a token that had expired already: nothing accepts it, and nothing was stored.
	Expired bool `json:"expired,omitempty"`
	// NotBefore, Unix seconds: tokens issued up to that second are dead.
	NotBefore int64 `json:"not_before,omitempty"`
	// Version admits a login in that very second: a token with at least this "ver".
	Version int64 `json:"version,omitempty"`
	// SessionsEnded counts the registered sessions that were ended: the user's, or the one that was named.
	SessionsEnded int `json:"sessions_ended,omitempty"`
}

func (t *Tokens) revoke(w http.ResponseWriter, r *http.Request) {
	var req revokeRequest
	if err := decodeJSON(w, r, maxTokenBody, &req); err != nil {
		writeError(w, r, err)
		return
	}
	event := Event{Actor: actor(r.Context()), Action: "token.revoke", Reason: req.Reason, At: t.Now()}
	answer, err := t.carryOut(r.Context(), &req, &event)
	t.finish(w, r, answer, err, event)
}

// carryOut revokes what the request names. It fills in the event's action and target.
func (t *Tokens) carryOut(ctx context.Context, req *revokeRequest, event *Event) (revokeAnswer, error) {
	if err := checkReason(req.Reason, false); err != nil {
		return revokeAnswer{}, err
	}
	kind, err := req.kind()
	if err != nil {
		return revokeAnswer{}, err
	}
	event.Action = kind.String() + ".revoke"
	if kind.IsMark() && kind != revocation.KindUser {
		if c, _ := credential.From(ctx); !c.Has(credential.Admin) {
			event.Target = req.Client + req.Issuer
			return revokeAnswer{}, problem.New(http.StatusForbidden, "role_required", "Revoking more than one user's tokens takes the role admin.")
		}
	}
	if kind == revocation.KindToken {
		return t.revokeToken(ctx, req.Token, event)
	}
	target := revocation.Revocation{Kind: kind, Issuer: req.Issuer}
	switch kind {
	case revocation.KindTokenID:
		target.ID = req.TokenID
		if req.ExpiresAt != 0 {
			target.ExpiresAt = time.Unix(req.ExpiresAt, 0)
		}
	case revocation.KindSession:
		target.ID = req.Session
	case revocation.KindUser:
		target.ID = req.User
	case revocation.KindClient:
		target.ID = req.Client
	default: // the issuer, or everything
	}
	event.Target = describe(target.ID, target.Issuer)
	return t.revokeAndEnd(ctx, target)
}

// kind finds the one target that the request names.
func (q *revokeRequest) kind() (revocation.Kind, error) {
	found := revocation.KindNone
	n := 0
	for _, target := range []struct {
		named bool
		kind  revocation.Kind
	}{
		{q.Token != "", revocation.KindToken},
		{q.TokenID != "", revocation.KindTokenID},
		{q.Session != "", revocation.KindSession},
		{q.User != "", revocation.KindUser},
		{q.Client != "", revocation.KindClient},
		{q.Everything, revocation.KindEverything},
	} {
		if target.named {
			found = target.kind
			n++
		}
	}
	if n == 0 && q.Issuer != "" {
		found, n = revocation.KindIssuer, 1
	}
	switch {
	case n != 1:
		return found, badRequest("Name exactly one of token, jti (with iss), session, user, client, iss and everything.")
	case found == revocation.KindTokenID && q.Issuer == "":
		return found, badRequest("jti needs iss: a token id is unique for its issuer only.")
	case q.Issuer != "" && (found == revocation.KindToken || found == revocation.KindEverything):
		return found, badRequest("iss does not go with token or everything.")
	case q.ExpiresAt != 0 && found != revocation.KindTokenID:
		return found, badRequest("exp goes with jti only.")
	case q.ExpiresAt < 0:
		return found, badRequest("exp is in Unix seconds.")
	}
	return found, nil
}

// revokeToken revokes a token that was presented. One that does not verify is refused rather than passed over in
// silence: whoever revokes must know that nothing was revoked, and nobody may fill the denylist with inventions.
func (t *Tokens) revokeToken(ctx context.Context, token string, event *Event) (revokeAnswer, error) {
	inspected, err := t.Inspector.Inspect(token)
	switch {
	case errors.Is(err, ErrTokenExpired):
		event.Target = "expired token"
		return revokeAnswer{Revoked: revocation.KindToken.String(), Expired: true}, nil
	case isUnavailable(err):
		event.Target = "unverifiable token"
		return revokeAnswer{}, problem.New(http.StatusServiceUnavailable, "dependency_unavailable",
			"The token cannot be verified at the moment, so nothing was revoked. Repeat the call.")
	case err != nil:
		event.Target = "unverifiable token"
		return revokeAnswer{}, problem.New(http.StatusUnprocessableEntity, "token_invalid",
			"The token does not verify here, so nothing was revoked. Name it by iss and jti, or its session or user.")
	}
	event.Target = nameToken(&inspected)
	receipt, err := t.Revoker.Revoke(ctx, inspected.Revocations()...)
	return answerOf(revocation.KindToken, receipt), err
}

// nameToken names a token for the audit trail, by the head of its digest.
func nameToken(t *revocation.Token) string {
	return fmt.Sprintf("token %s of %s", hex.EncodeToString(t.Digest[:8]), describe(t.Subject, t.Issuer))
}

// emergencyRequest is the body of POST /v1/users/{user}/revoke.
type emergencyRequest struct {
	Reason string `json:"reason"`
	Issuer string `json:"iss"`
	// NotBefore, Unix seconds: tokens issued up to then die; 0 means now.
	NotBefore int64 `json:"not_before"`
	// Version is the user's new token version, where the login service counts them; 0 where it does not.
	Version int64 `json:"version"`
}

// revokeUser is the emergency revocation: every token and session of a user, at once.
func (t *Tokens) revokeUser(w http.ResponseWriter, r *http.Request) {
	var req emergencyRequest
	if err := decodeJSON(w, r, maxTokenBody, &req); err != nil {
		writeError(w, r, err)
		return
	}
	user := r.PathValue("user")
	event := Event{
		Actor: actor(r.Context()), Action: "user.revoke", Target: describe(user, req.Issuer), Reason: req.Reason, At: t.Now(),
	}
	target := revocation.Revocation{Kind: revocation.KindUser, ID: user, Issuer: req.Issuer, Version: req.Version}
	if req.NotBefore != 0 {
		target.NotBefore = time.Unix(req.NotBefore, 0)
	}
	var answer revokeAnswer
	err := checkReason(req.Reason, true)
	if err == nil {
		answer, err = t.revokeAndEnd(r.Context(), target)
	}
	t.finish(w, r, answer, err, event)
}

// revokeAndEnd kills the tokens first: from then on none of them passes, whatever becomes of the sessions.
func (t *Tokens) revokeAndEnd(ctx context.Context, target revocation.Revocation) (revokeAnswer, error) {
	receipt, err := t.Revoker.Revoke(ctx, target)
	answer := answerOf(target.Kind, receipt)
	if err != nil || t.Sessions == nil {
		return answer, err
	}
	switch target.Kind {
	case revocation.KindUser:
		answer.SessionsEnded, err = t.Sessions.EndAll(ctx, target.ID, target.Issuer)
	case revocation.KindSession:
		answer.SessionsEnded, err = t.Sessions.EndWhosever(ctx, session.Ref{Issuer: target.Issuer, ID: target.ID})
	default: // of the rest nothing is registered
	}
	if err != nil {
		return answer, problem.New(http.StatusServiceUnavailable, "dependency_unavailable",
			"The tokens are revoked, but the sessions could not be ended. Repeat the call.")
	}
	return answer, nil
}

// statusRequest is the body of POST /v1/tokens/status.
type statusRequest struct {
	Token string `json:"token"`
}

// statusAnswer says what the gateway would make of a token.
type statusAnswer struct {
	// Active is true where the token verifies and is not revoked.
	Active bool `json:"active"`
	// Code is why not, as a client would be told; Why is which kind of revocation covers it.
	Code string `json:"code,omitempty"`
	Why  string `json:"why,omitempty"`

	Subject   string `json:"sub,omitempty"`
	Issuer    string `json:"iss,omitempty"`
	TokenID   string `json:"jti,omitempty"`
	Session   string `json:"session,omitempty"`
	IssuedAt  int64  `json:"iat,omitempty"`
	ExpiresAt int64  `json:"exp,omitempty"`
	Version   int64  `json:"ver,omitempty"`
}

// status tells about a token, in the body so that it reaches no access log. Redis is asked, not a replica.
func (t *Tokens) status(w http.ResponseWriter, r *http.Request) {
	var req statusRequest
	if err := decodeJSON(w, r, maxTokenBody, &req); err != nil {
		writeError(w, r, err)
		return
	}
	if req.Token == "" {
		writeError(w, r, badRequest("token is missing."))
		return
	}
	token, err := t.Inspector.Inspect(req.Token)
	switch {
	case errors.Is(err, ErrTokenExpired):
		writeJSON(w, http.StatusOK, statusAnswer{Code: "token_expired"})
		return
	case err != nil:
		writeJSON(w, http.StatusOK, statusAnswer{Code: "token_invalid"})
		return
	}
	verdict, err := t.Checker.Check(r.Context(), &token)
	if err != nil {
		writeError(w, r, publicError(w, err))
		return
	}
	answer := statusAnswer{
		Active: !verdict.Revoked, Code: string(verdict.Code),
		Subject: token.Subject, Issuer: token.Issuer, TokenID: token.TokenID, Session: token.Session,
		ExpiresAt: token.ExpiresAt.Unix(), Version: token.Version,
	}
	if verdict.Revoked {
		answer.Why = verdict.Why.String()
	}
	if !token.IssuedAt.IsZero() {
		answer.IssuedAt = token.IssuedAt.Unix()
	}
	writeJSON(w, http.StatusOK, answer)
}

// finish audits what was done or refused, and answers.
func (t *Tokens) finish(w http.ResponseWriter, r *http.Request, answer revokeAnswer, err error, event Event) {
	if err != nil {
		err = publicError(w, err)
		event.Outcome = "failed"
		var p problem.Problem
		if errors.As(err, &p) {
			event.Outcome = p.Code
		}
		t.Auditor.Audit(r.Context(), event)
		writeError(w, r, err)
		return
	}
	event.Outcome = "done"
	t.Auditor.Audit(r.Context(), event)
	writeJSON(w, http.StatusOK, answer)
}

// publicError turns what revocation says into what a client may be told.
func publicError(w http.ResponseWriter, err error) error {
	switch {
	case errors.Is(err, revocation.ErrInvalid):
		return badRequest(err.Error() + ".")
	case errors.Is(err, revocation.ErrUnavailable):
		w.Header().Set("Retry-After", problem.RetryAfter(time.Second))
		return problem.New(http.StatusServiceUnavailable, "dependency_unavailable",
			"The revocation store does not answer: take nothing for revoked, and repeat the call.")
	}
	return err
}

func badRequest(detail string) error {
	return problem.New(http.StatusBadRequest, "request_invalid", detail)
}

func answerOf(kind revocation.Kind, receipt revocation.Receipt) revokeAnswer {
	a := revokeAnswer{Revoked: kind.String(), Changed: receipt.Changed > 0, Version: receipt.Version}
	if !receipt.NotBefore.IsZero() {
		a.NotBefore = receipt.NotBefore.Unix()
	}
	return a
}

// describe names a target for the audit trail.
func describe(id, issuer string) string {
	switch {
	case issuer == "":
		return id
	case id == "":
		return issuer
	}
	return id + " at " + issuer
}

// checkReason bounds a reason and keeps control characters out of the audit trail.
func checkReason(reason string, required bool) error {
	switch {
	case required && strings.TrimSpace(reason) == "":
		return badRequest("reason is missing: password_change, breach, admin, or in your own words.")
	case len(reason) > maxReason:
		return badRequest(fmt.Sprintf("reason has at most %d bytes.", maxReason))
	case strings.ContainsFunc(reason, unicode.IsControl):
		return badRequest("reason holds control characters.")
	}
	return nil
}
