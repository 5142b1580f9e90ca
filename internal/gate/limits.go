package gate

import (
	"context"
	"errors"
	"net/http"

	"github.com/tollgate-proxy/tollgate/internal/ratelimit"
)

// Limits decides whether the buckets of a request hold its cost, and charges
// them; *ratelimit.Limiter is one. It waits no longer than it is configured to.
type Limits interface {
	Decide(ctx context.Context, req *ratelimit.Request, dec *ratelimit.Decision) error
	// Peek decides so without taking anything.
	Peek(ctx context.Context, req *ratelimit.Request, dec *ratelimit.Decision) error
}

// unknownAddress stands for a client whose address is not known: all such
// clients share their rate limit rather than having none.
const unknownAddress = "unknown"

// floor is the descriptor that Envoy's own filter sends with every request.
var floor = []ratelimit.Entry{{Key: "generic_key", Value: "floor"}} //nolint:gochecknoglobals // a constant

// Endpoint is the class of the route, never empty.
func (o *Outcome) Endpoint() string {
	if o.Route == nil {
		return "none"
	}
	return o.Route.Endpoint
}

// Cost is what the request takes from its caller's limits, at least 1.
func (o *Outcome) Cost() uint32 {
	if o.Route == nil {
		return 1
	}
	return max(1, o.Route.Cost)
}

// Limited is the key and value of whom the limits count, as descriptors and
// metadata have it. Neither is empty.
func (o *Outcome) Limited() (key, value string) {
	switch {
	case o.Principal != nil:
		return "user", o.Principal.Subject
	case o.Address.IsValid():
		return "remote_address", o.Address.String()
	default:
		return "remote_address", unknownAddress
	}
}

// charge is what one request asks of the limits, with room for the answer: one
// allocation.
type charge struct {
	request     ratelimit.Request
	decision    ratelimit.Decision
	descriptors [2]ratelimit.Descriptor
	entries     [3]ratelimit.Entry
	statuses    [2]ratelimit.Status
}

// limit asks the limits, where they are decided here, about an allowed request,
// with the descriptors that the shipped Envoy configuration makes of the
// metadata: both ways meet the same rules and the same buckets. An explanation
// takes nothing of them.
func (g *Gate) limit(ctx context.Context, o *Outcome, e *Explanation) {
	if g.limits == nil || !o.Allowed {
		return
	}
	c := &charge{}
	key, value := o.Limited()
	c.entries = [3]ratelimit.Entry{{Key: "tier", Value: o.Tier}, {Key: key, Value: value}, {Key: "endpoint", Value: o.Endpoint()}}
	c.descriptors = [2]ratelimit.Descriptor{
		{Entries: c.entries[:], Hits: uint64(o.Cost()), HasHits: true},
		{Entries: floor},
	}
	c.request = ratelimit.Request{Domain: g.domain, Descriptors: c.descriptors[:]}
	c.decision.Statuses = c.statuses[:0]
	var err error
	if e == nil {
		err = g.limits.Decide(ctx, &c.request, &c.decision)
	} else {
		err = g.limits.Peek(ctx, &c.request, &c.decision)
	}
	switch {
	case err == nil:
		o.Limits = &c.decision
		if !c.decision.Allowed {
			o.refuse(http.StatusTooManyRequests, ratelimit.DeniedCode, ratelimit.DeniedDetail)
		}
	case e == nil || errors.Is(err, ratelimit.ErrInvalid):
		o.refuse(http.StatusServiceUnavailable, CodeUnavailable, "The limits of this request cannot be judged.")
	}
	e.limits(o, err)
}
