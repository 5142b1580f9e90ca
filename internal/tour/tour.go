// Package tour walks through a running system, request by request through Envoy,
// shows what each one proves and checks that it does. The demo takes it for
// people, the end-to-end tests take it for us.
//
// A tour leaves the system as it found it: users are new each time, the flag it
// makes is removed again, and the service it kills is started again. So it
// can be taken again at once.
package tour

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/flag"
)

// Target is the system to walk through. All fields but Colour are required.
type Target struct {
	// Envoy is the base URL of the gateway, "http://127.0.0.1:10000" for instance.
	Envoy string
	// API is the management API.
	API API
	// Mint makes a development token that lasts some minutes.
	Mint func(user, tier string) (string, error)
	// Parts kills and restarts a Python service.
	Parts Parts
	// Colour writes terminal colours.
	Colour bool
}

// API is what the tour asks of the management API.
type API interface {
	// RevokeToken refuses a token from now on.
	RevokeToken(ctx context.Context, token, reason string) error
	// PutFlag writes a whole flag, DeleteFlag removes it.
	PutFlag(ctx context.Context, definition flag.Definition, reason string) error
	DeleteFlag(ctx context.Context, key, reason string) error
	// SetFlag turns a flag "on" or "off" for everyone.
	SetFlag(ctx context.Context, key, value, reason string) error
}

// Parts kills and restarts parts of the system.
type Parts interface {
	// KillPart ends a part at once.
	KillPart(name string) error
	// StartPart starts it again and returns when it is ready.
	StartPart(ctx context.Context, name string) error
}

// Step is one stop of the tour.
type Step struct {
	// Name is short; Proves is the sentence that a visitor reads first.
	Name, Proves string
	run          func(ctx context.Context, g *guide) error
}

// Steps returns the tour's steps in their order.
func Steps() []Step {
	return []Step{
		{"no token", "A request without a token goes no further than the gateway.", noToken},
		{"forged token", "A token that somebody altered, or signed with nothing, is refused.", forgedToken},
		{"good token", "The backend learns who calls from the gateway alone: the client's own identity headers are gone.", goodToken},
		{"underscored header", "A spelling that some backends fold into X-User-Id is refused outright.", underscoredHeader},
		{"rate limit", "A free user has ten requests a minute; the eleventh is told when to come back.", rateLimit},
		{"cost", "An ML call costs five of a user's tokens, a plain one costs one.", mlCost},
		{"revocation", "A revoked token is dead at the very next request; the user's other token lives.", revocation},
		{"circuit breaker", "A dead service is answered for at once, without waiting, and comes back by itself.", circuit},
		{"feature flag", "A flag turned on at run time reaches the backend as a header, with no deployment.", featureFlag},
	}
}

// StepError names the step whose outcome was not what it should be.
type StepError struct {
	// Number counts from 1; Name is the step's.
	Number int
	Name   string
	Cause  error
}

// Error tells it in one sentence.
func (e *StepError) Error() string {
	return fmt.Sprintf("tour step %d (%s) failed: %v", e.Number, e.Name, e.Cause)
}

func (e *StepError) Unwrap() error { return e.Cause }

// Result is how one step went.
type Result struct {
	Name, Proves string
	Took         time.Duration
	// Err is nil where all was as it should be.
	Err error
}

// stepTimeout bounds a step; the circuit breaker's waits for its reset time.
const stepTimeout = 2 * time.Minute

// Run takes the tour, writes it to out and returns how each step went. The error
// joins a *StepError for each step that failed; later steps are taken all the
// same, unless ctx has ended.
func Run(ctx context.Context, t Target, out io.Writer) ([]Result, error) {
	g := &guide{
		target: t,
		paper:  &paper{out: out, colour: t.Colour},
		client: &http.Client{
			Transport: &http.Transport{MaxIdleConnsPerHost: 4, DisableCompression: true},
			// An answer is shown as it is.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
	defer g.client.CloseIdleConnections()
	var results []Result
	var failures []error
	steps := Steps()
	for i, step := range steps {
		if ctx.Err() != nil {
			failures = append(failures, &StepError{i + 1, step.Name, context.Cause(ctx)})
			break
		}
		g.paper.heading(i+1, len(steps), step)
		begin := time.Now()
		err := g.take(ctx, step)
		result := Result{Name: step.Name, Proves: step.Proves, Took: time.Since(begin), Err: err}
		results = append(results, result)
		g.paper.outcome(result)
		if err != nil {
			failures = append(failures, &StepError{i + 1, step.Name, err})
		}
	}
	g.paper.summary(results, len(steps))
	return results, errors.Join(failures...)
}

func (g *guide) take(ctx context.Context, step Step) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	return step.run(ctx, g)
}
