// Package demo is `tollgate demo`: it starts the whole system on the loopback,
// tells where everything is, takes the tour and stays up until it is told to
// stop.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/apiclient"
	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/envoyconf"
	"github.com/tollgate-proxy/tollgate/internal/stack"
	"github.com/tollgate-proxy/tollgate/internal/supervisor"
	"github.com/tollgate-proxy/tollgate/internal/tour"
)

// TourMode says whether the tour is taken.
type TourMode string

const (
	// TourThenStay takes the tour and stays up.
	TourThenStay TourMode = "yes"
	// TourOnly takes the tour and stops.
	TourOnly TourMode = "only"
	// TourNone stays up without a tour.
	TourNone TourMode = "none"
)

// Options say how the demo runs.
type Options struct {
	// Stack is what to start. Progress, OnExit, Env and EditEnvoy are the demo's own.
	Stack stack.Options
	Tour  TourMode
	// Page is the host:port of a page for browsers; empty for none.
	Page string
	// Out is where everything is said; Colour uses terminal colours.
	Out    io.Writer
	Colour bool
}

// KeyFile is where the development signing key is kept, below the root folder. It
// outlives the demo, so that a token minted before a restart is good after it.
func KeyFile(root string) string { return filepath.Join(root, "var", "dev", "signing-key.pem") }

const (
	apiTimeout = 10 * time.Second
	tokenTTL   = 30 * time.Minute
	// What is shipped is for machines with nothing else to do; one that starts all
	// this would now and then be too late, and a request would pass unlimited.
	decisionTimeout = 5 * time.Second
	storeTimeout    = "1s"
)

// Run starts the system, takes the tour and, unless Tour is TourOnly, waits for
// ctx to end. Then everything is stopped. The error names each step of the tour
// that failed, and each part that could not be started or stopped.
func Run(ctx context.Context, o Options) (err error) {
	say := &speaker{out: o.Out, colour: o.Colour}
	if o.Stack.KeyFile == "" {
		o.Stack.KeyFile = KeyFile(o.Stack.Root)
	}
	minter, err := authn.NewMinter(o.Stack.KeyFile)
	if err != nil {
		return fmt.Errorf("development signing key: %w", err)
	}
	o.Stack.Env = times()
	o.Stack.EditEnvoy = func(e *envoyconf.Options) { e.DecisionTimeout = decisionTimeout }
	o.Stack.Progress = say.progress
	o.Stack.OnExit = say.exited
	if o.Page != "" {
		if err := supervisor.CheckPort("the demo's page", o.Page); err != nil {
			return err
		}
	}
	if o.Stack.RedisURL != "" {
		if err := checkRedis(ctx, o.Stack.RedisURL); err != nil {
			return err
		}
	}
	say.title()
	begin := time.Now()
	s, err := stack.Start(ctx, o.Stack)
	if err != nil {
		return err
	}
	defer func() {
		say.stopping()
		err = errors.Join(err, s.Stop())
		say.stopped()
	}()
	say.ready(s, time.Since(begin))

	if o.Tour == TourOnly {
		_, err := takeTour(ctx, o, s, minter)
		return err
	}
	return stay(ctx, o, s, minter, say)
}

// stay takes the tour, if it is to be taken, and waits for ctx to end, with a
// page for browsers meanwhile.
func stay(ctx context.Context, o Options, s *stack.Stack, minter *authn.Minter, say *speaker) (err error) {
	var p *page
	pageURL := ""
	if o.Page != "" {
		if p, err = servePage(ctx, o.Page, s); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, p.close()) }()
		pageURL = p.url()
	}
	var tourErr error
	if o.Tour != TourNone {
		p.touring()
		var results []tour.Result
		results, tourErr = takeTour(ctx, o, s, minter)
		p.toured(results)
		if tourErr != nil && ctx.Err() != nil {
			return tourErr
		}
	}
	say.staying(s, pageURL)
	<-ctx.Done()
	return tourErr
}

func takeTour(ctx context.Context, o Options, s *stack.Stack, minter *authn.Minter) ([]tour.Result, error) {
	api, err := apiclient.New(s.Operator().URL, s.Operator().Token, apiTimeout)
	if err != nil {
		return nil, err
	}
	results, err := tour.Run(ctx, tour.Target{
		Envoy: s.URL(stack.EnvoyListener),
		API:   api,
		Mint: func(user, tier string) (string, error) {
			return minter.Mint(authn.MintOptions{User: user, Tier: tier, TTL: tokenTTL})
		},
		Parts:  s,
		Colour: o.Colour,
	}, o.Out)
	if err != nil && ctx.Err() != nil {
		return results, fmt.Errorf("the tour was interrupted: %w", context.Cause(ctx))
	}
	return results, err
}

// times makes what the tour shows happen while people watch: the breaker tries
// again after 2 s instead of 60. ratelimit gives Redis more time before it
// decides alone.
func times() map[string][]string {
	return map[string][]string{
		"ratelimit": {"TOLLGATE_STORE_TIMEOUT=" + storeTimeout},
		"pyproxy": {
			"TOLLGATE_BREAKER_RESET=2s",
			"TOLLGATE_HEALTH_INTERVAL=1s",
		},
	}
}
