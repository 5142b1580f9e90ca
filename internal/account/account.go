// Package account is the HTTP API of authz: tokens, sessions, flags. Each part
// registers its own routes; this file holds what they share: the audit of
// management actions, bounded and strict request bodies, and answers.
package account

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/credential"
	"github.com/tollgate-proxy/tollgate/internal/problem"
)

// Part is a share of the API.
type Part interface {
	// Register adds the part's routes, each of which requires a role or says why not.
	Register(mux Routes, auth *credential.Authenticator)
}

// Routes is where parts register; *http.ServeMux is one.
type Routes interface {
	Handle(pattern string, h http.Handler)
	HandleFunc(pattern string, h func(http.ResponseWriter, *http.Request))
}

// Timeout bounds one call of the API, its body's arrival included.
const Timeout = 30 * time.Second

// New returns the handler of the whole API.
func New(auth *credential.Authenticator, parts ...Part) http.Handler {
	mux := http.NewServeMux()
	for _, p := range parts {
		p.Register(mux, auth)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// The mux's own 404 and 405 are plain text; a client wants one form.
		h, pattern := mux.Handler(r)
		if pattern == "" {
			refuseUnrouted(w, r, h)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), Timeout)
		defer cancel()
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(Timeout)) // not every writer can
		mux.ServeHTTP(w, r.WithContext(ctx))
	})
}

// refuseUnrouted answers what no route is for: 405 where the path is known.
func refuseUnrouted(w http.ResponseWriter, r *http.Request, h http.Handler) {
	probe := &statusProbe{header: http.Header{}}
	h.ServeHTTP(probe, r)
	if probe.status == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", probe.header.Get("Allow"))
		writeProblem(w, r, problem.New(http.StatusMethodNotAllowed, "method_not_allowed", "Allowed here: "+probe.header.Get("Allow")+"."))
		return
	}
	writeProblem(w, r, problem.New(http.StatusNotFound, "not_found", "There is nothing at this path."))
}

type statusProbe struct {
	header http.Header
	status int
}

func (p *statusProbe) Header() http.Header         { return p.header }
func (p *statusProbe) Write(b []byte) (int, error) { return len(b), nil }
func (p *statusProbe) WriteHeader(status int)      { p.status = status }

// Event is one management action, for the audit trail. It holds no token and no
// secret.
type Event struct {
	// Actor is the client that acted, Action what it did, such as token.revoke.
	Actor, Action string
	// Target is on whom or what; Reason is why, in the actor's words.
	Target, Reason string
	// Outcome is done, or why the action failed.
	Outcome string
	At      time.Time
}

// Auditor keeps the audit trail. Its methods are safe for concurrent use.
type Auditor interface {
	Audit(ctx context.Context, e Event)
}

// LogAuditor writes the audit trail to the log, one line an event.
type LogAuditor struct{ Log *slog.Logger }

// Audit implements Auditor.
func (a LogAuditor) Audit(ctx context.Context, e Event) {
	a.Log.InfoContext(ctx, "audit", "actor", e.Actor, "action", e.Action, "target", e.Target,
		"reason", e.Reason, "outcome", e.Outcome, "at", e.At.UTC().Format(time.RFC3339Nano))
}

// actor is the name of the client that calls.
func actor(ctx context.Context) string {
	c, _ := credential.From(ctx)
	return c.Name
}

// decodeJSON reads a body of at most limit bytes into v: one JSON value, no
// unknown members. The error is a problem.Problem.
func decodeJSON(w http.ResponseWriter, r *http.Request, limit int64, v any) error {
	body, err := readBody(w, r, limit)
	if err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return problem.New(http.StatusBadRequest, "request_invalid", "The body is not the JSON that is wanted: "+jsonFault(err)+".")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return problem.New(http.StatusBadRequest, "request_invalid", "The body holds more than one JSON value.")
	}
	return nil
}

// readBody reads a body of at most limit bytes. The error is a problem.Problem.
func readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, problem.New(http.StatusRequestEntityTooLarge, "request_too_large", fmt.Sprintf("A body here has at most %d bytes.", limit))
	case err != nil:
		return nil, problem.New(http.StatusBadRequest, "request_invalid", "The body did not arrive whole.")
	}
	return body, nil
}

// jsonFault says what is wrong without repeating values of the body, which may
// hold a token.
func jsonFault(err error) string {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &kind):
		return fmt.Sprintf("member %q wants a %s, not a %s", kind.Field, kind.Type, kind.Value)
	case errors.As(err, &syntax):
		return fmt.Sprintf("syntax error at byte %d", syntax.Offset)
	case errors.Is(err, io.EOF):
		return "it is empty"
	case errors.Is(err, io.ErrUnexpectedEOF):
		return "it ends too soon"
	case strings.HasPrefix(err.Error(), "json: unknown field "):
		return strings.TrimPrefix(err.Error(), "json: ")
	default:
		return "it cannot be read"
	}
}

// writeJSON answers with a value.
func writeJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil { // the answers of this package always encode
		panic(err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // the client is gone; nobody is left to tell
}

// writeProblem answers with a problem that names the request.
func writeProblem(w http.ResponseWriter, r *http.Request, p problem.Problem) {
	problem.Write(w, p.WithRequestID(r.Header.Get("X-Request-Id")))
}

// writeError answers with an error: a problem.Problem as it is, anything else as
// 500 without a detail.
func writeError(w http.ResponseWriter, r *http.Request, err error) {
	var p problem.Problem
	if !errors.As(err, &p) {
		p = problem.New(http.StatusInternalServerError, "internal_error", "")
	}
	writeProblem(w, r, p)
}

// forbidden refuses a caller who is known.
func forbidden(detail string) error {
	return problem.New(http.StatusForbidden, "role_required", detail)
}
