package httpcache

import (
	"context"
	"crypto/rand"
	"errors"
	"hash/fnv"
	"maps"
	"strconv"
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

// of is the epoch of a policy's entries for a path.
func (e *epochs) of(p *Policy, path string) string {
	if len(e.values) == 0 {
		return ""
	}
	var b strings.Builder
	add := func(name, mark string) { // nothing for a name without a value: another's purge is not this entry's affair
		if v := e.values[name]; v != "" {
			b.WriteString(mark)
			b.WriteString(v)
		}
	}
	add(p.Route, " route ")
	for i, t := range p.Tags {
		add(t, " tag "+strconv.Itoa(i)+" ")
	}
	if p.Changes {
		add(pathEpoch(p.Route, path), " path ")
	}
	return b.String()
}

// pathEpoch names the epoch of a path of a route. The paths of one route share
// 256 of them, so that their number is bounded whatever clients ask for; what is
// voided besides is fetched once more. No route or tag has such a name.
func pathEpoch(route, path string) string {
	h := fnv.New32a()
	_, _ = h.Write([]byte(path)) // a hash never fails
	return route + "#" + strconv.FormatUint(uint64(h.Sum32()&0xff), 16)
}

// Invalidate makes the entries of one path of a route unfindable, whatever their
// query and headers: a request that changes what the path shows has succeeded
// (RFC 9111, section 4.4). The route's policy must say Changes. It is otherwise
// like Purge.
func (c *Cache) Invalidate(ctx context.Context, route, path string) error {
	return c.Purge(ctx, pathEpoch(route, path))
}

// Purge makes the entries of a route or tag unfindable, here at once and in the
// other replicas within the interval of Run. An error means that the store could
// not be told: they learn of it once Run has reached it again.
func (c *Cache) Purge(ctx context.Context, name string) error {
	value := rand.Text()
	c.setEpochs(func(e *epochs) { e.values[name] = value })
	if c.options.Store == nil {
		return nil
	}
	err := errResting // whoever purges must not wait for a store that hangs, again and again
	if c.rested(c.options.Now()) {
		err = c.tell(ctx, name, value)
	}
	if err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.untold[name] = value
		return err
	}
	return nil
}

var errResting = errors.New("the store is left alone for a while")

// tell records a purge in the store.
func (c *Cache) tell(ctx context.Context, name, value string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.options.StoreTimeout) // as in get
	defer cancel()
	err := c.options.Store.SetEpoch(ctx, name, value)
	if err != nil {
		c.storeFailed(ctx, err, c.options.Now())
	}
	return err
}

// tellAgain tells the store what it has not taken. A name that is purged
// meanwhile is told once more: that voids too much, never too little.
func (c *Cache) tellAgain(ctx context.Context) {
	c.mu.Lock()
	untold := maps.Clone(c.untold)
	c.mu.Unlock()
	for name, value := range untold {
		if c.tell(ctx, name, value) != nil {
			return // the next round tries again
		}
		c.mu.Lock()
		if c.untold[name] == value {
			delete(c.untold, name)
		}
		c.mu.Unlock()
	}
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
		c.tellAgain(ctx)
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
