package account

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/anomaly"
	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/credential"
	"github.com/tollgate-proxy/tollgate/internal/problem"
)

// Suspicions knows what was suspicious about users; *anomaly.Watch is one.
type Suspicions interface {
	Events(ctx context.Context, user string) ([]anomaly.Event, error)
	Detect(ctx context.Context, s *anomaly.Sighting) (anomaly.Verdict, error)
	Erase(ctx context.Context, user string) error
}

// Anomaly is the part of the API about suspicious activity: what there was, whether a request would have been, and the
// erasure of what was learned about a user. All fields are required.
type Anomaly struct {
	Watch Suspicions
	// Self knows users by their tokens: they may see what was suspicious about themselves.
	Self    *Self
	Auditor Auditor
	Now     func() time.Time
}

// maxAnomalyBody bounds a body, in bytes.
const maxAnomalyBody = 8 << 10

// Register implements Part.
func (a *Anomaly) Register(mux Routes, auth *credential.Authenticator) {
	mux.Handle("GET /v1/users/{user}/suspicious-events", auth.Require(credential.Operator, http.HandlerFunc(a.events)))
	mux.Handle("POST /v1/users/{user}/suspicious-events/detect", auth.Require(credential.Operator, http.HandlerFunc(a.detect)))
	mux.Handle("GET /v1/me/suspicious-events", a.Self.own(a.ownEvents))
	mux.Handle("DELETE /v1/users/{user}/suspicious-events", auth.Require(credential.Admin, http.HandlerFunc(a.erase)))
}

type suspiciousEvents struct {
	User string `json:"user"`
	// Events are newest first.
	Events []anomaly.Event `json:"events"`
}

func (a *Anomaly) events(w http.ResponseWriter, r *http.Request) {
	user := r.PathValue("user")
	events, err := a.Watch.Events(r.Context(), user)
	if err != nil {
		writeError(w, r, anomalyError(w, err))
		return
	}
	answer := suspiciousEvents{User: user, Events: make([]anomaly.Event, len(events))}
	for i := range events {
		answer.Events[i] = events[i]
		answer.Events[i].At = events[i].At.UTC()
	}
	writeJSON(w, http.StatusOK, answer)
}

// ownEvent is an event as its user is told of it. Scores, weights and evidence stay with the operators: whoever has
// stolen the token asks here, too.
type ownEvent struct {
	At      time.Time `json:"at"`
	Session string    `json:"session,omitempty"`
	// Current is true for the session of the token that asks.
	Current bool           `json:"current"`
	Reasons []anomaly.Code `json:"reasons"`
	// Refused is whether the request was; Settled, whether the user had just proved who they are.
	Refused bool   `json:"refused"`
	Settled bool   `json:"settled"`
	Country string `json:"country,omitempty"`
	ASN     uint32 `json:"asn,omitempty"`
	Range   string `json:"range,omitempty"`
}

type ownEvents struct {
	User   string     `json:"user"`
	Events []ownEvent `json:"events"`
}

// ownEvents lists what was suspicious about the user who asks. The same subject of another issuer may be somebody else.
func (a *Anomaly) ownEvents(w http.ResponseWriter, r *http.Request, p *authn.Principal) {
	events, err := a.Watch.Events(r.Context(), p.Subject)
	if err != nil {
		writeError(w, r, anomalyError(w, err))
		return
	}
	answer := ownEvents{User: p.Subject, Events: []ownEvent{}}
	for i := range events {
		e := &events[i]
		if e.Issuer != "" && e.Issuer != p.Issuer {
			continue
		}
		own := ownEvent{
			At: e.At.UTC(), Session: e.Session, Current: e.Session != "" && e.Session == p.Session, Refused: e.Action.Refuses(),
			Settled: e.Settled, Country: e.Country, ASN: e.ASN, Range: e.Range,
		}
		for _, s := range e.Signals {
			own.Reasons = append(own.Reasons, s.Code)
		}
		answer.Events = append(answer.Events, own)
	}
	writeJSON(w, http.StatusOK, answer)
}

// detectRequest describes a request, past or not. What is absent is not judged.
type detectRequest struct {
	At        time.Time `json:"at"` // zero: now
	Address   string    `json:"address"`
	UserAgent string    `json:"user_agent"`
	Device    string    `json:"device"`
	Session   string    `json:"session"`
	// Authenticated is when the user had last proved who they are.
	Authenticated time.Time `json:"authenticated"`
	// Place overrides what is known of the address.
	Place struct {
		Country   string   `json:"country"`
		ASN       uint32   `json:"asn"`
		Latitude  *float64 `json:"latitude"`
		Longitude *float64 `json:"longitude"`
		Radius    *float64 `json:"radius"`
	} `json:"place"`
}

type detectAnswer struct {
	User    string           `json:"user"`
	At      time.Time        `json:"at"`
	Score   int              `json:"score"`
	Action  anomaly.Action   `json:"action"`
	Signals []anomaly.Signal `json:"signals"`
	// Settled is true where the user had just proved who they are, so that nothing would be done.
	Settled bool `json:"settled"`
}

func (a *Anomaly) detect(w http.ResponseWriter, r *http.Request) {
	var q detectRequest
	err := decodeJSON(w, r, maxAnomalyBody, &q)
	if err != nil {
		writeError(w, r, err)
		return
	}
	s, err := q.sighting(r.PathValue("user"), a.Now())
	if err != nil {
		writeError(w, r, err)
		return
	}
	v, err := a.Watch.Detect(r.Context(), s)
	if err != nil {
		writeError(w, r, anomalyError(w, err))
		return
	}
	answer := detectAnswer{User: s.User, At: s.At.UTC(), Score: v.Score, Action: v.Action, Signals: v.Signals, Settled: v.Settled}
	if answer.Signals == nil {
		answer.Signals = []anomaly.Signal{}
	}
	writeJSON(w, http.StatusOK, answer)
}

func (q *detectRequest) sighting(user string, now time.Time) (*anomaly.Sighting, error) {
	s := &anomaly.Sighting{
		User: user, Session: q.Session, Agent: q.UserAgent, Device: q.Device, Authenticated: q.Authenticated, At: q.At,
		Place: anomaly.PlaceText{
			Country: q.Place.Country, Latitude: degrees(q.Place.Latitude), Longitude: degrees(q.Place.Longitude), Radius: degrees(q.Place.Radius),
		},
	}
	if q.Place.ASN != 0 {
		s.Place.Network = strconv.FormatUint(uint64(q.Place.ASN), 10)
	}
	if s.At.IsZero() {
		s.At = now
	}
	if s.At.After(now.Add(time.Minute)) {
		return nil, badRequest("at is in the future.")
	}
	if q.Address != "" {
		var err error
		if s.Address, err = netip.ParseAddr(q.Address); err != nil {
			return nil, badRequest("address is no IP address.")
		}
	} else if s.Place != (anomaly.PlaceText{}) {
		return nil, badRequest("place goes with address only.")
	}
	return s, nil
}

// degrees writes a number as a header would have it.
func degrees(f *float64) string {
	if f == nil {
		return ""
	}
	return strconv.FormatFloat(*f, 'f', -1, 64)
}

// erase forgets what was learned about a user. The next request of theirs is as if they were new.
func (a *Anomaly) erase(w http.ResponseWriter, r *http.Request) {
	user, reason := r.PathValue("user"), r.URL.Query().Get("reason")
	event := Event{Actor: actor(r.Context()), Action: "suspicious_events.erase", Target: user, Reason: reason, Outcome: "done", At: a.Now()}
	err := checkReason(reason, false)
	if err == nil {
		err = anomalyError(w, a.Watch.Erase(r.Context(), user))
	}
	if err != nil {
		event.Outcome = "failed"
		var p problem.Problem
		if errors.As(err, &p) {
			event.Outcome = p.Code
		}
	}
	a.Auditor.Audit(r.Context(), event)
	if err != nil {
		writeError(w, r, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// anomalyError turns what anomaly says into what a client may be told.
func anomalyError(w http.ResponseWriter, err error) error {
	if !errors.Is(err, anomaly.ErrUnavailable) {
		return err
	}
	w.Header().Set("Retry-After", problem.RetryAfter(time.Second))
	return problem.New(http.StatusServiceUnavailable, "dependency_unavailable", "What is known of the user cannot be read at the moment; repeat the call.")
}
