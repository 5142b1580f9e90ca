package tour

import (
	"context"
	"fmt"
	"net/http"
)

// The figures of the contract's tier table and costs that the tour shows.
const (
	freePerMinute = 10
	mlTokens      = 5
)

// remaining is the header that says how many tokens are left.
const remaining = "X-RateLimit-Remaining"

func rateLimit(ctx context.Context, g *guide) error {
	user, token, err := g.token("free")
	if err != nil {
		return err
	}
	request := call{method: http.MethodGet, path: backendPath, token: token, as: user + ", free"}
	for i := range freePerMinute {
		a, err := g.ask(ctx, request)
		if err != nil {
			return err
		}
		if i == 0 {
			g.paper.exchange(a, "RateLimit-Policy", "RateLimit", remaining)
		}
		if err := a.expect(http.StatusOK); err != nil {
			return fmt.Errorf("request %d of %d: %w", i+1, freePerMinute, err)
		}
		if err := a.has("RateLimit", "RateLimit-Policy", "X-RateLimit-Limit", remaining, "X-RateLimit-Reset"); err != nil {
			return fmt.Errorf("request %d of %d: %w", i+1, freePerMinute, err)
		}
	}
	g.paper.notef("nine more like it, all 200; then:")
	a, err := g.show(ctx, request, http.StatusTooManyRequests, "Retry-After", "RateLimit", remaining)
	if err != nil {
		return err
	}
	wait, err := a.number("Retry-After")
	if err != nil {
		return err
	}
	if wait < 1 || wait > 60 {
		return fmt.Errorf("retry-after is %d s, not within the minute", wait)
	}
	if err := a.has("RateLimit", "RateLimit-Policy"); err != nil {
		return err
	}
	return a.refused("rate_limited")
}

func mlCost(ctx context.Context, g *guide) error {
	user, token, err := g.token("free")
	if err != nil {
		return err
	}
	plainCall := call{method: http.MethodGet, path: backendPath, token: token, as: user + ", free"}
	a, err := g.show(ctx, plainCall, http.StatusOK, remaining)
	if err != nil {
		return err
	}
	before, err := a.number(remaining)
	if err != nil {
		return err
	}
	ml := predict()
	ml.token, ml.as = token, user+", free"
	a, err = g.show(ctx, ml, http.StatusOK, remaining)
	if err != nil {
		return err
	}
	after, err := a.number(remaining)
	if err != nil {
		return err
	}
	g.paper.notef("tokens left: %d, then %d; the prediction: %s", before, after, excerpt(a.body))
	if spent := before - after; spent != mlTokens {
		return fmt.Errorf("the ML call took %d tokens instead of %d", spent, mlTokens)
	}
	return nil
}
