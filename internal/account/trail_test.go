package account

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/config"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

func TestTrail(t *testing.T) {
	redistest.Each(t, func(t *testing.T, c *redis.Client) {
		var trail *Trail
		s := newSystem(t, c.Options().Addr, nil, func(s *system) []Part {
			trail = NewTrail(s.client, DefaultTrail(), LogAuditor{slog.New(slog.DiscardHandler)}, time.Now)
			return []Part{trail, &Sessions{Manager: s.manager, Auditor: trail, Now: time.Now}}
		})
		for i := range 7 {
			s.want(201, nil, "POST", "/v1/sessions", serviceSecret, fmt.Sprintf(`{"user":"ada","session":"s-%d"}`, i))
		}
		s.want(200, nil, "DELETE", "/v1/users/ada/sessions?reason=theft", operatorSecret, "")
		var a trailAnswer
		s.want(200, &a, "GET", "/v1/audit?limit=3", adminSecret, "")
		if len(a.Events) != 3 || a.Events[0].Action != "session.end_all" || a.Events[0].Actor != "desk" || a.Events[0].Reason != "theft" || a.Events[0].Outcome != "done" || a.Events[0].At.IsZero() {
			t.Fatalf("%+v", a)
		}
		seen := len(a.Events)
		for a.Next != "" {
			next := a.Next
			a = trailAnswer{}
			s.want(200, &a, "GET", "/v1/audit?limit=3&before="+next, adminSecret, "")
			seen += len(a.Events)
		}
		if seen != 8 {
			t.Errorf("%d events in pages, want 8", seen)
		}
		for query, want := range map[string]int{
			"actor=login": 7, "actor=log": 0, "target=s-3": 1, "action=session.end_all": 1, "actor=desk&target=ada": 1,
			"since=2020-01-01T00:00:00Z": 8, "since=2099-01-01T00:00:00Z": 0,
		} {
			a = trailAnswer{}
			if s.want(200, &a, "GET", "/v1/audit?"+query, adminSecret, ""); len(a.Events) != want || a.Next != "" {
				t.Errorf("%s: %d events, next %q; want %d", query, len(a.Events), a.Next, want)
			}
		}
		for _, bad := range []string{"limit=0", "limit=1001", "limit=x", "since=yesterday", "before=x", "before=1-1)"} {
			s.want(400, nil, "GET", "/v1/audit?"+bad, adminSecret, "")
		}
		s.want(403, nil, "GET", "/v1/audit", operatorSecret, "")
		if ttl := c.PTTL(t.Context(), trailKey).Val(); ttl <= 0 {
			t.Errorf("the trail lives for ever: %s", ttl)
		}
	})
}

// The trail is bounded, and a filter that nothing meets reads no more than so
// much at a time.
func TestTrailIsBounded(t *testing.T) {
	c := redistest.Client(t, redistest.Server(t))
	now := time.Now()
	trail := NewTrail(c, TrailConfig{MaxEvents: 100, Keep: time.Hour}, LogAuditor{slog.New(slog.DiscardHandler)}, func() time.Time { return now })
	for i := range 400 {
		trail.Audit(t.Context(), Event{Actor: "a", Action: "b", Target: fmt.Sprint(i), Outcome: "done", At: now})
	}
	if n := c.XLen(t.Context(), trailKey).Val(); n < 100 || n > 300 { // Redis trims by whole nodes
		t.Errorf("%d entries", n)
	}
	now = now.Add(2 * time.Hour)
	trail.Audit(t.Context(), Event{Actor: "a", Action: "b", Outcome: "done", At: now})
	if n := c.XLen(t.Context(), trailKey).Val(); n > 1 {
		t.Errorf("%d entries are older than they may be", n)
	}
	pipe := c.Pipeline()
	for range trailChunk*trailChunks + 10 {
		pipe.XAdd(t.Context(), &redis.XAddArgs{Stream: trailKey, Values: []any{"actor", "x"}})
	}
	if _, err := pipe.Exec(t.Context()); err != nil {
		t.Fatal(err)
	}
	page, next, err := trail.Read(t.Context(), TrailQuery{Actor: "nobody", Limit: 5})
	if len(page) != 0 || next == "" || err != nil {
		t.Errorf("%d, next %q, %v: want to be asked again", len(page), next, err)
	}
	if _, next, _ = trail.Read(t.Context(), TrailQuery{Actor: "nobody", Limit: 5, Before: next}); next != "" {
		t.Errorf("next %q at the end", next)
	}
}

func TestTrailWithoutRedis(t *testing.T) {
	var b bytes.Buffer
	s := newSystem(t, redistest.FreeAddr(t), nil, func(s *system) []Part {
		trail := NewTrail(s.client, DefaultTrail(), LogAuditor{slog.New(slog.NewTextHandler(&b, nil))}, time.Now)
		trail.Audit(t.Context(), Event{Actor: "desk", Action: "x", At: s.now})
		trail.Audit(t.Context(), Event{Actor: "desk", Action: "y", At: s.now})
		return []Part{trail}
	})
	s.want(503, nil, "GET", "/v1/audit", adminSecret, "")
	if text := b.String(); strings.Count(text, "msg=audit ") != 2 || strings.Count(text, "level=ERROR") != 1 {
		t.Errorf("log:\n%s", text)
	}
}

func TestTrailConfig(t *testing.T) {
	for text, want := range map[string]string{"max_events: 1": "max_events", "keep: 1s": "keep", "{}": ""} {
		if _, err := config.Decode("x.yaml", []byte(text), DefaultTrail()); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
