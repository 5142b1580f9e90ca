package anomaly

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/redisconn"
)

//go:embed lua/record.lua
var recordSource string

//go:embed lua/amend.lua
var amendSource string

//go:embed lua/append.lua
var appendSource string

// Redis is the store that every process shares: for each user a hash of facts and a list of events, both with a time to
// live.
type Redis struct {
	rdb                   redis.UniversalClient
	record, amend, append *redisconn.Script
}

// NewRedis returns a store on rdb.
func NewRedis(rdb redis.UniversalClient) *Redis {
	return &Redis{
		rdb: rdb, record: redisconn.NewScript(recordSource),
		amend: redisconn.NewScript(amendSource), append: redisconn.NewScript(appendSource),
	}
}

func factsKey(user string) string { return userKey(user) + "facts" }

func eventsKey(user string) string { return userKey(user) + "events" }

// userKey begins a user's keys, which share a hash tag.
func userKey(user string) string {
	return redisconn.Prefix + "anomaly:{" + redisconn.Escape(user) + "}:"
}

func (f *Fact) field() string { return string([]byte{byte(f.Kind), ':'}) + f.Value }

func unavailable(operation string, err error) error {
	return fmt.Errorf("%w: %s: %w", ErrUnavailable, operation, err)
}

// Record implements Store, in one round trip. It runs once: to a second run nothing would be new.
func (r *Redis) Record(ctx context.Context, user string, facts []Fact, keep time.Duration) (History, error) {
	if len(facts) == 0 {
		return History{}, nil
	}
	now := facts[0].Last
	args := make([]any, 0, 4+2*len(facts))
	args = append(args, now.UnixMilli(), keep.Milliseconds(), now.Truncate(time.Hour).UnixMilli(), maxCount)
	for i := range facts {
		args = append(args, facts[i].field(), facts[i].Kind.most())
	}
	reply, err := r.record.Run(ctx, r.rdb, []string{factsKey(user)}, args...).StringSlice()
	if err != nil {
		return History{}, unavailable("record", err)
	}
	known := make(map[string]string, len(reply)/2)
	for i := 0; i+1 < len(reply); i += 2 {
		known[reply[i]] = reply[i+1]
	}
	return readHistory(known, now.Add(-keep)), nil
}

// readHistory reads a hash of facts. What cannot be read is left out: it was written by a later version.
func readHistory(known map[string]string, since time.Time) History {
	facts := make([]Fact, 0, len(known))
	for field, value := range known {
		if f, err := readFact(field, value); err == nil && !f.Last.Before(millis(since)) {
			facts = append(facts, f)
		}
	}
	sortFacts(facts)
	return History{Facts: facts}
}

var errFact = errors.New("not a fact")

func readFact(field, value string) (Fact, error) {
	numbers := strings.Split(value, " ")
	if len(field) < 2 || field[1] != ':' || len(numbers) != 3 {
		return Fact{}, errFact
	}
	var n [3]int64
	for i := range n {
		var err error
		if n[i], err = strconv.ParseInt(numbers[i], 10, 64); err != nil {
			return Fact{}, errFact
		}
	}
	return Fact{Kind: Kind(field[0]), Value: field[2:], First: time.UnixMilli(n[0]), Last: time.UnixMilli(n[1]), Count: int(n[2])}, nil
}

// Amend implements Store.
func (r *Redis) Amend(ctx context.Context, user string, a Amendment) error {
	if len(a.Withdraw)+len(a.Vouch) == 0 {
		return nil
	}
	args := []any{a.At.UnixMilli(), a.Since.UnixMilli()}
	for i := range a.Withdraw {
		args = append(args, "withdraw", a.Withdraw[i].field())
	}
	for i := range a.Vouch {
		args = append(args, "vouch", a.Vouch[i].field())
	}
	if err := r.amend.RunIdempotent(ctx, r.rdb, []string{factsKey(user)}, args...).Err(); err != nil {
		return unavailable("amend", err)
	}
	return nil
}

// Append implements Store.
func (r *Redis) Append(ctx context.Context, user string, e Event, within, keep time.Duration) (bool, error) {
	body, err := json.Marshal(e)
	if err != nil {
		return false, unavailable("append", err)
	}
	added, err := r.append.Run(ctx, r.rdb, []string{eventsKey(user)}, e.At.UnixMilli(), within.Milliseconds(),
		keep.Milliseconds(), recentEvents, maxEvents, e.key, body).Int()
	if err != nil {
		return false, unavailable("append", err)
	}
	return added == 1, nil
}

// History implements Store.
func (r *Redis) History(ctx context.Context, user string, since time.Time) (History, error) {
	known, err := r.rdb.HGetAll(ctx, factsKey(user)).Result()
	if err != nil {
		return History{}, unavailable("read facts", err)
	}
	return readHistory(known, since), nil
}

// Events implements Store.
func (r *Redis) Events(ctx context.Context, user string, since time.Time) ([]Event, error) {
	list, err := r.rdb.LRange(ctx, eventsKey(user), 0, maxEvents-1).Result()
	if err != nil {
		return nil, unavailable("read events", err)
	}
	events := make([]Event, 0, len(list))
	for _, text := range list {
		parts := strings.SplitN(text, " ", 3)
		if len(parts) != 3 {
			continue
		}
		e := Event{key: parts[1]}
		if err := json.Unmarshal([]byte(parts[2]), &e); err != nil {
			continue // written by a later version
		}
		if e.At = millis(e.At); !e.At.Before(millis(since)) {
			events = append(events, e)
		}
	}
	return events, nil
}

// Erase implements Store.
func (r *Redis) Erase(ctx context.Context, user string) error {
	if err := r.rdb.Del(ctx, factsKey(user), eventsKey(user)).Err(); err != nil {
		return unavailable("erase", err)
	}
	return nil
}
