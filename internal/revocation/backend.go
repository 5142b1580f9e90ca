package revocation

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/redisconn"
)

// backend is the whole of what Store and Replica say to Redis. Its errors wrap ErrUnavailable.
type backend struct {
	rdb                redis.UniversalClient
	open, write, prune *redisconn.Script
}

func newBackend(rdb redis.UniversalClient) backend {
	return backend{
		rdb: rdb, open: redisconn.NewScript(openSource), write: redisconn.NewScript(writeSource), prune: redisconn.NewScript(pruneSource),
	}
}

// written is what the write script answers.
type written struct {
	seq     int64
	changed int
	final   []change // the batch, with the marks as they now stand
}

// put runs the write script on one batch, once: a second run would tell of no change, and move a mark on.
func (b *backend) put(ctx context.Context, mode string, batch []change, now time.Time) (written, error) {
	args := make([]any, 0, 4+2*len(batch))
	args = append(args, mode, now.Unix(), rand.Text(), feedLength)
	for _, c := range batch {
		args = append(args, c.member(), c.value())
	}
	reply, err := b.write.Run(ctx, b.rdb, []string{keyMeta, keyEntries, keyMarks, keyFeed}, args...).Slice()
	if err != nil {
		return written{}, fmt.Errorf("%w: write %d changes: %w", ErrUnavailable, len(batch), err)
	}
	w, err := readWritten(reply, batch)
	if err != nil {
		return written{}, fmt.Errorf("%w: answer of the write script: %w", ErrUnavailable, err)
	}
	return w, nil
}

func readWritten(reply []any, batch []change) (written, error) {
	if len(reply) < 2 {
		return written{}, fmt.Errorf("%d values: want at least 2", len(reply))
	}
	seq, ok := reply[0].(int64)
	changed, alsoOK := reply[1].(int64)
	if !ok || !alsoOK {
		return written{}, errors.New("the first two values are not numbers")
	}
	w := written{seq: seq, changed: int(changed), final: make([]change, 0, len(batch))}
	reply = reply[2:]
	for _, c := range batch {
		if c.isMark {
			if len(reply) == 0 {
				return written{}, errors.New("a mark is missing")
			}
			value, _ := reply[0].(string)
			reply = reply[1:]
			var err error
			if c.mark, err = parseMark(value); err != nil {
				return written{}, err
			}
		}
		w.final = append(w.final, c)
	}
	return w, nil
}

// pruneSize bounds what one prune removes.
const pruneSize = 1000

// pruneSome removes up to pruneSize of what expired before now, and tells how many went.
func (b *backend) pruneSome(ctx context.Context, now int64) (int, error) {
	n, err := b.prune.RunIdempotent(ctx, b.rdb, []string{keyEntries, keyMarks}, now, strconv.Itoa(pruneSize)).Int()
	if err != nil {
		return 0, fmt.Errorf("%w: prune: %w", ErrUnavailable, err)
	}
	return n, nil
}

// standing is where Redis says it is.
type standing struct {
	at      position
	evicted bool      // state is gone that had not expired
	time    time.Time // Redis's clock
}

// spare is how long a key may be gone before it is missed, in seconds: Redis expires keys by its own clock.
const spare = 60

func (b *backend) standing(ctx context.Context) (standing, error) {
	var meta *redis.SliceCmd
	var entries, marks *redis.IntCmd
	var clock *redis.TimeCmd
	_, err := b.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		meta = pipe.HMGet(ctx, keyMeta, fieldSeq, fieldLink, fieldUntil, fieldMarked)
		entries = pipe.Exists(ctx, keyEntries) // asked after meta, which is never written without them
		marks = pipe.Exists(ctx, keyMarks)
		clock = pipe.Time(ctx)
		return nil
	})
	if err != nil {
		return standing{}, fmt.Errorf("%w: read position: %w", ErrUnavailable, err)
	}
	s := standing{time: clock.Val()}
	fields := meta.Val()
	if len(fields) != 4 || fields[0] == nil {
		return s, nil // nothing was ever written, or all of it expired or was lost
	}
	number := func(i int) (n int64) {
		text, _ := fields[i].(string)
		n, bad := strconv.ParseInt(text, 10, 64)
		if bad != nil {
			err = bad
		}
		return n
	}
	s.at.seq = number(0)
	s.at.link, _ = fields[1].(string)
	lateEntries, lateMarks := number(2), number(3)
	if err != nil {
		return standing{}, fmt.Errorf("%w: read position: %w", ErrUnavailable, err)
	}
	due := s.time.Unix() + spare
	s.evicted = (entries.Val() == 0 && lateEntries > due) || (marks.Val() == 0 && lateMarks > due)
	return s, nil
}

// origin is how long a history without a revocation is kept. Where it runs out, replicas begin another.
const origin = 25 * time.Hour

// begin gives the position from which to take a snapshot; it begins a history where there is none.
func (b *backend) begin(ctx context.Context) (standing, error) {
	if err := b.open.RunIdempotent(ctx, b.rdb, []string{keyMeta}, rand.Text(), int(origin.Seconds())).Err(); err != nil {
		return standing{}, fmt.Errorf("%w: begin a history: %w", ErrUnavailable, err)
	}
	s, err := b.standing(ctx)
	if err == nil && s.at.link == "" {
		err = fmt.Errorf("%w: the history was lost at once", ErrUnavailable)
	}
	return s, err
}

// forget removes the position, after which every replica synchronises in full and writes back what it knows.
func (b *backend) forget(ctx context.Context) error {
	if err := b.rdb.Del(ctx, keyMeta).Err(); err != nil {
		return fmt.Errorf("%w: reset position: %w", ErrUnavailable, err)
	}
	return nil
}

// noBlock makes tail return at once.
const noBlock = -1

// tail reads the feed after a position, waiting up to block for something to come; nothing is not an error. bad counts
// what could not be read.
func (b *backend) tail(ctx context.Context, after position, block time.Duration) (messages []message, bad int, err error) {
	const batches = 64
	const grace = 2 * time.Second
	ctx, cancel := context.WithTimeout(ctx, max(block, 0)+grace) // go-redis would wait for ten seconds more than block
	defer cancel()
	streams, err := b.rdb.XRead(ctx, &redis.XReadArgs{
		Streams: []string{keyFeed, after.feedID()},
		Count:   batches,
		Block:   block,
	}).Result()
	if errors.Is(err, redis.Nil) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, fmt.Errorf("%w: read feed: %w", ErrUnavailable, err)
	}
	for _, stream := range streams {
		for _, raw := range stream.Messages {
			m, unread, err := parseMessage(raw)
			if err != nil {
				return nil, bad, fmt.Errorf("%w: %w", ErrUnavailable, err)
			}
			bad += unread
			messages = append(messages, m)
		}
	}
	return messages, bad, nil
}

// scan calls visit for every entry and mark. What is written meanwhile may be missed: it is on the feed.
func (b *backend) scan(ctx context.Context, visit func(change)) (bad int, err error) {
	const page = 2000
	take := func(pairs []string, marks bool) {
		for i := 0; i+1 < len(pairs); i += 2 {
			if _, isMark, ok := parseMember(pairs[i]); ok && isMark != marks {
				continue // the sorted set holds the marks' expiry too
			}
			c, err := parseChange(pairs[i], pairs[i+1])
			if err != nil {
				bad++
				continue
			}
			visit(c)
		}
	}
	var cursor uint64
	for {
		var pairs []string
		pairs, cursor, err = b.rdb.HScan(ctx, keyMarks, cursor, "", page).Result()
		if err != nil {
			return bad, fmt.Errorf("%w: read marks: %w", ErrUnavailable, err)
		}
		take(pairs, true)
		if cursor == 0 {
			break
		}
	}
	for {
		var pairs []string
		pairs, cursor, err = b.rdb.ZScan(ctx, keyEntries, cursor, "", page).Result()
		if err != nil {
			return bad, fmt.Errorf("%w: read entries: %w", ErrUnavailable, err)
		}
		take(pairs, false)
		if cursor == 0 {
			return bad, nil
		}
	}
}

// look asks for entries and marks by member, in one round trip. The answers are in the order of the members.
func (b *backend) look(ctx context.Context, entries, marks []string) (found []bool, values []mark, err error) {
	// Through go-redis's own method an absent member would look like one with score 0.
	args := make([]any, 0, 2+len(entries))
	args = append(args, "zmscore", keyEntries)
	for _, member := range entries {
		args = append(args, member)
	}
	var scores *redis.Cmd
	var texts *redis.SliceCmd
	_, err = b.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		scores = pipe.Do(ctx, args...)
		texts = pipe.HMGet(ctx, keyMarks, marks...)
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("%w: check: %w", ErrUnavailable, err)
	}
	raw, err := scores.Slice()
	if err != nil {
		return nil, nil, fmt.Errorf("%w: check: %w", ErrUnavailable, err)
	}
	if len(raw) != len(entries) || len(texts.Val()) != len(marks) {
		return nil, nil, fmt.Errorf("%w: check: %d and %d answers: want %d and %d",
			ErrUnavailable, len(raw), len(texts.Val()), len(entries), len(marks))
	}
	for _, score := range raw {
		found = append(found, score != nil)
	}
	for _, value := range texts.Val() {
		var m mark
		if text, ok := value.(string); ok {
			if m, err = parseMark(text); err != nil {
				return nil, nil, fmt.Errorf("%w: check: %w", ErrUnavailable, err)
			}
		}
		values = append(values, m)
	}
	return found, values, nil
}
