package gate

import (
	"sync"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/policy"
)

// shadowLines is how many lines about shadow rules are logged each second at
// most; the metric counts all.
const shadowLines = 10

// budget admits so many a second.
type budget struct {
	mu     sync.Mutex
	second int64
	spent  int
	left   int // not admitted since the last that was
}

// admit reports whether there is room for one more at now, and how many were
// left out before it.
func (b *budget) admit(now time.Time, most int) (leftOut int, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := now.Unix(); s != b.second {
		b.second, b.spent = s, 0
	}
	if b.spent >= most {
		b.left++
		return 0, false
	}
	b.spent++
	leftOut, b.left = b.left, 0
	return leftOut, true
}

// shadow reports that a rule which is not in force would have refused what the
// rule in force allows.
func (g *Gate) shadow(r *Request, rule *policy.Route, caller *authn.Principal, o *Outcome, e *Explanation) {
	subject := subjectOf(caller, r.Address)
	would := policy.Decide(rule, &subject)
	if e != nil {
		e.note(Step{Name: "shadow", Passed: would.Allowed, Detail: "rule " + rule.Name + ", not in force: " + would.Code})
		return
	}
	if would.Allowed {
		return
	}
	g.metrics.shadowed(rule.Name, would.Code)
	if leftOut, ok := g.shadows.admit(o.Now, shadowLines); ok {
		g.log.Info("shadow rule would have refused", "rule", rule.Name, "code", would.Code,
			"requirement", would.Requirement, "request_id", r.ID, "unlogged", leftOut)
	}
}
