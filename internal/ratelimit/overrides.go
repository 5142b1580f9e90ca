package ratelimit

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sort"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// overridesKey is a hash of all overrides, by subject. It expires with the
// last of them.
const overridesKey = "tollgate:override:tiers"

// maxOverrides bounds what is kept in every process.
const maxOverrides = 100_000

// TierOverride gives a subject another tier for a while.
type TierOverride struct {
	Domain string `json:"domain"`
	// Subject is the entry that names whose tier it is, such as user=alice.
	Subject Entry `json:"subject"`
	// Tier is the name of a tier in the table; one that is not there changes
	// nothing.
	Tier string `json:"tier"`
	// Until is when it ends, to the millisecond.
	Until time.Time `json:"until"`
}

type overridden struct {
	domain  string
	subject Entry
}

// Overrides are the overrides in force, kept in Redis and copied into every
// process that runs [Overrides.Run]; a change is seen everywhere after one
// poll. While Redis is gone the copy goes on. Use [NewOverrides].
type Overrides struct {
	client  redis.Cmdable
	every   time.Duration
	now     func() time.Time
	log     *slog.Logger
	current atomic.Pointer[map[overridden]TierOverride]
}

// NewOverrides returns overrides that poll Redis that often.
func NewOverrides(client redis.Cmdable, every time.Duration, now func() time.Time, log *slog.Logger) *Overrides {
	return &Overrides{client: client, every: every, now: now, log: log}
}

// Set puts an override in force for its subject, in place of any other. The
// error names what is wrong with it, or that Redis did not take it.
func (o *Overrides) Set(ctx context.Context, t TierOverride) error {
	switch {
	case t.Domain == "" || t.Subject.Key == "" || t.Subject.Value == "" || t.Tier == "":
		return fmt.Errorf("override of %s=%s in domain %q to tier %q: all must be named", t.Subject.Key, t.Subject.Value, t.Domain, t.Tier)
	case len(t.Domain)+len(t.Subject.Key)+len(t.Subject.Value)+len(t.Tier) > 1024:
		return fmt.Errorf("override in domain %.40q: names of more than 1024 bytes", t.Domain)
	case !t.Until.After(o.now()):
		return fmt.Errorf("override of %s=%s: it ends at %s, which has passed", t.Subject.Key, t.Subject.Value, t.Until.Format(time.RFC3339))
	}
	value, err := json.Marshal(t)
	if err != nil {
		return fmt.Errorf("override of %s=%s: %w", t.Subject.Key, t.Subject.Value, err)
	}
	until := t.Until.Add(time.Second)
	_, err = o.client.TxPipelined(ctx, func(p redis.Pipeliner) error {
		p.HSet(ctx, overridesKey, o.field(t.Domain, t.Subject), value)
		p.Do(ctx, "pexpireat", overridesKey, until.UnixMilli(), "NX")
		p.Do(ctx, "pexpireat", overridesKey, until.UnixMilli(), "GT")
		return nil
	})
	if err != nil {
		return fmt.Errorf("keep the override of %s=%s: %w", t.Subject.Key, t.Subject.Value, err)
	}
	return o.Poll(ctx)
}

// Clear ends a subject's override, if there is one.
func (o *Overrides) Clear(ctx context.Context, domain string, subject Entry) error {
	if err := o.client.HDel(ctx, overridesKey, o.field(domain, subject)).Err(); err != nil {
		return fmt.Errorf("end the override of %s=%s: %w", subject.Key, subject.Value, err)
	}
	return o.Poll(ctx)
}

func (o *Overrides) field(domain string, subject Entry) string {
	return string(appendSubjectKey(nil, domain, kindTier, []Entry{subject}))
}

// List returns the overrides in force, as of the last poll, in order of their
// end.
func (o *Overrides) List() []TierOverride {
	var list []TierOverride
	if m := o.current.Load(); m != nil {
		for _, t := range *m {
			if t.Until.After(o.now()) {
				list = append(list, t)
			}
		}
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Until.Before(list[j].Until) })
	return list
}

// Poll copies the overrides from Redis, and forgets there what has ended.
func (o *Overrides) Poll(ctx context.Context) error {
	fields, err := o.client.HGetAll(ctx, overridesKey).Result()
	if err != nil {
		return fmt.Errorf("read overrides: %w", err)
	}
	next := make(map[overridden]TierOverride, len(fields))
	var ended []string
	for field, value := range fields {
		var t TierOverride
		if json.Unmarshal([]byte(value), &t) != nil || !t.Until.After(o.now()) {
			ended = append(ended, field)
			continue
		}
		if len(next) < maxOverrides {
			next[overridden{t.Domain, t.Subject}] = t
		}
	}
	o.current.Store(&next)
	if len(ended) > 0 {
		if err := o.client.HDel(ctx, overridesKey, ended...).Err(); err != nil {
			return fmt.Errorf("forget overrides that have ended: %w", err)
		}
	}
	return nil
}

// Run polls until ctx ends. A failure is logged once, until one succeeds.
func (o *Overrides) Run(ctx context.Context) error {
	tick := time.NewTicker(o.every)
	defer tick.Stop()
	failing := false
	for {
		call, cancel := context.WithTimeout(ctx, o.every)
		err := o.Poll(call)
		cancel()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !failing:
			o.log.Warn("overrides cannot be read; those known stay in force", slog.Any("error", err))
		case err == nil && failing:
			o.log.Info("overrides are read again")
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// tier returns the tier that a subject has instead of its own.
func (o *Overrides) tier(domain string, subject Entry) (string, bool) {
	if o == nil {
		return "", false
	}
	m := o.current.Load()
	if m == nil || len(*m) == 0 {
		return "", false
	}
	t, ok := (*m)[overridden{domain, subject}]
	if !ok || !t.Until.After(o.now()) {
		return "", false
	}
	return t.Tier, true
}
