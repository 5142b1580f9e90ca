package ratelimit

import (
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sort"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/redisconn"
)

var (
	//go:embed lua/override.lua
	overrideLua string
	//go:embed lua/unoverride.lua
	unoverrideLua string
)

const (
	// overridesKey is a hash of all overrides, by subject. It expires with the
	// last of them.
	overridesKey = "tollgate:override:tiers"
	// versionField of the hash is another text after each change, and none that
	// ever was: the hash may expire, or Redis lose it, and begin again.
	versionField = "version"
)

// MaxOverrides bounds what is kept in every process.
const MaxOverrides = 100_000

// ErrTooManyOverrides says that there are MaxOverrides already.
var ErrTooManyOverrides = fmt.Errorf("there are %d overrides already: end some first", MaxOverrides)

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
	client      redis.UniversalClient
	set, remove *redisconn.Script
	most        int
	every       time.Duration
	now         func() time.Time
	log         *slog.Logger
	current     atomic.Pointer[overridesCopy]
}

// overridesCopy is what a process knows of the overrides. It never changes.
type overridesCopy struct {
	version string
	tiers   map[overridden]TierOverride
	ends    time.Time // when the first of them does; zero where there is none
}

func newCopy(version string, tiers map[overridden]TierOverride) *overridesCopy {
	c := &overridesCopy{version: version, tiers: tiers}
	for _, t := range tiers {
		if c.ends.IsZero() || t.Until.Before(c.ends) {
			c.ends = t.Until
		}
	}
	return c
}

// NewOverrides returns overrides that poll Redis that often.
func NewOverrides(client redis.UniversalClient, every time.Duration, now func() time.Time, log *slog.Logger) *Overrides {
	return &Overrides{
		client: client, set: redisconn.NewScript(overrideLua), remove: redisconn.NewScript(unoverrideLua),
		most: MaxOverrides, every: every, now: now, log: log,
	}
}

// Set puts an override in force for its subject, in place of any other. The
// error names what is wrong with it, or that Redis did not take it; it is
// [ErrTooManyOverrides] where there is no place for another.
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
	taken, err := o.set.RunIdempotent(ctx, o.client, []string{overridesKey},
		field(t.Domain, t.Subject), value, until.UnixMilli(), versionField, rand.Text(), o.most).Bool()
	if err == nil && !taken {
		err = ErrTooManyOverrides
	}
	if err != nil {
		return fmt.Errorf("keep the override of %s=%s: %w", t.Subject.Key, t.Subject.Value, err)
	}
	return o.Poll(ctx)
}

// Clear ends a subject's override, if there is one.
func (o *Overrides) Clear(ctx context.Context, domain string, subject Entry) error {
	err := o.remove.RunIdempotent(ctx, o.client, []string{overridesKey}, versionField, rand.Text(), field(domain, subject), "").Err()
	if err != nil {
		return fmt.Errorf("end the override of %s=%s: %w", subject.Key, subject.Value, err)
	}
	return o.Poll(ctx)
}

func field(domain string, subject Entry) string {
	return string(appendSubjectKey(nil, domain, kindTier, []Entry{subject}))
}

// List returns the overrides in force, as of the last poll, in order of their
// end.
func (o *Overrides) List() []TierOverride {
	var list []TierOverride
	if c := o.current.Load(); c != nil {
		for _, t := range c.tiers {
			if t.Until.After(o.now()) {
				list = append(list, t)
			}
		}
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Until.Before(list[j].Until) })
	return list
}

// Poll copies the overrides from Redis where they have changed since the last
// poll, and forgets here and there what has ended.
func (o *Overrides) Poll(ctx context.Context) error {
	version, err := o.client.HGet(ctx, overridesKey, versionField).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return fmt.Errorf("read the version of the overrides: %w", err)
	}
	if known := o.current.Load(); known != nil && version != "" && version == known.version {
		return o.forgetEnded(ctx, known)
	}
	fields, err := o.client.HGetAll(ctx, overridesKey).Result()
	if err != nil {
		return fmt.Errorf("read overrides: %w", err)
	}
	version = fields[versionField]
	delete(fields, versionField)
	tiers := make(map[overridden]TierOverride, len(fields))
	var ended []any
	for field, value := range fields {
		var t TierOverride
		if json.Unmarshal([]byte(value), &t) != nil || !t.Until.After(o.now()) {
			ended = append(ended, field, value)
			continue
		}
		if len(tiers) < o.most {
			tiers[overridden{t.Domain, t.Subject}] = t
		}
	}
	o.current.Store(newCopy(version, tiers))
	return o.forget(ctx, ended)
}

// forgetEnded removes from the copy and from Redis what has ended.
func (o *Overrides) forgetEnded(ctx context.Context, known *overridesCopy) error {
	now := o.now()
	if known.ends.IsZero() || known.ends.After(now) {
		return nil
	}
	tiers := make(map[overridden]TierOverride, len(known.tiers))
	var ended []any
	for of, t := range known.tiers {
		if t.Until.After(now) {
			tiers[of] = t
			continue
		}
		value, err := json.Marshal(t)
		if err != nil {
			return fmt.Errorf("override of %s=%s: %w", t.Subject.Key, t.Subject.Value, err)
		}
		ended = append(ended, field(t.Domain, t.Subject), value)
	}
	o.current.CompareAndSwap(known, newCopy(known.version, tiers)) // What was read meanwhile is newer.
	return o.forget(ctx, ended)
}

// forgetBatch is how many overrides one script removes.
const forgetBatch = 500

// forget removes overrides from Redis, by field and value, unless another has
// taken the place of what was read.
func (o *Overrides) forget(ctx context.Context, ended []any) error {
	for some := range slices.Chunk(ended, 2*forgetBatch) {
		args := append([]any{versionField, ""}, some...)
		if err := o.remove.RunIdempotent(ctx, o.client, []string{overridesKey}, args...).Err(); err != nil {
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
	c := o.current.Load()
	if c == nil || len(c.tiers) == 0 {
		return "", false
	}
	t, ok := c.tiers[overridden{domain, subject}]
	if !ok || !t.Until.After(o.now()) {
		return "", false
	}
	return t.Tier, true
}
