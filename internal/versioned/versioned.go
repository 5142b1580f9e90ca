// Package versioned keeps a set of named documents in Redis, with what several
// processes need to change it together and to follow it: a version of the whole
// set to compare and set against, versions of each document that never come
// again, histories, and notices of changes.
//
// What the documents mean is the caller's: a change is made by reading the set,
// checking the change against all of it, and writing only if nobody has written
// meanwhile.
package versioned

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/redisconn"
)

// MaxHistory is how many changes of a document are kept.
const MaxHistory = 200

var (
	//go:embed lua/read.lua
	readSource string
	//go:embed lua/write.lua
	writeSource string
)

// Store is one set of documents. It is safe for concurrent use, by several
// processes too.
type Store struct {
	rdb         redis.UniversalClient
	root        string
	read, write *redisconn.Script
}

// New makes a store. root begins its keys, such as "tollgate:flag:{flags}:": it
// has a hash tag, since one script writes them all.
func New(rdb redis.UniversalClient, root string) *Store {
	return &Store{rdb: rdb, root: root, read: redisconn.NewScript(readSource), write: redisconn.NewScript(writeSource)}
}

// Set is every document at one moment.
type Set struct {
	// Version counts the documents written; 0 before the first one.
	Version int64
	// Documents by name.
	Documents map[string]string
	// Versions of all documents that were ever there, by name.
	Versions map[string]int64
}

// Read reads the whole set.
func (s *Store) Read(ctx context.Context) (Set, error) {
	answer, err := s.read.RunIdempotent(ctx, s.rdb, s.keys()).Slice()
	if err != nil {
		return Set{}, err
	}
	return parse(answer)
}

func (s *Store) keys() []string {
	return []string{s.root + "definitions", s.root + "versions", s.root + "version"}
}

func parse(answer []any) (Set, error) {
	if len(answer) != 3 {
		return Set{}, fmt.Errorf("answer of %d parts", len(answer))
	}
	set := Set{Versions: map[string]int64{}}
	text, _ := answer[0].(string)
	var err error
	if set.Version, err = strconv.ParseInt(text, 10, 64); err != nil {
		return Set{}, fmt.Errorf("version of the set: %w", err)
	}
	if set.Documents, err = Fields(answer[1]); err != nil {
		return Set{}, err
	}
	versions, err := Fields(answer[2])
	if err != nil {
		return Set{}, err
	}
	for name, text := range versions {
		if set.Versions[name], err = strconv.ParseInt(text, 10, 64); err != nil {
			return Set{}, fmt.Errorf("version of %q: %w", name, err)
		}
	}
	return set, nil
}

// Fields reads a hash of a script's answer: fields and values in turn.
func Fields(answer any) (map[string]string, error) {
	pairs, ok := answer.([]any)
	if !ok || len(pairs)%2 != 0 {
		return nil, fmt.Errorf("answer of %T", answer)
	}
	out := make(map[string]string, len(pairs)/2)
	for i := 0; i < len(pairs); i += 2 {
		field, isField := pairs[i].(string)
		value, isValue := pairs[i+1].(string)
		if !isField || !isValue {
			return nil, fmt.Errorf("answer of %T and %T", pairs[i], pairs[i+1])
		}
		out[field] = value
	}
	return out, nil
}

// Version reads the set's version alone.
func (s *Store) Version(ctx context.Context) (int64, error) {
	version, err := s.rdb.Get(ctx, s.root+"version").Int64()
	if errors.Is(err, redis.Nil) {
		return 0, nil
	}
	return version, err
}

// Get reads one document; "" where there is none.
func (s *Store) Get(ctx context.Context, name string) (string, error) {
	document, err := s.rdb.HGet(ctx, s.root+"definitions", name).Result()
	if errors.Is(err, redis.Nil) {
		return "", nil
	}
	return document, err
}

// Write is a new version of one document.
type Write struct {
	Version int64
	// Document is empty where the document is deleted.
	Document []byte
	// Entry is the change, for the history.
	Entry []byte
}

// Write writes documents by name, all or nothing, and gives notice. It reports
// false where the set is not at the expected version any more. Where the answer
// got lost, it may be written or not: a second run would call its own first one a
// conflict.
func (s *Store) Write(ctx context.Context, expect int64, writes map[string]Write) (bool, error) {
	keys, args := s.keys(), []any{strconv.FormatInt(expect, 10), MaxHistory, s.channel()}
	for _, name := range slices.Sorted(maps.Keys(writes)) {
		w := writes[name]
		keys = append(keys, s.history(name))
		args = append(args, name, w.Version, w.Document, w.Entry)
	}
	written, err := s.write.Run(ctx, s.rdb, keys, args...).Int64()
	return written == 1, err
}

func (s *Store) channel() string { return s.root + "changed" }

func (s *Store) history(name string) string { return s.root + "history:" + redisconn.Escape(name) }

// History reads the changes of a document as E, the newest first, at most limit.
// The history of a deleted document stays.
func History[E any](ctx context.Context, s *Store, name string, limit int) ([]E, error) {
	lines, err := s.rdb.LRange(ctx, s.history(name), 0, int64(limit)-1).Result()
	if err != nil {
		return nil, err
	}
	entries := make([]E, len(lines))
	for i, line := range lines {
		if err := json.Unmarshal([]byte(line), &entries[i]); err != nil {
			return nil, err
		}
	}
	return entries, nil
}

// Find gives the newest change in a document's history for which is holds; false
// where there is none among those that are kept.
func Find[E any](ctx context.Context, s *Store, name string, is func(E) bool) (E, bool, error) {
	var none E
	entries, err := History[E](ctx, s, name, MaxHistory)
	if err != nil {
		return none, false, err
	}
	if i := slices.IndexFunc(entries, is); i >= 0 {
		return entries[i], true, nil
	}
	return none, false, nil
}

// Follower calls a function whenever a store may have changed: on notices, and at
// intervals for those that were missed.
type Follower struct {
	poll time.Duration
	wake chan struct{}
}

// NewFollower makes a follower that looks at least every poll.
func NewFollower(poll time.Duration) *Follower {
	return &Follower{poll: poll, wake: make(chan struct{}, 1)}
}

// Wake looks soon, without waiting for a notice.
func (f *Follower) Wake() {
	select {
	case f.wake <- struct{}{}:
	default: // that is due already
	}
}

// Run calls look at once, and then whenever there may be something new, until
// the context ends. Redis may be down at any time.
func (f *Follower) Run(ctx context.Context, s *Store, look func(ctx context.Context)) {
	notices := s.rdb.Subscribe(ctx, s.channel())
	defer func() { _ = notices.Close() }() // the connection goes with the process
	poll := time.NewTicker(f.poll)
	defer poll.Stop()
	// Also a (re)established subscription is a message: what changed while there
	// was none is read then.
	messages := notices.ChannelWithSubscriptions()
	for {
		look(ctx)
		select {
		case <-ctx.Done():
			return
		case <-f.wake:
		case <-messages:
		case <-poll.C:
		}
	}
}
