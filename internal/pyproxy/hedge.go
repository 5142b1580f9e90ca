package pyproxy

import (
	"context"
	"net/http"
	"time"
)

// tried is the result of one attempt.
type tried struct {
	resp *http.Response
	at   *endpoint
	fail *failure
}

// hedged makes one attempt, and a second one elsewhere if the first has no
// answer after the route's hedge_after and the retry budget allows. The first
// good answer is taken and the other attempt cancelled, which counts for
// nothing.
func (c *caller) hedged(x *exchange, number int, avoid []*endpoint) tried {
	type result struct {
		tried
		id int
	}
	results := make(chan result, 2)
	running := map[int]context.CancelFunc{}
	start := func(id int, at *endpoint) {
		ctx, cancel := context.WithCancel(x.req.Context())
		running[id] = cancel
		one := *x
		one.req = x.req.WithContext(ctx)
		go func() {
			got := result{id: id}
			defer func() {
				if v := recover(); v != nil { // no handler of a server is above us to end one request and not the process
					c.setup.panicked("hedged attempt", v)
					got.tried = tried{at: at, fail: &failure{cause: causePanic, err: errPanic}}
				}
				results <- got
			}()
			got.tried = c.try(&one, number+id, at)
		}()
	}
	first := c.pick(avoid)
	start(0, first)
	after := time.NewTimer(c.route.HedgeAfter)
	defer after.Stop()
	for {
		select {
		case <-after.C:
			second := c.pick(append(avoid[:len(avoid):len(avoid)], first))
			if second != first && c.upstream.budget.Withdraw() {
				c.metrics.hedges.Inc()
				start(1, second)
			}
		case got := <-results:
			delete(running, got.id) // its context ends with the client's request
			if len(running) > 0 && c.worthRepeating(got.resp, got.fail) {
				discard(got.resp)
				continue
			}
			for _, cancel := range running {
				cancel()
				go func() { discard((<-results).resp) }()
			}
			return got.tried
		}
	}
}
