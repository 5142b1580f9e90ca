package httpcache

import (
	"context"
	"crypto/rand"
	"maps"
	"strings"
	"time"
)

// epochs gives each route and tag a value that is part of its entries' keys.
// Purging changes the value: older entries are never found again, at once and
// whatever their number, and age out. The map is replaced whole, never changed.
type epochs struct {
	values map[string]string // by name, as in force here
	remote map[string]string // as last seen in the store
}

// of is the epoch of a policy's entries.
func (e *epochs) of(p *Policy) string {
	if len(e.values) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString(e.values[p.Route])
	for _, t := range p.Tags {
		b.WriteByte(' ')
		b.WriteString(e.values[t])
	}
	return b.String()
}

// Purge makes the entries of a route or tag unfindable, here at once and in the
// other replicas within the interval of Run. An error means that they may not
// have learnt of it.
func (c *Cache) Purge(ctx context.Context, name string) error {
	value := rand.Text()
	c.setEpochs(func(e *epochs) { e.values[name] = value })
	if c.options.Store == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.options.StoreTimeout)
	defer cancel()
	return c.options.Store.SetEpoch(ctx, name, value)
}

// Knows says whether any policy has the route or tag.
func (c *Cache) Knows(name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.names[name]
}

func (c *Cache) setEpochs(change func(*epochs)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.epochs.Load()
	next := &epochs{values: maps.Clone(old.values), remote: old.remote}
	change(next)
	c.epochs.Store(next)
}

// Run learns of other replicas' purges until ctx ends.
func (c *Cache) Run(ctx context.Context) error {
	if c.options.Store == nil {
		<-ctx.Done()
		return nil
	}
	t := time.NewTicker(c.options.PollInterval)
	defer t.Stop()
	for {
		c.learn(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// learn takes over what has changed in the store since the last time. What the
// store has lost is kept.
func (c *Cache) learn(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, c.options.StoreTimeout)
	defer cancel()
	seen, err := c.options.Store.Epochs(ctx)
	if err != nil {
		c.metrics.storeErrors.Inc()
		return
	}
	defer c.learnt.Store(true)
	if maps.Equal(c.epochs.Load().remote, seen) {
		return
	}
	c.setEpochs(func(e *epochs) {
		for name, v := range seen {
			if e.remote[name] != v {
				e.values[name] = v
			}
		}
		e.remote = seen
	})
}
