package session

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/redisconn"
)

//go:embed lua/session.lua
var source string

// Redis is the store that every process shares.
type Redis struct {
	rdb    redis.UniversalClient
	script *redis.Script
}

// NewRedis returns a store on rdb.
func NewRedis(rdb redis.UniversalClient) *Redis {
	return &Redis{rdb: rdb, script: redis.NewScript(source)}
}

// keys of a user's sessions, all under one hash tag.
func keys(user string) []string {
	prefix := redisconn.Prefix + "session:{" + redisconn.Escape(user) + "}:"
	return []string{prefix + "created", prefix + "seen", prefix + "about", prefix + "tombs", owedKey(user)}
}

func owedKey(user string) string {
	return redisconn.Prefix + "session:{" + redisconn.Escape(user) + "}:owed"
}

// description is what of a session never changes by itself.
type description struct {
	Issuer  string `json:"issuer,omitempty"`
	Device  Device `json:"device"`
	Address string `json:"address,omitempty"`
	Place   Place  `json:"place"`
}

// Register implements Store.
func (r *Redis) Register(ctx context.Context, s Session, l Limits, now time.Time) (Outcome, error) {
	about, err := json.Marshal(description{s.Issuer, s.Device, s.Address, s.Place})
	if err != nil {
		return Outcome{}, fmt.Errorf("describe session: %w", err)
	}
	return r.do(ctx, s.User, l, now, "register", s.ID, about, l.Max, string(l.Policy), s.Inferred)
}

// List implements Store.
func (r *Redis) List(ctx context.Context, user string, l Limits, now time.Time) (Outcome, error) {
	return r.do(ctx, user, l, now, "list")
}

// End implements Store.
func (r *Redis) End(ctx context.Context, user string, which Which, l Limits, now time.Time) (Outcome, error) {
	return r.do(ctx, user, l, now, "end", which.Only, which.Except)
}

// Touch implements Store, in one round trip.
func (r *Redis) Touch(ctx context.Context, seen []Seen, l Limits, now time.Time) ([]Outcome, error) {
	if len(seen) == 0 {
		return nil, nil
	}
	replies, err := r.touch(ctx, seen, l, now)
	if redis.HasErrorPrefix(err, "NOSCRIPT") { // nobody has run it since Redis started
		if err = r.script.Load(ctx, r.rdb).Err(); err == nil {
			replies, err = r.touch(ctx, seen, l, now)
		}
	}
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

func (r *Redis) touch(ctx context.Context, seen []Seen, l Limits, now time.Time) ([]*redis.Cmd, error) {
	replies := make([]*redis.Cmd, len(seen))
	_, err := r.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i, s := range seen {
			replies[i] = r.script.EvalSha(ctx, pipe, keys(s.User), arguments(l, now, "touch", s.ID, s.At.UnixMilli())...)
		}
		return nil
	})
	return replies, err
}

// Settle implements Store.
func (r *Redis) Settle(ctx context.Context, user string, ids []string) error {
	if len(ids) == 0 {
		return nil
	}
	members := make([]any, len(ids))
	for i, id := range ids {
		members[i] = id
	}
	if err := r.rdb.SRem(ctx, owedKey(user), members...).Err(); err != nil {
		return fmt.Errorf("%w: settle: %w", ErrUnavailable, err)
	}
	return nil
}

func arguments(l Limits, now time.Time, operation string, args ...any) []any {
	return append([]any{
		now.UnixMilli(), l.Idle.Milliseconds(), l.Absolute.Milliseconds(), l.Tombstone.Milliseconds(),
		l.keep().Milliseconds(), operation,
	}, args...)
}

// do runs one operation of the script.
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
	if o.Ended, err = texts(reply[1]); err != nil {
		return "", Outcome{}, err
	}
	if o.Owed, err = texts(reply[2]); err != nil {
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

func texts(v any) ([]string, error) {
	list, ok := v.([]any)
	if !ok {
		return nil, errShape
	}
	out := make([]string, len(list))
	for i, item := range list {
		if out[i], ok = item.(string); !ok {
			return nil, errShape
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
	s := Session{ID: field[0], User: user}
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
	s.Issuer, s.Device, s.Address, s.Place = about.Issuer, about.Device, about.Address, about.Place
	return s, nil
}
