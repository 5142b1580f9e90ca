package account

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/config"
	"github.com/tollgate-proxy/tollgate/internal/credential"
	"github.com/tollgate-proxy/tollgate/internal/flag"
	"github.com/tollgate-proxy/tollgate/internal/problem"
)

const (
	flagBodyLimit   = flag.MaxFlagBytes + 4096
	smallBodyLimit  = 64 << 10
	reasonLimit     = 500
	defaultHistory  = 50
	retryAfterRedis = time.Second
)

// Flags is the API of feature flags under /v1/flags. All of it needs the role
// operator.
type Flags struct {
	store   *flag.Store
	watcher *flag.Watcher
	audit   Auditor
	now     func() time.Time
}

// NewFlags returns the API over a store and this process's view of it.
func NewFlags(store *flag.Store, watcher *flag.Watcher, audit Auditor, now func() time.Time) *Flags {
	return &Flags{store: store, watcher: watcher, audit: audit, now: now}
}

// Register adds the routes.
func (f *Flags) Register(mux Routes, auth *credential.Authenticator) {
	for pattern, serve := range map[string]func(w http.ResponseWriter, r *http.Request) error{
		"GET /v1/flags":                 f.list,
		"GET /v1/flags/{key}":           f.get,
		"PUT /v1/flags/{key}":           f.put,
		"PATCH /v1/flags/{key}":         f.patch,
		"DELETE /v1/flags/{key}":        f.remove,
		"POST /v1/flags/{key}/evaluate": f.evaluate,
		"GET /v1/flags/{key}/history":   f.history,
		"POST /v1/flags/{key}/revert":   f.revert,
	} {
		mux.Handle(pattern, auth.Require(credential.Operator, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if err := serve(w, r); err != nil {
				writeFlagError(w, r, err)
			}
		})))
	}
}

// flagView is a flag as the API shows it.
type flagView struct {
	Key       string          `json:"key"`
	Version   int64           `json:"version"`
	Updated   time.Time       `json:"updated"`
	UpdatedBy string          `json:"updated_by"`
	Summary   string          `json:"summary"`
	Owner     string          `json:"owner,omitempty"`
	Expired   bool            `json:"expired"`
	Flag      flag.Definition `json:"definition"`
}

func (f *Flags) view(r flag.Record) flagView {
	x := r.Definition.Extension
	return flagView{
		Key: r.Definition.Key, Version: r.Version, Updated: r.Updated, UpdatedBy: r.UpdatedBy,
		Summary: r.Definition.Summary(), Owner: x.Owner, Flag: r.Definition,
		Expired: !x.Expires.IsZero() && !f.now().Before(x.Expires),
	}
}

// list answers with every flag, sorted by key, and those stored in a form that
// this program cannot read.
func (f *Flags) list(w http.ResponseWriter, r *http.Request) error {
	snapshot, err := f.store.List(r.Context())
	if err != nil {
		return err
	}
	answer := struct {
		Version int64      `json:"version"`
		Flags   []flagView `json:"flags"`
		Broken  []string   `json:"broken"`
	}{Version: snapshot.Version, Flags: make([]flagView, 0, len(snapshot.Records)), Broken: []string{}}
	for _, record := range snapshot.Records {
		answer.Flags = append(answer.Flags, f.view(record))
	}
	for key := range snapshot.Broken {
		answer.Broken = append(answer.Broken, key)
	}
	slices.Sort(answer.Broken)
	writeJSON(w, http.StatusOK, answer)
	return nil
}

func (f *Flags) get(w http.ResponseWriter, r *http.Request) error {
	record, err := f.store.Get(r.Context(), r.PathValue("key"))
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, f.view(record))
	return nil
}

// changeBody is what every change may say besides itself.
type changeBody struct {
	// Reason is why, for the history.
	Reason string `json:"reason"`
	// Version is the version that the flag must be at, 0 for a flag that must
	// not exist; absent for any.
	Version *int64 `json:"version"`
}

func (b changeBody) change(ctx context.Context) (flag.Change, error) {
	c := flag.Change{Actor: actor(ctx), Reason: b.Reason, Expect: flag.AnyVersion}
	if len(b.Reason) > reasonLimit {
		return c, problem.New(http.StatusBadRequest, "request_invalid", fmt.Sprintf("A reason has at most %d bytes.", reasonLimit))
	}
	if b.Version != nil {
		if c.Expect = *b.Version; c.Expect < 0 {
			return c, problem.New(http.StatusBadRequest, "request_invalid", "A version is not negative.")
		}
	}
	return c, nil
}

// put writes a whole definition: {"definition": {…}, "reason": …, "version": …}.
func (f *Flags) put(w http.ResponseWriter, r *http.Request) error {
	var body struct {
		changeBody
		Definition json.RawMessage `json:"definition"`
	}
	if err := decodeJSON(w, r, flagBodyLimit, &body); err != nil {
		return err
	}
	return f.changed(w, r, "flag.put", body.changeBody, func(ctx context.Context, key string, c flag.Change) (flag.Record, error) {
		def, err := flag.ParseFlag("definition", key, body.Definition)
		if err != nil {
			return flag.Record{}, err
		}
		return f.store.Put(ctx, def, c)
	})
}

// patch turns a flag on, off or to a share of its audience, and changes whom it
// means: {"state": "on", "variant": …, "rollout": 12.5, "users": {"add": […],
// "remove": […], "variant": …}, "tiers": {…}, "roles": {…}, "everyone": …,
// "reason": …, "version": …}.
func (f *Flags) patch(w http.ResponseWriter, r *http.Request) error {
	var body struct {
		changeBody
		flag.Targets
		State   string   `json:"state"`
		Variant string   `json:"variant"`
		Rollout *float64 `json:"rollout"`
	}
	if err := decodeJSON(w, r, smallBodyLimit, &body); err != nil {
		return err
	}
	patch := flag.Patch{State: body.State, Variant: body.Variant, Targets: body.Targets}
	if body.Rollout != nil {
		p, err := flag.PercentageOf(*body.Rollout)
		if err != nil {
			return fmt.Errorf("%w: %w", flag.ErrPatch, err)
		}
		patch.Rollout = &p
	}
	return f.changed(w, r, "flag.patch", body.changeBody, func(ctx context.Context, key string, c flag.Change) (flag.Record, error) {
		return f.store.Update(ctx, key, c, func(d *flag.Definition) error { return d.Apply(patch) })
	})
}

// revert brings back the definition of an earlier version: {"to": 3, …}.
func (f *Flags) revert(w http.ResponseWriter, r *http.Request) error {
	var body struct {
		changeBody
		To int64 `json:"to"`
	}
	if err := decodeJSON(w, r, smallBodyLimit, &body); err != nil {
		return err
	}
	return f.changed(w, r, "flag.revert", body.changeBody, func(ctx context.Context, key string, c flag.Change) (flag.Record, error) {
		return f.store.Revert(ctx, key, body.To, c)
	})
}

// remove deletes a flag. Reason and version are query parameters, since bodies
// of DELETE do not survive every proxy.
func (f *Flags) remove(w http.ResponseWriter, r *http.Request) error {
	query := r.URL.Query()
	body := changeBody{Reason: query.Get("reason")}
	if text := query.Get("version"); text != "" {
		version, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return problem.New(http.StatusBadRequest, "request_invalid", "The version is not a whole number.")
		}
		body.Version = &version
	}
	c, err := body.change(r.Context())
	if err != nil {
		return err
	}
	err = f.store.Delete(r.Context(), r.PathValue("key"), c)
	f.record(r, "flag.delete", c, err)
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// changed makes a change, audits it, and answers with the flag as it is now.
func (f *Flags) changed(w http.ResponseWriter, r *http.Request, action string, body changeBody,
	do func(ctx context.Context, key string, c flag.Change) (flag.Record, error),
) error {
	c, err := body.change(r.Context())
	if err != nil {
		return err
	}
	record, err := do(r.Context(), r.PathValue("key"), c)
	f.record(r, action, c, err)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, f.view(record))
	return nil
}

// record audits a change and, where it was made, makes this process see it.
func (f *Flags) record(r *http.Request, action string, c flag.Change, err error) {
	e := Event{Actor: c.Actor, Action: action, Target: r.PathValue("key"), Reason: c.Reason, Outcome: "done", At: f.now()}
	if err != nil {
		e.Outcome = flagProblem(err).Code
	} else {
		f.watcher.Wake()
	}
	f.audit.Audit(r.Context(), e)
}

// evaluate decides a flag for a subject as this process would now: {"subject":
// {"key": …, "tier": …, "roles": […], "anonymous": …, "claims": {…}}, "at": …}.
func (f *Flags) evaluate(w http.ResponseWriter, r *http.Request) error {
	var body struct {
		Subject struct {
			Key       string         `json:"key"`
			Anonymous bool           `json:"anonymous"`
			Tier      string         `json:"tier"`
			Roles     []string       `json:"roles"`
			Claims    map[string]any `json:"claims"`
		} `json:"subject"`
		At time.Time `json:"at"`
	}
	if err := decodeJSON(w, r, smallBodyLimit, &body); err != nil {
		return err
	}
	if body.At.IsZero() {
		body.At = f.now()
	}
	about := &body.Subject
	subject := flag.Subject{
		Key: about.Key, Anonymous: about.Anonymous, Visitor: flag.IsVisitor(about.Anonymous, about.Key),
		Tier: about.Tier, Roles: about.Roles, Claims: about.Claims,
	}
	key, set := r.PathValue("key"), f.watcher.Current()
	result := set.Evaluate(key, &subject, body.At)
	if result.ErrorCode == flag.ErrorFlagNotFound {
		return flag.ErrNotFound
	}
	writeJSON(w, http.StatusOK, map[string]any{
		"key": key, "variant": result.Variant, "value": result.Value, "reason": result.Reason,
		"error_code": result.ErrorCode, "set_version": set.Version(),
	})
	return nil
}

// history answers with a flag's changes, the newest first; those of a deleted
// flag too.
func (f *Flags) history(w http.ResponseWriter, r *http.Request) error {
	limit := defaultHistory
	if text := r.URL.Query().Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > flag.MaxHistory {
			return problem.New(http.StatusBadRequest, "request_invalid", fmt.Sprintf("The limit is from 1 to %d.", flag.MaxHistory))
		}
		limit = n
	}
	entries, err := f.store.History(r.Context(), r.PathValue("key"), limit)
	if err != nil {
		return err
	}
	if len(entries) == 0 {
		return flag.ErrNotFound
	}
	writeJSON(w, http.StatusOK, map[string]any{"key": r.PathValue("key"), "history": entries})
	return nil
}

// flagProblem is the public form of an error. What is none of the domain's own
// comes from Redis.
func flagProblem(err error) problem.Problem {
	var p problem.Problem
	var faults config.Faults
	switch {
	case errors.As(err, &p):
		return p
	case errors.As(err, &faults):
		p = problem.New(http.StatusUnprocessableEntity, "flag_invalid", "The flag is not valid.")
		for _, fault := range faults {
			p.Errors = append(p.Errors, problem.FieldError{Field: fault.Key, Detail: "allowed: " + fault.Allowed})
		}
		return p
	case errors.Is(err, flag.ErrPatch):
		return problem.New(http.StatusUnprocessableEntity, "flag_invalid", err.Error()+".")
	case errors.Is(err, flag.ErrNotFound):
		return problem.New(http.StatusNotFound, "flag_not_found", "There is no such flag, or no such version of it.")
	case errors.Is(err, flag.ErrConflict):
		return problem.New(http.StatusConflict, "version_conflict", "Somebody else changed the flag; read it again. "+err.Error()+".")
	}
	return problem.New(http.StatusServiceUnavailable, "dependency_unavailable", "The store of flags is away.")
}

func writeFlagError(w http.ResponseWriter, r *http.Request, err error) {
	p := flagProblem(err)
	if p.Status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", problem.RetryAfter(retryAfterRedis))
	}
	writeProblem(w, r, p)
}
