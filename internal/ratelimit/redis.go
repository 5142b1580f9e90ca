package ratelimit

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/redisconn"
)

//go:embed lua/decide.lua
var decideLua string

// MaxBatch is the largest number of demands for one call of [Redis.Take].
// A larger one would hold up everyone else on the server.
const MaxBatch = 64

// Redis is a [Store] on a Redis server, Sentinel or Cluster. It reads the
// clock of the server, never its own. Use [NewRedis].
//
// All buckets of a demand are decided in one script. On a Cluster a script
// may only touch keys with the same hash tag, so there the buckets of users
// and those of the system are charged in two steps, the users' first, each user's
// by a script of its own, and what was taken is returned where any script denies.
// All demands of a call take each step together, in one pipeline.
type Redis struct {
	client  redis.UniversalClient
	script  *redisconn.Script
	beat    *redisconn.Script
	cluster bool
}

// NewRedis returns a store on client. cluster says that the keys of a script
// must share a hash tag.
func NewRedis(client redis.UniversalClient, cluster bool) *Redis {
	return &Redis{
		client: client, script: redisconn.NewScript(decideLua), beat: redisconn.NewScript(beatLua), cluster: cluster,
	}
}

// Load puts the script into the server, so that the first decision need not
// send it, and shows whether the server answers.
func (r *Redis) Load(ctx context.Context) error {
	if err := r.script.Load(ctx, r.client); err != nil {
		return fmt.Errorf("load the decision script: %w", err)
	}
	return nil
}

// Take implements [Store].
func (r *Redis) Take(ctx context.Context, demands []*Demand) error {
	if len(demands) > MaxBatch {
		return fmt.Errorf("%d demands in one batch: at most %d", len(demands), MaxBatch)
	}
	if !r.cluster {
		return r.run(ctx, demands)
	}
	return r.inSteps(ctx, demands)
}

// run decides demands whose keys may all stand in one script.
func (r *Redis) run(ctx context.Context, demands []*Demand) error {
	call := calls.Get().(*call) //nolint:forcetypeassert // The pool holds nothing else.
	defer call.release()
	call.build(r.script.Hash(), demands)
	cmd := call.send(ctx, r.client)
	if call.unknown(cmd) {
		cmd = call.send(ctx, r.client)
	}
	return read(cmd, demands)
}

// read reads the answer to a call.
func read(cmd *redis.IntSliceCmd, demands []*Demand) error {
	if err := cmd.Err(); err != nil {
		return fmt.Errorf("decide in redis: %w", err)
	}
	return results(cmd.Val(), demands)
}

// call is the command of one script call, reused. Its arguments are pointers
// into the demands, which spares boxing every number.
type call struct {
	args   []any
	kinds  []*Demand // one demand of each kind
	kindOf []int     // the kind of each demand, from 1
	named  []string  // keys that kinds name
	counts [3]int    // of keys, kinds, and keys that kinds name
	sizes  []int     // of the kinds, then places of their keys
}

// send sends the call to a client, or queues it in a pipeline. What charges, or
// refunds, must not run twice.
func (c *call) send(ctx context.Context, to redisconn.Processor) *redis.IntSliceCmd {
	cmd := redis.NewIntSliceCmd(ctx, c.args...)
	_ = redisconn.Once(ctx, to, cmd) // The command holds its error.
	return cmd
}

// unknown says whether the server that got the command does not know the script,
// and makes the call one that brings it.
func (c *call) unknown(cmd *redis.IntSliceCmd) bool {
	if !redis.HasErrorPrefix(cmd.Err(), "NOSCRIPT") {
		return false
	}
	c.args[0], c.args[1] = "eval", decideLua
	return true
}

var calls = sync.Pool{New: func() any { return new(call) }}

func (c *call) release() {
	clear(c.args)
	clear(c.kinds)
	clear(c.named)
	calls.Put(c)
}

// build makes the arguments; lua/decide.lua says how they stand.
func (c *call) build(hash string, demands []*Demand) {
	c.args = append(c.args[:0], "evalsha", hash, &c.counts[0])
	c.kinds, c.kindOf, c.named, c.sizes = c.kinds[:0], c.kindOf[:0], c.named[:0], c.sizes[:0]
	for _, d := range demands {
		c.kindOf = append(c.kindOf, c.kind(d))
	}
	numbers := 0
	for _, k := range c.kinds {
		numbers += 1 + len(k.Charges)
		for i := range k.Charges {
			if b := &k.Charges[i]; b.Shared && c.place(b) == 0 {
				c.named = append(c.named, b.Key)
			}
		}
	}
	for i := range c.named {
		c.args = append(c.args, &c.named[i])
	}
	for _, d := range demands {
		for i := range d.Charges {
			if b := &d.Charges[i]; !b.Shared {
				c.args = append(c.args, &b.Key)
			}
		}
	}
	c.counts = [3]int{len(c.args) - 3, len(c.kinds), len(c.named)}
	c.args = append(c.args, &c.counts[1], &c.counts[2])
	c.sizes = slices.Grow(c.sizes, numbers) // Pointers into it must hold.
	number := func(n int) *int {
		c.sizes = append(c.sizes, n)
		return &c.sizes[len(c.sizes)-1]
	}
	for _, k := range c.kinds {
		c.args = append(c.args, number(len(k.Charges)))
		for i := range k.Charges {
			b := &k.Charges[i]
			c.args = append(c.args, number(c.place(b)), &b.Period, &b.Capacity, &b.Need, &b.Cost)
		}
	}
	for i := range c.kindOf {
		c.args = append(c.args, &c.kindOf[i])
	}
}

// kind returns the number of the demand's kind, from 1.
func (c *call) kind(d *Demand) int {
	for i, k := range c.kinds {
		if sameKind(k, d) {
			return i + 1
		}
	}
	c.kinds = append(c.kinds, d)
	return len(c.kinds)
}

func sameKind(a, b *Demand) bool {
	if len(a.Charges) != len(b.Charges) {
		return false
	}
	for i := range a.Charges {
		x, y := &a.Charges[i], &b.Charges[i]
		if x.Need != y.Need || x.Cost != y.Cost || x.Capacity != y.Capacity || x.Period != y.Period ||
			x.Shared != y.Shared || x.Shared && x.Key != y.Key {
			return false
		}
	}
	return true
}

// place is where the key stands that the kind names, from 1, or 0.
func (c *call) place(b *Charge) int {
	if b.Shared {
		for i, key := range c.named {
			if key == b.Key {
				return i + 1
			}
		}
	}
	return 0
}

var errReply = errors.New("the decision script's reply has another shape")

// results reads the script's reply into the demands.
func results(reply []int64, demands []*Demand) error {
	want := 1
	for _, d := range demands {
		want += 1 + len(d.Charges)
		for i := range d.Charges {
			if d.Charges[i].Period < 0 {
				want++
			}
		}
	}
	if len(reply) != want {
		return fmt.Errorf("%w: %d numbers, not %d", errReply, len(reply), want)
	}
	now, next := reply[0], 1
	for _, d := range demands {
		d.Now, d.Allowed = now, reply[next] == 1
		for i := range d.Charges {
			next++
			c := &d.Charges[i]
			c.Level = reply[next]
			if c.Period < 0 {
				next++
				c.Previous = reply[next]
			}
		}
		next++
	}
	return nil
}

// Reset forgets buckets, which makes them full.
func (r *Redis) Reset(ctx context.Context, keys ...string) error {
	for _, k := range keys {
		if err := r.client.Del(ctx, k).Err(); err != nil {
			return fmt.Errorf("reset bucket %s: %w", strconv.Quote(k), err)
		}
	}
	return nil
}
