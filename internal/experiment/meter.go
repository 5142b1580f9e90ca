package experiment

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Request is one finished request, as the gateway's access log tells it.
type Request struct {
	// User is the user, or the stable key of an anonymous visitor.
	User, Tier string
	// Visitor is true where User is a visitor's key.
	Visitor bool
	// Assignments are the marks of the variants that the gateway dealt, as it
	// wrote them: "button:3=bold,checkout:1=control". See [Definition.Mark].
	Assignments string
	// Refused is true where the gateway did not let the request pass after all, as
	// over a limit: that says nothing about a variant.
	Refused  bool
	Duration time.Duration
	// Status is the HTTP status; 0 where the client left before there was one.
	Status                      int
	RequestBytes, ResponseBytes uint64
}

// Meter measures experiments by the requests that went through the gateway. A
// user counts as exposed by the first finished request that was dealt the
// variant: an entry that the access log loses takes exposure and measurement
// with it. What was dealt is told by the entry itself and not worked out anew: a
// request that was judged just before a change, and ended after it, counts for
// what it was. It is safe for concurrent use, and does not wait.
type Meter struct {
	experiments *Watcher
	recorder    *Recorder
	now         func() time.Time
	measured    prometheus.Counter
	unknown     prometheus.Counter
}

// NewMeter makes a meter.
func NewMeter(experiments *Watcher, recorder *Recorder, metrics prometheus.Registerer, now func() time.Time) (*Meter, error) {
	counter := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tollgate_experiment_requests_total",
		Help: "Finished requests of users who take part, an experiment at a time: measured, or of an experiment or a version that is not known here any more, or not yet.",
	}, []string{"result"})
	if err := metrics.Register(counter); err != nil {
		return nil, fmt.Errorf("experiment metrics: %w", err)
	}
	return &Meter{
		experiments: experiments, recorder: recorder, now: now,
		measured: counter.WithLabelValues("measured"), unknown: counter.WithLabelValues("unknown"),
	}, nil
}

// Measure counts a request for every experiment that dealt it a variant, and for
// those that measure the time before they start.
func (m *Meter) Measure(r *Request) {
	if r.User == "" {
		return
	}
	set := m.experiments.Current()
	for rest := r.Assignments; rest != ""; {
		var mark string
		mark, rest, _ = strings.Cut(rest, ",")
		d, variant := set.marked(mark)
		if d == nil {
			m.unknown.Inc()
			continue
		}
		m.recorder.Seen(d, variant)
		if !r.Refused {
			m.measured.Inc()
			m.recorder.Visit(d, r.User, variant, d.values(r)...)
		}
	}
	if len(set.before) == 0 || r.Refused {
		return
	}
	now := m.now()
	for _, x := range set.before {
		if r.Visitor && !x.Anonymous {
			continue // one could make up as many as fill the room for users
		}
		if _, ok := x.would(r.User, r.Tier); ok && x.MeasuresBefore(now) {
			_ = m.recorder.Before(x.Definition, r.User, x.values(r)...) // counted
		}
	}
}

// Mark names a variant of this version of the experiment, among the characters
// a-z, 0-9, hyphen, colon and equals sign.
func (d *Definition) Mark(variant int) string {
	return fmt.Sprintf("%s:%d=%s", d.Key, d.Version, d.Variants[variant].Name)
}

// marked finds what a mark names; nil for what is not known.
func (s *Set) marked(mark string) (*Definition, int) {
	key, rest, _ := strings.Cut(mark, ":")
	version, name, _ := strings.Cut(rest, "=")
	r := s.Find(key)
	if r == nil || strconv.Itoa(r.Definition.Version) != version {
		return nil, 0
	}
	d := &r.Definition
	i := slices.IndexFunc(d.Variants, func(v Variant) bool { return v.Name == name })
	if i < 0 {
		return nil, 0
	}
	return d, i
}

// values are what the gateway measures of a request.
func (d *Definition) values(r *Request) []Value {
	var out []Value
	for _, m := range d.Metrics() {
		var v float64
		switch m.Source {
		case Latency:
			v = r.Duration.Seconds()
		case Failures:
			v = one(r.Status >= http.StatusInternalServerError)
		case Abandoned:
			v = one(r.Status == 0)
		case Requests:
			v = 1
		case RequestBytes:
			v = float64(r.RequestBytes)
		case ResponseBytes:
			v = float64(r.ResponseBytes)
		default:
			continue
		}
		out = append(out, Value{m.Name, v})
	}
	return out
}

func one(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}
