package account

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"

	"github.com/tollgate-proxy/tollgate/internal/experiment"
	"github.com/tollgate-proxy/tollgate/internal/problem"
)

// What one call that reports metrics has at most.
const (
	metricsBodyLimit = 1 << 20
	maxObservations  = 5000
	maxCallID        = 256 // bytes
)

// observation is one value of a metric of a user.
type observation struct {
	User   string   `json:"user"`
	Metric string   `json:"metric"`
	Value  *float64 `json:"value"` // 1 where absent
}

// report takes observations of users: {"observations": [{"user": …, "metric": …,
// "value": …}], "id": …}. All are checked before any is taken. With an id they
// are written before the answer, and count once however often the same call is
// repeated within an hour; without one they are written behind, within a second
// or so. Before the start they are of the time before, where the experiment
// measures that.
func (x *Experiments) report(w http.ResponseWriter, r *http.Request) error {
	var body struct {
		Observations []observation `json:"observations"`
		ID           string        `json:"id"`
	}
	if err := decodeJSON(w, r, metricsBodyLimit, &body); err != nil {
		return err
	}
	if len(body.Observations) == 0 || len(body.Observations) > maxObservations {
		return problem.New(http.StatusBadRequest, "request_invalid", fmt.Sprintf("A call has 1 to %d observations.", maxObservations))
	}
	if len(body.ID) > maxCallID {
		return problem.New(http.StatusBadRequest, "request_invalid", fmt.Sprintf("An id has at most %d bytes.", maxCallID))
	}
	record := x.o.Watcher.Current().Find(r.PathValue("key"))
	if record == nil {
		return experiment.ErrNotFound
	}
	d := &record.Definition
	now := x.o.Now()
	before := d.MeasuresBefore(now)
	if !before && !d.Running(now) {
		return problem.New(http.StatusConflict, "experiment_not_running", "The experiment is not running, so nothing is measured.")
	}
	if err := checkObservations(d, body.Observations); err != nil {
		return err
	}
	for i := range body.Observations {
		if o := &body.Observations[i]; o.Value == nil {
			o.Value = new(1.0)
		}
	}
	var to interface {
		Report(d *experiment.Definition, user string, variant int, values ...experiment.Value) error
		Before(d *experiment.Definition, user string, values ...experiment.Value) error
	} = x.o.Recorder
	var call *experiment.Call
	if body.ID != "" {
		var err error
		if call, err = newCall(d, body.ID, body.Observations); err != nil {
			return err
		}
		to = call
	}
	assigner := experiment.NewAssigner(d)
	recorded, ignored := 0, 0
	for _, o := range body.Observations {
		variant, ok := assigner.Assign(o.User)
		if !ok {
			ignored++
			continue
		}
		v := experiment.Value{Metric: o.Metric, Value: *o.Value}
		var err error
		if before {
			err = to.Before(d, o.User, v)
		} else {
			err = to.Report(d, o.User, variant, v)
		}
		if err != nil {
			return err
		}
		recorded++
	}
	if call != nil {
		if err := x.o.Recorder.WriteCall(r.Context(), call); err != nil {
			return err
		}
	}
	writeJSON(w, http.StatusAccepted, map[string]int{"recorded": recorded, "not_enrolled": ignored})
	return nil
}

// newCall makes a call of what was sent: the same observations in the same order
// are the same content, however they were written.
func newCall(d *experiment.Definition, id string, all []observation) (*experiment.Call, error) {
	content, err := json.Marshal(all)
	if err != nil { // not reached: it came as JSON
		return nil, err
	}
	return experiment.NewCall(d, id, content)
}

func checkObservations(d *experiment.Definition, all []observation) error {
	reported := map[string]bool{}
	for _, m := range d.Metrics() {
		if m.Source == experiment.Reported {
			reported[m.Name] = true
		}
	}
	p := problem.New(http.StatusUnprocessableEntity, "observation_invalid", "Nothing was recorded.")
	for i, o := range all {
		switch {
		case o.User == "" || len(o.User) > 1024:
			p.Errors = append(p.Errors, problem.FieldError{Field: fmt.Sprintf("observations[%d].user", i), Detail: "allowed: 1 to 1024 bytes"})
		case !reported[o.Metric]:
			p.Errors = append(p.Errors, problem.FieldError{Field: fmt.Sprintf("observations[%d].metric", i), Detail: "allowed: a metric of the experiment that the gateway does not measure itself"})
		case o.Value != nil && math.Abs(*o.Value) > experiment.MaxValue:
			p.Errors = append(p.Errors, problem.FieldError{Field: fmt.Sprintf("observations[%d].value", i), Detail: fmt.Sprintf("allowed: %v to %v", -experiment.MaxValue, experiment.MaxValue)})
		}
		if len(p.Errors) == 20 {
			break
		}
	}
	if len(p.Errors) > 0 {
		return p
	}
	return nil
}
