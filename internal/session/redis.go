package session

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/redisconn"
)

//go:embed lua/session.lua
var source string

//go:embed lua/defer.lua
var deferSource string

// Redis is the store that every process shares.
type Redis struct {
	rdb            redis.UniversalClient
	script, defers *redisconn.Script
}

// NewRedis returns a store on rdb.
func NewRedis(rdb redis.UniversalClient) *Redis {
	return &Redis{rdb: rdb, script: redisconn.NewScript(source), defers: redisconn.NewScript(deferSource)}
}

// keys of a user's sessions, all under one hash tag.
func keys(user string) []string {
	prefix := redisconn.Prefix + "session:{" + redisconn.Escape(user) + "}:"
	return []string{prefix + "created", prefix + "seen", prefix + "about", prefix + "tombs", owedKey(user)}
}

func owedKey(user string) string {
	return redisconn.Prefix + "session:{" + redisconn.Escape(user) + "}:owed"
}

// ownersKeys are the sets of users who have a session: for whoever names its issuer, and for whoever does not.
func ownersKeys(r Ref) [2]string {
	return [2]string{redisconn.Key("session", "owners", r.Issuer, r.ID), redisconn.Key("session", "owners", r.ID)}
}

// dueKey is the sorted set of users by when something of theirs may be due.
func dueKey() string { return redisconn.Key("session", "due") }

// due notes, before a change, that the user is due soon after it.
func due(ctx context.Context, pipe redis.Pipeliner, user string, l Limits, now time.Time) {
	pipe.ZAdd(ctx, dueKey(), redis.Z{Score: float64(now.Add(putOff).UnixMilli()), Member: user})
	pipe.PExpire(ctx, dueKey(), l.keep())
}

// member is how the script keeps a session's name; someIssuer sets its own apart.
func (r Ref) member() string { return r.Issuer + "\n" + r.ID }

func readMember(text string) (Ref, error) {
	issuer, id, ok := strings.Cut(text, "\n")
	if !ok {
		return Ref{}, errShape
	}
	return Ref{issuer, id}, nil
}

// description is what of a session never changes by itself.
type description struct {
	Device  Device `json:"device"`
	Address string `json:"address,omitempty"`
	Place   Place  `json:"place"`
}

// Register implements Store. The owner is noted first, so that no session is without.
func (r *Redis) Register(ctx context.Context, s Session, l Limits, now time.Time) (Outcome, error) {
	about, err := json.Marshal(description{s.Device, s.Address, s.Place})
	if err != nil {
		return Outcome{}, fmt.Errorf("describe session: %w", err)
	}
	_, err = r.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for _, key := range ownersKeys(s.Ref) {
			pipe.SAdd(ctx, key, s.User)
			pipe.PExpire(ctx, key, l.keep())
		}
		due(ctx, pipe, s.User, l, now)
		return nil
	})
	if err != nil {
		return Outcome{}, fmt.Errorf("%w: note the owner: %w", ErrUnavailable, err)
	}
	return r.do(ctx, s.User, l, now, "register", s.Issuer, s.ID, about, l.Max, string(l.Policy), s.Inferred)
}

// Owners implements Store.
func (r *Redis) Owners(ctx context.Context, ref Ref) ([]string, error) {
	asked := []string{ownersKeys(ref)[0], ownersKeys(Ref{ID: ref.ID})[0]} // an unknown issuer may be this one
	if ref.Issuer == "" {
		asked = []string{ownersKeys(ref)[1]}
	}
	found := make([]*redis.StringSliceCmd, len(asked))
	_, err := r.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i, key := range asked {
			found[i] = pipe.SMembers(ctx, key)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("%w: owners: %w", ErrUnavailable, err)
	}
	var users []string
	for _, f := range found {
		users = append(users, f.Val()...)
	}
	slices.Sort(users)
	return slices.Compact(users), nil
}

// List implements Store.
func (r *Redis) List(ctx context.Context, user string, l Limits, now time.Time) (Outcome, error) {
	return r.do(ctx, user, l, now, "list")
}

// End implements Store.
func (r *Redis) End(ctx context.Context, user string, which Which, l Limits, now time.Time) (Outcome, error) {
	_, err := r.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		due(ctx, pipe, user, l, now)
		return nil
	})
	if err != nil {
		return Outcome{}, fmt.Errorf("%w: note the user: %w", ErrUnavailable, err)
	}
	return r.do(ctx, user, l, now, "end", which.Issuer, which.Only, which.Except)
}

// Touch implements Store, in one round trip.
func (r *Redis) Touch(ctx context.Context, seen []Seen, l Limits, now time.Time) ([]Outcome, error) {
	if len(seen) == 0 {
		return nil, nil
	}
	calls := make([]redisconn.Call, len(seen))
	for i, s := range seen {
		calls[i] = redisconn.Call{Keys: keys(s.User), Args: arguments(l, now, "touch", s.Issuer, s.ID, s.At.UnixMilli())}
	}
	replies, err := r.script.RunAllIdempotent(ctx, r.rdb, calls)
	if err != nil {
		return nil, fmt.Errorf("%w: touch: %w", ErrUnavailable, err)
	}
	outcomes := make([]Outcome, len(seen))
	for i, reply := range replies {
		values, err := reply.Slice()
		if err == nil {
			_, outcomes[i], err = readReply(values, seen[i].User)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: answer to touch: %w", ErrUnavailable, err)
		}
	}
	return outcomes, nil
}

// Settle implements Store. What is settled needs no owner any more.
func (r *Redis) Settle(ctx context.Context, user string, refs []Ref) error {
	if len(refs) == 0 {
		return nil
	}
	_, err := r.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		members := make([]any, len(refs))
		for i, ref := range refs {
			members[i] = ref.member()
			for _, key := range ownersKeys(ref) {
				pipe.SRem(ctx, key, user)
			}
		}
		pipe.SRem(ctx, owedKey(user), members...)
		return nil
	})
	if err != nil {
		return fmt.Errorf("%w: settle: %w", ErrUnavailable, err)
	}
	return nil
}

// Due implements Store. Several processes may be given the same user: what they do then is harmless twice.
func (r *Redis) Due(ctx context.Context, now time.Time) (users []string, claim time.Time, err error) {
	users, err = r.rdb.ZRangeByScore(ctx, dueKey(), &redis.ZRangeBy{Min: "-inf", Max: strconv.FormatInt(now.UnixMilli(), 10), Count: dueBatch}).Result()
	if err != nil || len(users) == 0 {
		return nil, time.Time{}, unavailable("due", err)
	}
	claim = millis(now).Add(putOff)
	members := make([]redis.Z, len(users))
	for i, user := range users {
		members[i] = redis.Z{Score: float64(claim.UnixMilli()), Member: user}
	}
	return users, claim, unavailable("due", r.rdb.ZAddXX(ctx, dueKey(), members...).Err())
}

// Defer implements Store.
func (r *Redis) Defer(ctx context.Context, user string, claim, next time.Time) error {
	at := int64(0)
	if !next.IsZero() {
		at = next.UnixMilli()
	}
	return unavailable("defer", r.defers.RunIdempotent(ctx, r.rdb, []string{dueKey()}, user, claim.UnixMilli(), at).Err())
}

func unavailable(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %s: %w", ErrUnavailable, what, err)
}

func arguments(l Limits, now time.Time, operation string, args ...any) []any {
	return append([]any{
		now.UnixMilli(), l.Idle.Milliseconds(), l.Absolute.Milliseconds(), l.Tombstone.Milliseconds(),
		l.keep().Milliseconds(), operation,
	}, args...)
}

// do runs one operation of the script, once: a second run would not tell what the first one ended.
func (r *Redis) do(ctx context.Context, user string, l Limits, now time.Time, operation string, args ...any) (Outcome, error) {
	reply, err := r.script.Run(ctx, r.rdb, keys(user), arguments(l, now, operation, args...)...).Slice()
	if err != nil {
		return Outcome{}, fmt.Errorf("%w: %s: %w", ErrUnavailable, operation, err)
	}
	status, o, err := readReply(reply, user)
	if err != nil {
		return Outcome{}, fmt.Errorf("%w: answer to %s: %w", ErrUnavailable, operation, err)
	}
	switch status {
	case "ok":
		return o, nil
	case "ended":
		return o, ErrEnded
	case "too_many":
		return o, ErrTooMany
	}
	return Outcome{}, fmt.Errorf("%w: answer to %s: unknown status %q", ErrUnavailable, operation, status)
}

var errShape = errors.New("not of the shape that the script returns")

func readReply(reply []any, user string) (status string, o Outcome, err error) {
	const head, each = 3, 4
	if len(reply) < head || (len(reply)-head)%each != 0 {
		return "", Outcome{}, errShape
	}
	status, ok := reply[0].(string)
	if !ok {
		return "", Outcome{}, errShape
	}
	if o.Ended, err = refs(reply[1]); err != nil {
		return "", Outcome{}, err
	}
	if o.Owed, err = refs(reply[2]); err != nil {
		return "", Outcome{}, err
	}
	for rest := reply[head:]; len(rest) > 0; rest = rest[each:] {
		s, err := readSession(rest[:each], user)
		if err != nil {
			return "", Outcome{}, err
		}
		o.Sessions = append(o.Sessions, s)
	}
	return status, o, nil
}

func refs(v any) ([]Ref, error) {
	list, ok := v.([]any)
	if !ok {
		return nil, errShape
	}
	out := make([]Ref, len(list))
	for i, item := range list {
		text, _ := item.(string)
		var err error
		if out[i], err = readMember(text); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func readSession(fields []any, user string) (Session, error) {
	var field [4]string
	for i, f := range fields {
		var ok bool
		if field[i], ok = f.(string); !ok {
			return Session{}, errShape
		}
	}
	s := Session{User: user}
	var err error
	if s.Ref, err = readMember(field[0]); err != nil {
		return Session{}, err
	}
	for i, at := range []*time.Time{&s.Created, &s.LastSeen} {
		n, err := strconv.ParseFloat(field[i+1], 64)
		if err != nil {
			return Session{}, fmt.Errorf("time of a session: %w", err)
		}
		*at = time.UnixMilli(int64(n))
	}
	var about description
	if err := json.Unmarshal([]byte(field[3]), &about); err != nil {
		return Session{}, fmt.Errorf("description of a session: %w", err)
	}
	s.Device, s.Address, s.Place = about.Device, about.Address, about.Place
	return s, nil
}
