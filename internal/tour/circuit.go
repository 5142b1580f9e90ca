package tour

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// The service that the tour kills, and how often in a row an answer must come
// before it is taken for the answer of both pyproxy replicas. An open circuit lets
// a request through now and then to see whether the service is back: that one sets
// the row back, no more, so that a slow machine's few requests make a row too.
const (
	victim     = "nlp"
	inARow     = 12
	setBack    = 4
	openWithin = 400 // requests
	fast       = time.Second
)

// circuit kills a service and watches the circuit open and close. Every pyproxy
// has a breaker of its own, so an answer counts once it came many times in a row.
func circuit(ctx context.Context, g *guide) (err error) {
	user, token, err := g.token("admin")
	if err != nil {
		return err
	}
	request := func() call {
		c := detect()
		c.token, c.as = token, user
		return c
	}
	if _, err := g.show(ctx, request(), http.StatusOK); err != nil {
		return err
	}
	if err := g.target.Parts.KillPart(victim); err != nil {
		return fmt.Errorf("kill the %s service: %w", victim, err)
	}
	started := false
	defer func() {
		if started {
			return
		}
		// Whatever went wrong, the next visitor finds the service running.
		if startErr := g.target.Parts.StartPart(context.WithoutCancel(ctx), victim); startErr != nil {
			err = errors.Join(err, fmt.Errorf("start the %s service again: %w", victim, startErr))
		}
	}()
	g.paper.notef("the %s service is killed", victim)
	if err := open(ctx, g, request); err != nil {
		return err
	}
	started = true
	if err := g.target.Parts.StartPart(ctx, victim); err != nil {
		return fmt.Errorf("start the %s service again: %w", victim, err)
	}
	g.paper.notef("the %s service is started again, and nobody touches the circuit", victim)
	return closes(ctx, g, request)
}

// open asks until the circuit answers every time.
func open(ctx context.Context, g *guide, request func() call) error {
	row, failed := 0, 0
	fastest := time.Hour
	var a answer
	for sent := 1; row < inARow; sent++ {
		if sent > openWithin {
			return fmt.Errorf("after %d requests the circuit is not open: the last was answered %d %s", openWithin, a.status, a.code())
		}
		var err error
		if a, err = g.ask(ctx, request()); err != nil {
			return err
		}
		switch {
		case a.status == http.StatusServiceUnavailable && a.code() == "circuit_open":
			row++
			fastest = min(fastest, a.took)
		case a.status >= 500:
			row = max(0, row-setBack)
			failed++
			if failed == 1 {
				g.paper.exchange(a)
			}
		default:
			return fmt.Errorf("with the service dead: %w", errors.Join(a.expect(http.StatusServiceUnavailable), a.refused("circuit_open")))
		}
	}
	g.paper.notef("%d requests failed, then the circuit opened:", failed)
	g.paper.exchange(a, "Retry-After") // the last one: the next may be let through
	if wait, err := a.number("Retry-After"); err != nil {
		return err
	} else if wait < 1 {
		return fmt.Errorf("retry-after is %d s", wait)
	}
	if fastest > fast {
		return fmt.Errorf("the open circuit took %s or more to answer", short(fastest))
	}
	return nil
}

// closes waits until the service answers every time.
func closes(ctx context.Context, g *guide, request func() call) error {
	begin := time.Now()
	row := 0
	var last answer
	err := await(ctx, "the circuit to close", 100*time.Millisecond, func() (bool, error) {
		var err error
		// While it answers there is no reason to pause.
		for row < inARow {
			if last, err = g.ask(ctx, request()); err != nil {
				return false, err
			}
			if last.status != http.StatusOK {
				row = 0
				return false, nil
			}
			row++
		}
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("%w; the last answer was %d %s", err, last.status, last.code())
	}
	g.paper.notef("closed by itself after %s:", short(time.Since(begin)))
	g.paper.exchange(last)
	return nil
}
