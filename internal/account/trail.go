package account

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/config"
	"github.com/tollgate-proxy/tollgate/internal/credential"
	"github.com/tollgate-proxy/tollgate/internal/redisconn"
)

// TrailConfig is the section "management.audit".
type TrailConfig struct {
	MaxEvents int64         `yaml:"max_events" doc:"Most management actions kept in Redis, about 300 bytes each; the oldest go first. The log has them all. 100 to 10000000."`
	Keep      time.Duration `yaml:"keep" doc:"How long a management action is kept in Redis; 1h to 87600h."`
}

// DefaultTrail keeps 100,000 actions for 90 days.
func DefaultTrail() TrailConfig { return TrailConfig{MaxEvents: 100_000, Keep: 90 * 24 * time.Hour} }

// Validate checks the section.
func (c TrailConfig) Validate(r *config.Report) {
	if c.MaxEvents < 100 || c.MaxEvents > 10_000_000 {
		r.Fault("max_events", c.MaxEvents, "100 to 10000000")
	}
	if c.Keep < time.Hour || c.Keep > 87600*time.Hour {
		r.Fault("keep", c.Keep, "1h to 87600h")
	}
}

// Trail keeps management actions in the log, and the latest in Redis, where
// GET /v1/audit reads them. It is an Auditor and a Part. Safe for concurrent use.
type Trail struct {
	rdb    redis.UniversalClient
	config TrailConfig
	log    LogAuditor
	now    func() time.Time

	mu      sync.Mutex
	failing bool
}

// NewTrail returns a trail.
func NewTrail(rdb redis.UniversalClient, c TrailConfig, log LogAuditor, now func() time.Time) *Trail {
	return &Trail{rdb: rdb, config: c, log: log, now: now}
}

var trailKey = redisconn.Key("audit")

// trailWrite bounds how long an action's answer waits for its entry.
const trailWrite = 2 * time.Second

// Audit implements Auditor. The log is written first and always; where Redis
// does not answer, it is the log that has the action.
func (t *Trail) Audit(ctx context.Context, e Event) {
	t.log.Audit(ctx, e)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), trailWrite) // done is done, whether the caller waits or not
	defer cancel()
	_, err := t.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		_ = redisconn.Once(ctx, p, redis.NewStringCmd(ctx, "xadd", trailKey, "maxlen", "~", t.config.MaxEvents, "*", // only queued here
			"at", e.At.UnixMilli(), "actor", e.Actor, "action", e.Action, "target", e.Target, "reason", e.Reason, "outcome", e.Outcome))
		p.XTrimMinID(ctx, trailKey, strconv.FormatInt(t.now().Add(-t.config.Keep).UnixMilli(), 10))
		p.PExpire(ctx, trailKey, t.config.Keep)
		return nil
	})
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case err != nil && !t.failing:
		t.log.Log.ErrorContext(ctx, "audit trail cannot be kept in Redis, only in the log", "error", redisconn.Cause(err))
	case err == nil && t.failing:
		t.log.Log.InfoContext(ctx, "audit trail is kept in Redis again")
	}
	t.failing = err != nil
}

// TrailQuery says which actions are wanted. The zero value of a field wants all.
type TrailQuery struct {
	// Actor and Action are compared whole; Target is looked for in the target.
	Actor, Action, Target string
	Since                 time.Time
	// Before is the ID of the entry to go on after, backwards in time.
	Before string
	// Limit is how many are wanted, 1 to 1000.
	Limit int
}

// TrailEntry is an action with its place in the trail.
type TrailEntry struct {
	ID      string    `json:"id"`
	At      time.Time `json:"at"`
	Actor   string    `json:"actor"`
	Action  string    `json:"action"`
	Target  string    `json:"target"`
	Reason  string    `json:"reason,omitempty"`
	Outcome string    `json:"outcome"`
}

// One question reads at most so many entries, so that a filter that nothing
// meets does not hold Redis up.
const (
	trailChunk  = 500
	trailChunks = 20
)

// Read returns actions, the newest first, and the Before of the next page; ""
// where there is none. A page may be short, or empty, and have a next one.
func (t *Trail) Read(ctx context.Context, q TrailQuery) (page []TrailEntry, next string, err error) {
	page = []TrailEntry{}
	from, to := "+", "-"
	if q.Before != "" {
		from = "(" + q.Before
	}
	if !q.Since.IsZero() {
		to = strconv.FormatInt(q.Since.UnixMilli(), 10)
	}
	for range trailChunks {
		messages, err := t.rdb.XRevRangeN(ctx, trailKey, from, to, trailChunk).Result()
		if err != nil {
			return nil, "", fmt.Errorf("read audit trail: %w", err)
		}
		for _, m := range messages {
			next = m.ID
			if e := entryOf(m); q.wants(&e) {
				page = append(page, e)
			}
			if len(page) == q.Limit {
				return page, next, nil
			}
		}
		if len(messages) < trailChunk {
			return page, "", nil
		}
		from = "(" + next
	}
	return page, next, nil
}

func (q *TrailQuery) wants(e *TrailEntry) bool {
	return (q.Actor == "" || q.Actor == e.Actor) && (q.Action == "" || q.Action == e.Action) && strings.Contains(e.Target, q.Target)
}

func entryOf(m redis.XMessage) TrailEntry {
	text := func(name string) string {
		s, _ := m.Values[name].(string)
		return s
	}
	at, _ := strconv.ParseInt(text("at"), 10, 64)
	return TrailEntry{
		ID: m.ID, At: time.UnixMilli(at).UTC(), Actor: text("actor"), Action: text("action"), Target: text("target"),
		Reason: text("reason"), Outcome: text("outcome"),
	}
}

// Register implements Part.
func (t *Trail) Register(mux Routes, auth *credential.Authenticator) {
	mux.Handle("GET /v1/audit", auth.Require(credential.Admin, http.HandlerFunc(t.serve)))
}

var trailID = regexp.MustCompile(`^[0-9]{1,20}-[0-9]{1,20}$`)

func (t *Trail) serve(w http.ResponseWriter, r *http.Request) {
	v := r.URL.Query()
	q := TrailQuery{Actor: v.Get("actor"), Action: v.Get("action"), Target: v.Get("target"), Before: v.Get("before"), Limit: 100}
	if text := v.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > 1000 {
			writeError(w, r, badRequest("limit is from 1 to 1000."))
			return
		}
		q.Limit = n
	}
	if text := v.Get("since"); text != "" {
		at, err := time.Parse(time.RFC3339, text)
		if err != nil {
			writeError(w, r, badRequest("since is a time such as 2026-01-02T15:04:05Z."))
			return
		}
		q.Since = at
	}
	if q.Before != "" && !trailID.MatchString(q.Before) {
		writeError(w, r, badRequest("before is the next of an earlier answer."))
		return
	}
	page, next, err := t.Read(r.Context(), q)
	if err != nil {
		writeError(w, r, unavailable(w, "The audit trail's store does not answer; the log has every action."))
		return
	}
	writeJSON(w, http.StatusOK, trailAnswer{page, next})
}

type trailAnswer struct {
	Events []TrailEntry `json:"events"`
	// Next is the before of the next page.
	Next string `json:"next,omitempty"`
}
