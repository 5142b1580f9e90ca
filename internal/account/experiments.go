package account

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/credential"
	"github.com/tollgate-proxy/tollgate/internal/experiment"
	"github.com/tollgate-proxy/tollgate/internal/problem"
)

// ExperimentsOptions are the parts of the API of experiments.
type ExperimentsOptions struct {
	Catalog  *experiment.Catalog
	Store    *experiment.Store
	Watcher  *experiment.Watcher
	Recorder *experiment.Recorder
	// Fits says whether a definition fits the flag that it is bound to.
	Fits  func(d *experiment.Definition) error
	Audit Auditor
	Now   func() time.Time
}

// Experiments is the API of experiments under /v1/experiments. It needs the role
// operator, but for reporting metrics, which services do.
type Experiments struct{ o ExperimentsOptions }

// NewExperiments returns the API.
func NewExperiments(o ExperimentsOptions) *Experiments { return &Experiments{o} }

// Register adds the routes.
func (x *Experiments) Register(mux Routes, auth *credential.Authenticator) {
	handle := func(pattern string, require func(http.Handler) http.Handler, serve func(w http.ResponseWriter, r *http.Request) error) {
		mux.Handle(pattern, require(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if err := serve(w, r); err != nil {
				writeExperimentError(w, r, err)
			}
		})))
	}
	operator := func(h http.Handler) http.Handler { return auth.Require(credential.Operator, h) }
	handle("GET /v1/experiments", operator, x.list)
	handle("POST /v1/experiments", operator, x.create)
	handle("GET /v1/experiments/{key}", operator, x.get)
	handle("PUT /v1/experiments/{key}", operator, x.put)
	handle("PATCH /v1/experiments/{key}", operator, x.patch)
	handle("DELETE /v1/experiments/{key}", operator, x.remove)
	handle("POST /v1/experiments/{key}/start", operator, x.start)
	handle("POST /v1/experiments/{key}/stop", operator, x.stop)
	handle("POST /v1/experiments/{key}/revert", operator, x.revert)
	handle("GET /v1/experiments/{key}/history", operator, x.history)
	handle("GET /v1/experiments/{key}/results", operator, x.results)
	handle("POST /v1/experiments/{key}/metrics", func(h http.Handler) http.Handler {
		return auth.Require(credential.Service, h)
	}, x.report)
}

// list answers with every experiment, sorted by key.
func (x *Experiments) list(w http.ResponseWriter, r *http.Request) error {
	s, err := x.o.Catalog.List(r.Context())
	if err != nil {
		return err
	}
	answer := struct {
		Version     int64               `json:"version"`
		Experiments []experiment.Record `json:"experiments"`
		Broken      []string            `json:"broken"`
	}{s.Version, append([]experiment.Record{}, s.Records...), []string{}}
	answer.Broken = slices.AppendSeq(answer.Broken, maps.Keys(s.Broken))
	slices.Sort(answer.Broken)
	writeJSON(w, http.StatusOK, answer)
	return nil
}

func (x *Experiments) get(w http.ResponseWriter, r *http.Request) error {
	record, err := x.o.Catalog.Get(r.Context(), r.PathValue("key"))
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, record)
	return nil
}

// experimentChange is what every change may say besides itself.
type experimentChange struct {
	// Reason is why, for the history.
	Reason string `json:"reason"`
	// Revision that the experiment must be at, 0 for one that must not exist;
	// absent for any.
	Revision *int64 `json:"revision"`
}

func (b experimentChange) change(ctx context.Context) (experiment.Change, error) {
	c, err := changeBody{Reason: b.Reason, Version: b.Revision}.change(ctx)
	return experiment.Change{Actor: c.Actor, Reason: c.Reason, Expect: c.Expect}, err
}

// create makes a new experiment: {"definition": {…}, "reason": …}.
func (x *Experiments) create(w http.ResponseWriter, r *http.Request) error {
	var body struct {
		Reason     string                `json:"reason"`
		Definition experiment.Definition `json:"definition"`
	}
	if err := decodeJSON(w, r, smallBodyLimit, &body); err != nil {
		return err
	}
	none := int64(0)
	return x.write(w, r, body.Definition.Key, "experiment.create", http.StatusCreated, experimentChange{body.Reason, &none}, body.Definition)
}

// put writes a whole definition: {"definition": {…}, "reason": …, "revision": …}.
func (x *Experiments) put(w http.ResponseWriter, r *http.Request) error {
	var body struct {
		experimentChange
		Definition experiment.Definition `json:"definition"`
	}
	if err := decodeJSON(w, r, smallBodyLimit, &body); err != nil {
		return err
	}
	key := r.PathValue("key")
	if body.Definition.Key != "" && body.Definition.Key != key {
		return problem.New(http.StatusBadRequest, "request_invalid", "The definition names another key than the path.")
	}
	body.Definition.Key = key
	return x.write(w, r, key, "experiment.put", http.StatusOK, body.experimentChange, body.Definition)
}

func (x *Experiments) write(w http.ResponseWriter, r *http.Request, key, action string, status int, body experimentChange, d experiment.Definition) error {
	return x.changed(w, r, key, action, status, body, func(ctx context.Context, by experiment.Change) (experiment.Record, error) {
		if err := x.fits(&d); err != nil {
			return experiment.Record{}, err
		}
		return x.o.Catalog.Put(ctx, d, by)
	})
}

// fits asks the flags about a definition that is otherwise valid.
func (x *Experiments) fits(d *experiment.Definition) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("%w: %w", experiment.ErrInvalid, err)
	}
	if err := x.o.Fits(d); err != nil {
		return fmt.Errorf("%w: %w", experiment.ErrInvalid, err)
	}
	return nil
}

// patch changes what leaves the measurements comparable: {"traffic": 0.5,
// "stop_at": …, "minimum_users": …, "auto_stop": …, "reason": …, "revision": …}.
func (x *Experiments) patch(w http.ResponseWriter, r *http.Request) error {
	var body struct {
		experimentChange
		Description  *string    `json:"description"`
		Traffic      *float64   `json:"traffic"`
		MinimumUsers *int64     `json:"minimum_users"`
		MaximumUsers *int64     `json:"maximum_users"`
		AutoStop     *bool      `json:"auto_stop"`
		Before       *bool      `json:"measure_before"`
		StopAt       *time.Time `json:"stop_at"`
	}
	if err := decodeJSON(w, r, smallBodyLimit, &body); err != nil {
		return err
	}
	key := r.PathValue("key")
	return x.changed(w, r, key, "experiment.patch", http.StatusOK, body.experimentChange, func(ctx context.Context, by experiment.Change) (experiment.Record, error) {
		return x.o.Catalog.Update(ctx, key, by, func(d *experiment.Definition) error {
			set(&d.Description, body.Description)
			set(&d.Traffic, body.Traffic)
			set(&d.MinimumUsers, body.MinimumUsers)
			set(&d.MaximumUsers, body.MaximumUsers)
			set(&d.AutoStop, body.AutoStop)
			set(&d.MeasureBefore, body.Before)
			set(&d.Stop, body.StopAt)
			return nil
		})
	})
}

func set[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}

func (x *Experiments) start(w http.ResponseWriter, r *http.Request) error {
	return x.turn(w, r, "experiment.start", func(ctx context.Context, key string, by experiment.Change) (experiment.Record, error) {
		record, err := x.o.Catalog.Get(ctx, key)
		if err != nil {
			return record, err
		}
		if err := x.fits(&record.Definition); err != nil {
			return experiment.Record{}, err
		}
		return x.o.Catalog.Start(ctx, key, by)
	})
}

func (x *Experiments) stop(w http.ResponseWriter, r *http.Request) error {
	return x.turn(w, r, "experiment.stop", x.o.Catalog.Stop)
}

// revert brings back the definition of an earlier revision: {"to": 3, …}.
func (x *Experiments) revert(w http.ResponseWriter, r *http.Request) error {
	var body struct {
		experimentChange
		To int64 `json:"to"`
	}
	if err := decodeJSON(w, r, smallBodyLimit, &body); err != nil {
		return err
	}
	key := r.PathValue("key")
	return x.changed(w, r, key, "experiment.revert", http.StatusOK, body.experimentChange, func(ctx context.Context, by experiment.Change) (experiment.Record, error) {
		d, err := x.o.Catalog.At(ctx, key, body.To)
		if err == nil {
			err = x.fits(&d)
		}
		if err != nil {
			return experiment.Record{}, err
		}
		return x.o.Catalog.Revert(ctx, key, body.To, by)
	})
}

// turn starts or stops: {"reason": …, "revision": …}, or no body at all.
func (x *Experiments) turn(w http.ResponseWriter, r *http.Request, action string,
	do func(ctx context.Context, key string, by experiment.Change) (experiment.Record, error),
) error {
	var body experimentChange
	if r.ContentLength != 0 {
		if err := decodeJSON(w, r, smallBodyLimit, &body); err != nil {
			return err
		}
	}
	key := r.PathValue("key")
	return x.changed(w, r, key, action, http.StatusOK, body, func(ctx context.Context, by experiment.Change) (experiment.Record, error) {
		return do(ctx, key, by)
	})
}

// remove deletes an experiment and what was measured of it. Reason and revision
// are query parameters, since bodies of DELETE do not survive every proxy.
func (x *Experiments) remove(w http.ResponseWriter, r *http.Request) error {
	key, query := r.PathValue("key"), r.URL.Query()
	body := experimentChange{Reason: query.Get("reason")}
	if text := query.Get("revision"); text != "" {
		revision, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return problem.New(http.StatusBadRequest, "request_invalid", "The revision is not a whole number.")
		}
		body.Revision = &revision
	}
	by, err := body.change(r.Context())
	if err != nil {
		return err
	}
	known := x.o.Watcher.Current()
	was, err := x.o.Catalog.Delete(r.Context(), key, by)
	if last := known.Find(key); was.Version == 0 && last != nil { // it could not be read
		was = last.Definition
	}
	if err == nil {
		err = x.o.Store.Delete(r.Context(), &was)
	}
	x.record(r, key, "experiment.delete", by, err)
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// changed makes a change, audits it, and answers with the experiment as it is now.
func (x *Experiments) changed(w http.ResponseWriter, r *http.Request, key, action string, status int, body experimentChange,
	do func(ctx context.Context, by experiment.Change) (experiment.Record, error),
) error {
	by, err := body.change(r.Context())
	if err != nil {
		return err
	}
	record, err := do(r.Context(), by)
	x.record(r, key, action, by, err)
	if err != nil {
		return err
	}
	writeJSON(w, status, record)
	return nil
}

func (x *Experiments) record(r *http.Request, key, action string, by experiment.Change, err error) {
	e := Event{Actor: by.Actor, Action: action, Target: key, Reason: by.Reason, Outcome: "done", At: x.o.Now()}
	if err != nil {
		e.Outcome = experimentProblem(err).Code
	} else {
		x.o.Watcher.Wake()
	}
	x.o.Audit.Audit(r.Context(), e)
}

func (x *Experiments) history(w http.ResponseWriter, r *http.Request) error {
	entries, err := x.o.Catalog.History(r.Context(), r.PathValue("key"), experiment.MaxHistory)
	if err != nil {
		return err
	}
	if len(entries) == 0 {
		return experiment.ErrNotFound
	}
	writeJSON(w, http.StatusOK, map[string]any{"key": r.PathValue("key"), "history": entries})
	return nil
}

// Results is what an experiment has come to.
type Results struct {
	experiment.Record
	At     time.Time         `json:"at"`
	Report experiment.Report `json:"report"`
	// QuantileError is the relative error of medians and percentiles.
	QuantileError float64 `json:"quantile_relative_error"`
}

// results answers with the report: JSON, or a page for people where the client
// asks for text/html or with ?format=html.
func (x *Experiments) results(w http.ResponseWriter, r *http.Request) error {
	record, err := x.o.Catalog.Get(r.Context(), r.PathValue("key"))
	if err != nil {
		return err
	}
	data, err := x.o.Store.Read(r.Context(), &record.Definition)
	if err != nil {
		return err
	}
	report, err := experiment.Analyse(&record.Definition, data)
	if err != nil {
		return err
	}
	answer := Results{record, x.o.Now().UTC(), report, experiment.SketchError}
	format := r.URL.Query().Get("format")
	if format == "html" || format == "" && strings.HasPrefix(r.Header.Get("Accept"), "text/html") {
		return writeResultsPage(w, &answer)
	}
	writeJSON(w, http.StatusOK, answer)
	return nil
}

// experimentProblem is the public form of an error. What is none of the domain's
// own comes from Redis.
func experimentProblem(err error) problem.Problem {
	var p problem.Problem
	switch {
	case errors.As(err, &p):
		return p
	case errors.Is(err, experiment.ErrInvalid):
		p = problem.New(http.StatusUnprocessableEntity, "experiment_invalid", "The experiment is not valid.")
		for line := range strings.SplitSeq(strings.TrimPrefix(err.Error(), experiment.ErrInvalid.Error()+": "), "\n") {
			p.Errors = append(p.Errors, problem.FieldError{Field: "definition", Detail: line})
		}
		return p
	case errors.Is(err, experiment.ErrNotFound):
		return problem.New(http.StatusNotFound, "experiment_not_found", "There is no such experiment, or no such revision of it.")
	case errors.Is(err, experiment.ErrConflict):
		return problem.New(http.StatusConflict, "version_conflict", "Somebody else changed the experiment; read it again. "+err.Error()+".")
	case errors.Is(err, experiment.ErrReused):
		return problem.New(http.StatusUnprocessableEntity, "idempotency_key_reused", "Within the last hour another call came with this id. Nothing was recorded.")
	case errors.Is(err, experiment.ErrFull):
		return problem.New(http.StatusServiceUnavailable, "dependency_unavailable", "More is waiting to be recorded than there is room for; some of this call was not taken.")
	}
	return problem.New(http.StatusServiceUnavailable, "dependency_unavailable", "The store of experiments is away.")
}

func writeExperimentError(w http.ResponseWriter, r *http.Request, err error) {
	p := experimentProblem(err)
	if p.Status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", problem.RetryAfter(retryAfterRedis))
	}
	writeProblem(w, r, p)
}
