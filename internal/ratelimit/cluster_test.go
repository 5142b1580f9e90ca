package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/polltest"
	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

// startCluster starts three masters that share the slots.
func startCluster(t *testing.T) *redis.ClusterClient {
	t.Helper()
	client := redis.NewClusterClient(&redis.ClusterOptions{Addrs: redistest.Cluster(t, 3)})
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// TestCluster decides on three real nodes: users all over them, the system's
// bucket on one, and neither is ever charged for a denied request.
func TestCluster(t *testing.T) {
	client := startCluster(t)
	rules := mustParse(t, `domain: tollgate
system: [{unit: year, requests_per_unit: 1000}]
tiers: {entry: tier, subjects: [user], default: a, table: [{name: a, limits: [{unit: year, requests_per_unit: 30}, {unit: month, requests_per_unit: 40}]}]}`)
	l := newLab(t, rules, func(o *Options) {
		o.Store, o.Timeout, o.Now = NewRedis(client, true), 10*time.Second, time.Now
	})
	var granted atomic.Int64
	var wg sync.WaitGroup
	for c := range 8 {
		wg.Go(func() {
			var dec Decision
			for i := range 100 {
				req := request(of("a", fmt.Sprint("user-", (c+i)%20), "x"))
				if err := l.Decide(context.Background(), &req, &dec); err != nil {
					t.Error(err)
					return
				}
				if dec.Path != PathExact {
					t.Errorf("path %s", dec.Path)
				}
				if dec.Allowed {
					granted.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if g := granted.Load(); g != 600 {
		t.Errorf("granted %d to 20 users of 30 each", g)
	}
	dec := l.decide(request(Descriptor{Entries: []Entry{{"user", "user-new"}}}.with(0)))
	if s := dec.Statuses[0]; s.Remaining != 30 {
		t.Errorf("%+v", s)
	}
	d := &Demand{Charges: []Charge{{Key: rules.domains["tollgate"].systemKeys[0], Capacity: rules.domains["tollgate"].system[0].capacity}}}
	take(t, l.store, d)
	if used := (d.Charges[0].Level - d.Now) / rules.domains["tollgate"].system[0].interval; used != 599 && used != 600 {
		t.Errorf("the system was charged %d for 600", used)
	}
	// Where the system denies, the user's charge comes back.
	big := request(of("a", "user-big", "x").with(30))
	for range 20 {
		l.decide(big)
		big.Descriptors[0].Entries[1].Value += "x"
	}
	dec = l.decide(request(of("a", "user-poor", "x").with(30)))
	if dec.Allowed {
		t.Fatalf("%+v", dec)
	}
	states, err := l.State(t.Context(), "tollgate", []Entry{{"tier", "a"}, {"user", "user-poor"}})
	if err != nil || len(states) != 3 || states[0].Remaining != 30 {
		t.Errorf("%+v, %v", states, err)
	}
}

// pipelines counts pipelines, fails one of them, and holds up one until its
// context ends or it is told to go on.
type pipelines struct {
	count, fails, stops, singles int
	stopped                      func()
	goOn                         chan struct{}
}

func (p *pipelines) DialHook(next redis.DialHook) redis.DialHook { return next }
func (p *pipelines) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		p.singles++
		return next(ctx, cmd)
	}
}

func (p *pipelines) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if p.count++; p.count == p.fails {
			for _, c := range cmds {
				c.SetErr(io.ErrUnexpectedEOF)
			}
			return io.ErrUnexpectedEOF
		}
		if p.count == p.stops {
			p.stopped()
			select {
			case <-p.goOn:
			case <-ctx.Done():
			}
		}
		return next(ctx, cmds)
	}
}

// TestClusterInPipelines: a full batch takes as many round trips as one demand,
// and where a later step denies or fails nothing stays charged.
func TestClusterInPipelines(t *testing.T) {
	client := startCluster(t)
	hook := &pipelines{}
	store := NewRedis(client, true)
	if err := store.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	client.AddHook(hook)
	batch := func(cost int64) (demands []*Demand) {
		for i := range MaxBatch {
			user := fmt.Sprintf("{u%d}", i)
			demands = append(demands, &Demand{Charges: []Charge{
				{Key: user + "a", Capacity: 10 * hour, Need: cost, Cost: cost}, {Key: user + "b", Capacity: 20 * hour, Need: cost, Cost: cost},
				{Key: "{system}", Shared: true, Capacity: MaxBatch * 3 / 2 * hour, Need: cost, Cost: cost},
			}})
		}
		return demands
	}
	var used [MaxBatch]int64
	expect := func(what string, demands []*Demand, trips, allowed int) {
		t.Helper()
		if hook.count != trips {
			t.Errorf("%s: %d round trips, not %d", what, hook.count, trips)
		}
		for i, d := range demands {
			if d.Allowed {
				used[i] += hour
				allowed--
			}
			if d.Returned != (trips == 3 && !d.Allowed) {
				t.Errorf("%s: demand %d, allowed %t: returned %t", what, i, d.Allowed, d.Returned)
			}
		}
		if allowed != 0 {
			t.Errorf("%s: %d too few were allowed", what, allowed)
		}
		for i, d := range batch(0) {
			take(t, store, d)
			for _, c := range d.Charges[:2] {
				if taken := c.Level - d.Now; taken > used[i] || taken < used[i]-hour/2 { // It fills meanwhile.
					t.Fatalf("%s: %d is taken from bucket %s, not %d", what, taken, c.Key, used[i])
				}
			}
		}
		hook.count = 0
	}
	demands := batch(hour)
	take(t, store, demands...)
	expect("allowed", demands, 2, MaxBatch)
	demands = batch(hour)
	take(t, store, demands...)
	expect("the system denies half", demands, 3, MaxBatch/2)
	hook.fails = 2
	demands = batch(hour)
	if err := store.Take(t.Context(), demands); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%v", err)
	}
	for _, d := range demands {
		d.Allowed = false // Nothing was decided.
	}
	expect("the second step fails", demands, 3, 0)
}

// TestClusterOverANetwork is what goes well on one machine all the same, and does
// not where a round trip takes time, or an answer gets lost.
func TestClusterOverANetwork(t *testing.T) {
	whole := startCluster(t)
	for name, f := range map[string]func(*testing.T, *redis.ClusterClient){
		"sharers": sharersOnACluster, "several subjects": severalSubjectsOnACluster, "without the script": clusterWithoutTheScript,
		"returns hold up nobody": returnsHoldUpNobody, "nothing runs twice": clusterRunsNothingTwice,
	} {
		t.Run(name, func(t *testing.T) {
			err := errors.Join(whole.ScriptFlush(t.Context()).Err(), whole.ForEachMaster(t.Context(), func(ctx context.Context, c *redis.Client) error {
				return c.FlushAll(ctx).Err()
			}))
			if err != nil {
				t.Fatal(err)
			}
			client := redis.NewClusterClient(&redis.ClusterOptions{Addrs: whole.Options().Addrs})
			defer client.Close()
			f(t, client)
		})
	}
}

// sharersOnACluster: the quotas of a report live all over it, and neither
// joining many nor forgetting those that have ended takes a call for each.
func sharersOnACluster(t *testing.T, client *redis.ClusterClient) {
	hook := &pipelines{}
	now := time.Now()
	s := NewSharers(client, func() time.Time { return now })
	if err := s.script.Load(t.Context(), client); err != nil {
		t.Fatal(err)
	}
	client.AddHook(hook)
	join := func(name string) (others int) {
		t.Helper()
		var parts []Part
		for i := range MaxBatch {
			parts = append(parts, Part{Key: fmt.Sprintf("%su%d}", keyPrefix, i), Name: name, Demand: 1})
		}
		all, err := s.Join(t.Context(), parts, 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range all {
			others += len(o)
		}
		return others
	}
	if n := join("a"); n != 0 {
		t.Errorf("%d others", n)
	}
	if n := join("b"); n != MaxBatch || hook.count != 2 {
		t.Errorf("%d others, %d round trips", n, hook.count)
	}
	now = now.Add(11 * time.Second)
	if n := join("b"); n != 0 || hook.count != 4 {
		t.Errorf("%d others that have ended, %d round trips", n, hook.count)
	}
}

// userAndSystem asks for a token of a user's bucket and of the system's, which
// holds that many.
func userAndSystem(user string, tokens int64) *Demand {
	return &Demand{Charges: []Charge{
		{Key: "{" + user + "}", Capacity: 10 * hour, Need: hour, Cost: hour},
		{Key: "{system}", Shared: true, Capacity: tokens * hour, Need: hour, Cost: hour},
	}}
}

// clusterWithoutTheScript: nodes that lost the script get it in one round
// trip, however many demands wait for it.
func clusterWithoutTheScript(t *testing.T, client *redis.ClusterClient) {
	hook := &pipelines{}
	client.AddHook(hook)
	store := NewRedis(client, true)
	var demands []*Demand
	for i := range MaxBatch {
		demands = append(demands, userAndSystem(fmt.Sprint("u", i), MaxBatch))
	}
	take(t, store, demands...)
	for i, d := range demands {
		if !d.Allowed {
			t.Fatalf("demand %d is denied", i)
		}
	}
	if hook.count != 3 || hook.singles != 0 {
		t.Errorf("%d pipelines and %d single calls", hook.count, hook.singles)
	}
}

// returnsHoldUpNobody: where the store hangs just as it is to take back what
// a denied request took, the request ends when its context does, and the tokens
// go back later all the same.
func returnsHoldUpNobody(t *testing.T, client *redis.ClusterClient) {
	store := NewRedis(client, true)
	take(t, store, userAndSystem("u", 1)) // The system has no more now.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	hook := &pipelines{stops: 3, stopped: cancel, goOn: make(chan struct{})}
	client.AddHook(hook)
	if err := store.Take(ctx, []*Demand{userAndSystem("u", 1)}); !errors.Is(err, context.Canceled) {
		t.Fatalf("%v", err)
	}
	close(hook.goOn)
	other := redis.NewClusterClient(client.Options())
	defer other.Close()
	polltest.Until(t, "the token goes back", func() bool {
		d := &Demand{Charges: []Charge{{Key: "{u}", Capacity: 10 * hour}}}
		take(t, NewRedis(other, true), d)
		return d.Charges[0].Level-d.Now <= hour
	})
}

// clusterRunsNothingTwice: a client of a Cluster sends again what got no
// answer. What charges or refunds must not be run twice.
func clusterRunsNothingTwice(t *testing.T, whole *redis.ClusterClient) {
	lost := &redistest.LostAnswers{Of: "evalsha"}
	client := lost.Cluster(t, whole.Options().Addrs)
	demand := func(cost int64) *Demand {
		return &Demand{Charges: []Charge{{Key: "{u}", Capacity: 10 * hour, Need: max(cost, 0), Cost: cost}}}
	}
	for name, cluster := range map[string]bool{"in pipelines": true, "alone": false} {
		store := NewRedis(client, cluster)
		take(t, NewRedis(whole, true), demand(8*hour))
		take(t, store, demand(0))
		lost.LoseNext()
		before := lost.Sent()
		if err := store.Take(t.Context(), []*Demand{demand(-2 * hour)}); err == nil {
			t.Errorf("%s: no error", name)
		}
		d := demand(0)
		take(t, NewRedis(whole, true), d)
		if left := d.Charges[0].Level - d.Now; lost.Sent() != before+1 || left > 6*hour || left < 5*hour {
			t.Errorf("%s: sent %d times, %s is taken", name, lost.Sent()-before, time.Duration(left)*time.Microsecond)
		}
		take(t, NewRedis(whole, true), demand(-10*hour))
	}
}

// severalSubjectsOnACluster: what a request asks of several subjects, which live
// on several servers, takes no round trip for each.
func severalSubjectsOnACluster(t *testing.T, client *redis.ClusterClient) {
	store, hook := NewRedis(client, true), &pipelines{}
	if err := store.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	client.AddHook(hook)
	demand := func() *Demand {
		d := userAndSystem("u0", 100)
		for i := range 6 {
			c := d.Charges[0]
			c.Key, c.Capacity = fmt.Sprintf("{u%d}", i+1), int64(i+1)*hour
			d.Charges = append(d.Charges, c)
		}
		return d
	}
	first, second := demand(), demand() // u1 has one token only
	if take(t, store, first); !first.Allowed || hook.count != 2 {
		t.Errorf("allowed %t in %d round trips", first.Allowed, hook.count)
	}
	if take(t, store, second); second.Allowed || hook.count != 5 {
		t.Errorf("allowed %t in %d round trips", second.Allowed, hook.count-2)
	}
	for i, c := range second.Charges {
		if taken := c.Level - second.Now; taken > hour || taken < hour/2 {
			t.Errorf("%d is taken from bucket %d", taken, i)
		}
	}
}
