package authn

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of a Verifier; the children of label values are resolved once.
type metrics struct {
	accepted   prometheus.Counter
	outcomes   map[string]prometheus.Counter
	signatures prometheus.Counter
}

func newMetrics(o Options, v *Verifier) (*metrics, error) {
	verifications := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tollgate_authn_verifications_total",
		Help: "Tokens verified, by outcome: accepted, or the code of the refusal.",
	}, []string{"outcome"})
	m := &metrics{
		accepted: verifications.WithLabelValues("accepted"),
		outcomes: map[string]prometheus.Counter{},
		signatures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tollgate_authn_signatures_verified_total",
			Help: "Signatures found good by computing them; accepted tokens beyond that were remembered.",
		}),
	}
	for _, code := range []string{CodeMissing, CodeMalformed, CodeInvalid, CodeExpired, CodeNonce, CodeUnavailable} {
		m.outcomes[code] = verifications.WithLabelValues(code)
	}
	if o.Metrics == nil {
		return m, nil
	}
	all := []prometheus.Collector{verifications, m.signatures, v.proofs.forgotten}
	if v.cache != nil {
		all = append(all, v.cache.collectors()...)
	}
	if v.opaque != nil {
		all = append(all, v.opaque.all)
	}
	for _, r := range v.remote {
		all = append(all, r.collectors()...)
	}
	for _, c := range all {
		if err := o.Metrics.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) refused(e *Error) { m.outcomes[e.Code].Inc() }
