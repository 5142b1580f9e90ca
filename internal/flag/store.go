package flag

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

	"github.com/tollgate-proxy/tollgate/internal/config"
	"github.com/tollgate-proxy/tollgate/internal/redisconn"
)

// Errors of the store. What wraps none of them is Redis's answer, or
// config.Faults where the flags would not compile after the change.
var (
	// ErrNotFound: no such flag, or no such version in its history.
	ErrNotFound = errors.New("flag not found")
	// ErrConflict: the flag is not at the version that the change expected.
	ErrConflict = errors.New("flag was changed meanwhile")
)

const (
	// MaxHistory is how many changes of a flag are kept.
	MaxHistory = 200
	// attempts at writing while others write other flags.
	attempts = 32
	// AnyVersion as a Change's Expect changes whatever is there.
	AnyVersion int64 = -1
)

// keys share a hash tag: one script writes them all.
const (
	keyRoot        = redisconn.Prefix + "flag:{flags}:"
	keyDefinitions = keyRoot + "definitions"
	keyVersions    = keyRoot + "versions"
	keyVersion     = keyRoot + "version"
	keyHistory     = keyRoot + "history:"
	noticeChannel  = keyRoot + "changed"
)

var (
	//go:embed lua/read.lua
	readSource string
	//go:embed lua/write.lua
	writeSource string
)

// Record is a stored definition.
type Record struct {
	Definition Definition
	// Version counts the flag's changes from 1, deletions included.
	Version int64
	// Updated is when, and UpdatedBy by whom, the version was written.
	Updated   time.Time
	UpdatedBy string
}

// Change says who changes a flag and why.
type Change struct {
	Actor  string
	Reason string
	// Expect is the version that the flag must be at: 0 for a flag that does
	// not exist, [AnyVersion] for any.
	Expect int64
}

// Entry is one change in a flag's history.
type Entry struct {
	Version int64     `json:"version"`
	At      time.Time `json:"at"`
	Actor   string    `json:"actor"`
	// Action is create, update, delete, revert or seed.
	Action string `json:"action"`
	Reason string `json:"reason,omitempty"`
	// Definition is the flag after the change; null after a deletion.
	Definition json.RawMessage `json:"definition"`
}

// Snapshot is everything the store holds at one moment.
type Snapshot struct {
	// Version counts the changes of all flags; 0 before the first one.
	Version int64
	// Records are the flags, sorted by key.
	Records []Record
	// Broken are stored flags that this program cannot read.
	Broken map[string]error
}

// Definitions are the snapshot's flags.
func (s *Snapshot) Definitions() *Definitions {
	defs := &Definitions{Flags: make(map[string]Definition, len(s.Records))}
	for _, r := range s.Records {
		defs.Flags[r.Definition.Key] = r.Definition
	}
	return defs
}

// find returns the flag's record, nil if there is none.
func (s *Snapshot) find(key string) *Record {
	i, ok := slices.BinarySearchFunc(s.Records, key, func(r Record, key string) int {
		switch {
		case r.Definition.Key < key:
			return -1
		case r.Definition.Key > key:
			return 1
		}
		return 0
	})
	if !ok {
		return nil
	}
	return &s.Records[i]
}

// stored is a record's JSON, but for the version that the script puts before.
type stored struct {
	Version    int64           `json:"version,omitempty"`
	Updated    time.Time       `json:"updated"`
	UpdatedBy  string          `json:"updated_by"`
	Definition json.RawMessage `json:"definition"`
}

// Store keeps definitions in Redis. It is safe for concurrent use, by several
// processes too: every change is one atomic script, against the version of the
// whole set that it was checked with.
type Store struct {
	rdb   redis.UniversalClient
	read  *redis.Script
	write *redis.Script
	now   func() time.Time
}

// NewStore makes a store on a client; now stamps changes.
func NewStore(rdb redis.UniversalClient, now func() time.Time) *Store {
	return &Store{rdb: rdb, read: redis.NewScript(readSource), write: redis.NewScript(writeSource), now: now}
}

// List reads every flag at one moment.
func (s *Store) List(ctx context.Context) (Snapshot, error) {
	answer, err := s.read.Run(ctx, s.rdb, []string{keyDefinitions, keyVersion}).Slice()
	if err != nil {
		return Snapshot{}, fmt.Errorf("read flags: %w", err)
	}
	version, all, err := parseAnswer(answer)
	if err != nil {
		return Snapshot{}, fmt.Errorf("read flags: %w", err)
	}
	snapshot := Snapshot{Version: version, Broken: map[string]error{}}
	for _, key := range slices.Sorted(maps.Keys(all)) {
		r, err := parseRecord(key, []byte(all[key]))
		if err != nil {
			snapshot.Broken[key] = err
			continue
		}
		snapshot.Records = append(snapshot.Records, r)
	}
	return snapshot, nil
}

// parseAnswer reads the read script's answer: the version, and flags and
// records in turn.
func parseAnswer(answer []any) (version int64, records map[string]string, err error) {
	if len(answer) != 2 {
		return 0, nil, fmt.Errorf("answer of %d parts", len(answer))
	}
	text, isText := answer[0].(string)
	pairs, isList := answer[1].([]any)
	if !isText || !isList || len(pairs)%2 != 0 {
		return 0, nil, fmt.Errorf("answer of %T and %T", answer[0], answer[1])
	}
	if version, err = strconv.ParseInt(text, 10, 64); err != nil {
		return 0, nil, fmt.Errorf("version of flags: %w", err)
	}
	records = make(map[string]string, len(pairs)/2)
	for i := 0; i < len(pairs); i += 2 {
		key, isKey := pairs[i].(string)
		record, isRecord := pairs[i+1].(string)
		if !isKey || !isRecord {
			return 0, nil, fmt.Errorf("flag of %T and %T", pairs[i], pairs[i+1])
		}
		records[key] = record
	}
	return version, records, nil
}

// Version reads the set's version alone.
func (s *Store) Version(ctx context.Context) (int64, error) {
	version, err := s.rdb.Get(ctx, keyVersion).Int64()
	if err != nil && !errors.Is(err, redis.Nil) {
		return 0, fmt.Errorf("read version of flags: %w", err)
	}
	return version, nil
}

func parseRecord(key string, data []byte) (Record, error) {
	var raw stored
	if err := json.Unmarshal(data, &raw); err != nil {
		return Record{}, fmt.Errorf("stored flag %s: %w", key, err)
	}
	def, err := ParseFlag("stored flag "+key, key, raw.Definition)
	if err != nil {
		return Record{}, err
	}
	return Record{Definition: def, Version: raw.Version, Updated: raw.Updated, UpdatedBy: raw.UpdatedBy}, nil
}

// Get reads one flag, or ErrNotFound.
func (s *Store) Get(ctx context.Context, key string) (Record, error) {
	data, err := s.rdb.HGet(ctx, keyDefinitions, key).Bytes()
	if errors.Is(err, redis.Nil) {
		return Record{}, fmt.Errorf("%w: %q", ErrNotFound, key)
	}
	if err != nil {
		return Record{}, fmt.Errorf("read flag %q: %w", key, err)
	}
	return parseRecord(key, data)
}

// Put writes a whole definition, which must come from [ParseFlag] or [Parse].
func (s *Store) Put(ctx context.Context, def Definition, c Change) (Record, error) {
	return s.change(ctx, def.Key, "update", c, func(*Record) (*Definition, error) { return &def, nil })
}

// Update changes an existing definition by a function, which may be called
// more than once. The changed definition is checked like a new one.
func (s *Store) Update(ctx context.Context, key string, c Change, edit func(*Definition) error) (Record, error) {
	return s.change(ctx, key, "update", c, func(current *Record) (*Definition, error) {
		if current == nil {
			return nil, fmt.Errorf("%w: %q", ErrNotFound, key)
		}
		def := current.Definition
		if err := edit(&def); err != nil {
			return nil, err
		}
		data, err := json.Marshal(def)
		if err != nil {
			return nil, fmt.Errorf("encode flag %q: %w", key, err)
		}
		def, err = ParseFlag("changed flag", key, data)
		return &def, err
	})
}

// Delete removes a flag; its history stays.
func (s *Store) Delete(ctx context.Context, key string, c Change) error {
	_, err := s.change(ctx, key, "delete", c, func(*Record) (*Definition, error) { return nil, nil })
	return err
}

// History reads the changes of a flag, the newest first, at most limit.
func (s *Store) History(ctx context.Context, key string, limit int) ([]Entry, error) {
	lines, err := s.rdb.LRange(ctx, keyHistory+redisconn.Escape(key), 0, int64(limit)-1).Result()
	if err != nil {
		return nil, fmt.Errorf("read history of flag %q: %w", key, err)
	}
	entries := make([]Entry, len(lines))
	for i, line := range lines {
		if err := json.Unmarshal([]byte(line), &entries[i]); err != nil {
			return nil, fmt.Errorf("history of flag %q: %w", key, err)
		}
	}
	return entries, nil
}

// Revert writes the definition that the flag had at a version of its history,
// as a new version; a flag deleted since comes back.
func (s *Store) Revert(ctx context.Context, key string, version int64, c Change) (Record, error) {
	entries, err := s.History(ctx, key, MaxHistory)
	if err != nil {
		return Record{}, err
	}
	i := slices.IndexFunc(entries, func(e Entry) bool { return e.Version == version })
	if i < 0 || string(entries[i].Definition) == "null" {
		return Record{}, fmt.Errorf("%w: %q has no definition at version %d", ErrNotFound, key, version)
	}
	def, err := ParseFlag(fmt.Sprintf("version %d of the flag", version), key, entries[i].Definition)
	if err != nil {
		return Record{}, err
	}
	return s.change(ctx, key, "revert", c, func(*Record) (*Definition, error) { return &def, nil })
}

// change applies one change to a snapshot, checks that all flags still compile
// together, and writes if nothing was written meanwhile; otherwise it starts
// again. edit gets nil for a flag that does not exist and gives nil to delete.
func (s *Store) change(ctx context.Context, key, action string, c Change, edit func(*Record) (*Definition, error)) (Record, error) {
	for range attempts {
		snapshot, err := s.List(ctx)
		if err != nil {
			return Record{}, err
		}
		current := snapshot.find(key)
		at := int64(0)
		if current != nil {
			at = current.Version
		}
		_, broken := snapshot.Broken[key]
		if c.Expect >= 0 && (at != c.Expect || broken) {
			return Record{}, fmt.Errorf("%w: %q is at version %d, not %d", ErrConflict, key, at, c.Expect)
		}
		if action == "delete" && current == nil && !broken {
			return Record{}, fmt.Errorf("%w: %q", ErrNotFound, key)
		}
		def, err := edit(current)
		if err != nil {
			return Record{}, err
		}
		all := snapshot.Definitions()
		if delete(all.Flags, key); def != nil {
			all.Flags[key] = *def
		}
		if _, err := Compile(all); err != nil {
			return Record{}, err
		}
		does := action
		if does == "update" && current == nil {
			does = "create"
		}
		r, written, err := s.run(ctx, s.rdb, key, strconv.FormatInt(snapshot.Version, 10), does, def, c, 1)
		if err != nil || written {
			return r, err
		}
	}
	return Record{}, fmt.Errorf("%w: others kept changing flags while %q was written", ErrConflict, key)
}

// run runs the script.
func (s *Store) run(ctx context.Context, rdb redis.Scripter, key, expect, action string, def *Definition, c Change, lowest int64) (Record, bool, error) {
	call, r, err := s.call(ctx, rdb, key, expect, action, def, c, lowest)
	if err != nil {
		return Record{}, false, err
	}
	out, err := call.Int64Slice()
	if err != nil {
		return Record{}, false, fmt.Errorf("write flag %q: %w", key, err)
	}
	r.Version = out[1]
	return r, out[0] == 1, nil
}

func (s *Store) call(ctx context.Context, rdb redis.Scripter, key, expect, action string, def *Definition, c Change, lowest int64) (*redis.Cmd, Record, error) {
	now := s.now().UTC()
	r := Record{Updated: now, UpdatedBy: c.Actor}
	definition, record := []byte("null"), []byte{}
	if def != nil {
		r.Definition = *def
		var err error
		if definition, err = json.Marshal(def); err != nil {
			return nil, r, fmt.Errorf("encode flag %q: %w", key, err)
		}
		if len(definition) > MaxFlagBytes {
			return nil, r, config.Faults{{
				File: "flag", Key: key, Value: strconv.Itoa(len(definition)), Allowed: fmt.Sprintf("at most %d bytes", MaxFlagBytes),
			}}
		}
		if record, err = json.Marshal(stored{Updated: now, UpdatedBy: c.Actor, Definition: definition}); err != nil {
			return nil, r, fmt.Errorf("encode flag %q: %w", key, err)
		}
	}
	entry, err := json.Marshal(struct {
		At         time.Time       `json:"at"`
		Actor      string          `json:"actor"`
		Action     string          `json:"action"`
		Reason     string          `json:"reason,omitempty"`
		Definition json.RawMessage `json:"definition"`
	}{now, c.Actor, action, c.Reason, definition})
	if err != nil {
		return nil, r, fmt.Errorf("encode history of flag %q: %w", key, err)
	}
	keys := []string{keyDefinitions, keyVersions, keyVersion, keyHistory + redisconn.Escape(key)}
	return s.write.Run(ctx, rdb, keys, key, expect, record, entry, MaxHistory, noticeChannel, lowest), r, nil
}

// Seed writes those definitions whose keys Redis has never seen, deleted flags
// included, and says how many. lowest gives versions below which a flag must
// not start; it may be nil.
func (s *Store) Seed(ctx context.Context, defs *Definitions, lowest map[string]int64, c Change) (int, error) {
	seen, err := s.rdb.HGetAll(ctx, keyVersions).Result()
	if err != nil {
		return 0, fmt.Errorf("read versions of flags: %w", err)
	}
	n := 0
	for _, key := range slices.Sorted(maps.Keys(defs.Flags)) {
		if _, ok := seen[key]; ok {
			continue
		}
		def := defs.Flags[key]
		_, written, err := s.run(ctx, s.rdb, key, "seed", "seed", &def, c, max(1, lowest[key]))
		if err != nil {
			return n, err
		}
		if written {
			n++
		}
	}
	return n, nil
}
