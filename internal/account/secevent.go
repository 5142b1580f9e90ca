package account

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/problem"
)

// What becomes of an event.
type reaction uint8

const (
	endAll    reaction = iota // the subject's tokens and sessions
	endTokens                 // its tokens alone: their claims are out of date
	note                      // nothing but an entry in the audit trail
)

const (
	caep = "https://schemas.openid.net/secevent/caep/event-type/"
	risc = "https://schemas.openid.net/secevent/risc/event-type/"
	ssf  = "https://schemas.openid.net/secevent/ssf/event-type/"
)

// reactions to the kinds of events.
var reactions = map[string]reaction{
	caep + "session-revoked":                                            endAll,
	caep + "credential-change":                                          endAll,
	caep + "token-claims-change":                                        endTokens,
	caep + "session-established":                                        note,
	caep + "session-presented":                                          note,
	risc + "sessions-revoked":                                           endAll,
	risc + "account-disabled":                                           endAll,
	risc + "account-purged":                                             endAll,
	risc + "account-credential-change-required":                         endAll,
	risc + "credential-compromise":                                      endAll,
	ssf + "verification":                                                note,
	ssf + "stream-updated":                                              note,
	"https://schemas.openid.net/secevent/sse/event-type/verification":   note,
	"https://schemas.openid.net/secevent/sse/event-type/stream-updated": note,
}

// Error codes of RFC 8935, section 2.4.
const (
	setInvalidRequest  = "invalid_request"
	setInvalidKey      = "invalid_key"
	setInvalidIssuer   = "invalid_issuer"
	setInvalidAudience = "invalid_audience"
	setAccessDenied    = "access_denied"
)

// setError is an error answer of RFC 8935, section 2.3.
type setError struct {
	Code        string `json:"err"`
	Description string `json:"description"`
}

func (e *setError) Error() string { return e.Code + ": " + e.Description }

// securityEvent are the claims of a security event token that are not checked
// already.
type securityEvent struct {
	Subject *subjectID                 `json:"sub_id"`
	Time    float64                    `json:"toe"`
	Events  map[string]json.RawMessage `json:"events"`
}

// eventPayload is what events of all kinds may have.
type eventPayload struct {
	Time       json.Number `json:"event_timestamp"`
	Subject    *subjectID  `json:"subject"` // of drafts; now sub_id beside the events
	ChangeType string      `json:"change_type"`
}

// receive takes a security event token that is pushed (RFC 8935): 202 with an
// empty body where it is taken, also for the second time.
func (s *Signals) receive(w http.ResponseWriter, r *http.Request) {
	event := Event{Actor: "unknown issuer", Action: "signal.event", Outcome: "done", At: s.Now()}
	err := s.take(w, r, &event)
	var refused *setError
	switch {
	case errors.As(err, &refused):
		event.Outcome = refused.Code
	case err != nil:
		event.Outcome = "dependency_unavailable"
	}
	s.Auditor.Audit(r.Context(), event)
	w.Header().Set("Cache-Control", "no-store")
	switch {
	case refused != nil:
		w.Header().Set("Content-Language", "en")
		writeJSON(w, http.StatusBadRequest, refused)
	case err != nil:
		w.Header().Set("Retry-After", problem.RetryAfter(time.Second))
		w.WriteHeader(http.StatusServiceUnavailable) // the transmitter sends it again
	default:
		w.WriteHeader(http.StatusAccepted)
	}
}

func (s *Signals) take(w http.ResponseWriter, r *http.Request, event *Event) error {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "application/secevent+jwt" {
		return &setError{setInvalidRequest, "the body must be application/secevent+jwt"}
	}
	body, err := readBody(w, r, maxTokenBody)
	if err != nil {
		return &setError{setInvalidRequest, "the body is too large or did not arrive whole"}
	}
	st, err := s.Verifier.VerifyStatement(strings.TrimSpace(string(body)), authn.StatementRules{
		Types: []string{"secevent+jwt"}, Audiences: s.Config.audiencesOf,
	}, s.Now())
	if err != nil {
		return refuseSET(err)
	}
	event.Actor = st.Issuer
	var c securityEvent
	if err := st.Decode(&c); err != nil || len(c.Events) == 0 {
		return &setError{setInvalidRequest, "events or sub_id is missing or of the wrong type"}
	}
	again, err := s.once(r.Context(), st, func() error { return s.act(r.Context(), st, &c, event) })
	if again {
		event.Outcome = "replayed"
	}
	return err
}

func refuseSET(err error) error {
	switch {
	case isUnavailable(err):
		return err
	case errors.Is(err, authn.ErrIssuer):
		return &setError{setInvalidIssuer, publicText(err)}
	case errors.Is(err, authn.ErrAudience):
		return &setError{setInvalidAudience, publicText(err)}
	case errors.Is(err, authn.ErrSignature):
		return &setError{setInvalidKey, publicText(err)}
	}
	return &setError{setInvalidRequest, publicText(err)}
}

// act does what the events of one token ask for, each of them.
func (s *Signals) act(ctx context.Context, st *authn.Statement, c *securityEvent, event *Event) error {
	kinds := make([]string, 0, len(c.Events))
	for kind := range c.Events {
		kinds = append(kinds, kind)
	}
	slices.Sort(kinds)
	for _, kind := range kinds {
		todo, known := reactions[kind]
		event.Action = "signal." + strings.ReplaceAll(kind[strings.LastIndexByte(kind, '/')+1:], "-", "_")
		if !known {
			if s.Config.UnknownEventsRefuse {
				return &setError{setInvalidRequest, "an event of this kind is not known here"}
			}
			event.Action, event.Outcome = "signal.unknown", "ignored"
			continue
		}
		var p eventPayload
		if err := json.Unmarshal(c.Events[kind], &p); err != nil {
			return &setError{setInvalidRequest, "an event is not of its kind's form"}
		}
		if kind == caep+"credential-change" && p.ChangeType == "create" {
			todo = note // one more credential takes nothing from the others
		}
		if todo == note {
			continue
		}
		if err := s.end(ctx, st, c, &p, kind, todo, event); err != nil {
			return err
		}
	}
	return nil
}

func (s *Signals) end(ctx context.Context, st *authn.Statement, c *securityEvent, p *eventPayload, kind string, todo reaction, event *Event) error {
	subject := c.Subject
	if subject == nil {
		subject = p.Subject
	}
	subjects := s.Config.resolver(st.Issuer)
	t, err := subjects.resolve(subject, 0)
	switch {
	case errors.Is(err, errForeign):
		return &setError{setAccessDenied, "the subject is of " + err.Error()}
	case err != nil:
		return &setError{setInvalidRequest, fmt.Sprintf("the subject is an %s", err)}
	}
	if t.user != "" && kind != caep+"session-revoked" {
		t.session = "" // what happened to the user concerns every session
	}
	event.Target = t.String()
	at := eventTime(p.Time, c.Time, st.IssuedAt)
	if kind == caep+"session-revoked" && subject.format() == "opaque" {
		// The specification's own example names a session so.
		if err := s.killer().kill(ctx, target{session: subject.ID, issuers: subjects.issuers}, at, false); err != nil {
			return err
		}
	}
	return s.killer().kill(ctx, t, at, todo == endTokens)
}

// eventTime is when the event occurred: event_timestamp, toe, or the token's own
// time. Drafts had milliseconds where there are seconds now.
func eventTime(stamp json.Number, toe float64, issued time.Time) time.Time {
	const milliseconds = 100_000_000_000 // the year 5138 in seconds, 1973 in milliseconds
	n, err := stamp.Float64()
	switch {
	case err == nil && n >= milliseconds:
		n /= 1000
	case err != nil || n <= 0:
		n = toe
	}
	at := time.Unix(int64(n), 0)
	if n <= 0 || at.After(issued) {
		return issued
	}
	return at
}
