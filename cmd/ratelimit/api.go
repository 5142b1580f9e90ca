package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/account"
	"github.com/tollgate-proxy/tollgate/internal/credential"
	"github.com/tollgate-proxy/tollgate/internal/problem"
	"github.com/tollgate-proxy/tollgate/internal/ratelimit"
)

// limitsAPI is the HTTP API of limits. All of it needs the role operator.
//
// The query may name the domain, the tier (for the sizes of the buckets) and
// the entry whose value the path holds; user where it does not.
type limitsAPI struct {
	limiter   *ratelimit.Limiter
	overrides *ratelimit.Overrides
	domain    string // where the query names none
	audit     account.Auditor
	now       func() time.Time
}

// apiTimeout bounds one call of the API.
const apiTimeout = 10 * time.Second

// handler returns the API.
func (a *limitsAPI) handler(auth *credential.Authenticator) http.Handler {
	mux := http.NewServeMux()
	for pattern, serve := range map[string]func(http.ResponseWriter, *http.Request) error{
		"GET /v1/limits/{subject}":             a.show,
		"POST /v1/limits/{subject}/reset":      a.reset,
		"PUT /v1/limits/{subject}/override":    a.setOverride,
		"DELETE /v1/limits/{subject}/override": a.clearOverride,
		"GET /v1/limit-overrides":              a.listOverrides,
		"/":                                    nowhere,
	} {
		mux.Handle(pattern, auth.Require(credential.Operator, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ctx, cancel := context.WithTimeout(r.Context(), apiTimeout)
			defer cancel()
			if err := serve(w, r.WithContext(ctx)); err != nil {
				refuse(w, r, err)
			}
		})))
	}
	return mux
}

// nowhere answers what no route is for.
func nowhere(http.ResponseWriter, *http.Request) error {
	return problem.New(http.StatusNotFound, "not_found", "There is nothing at this path for this method.")
}

// bucketView is a bucket as the API shows it.
type bucketView struct {
	Name          string  `json:"name"`
	Limit         uint32  `json:"limit"`
	WindowSeconds float64 `json:"window_seconds"`
	Size          uint32  `json:"size"`
	Remaining     uint32  `json:"remaining"`
	FullInSeconds float64 `json:"full_in_seconds"`
	System        bool    `json:"system"`
}

func (a *limitsAPI) show(w http.ResponseWriter, r *http.Request) error {
	states, err := a.limiter.State(r.Context(), a.domainOf(r), entriesOf(r))
	if err != nil {
		return err
	}
	views := make([]bucketView, len(states))
	for i, s := range states {
		views[i] = bucketView{
			Name: s.Limit.Name, Limit: s.Limit.Tokens, WindowSeconds: s.Limit.Window().Seconds(), Size: s.Limit.Burst,
			Remaining: s.Remaining, FullInSeconds: s.Full.Seconds(), System: s.System,
		}
	}
	return answer(w, http.StatusOK, map[string]any{"subject": r.PathValue("subject"), "buckets": views})
}

func (a *limitsAPI) reset(w http.ResponseWriter, r *http.Request) error {
	err := a.limiter.Reset(r.Context(), a.domainOf(r), entriesOf(r))
	a.record(r, "limit.reset", r.PathValue("subject"), err)
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// overrideBody is the body of PUT …/override.
type overrideBody struct {
	Tier  string    `json:"tier"`
	Until time.Time `json:"until"`
}

func (a *limitsAPI) setOverride(w http.ResponseWriter, r *http.Request) error {
	var body overrideBody
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4096))
	d.DisallowUnknownFields()
	if err := d.Decode(&body); err != nil {
		return problem.New(http.StatusBadRequest, "request_invalid", `The body is {"tier": "NAME", "until": "2030-01-02T15:04:05Z"}.`)
	}
	if !a.limiter.Rules().HasTier(a.domainOf(r), body.Tier) {
		return problem.New(http.StatusBadRequest, "request_invalid", fmt.Sprintf("There is no tier %q.", body.Tier))
	}
	if !body.Until.After(a.now()) {
		return problem.New(http.StatusBadRequest, "request_invalid", "until is in the past.")
	}
	o := ratelimit.TierOverride{Domain: a.domainOf(r), Subject: subjectOf(r), Tier: body.Tier, Until: body.Until}
	err := a.overrides.Set(r.Context(), o)
	a.record(r, "limit.override", fmt.Sprintf("%s to %s until %s", o.Subject.Value, o.Tier, o.Until.UTC().Format(time.RFC3339)), err)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, viewOf(o))
}

func (a *limitsAPI) clearOverride(w http.ResponseWriter, r *http.Request) error {
	err := a.overrides.Clear(r.Context(), a.domainOf(r), subjectOf(r))
	a.record(r, "limit.override.end", r.PathValue("subject"), err)
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (a *limitsAPI) listOverrides(w http.ResponseWriter, _ *http.Request) error {
	views := []overrideView{}
	for _, o := range a.overrides.List() {
		views = append(views, viewOf(o))
	}
	return answer(w, http.StatusOK, map[string]any{"overrides": views})
}

// overrideView is an override as the API shows it.
type overrideView struct {
	Domain  string    `json:"domain"`
	Entry   string    `json:"entry"`
	Subject string    `json:"subject"`
	Tier    string    `json:"tier"`
	Until   time.Time `json:"until"`
}

func viewOf(o ratelimit.TierOverride) overrideView {
	return overrideView{Domain: o.Domain, Entry: o.Subject.Key, Subject: o.Subject.Value, Tier: o.Tier, Until: o.Until}
}

func (a *limitsAPI) domainOf(r *http.Request) string {
	if d := r.URL.Query().Get("domain"); d != "" {
		return d
	}
	return a.domain
}

func subjectOf(r *http.Request) ratelimit.Entry {
	key := r.URL.Query().Get("entry")
	if key == "" {
		key = "user"
	}
	return ratelimit.Entry{Key: key, Value: r.PathValue("subject")}
}

func entriesOf(r *http.Request) []ratelimit.Entry {
	entries := []ratelimit.Entry{subjectOf(r)}
	if tier := r.URL.Query().Get("tier"); tier != "" {
		entries = append(entries, ratelimit.Entry{Key: "tier", Value: tier})
	}
	return entries
}

func (a *limitsAPI) record(r *http.Request, action, target string, err error) {
	caller, _ := credential.From(r.Context())
	outcome := "done"
	if err != nil {
		outcome = err.Error()
	}
	a.audit.Audit(r.Context(), account.Event{
		Actor: caller.Name, Action: action, Target: target, Reason: r.URL.Query().Get("reason"), Outcome: outcome, At: a.now(),
	})
}

func answer(w http.ResponseWriter, status int, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // the client is gone; nobody is left to tell
	return nil
}

// refuse answers with an error: what nobody limits is not found, and what is
// no problem of the caller's is the store's.
func refuse(w http.ResponseWriter, r *http.Request, err error) {
	var p problem.Problem
	switch {
	case errors.As(err, &p):
	case errors.Is(err, ratelimit.ErrUnknown):
		p = problem.New(http.StatusNotFound, "not_found", "No rule limits this.")
	case errors.Is(err, ratelimit.ErrTooManyOverrides):
		p = problem.New(http.StatusConflict, "too_many_overrides", fmt.Sprintf("There are %d overrides already. End some first, or wait until some end.", ratelimit.MaxOverrides))
	case errors.Is(err, context.Canceled):
		return // the client is gone
	default:
		p = problem.New(http.StatusServiceUnavailable, "dependency_unavailable", "The store of the limits does not answer.")
		w.Header().Set("Retry-After", "1")
	}
	problem.Write(w, p.WithRequestID(r.Header.Get("X-Request-Id")))
}
