package experiment

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Request is one finished request, as the gateway's access log tells it.
type Request struct {
	// User is the authenticated user, empty for anonymous requests.
	User, Tier string
	// Flags are the packed flags that the request carried: "a=on,b=blue".
	Flags    string
	Start    time.Time
	Duration time.Duration
	// Status is the HTTP status; 0 where the client left before there was one.
	Status                      int
	RequestBytes, ResponseBytes uint64
}

// Arms says which variant a flag's experiment deals a user, as an index, and its
// value in headers.
type Arms interface {
	Arm(flag, user, tier string, now time.Time) (arm int, value string, ok bool)
}

// Meter measures experiments by the requests that went through the gateway. A
// user counts as exposed by the first finished request that carried the variant:
// an entry that the access log loses takes exposure and measurement with it, so
// that gaps cost numbers and do not bias a comparison. It is safe for concurrent
// use, and does not wait.
type Meter struct {
	experiments *Watcher
	arms        func() Arms
	recorder    *Recorder
	measured    prometheus.Counter
	other       prometheus.Counter
}

// NewMeter makes a meter; arms offers the flags in force.
func NewMeter(experiments *Watcher, arms func() Arms, recorder *Recorder, metrics prometheus.Registerer) (*Meter, error) {
	counter := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tollgate_experiment_requests_total",
		Help: "Finished requests of users who take part, an experiment at a time: measured, or carried another value than the assignment says by now.",
	}, []string{"result"})
	if err := metrics.Register(counter); err != nil {
		return nil, fmt.Errorf("experiment metrics: %w", err)
	}
	return &Meter{
		experiments: experiments, arms: arms, recorder: recorder,
		measured: counter.WithLabelValues("measured"), other: counter.WithLabelValues("other_variant"),
	}, nil
}

// Measure counts a request for every experiment whose variant it carried. The
// variant is what the gateway put on the request, and must be the one that the
// assignment gives: what carried another, as while a change was spreading,
// counts for none.
func (m *Meter) Measure(r *Request) {
	live := m.experiments.Current().Live()
	if len(live) == 0 || r.User == "" || r.Flags == "" {
		return
	}
	arms := m.arms()
	for i := range live {
		d := live[i].Definition
		carried, ok := packedValue(r.Flags, d.FlagKey())
		if !ok {
			continue
		}
		arm, value, ok := arms.Arm(d.FlagKey(), r.User, r.Tier, r.Start)
		if !ok {
			continue
		}
		if value != carried || arm >= len(d.Variants) {
			m.other.Inc()
			continue
		}
		m.measured.Inc()
		m.recorder.Visit(d, r.User, arm, d.values(r)...)
	}
}

// packedValue finds a flag's value in the packed form.
func packedValue(packed, key string) (string, bool) {
	for packed != "" {
		pair := packed
		if i := strings.IndexByte(packed, ','); i >= 0 {
			pair, packed = packed[:i], packed[i+1:]
		} else {
			packed = ""
		}
		if rest, ok := strings.CutPrefix(pair, key); ok && len(rest) > 0 && rest[0] == '=' {
			return rest[1:], true
		}
	}
	return "", false
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
